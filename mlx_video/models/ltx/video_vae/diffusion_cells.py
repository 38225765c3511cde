"""The cells of the diffusion decoder's stages, their tiles and the memory they need: arithmetic on its config."""

import math
from dataclasses import dataclass
from functools import partial

from mlx_video.models.ltx.loading.memory_table import FLOAT32, on_gpu
from mlx_video.models.ltx.vae_config import DiffusionDecoderConfig
from mlx_video.models.ltx.video_vae.decoding import PIECE, StreamPlan, Tiling
from mlx_video.models.ltx.video_vae.diffusion_blocks import BAND
from mlx_video.models.ltx.video_vae.neighborhood import TILE
from mlx_video.models.ltx.video_vae.tiling import (
    FRAMES,
    PIXELS,
    TileGrid,
    TilingConfig,
    cuts_of,
)

PIECE_SHARE = 3  # a piece's size in ``elements``; few arrays of it are alive, since rows go in bands
# Arrays that are alive at once, ...
LIVE_PIECES = 3  # ... of the size of a piece; on a GPU (an H200) with the frames that its windows reach
LIVE_BANDS = 2  # ... of a ``BAND`` on a GPU: one queued and one running
CPU_MLP = 21  # ... of a band in its MLP, on a CPU
CPU_SCORES = 19  # ... or, while it attends, of the scores ...
CPU_ATTENDING = 5.5  # ... and of the band


@dataclass(frozen=True)
class Cells:
    """The cells of every stage of a decoder with this ``config``. Shapes are those of latents, (B, C, F, H, W)."""

    config: DiffusionDecoderConfig

    @property
    def last(self) -> int:
        """The index of the stage that makes pixels; the one before it is cut into tiles."""
        return len(self.config.upsamples)

    def per_latent(self, stage: int) -> tuple[int, int, int]:
        """Cells of a stage per latent cell, along each axis."""
        strides = [stride for stride, _ in self.config.upsamples[:stage]]
        return tuple(math.prod(s[axis] for s in strides) for axis in range(3))

    def all_frames(self, stage: int, shape: tuple[int, ...]) -> int:
        """Frames of a stage for padded latents, including the appendix."""
        return (shape[2] + self.appendix - 1) * self.per_latent(stage)[0] + 1

    @property
    def least_latents(self) -> tuple[int, int, int]:
        """Fewest latent frames, rows and columns into which every window of every stage fits."""
        kernels = enumerate(self.config.stage_kernels)
        stages = (zip(kernel, self.per_latent(stage)) for stage, kernel in kernels)
        least = ([math.ceil(size / cells) for size, cells in axes] for axes in stages)
        return tuple(map(max, *least))

    @property
    def appendix(self) -> int:
        """How often the last latent frame is repeated after the clip."""
        return self.config.stage_kernels[0][0] // 2 * 2

    def frames(self, shape: tuple[int, ...]) -> int:
        """Frames that the last stage makes of padded latents; the context also has those of the appendix."""
        time = self.per_latent(self.last)[0]
        return max((shape[2] - 1) * time + 1, self.config.stage_kernels[-1][0])

    def least_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the padded latents."""
        return *shape[:2], *map(max, self.least_latents, shape[2:])

    def grid(self, shape: tuple[int, ...], tiling: TilingConfig) -> TileGrid:
        """Cuts from cells of the second last stage to pixels, for padded latents of ``shape``."""
        stage, patch = self.last - 1, self.config.patch_size
        _, height, width = self.per_latent(stage)
        step, *steps = self.config.upsamples[stage][0]
        frames, pixels = self.least_overlap
        last = self.all_frames(stage, shape)
        cells = (self.frames(shape) - 1) // step + 1
        times = cuts_of(
            cells, step, tiling.temporal_config, least_overlap=frames, late=step - 1
        )
        first = times[-1].source.start  # the last tile includes the appendix
        times[-1] = times[-1]._replace(source=slice(first, last))
        sides = shape[3] * height, shape[4] * width
        cut = partial(cuts_of, config=tiling.spatial_config, longest=max(sides))
        return times, *(
            cut(side, step * patch, least_overlap=pixels)
            for side, step in zip(sides, steps)
        )

    @property
    def least_overlap(self) -> tuple[int, int]:
        """Fewest frames and pixels that tiles must share: the reach of the windows of their stages."""
        *_, before, last = self.config.stage_kernels
        *_, depth_before, depth = self.config.stage_depths
        stride, patch = self.config.upsamples[-1][0], self.config.patch_size
        time, *space = (
            max(depth_before * (wide // 2) * step, depth * (fine // 2))
            for wide, fine, step in zip(before, last, stride)
        )
        pixels = max(space) * patch
        return math.ceil(time / FRAMES) * FRAMES, math.ceil(pixels / PIXELS) * PIXELS

    def activation_bytes(
        self, shape: tuple[int, ...], tiling: Tiling, itemsize: int
    ) -> int:
        """About how many bytes decoding latents of ``shape`` needs besides the weights, at ``itemsize`` bytes per element.

        These are the frames that each block keeps from before the current piece, the context that the last block still
        needs, the piece, and its bands of rows. For tiles: the same for the largest tile, the cells that are cut into
        tiles, and the blended pixels.
        """
        shape = self.least_shape(shape)
        if isinstance(tiling, StreamPlan):
            return self._piece_bytes(shape, tiling.elements, itemsize)
        stage = self.last - 1
        grid, scale = self.grid(shape, tiling), self.per_latent(stage)
        tile = [
            math.ceil(max(cut.cells for cut in cuts) / cells)
            for cuts, cells in zip(grid, scale)
        ]
        B, _, _, H, W = shape
        cells = B * self.all_frames(stage, shape) * H * W * math.prod(scale[1:])
        cells *= self.config.stage_channels[stage] * itemsize
        pixels = B * max(len(cut.mask) for cut in grid[0]) * H * W
        _, height, width = self.config.decoder_scale
        pixels *= height * width * self.config.out_channels * FLOAT32
        # The cells exist twice while their pieces are joined.
        return self._piece_bytes((B, 0, *tile), PIECE, itemsize) + 2 * cells + pixels

    def _piece_bytes(self, shape: tuple[int, ...], elements: int, itemsize: int) -> int:
        B, _, _, H, W = shape
        frames = [
            B * H * W * math.prod(self.per_latent(stage)[1:]) * width
            for stage, width in enumerate(self.config.stage_channels)
        ]
        blocks = self.config.stage_depths
        kernels = [kernel[0] for kernel in self.config.stage_kernels]
        kept = sum(n * (k - 1) * f for n, k, f in zip(blocks, kernels, frames))
        whole, last = self.frames(shape), frames[-1]
        count = PIECE_SHARE * elements // last
        piece = min(whole, max(self.config.decoder_scale.time, count))
        context = min(whole, blocks[-1] * (kernels[-1] // 2) + piece)
        band = min(BAND, (piece + kernels[-1] - 1) * last)
        if on_gpu():
            seen = min(whole, piece + kernels[-1] - 1)
            held = kept + (context + LIVE_PIECES * seen) * last
            return (held + LIVE_BANDS * band) * itemsize
        held = kept + (context + LIVE_PIECES * piece) * last
        scores = self._scores(B, W, min(whole, count))
        attending = CPU_SCORES * scores + CPU_ATTENDING * band
        return round((held + max(CPU_MLP * band, attending)) * FLOAT32)

    def _scores(self, B: int, columns: int, frames: int) -> int:
        """Attention scores of a run of tiles in the last stage, which a CPU stores."""
        *_, width = self.config.stage_channels
        tile = min(TILE[0], max(1, frames)), *TILE[1:]
        seen = math.prod(q + k - 1 for q, k in zip(tile, self.config.stage_kernels[-1]))
        tiles = math.ceil(columns * self.per_latent(self.last)[2] / TILE[2])
        heads = width // self.config.head_dim
        return B * tiles * heads * math.prod(tile) * seen
