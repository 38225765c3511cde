"""The diffusion decoder of LTX-2.5: latents to pixels by neighbourhood attention, in one step from noise.

Knows its stages and tiles, not what is inside a block.

Four stages with more and more cells turn latents into a context. The fifth turns noise into pixels, given that context.
"""

import math
import sys
from functools import partial
from typing import Callable, ClassVar, Iterator, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_video.models.ltx.fitted import FLOAT32
from mlx_video.models.ltx.network import Network
from mlx_video.models.ltx.pieces import each_piece_by_piece
from mlx_video.models.ltx.statistics import PerChannelStatistics
from mlx_video.models.ltx.video_config import DiffusionDecoderConfig
from mlx_video.models.ltx.video_vae.base import names_of
from mlx_video.models.ltx.video_vae.convolution import on_gpu
from mlx_video.models.ltx.video_vae.diffusion_blocks import (
    BAND,
    MODULATION,
    Context,
    DiffusionBlock,
    NeighborhoodBlock,
    TimestepEmbedder,
    Upsample,
)
from mlx_video.models.ltx.video_vae.diffusion_weights import without_strangers
from mlx_video.models.ltx.video_vae.neighborhood import NORM_EPS, TILE
from mlx_video.models.ltx.video_vae.sampling import patchify, unpatchify
from mlx_video.models.ltx.video_vae.stream import Incomplete, Stage, Stream, in_pieces
from mlx_video.models.ltx.video_vae.streaming_decode import (
    PIECE,
    PIECES,
    StreamPlan,
)
from mlx_video.models.ltx.video_vae.tiling import (
    Cut,
    Grid,
    Tiling,
    TilingConfig,
    run_tiles,
    side_cuts,
    time_cuts,
)
from mlx_video.types import VideoScale
from mlx_video.weights import Weights

PIECE_SHARE = 3
"""A piece may be this many times as large as ``elements``: few arrays of its size are alive, as rows go in bands."""
LIVE_PIECES, LIVE_BANDS = 3, 24
"""Arrays of the size of a piece and of a ``BAND`` that are alive at once; bands count twice, since a GPU queues one."""
CPU_MLP, CPU_SCORES, CPU_ATTENDING = 21, 19, 5.5
"""The same on a CPU, measured: of a band in its MLP; or, while it attends, of the scores and of the band."""
SLOWER = 22  # than the transformer's an operation is; docs/performance.md
DEFAULT_KEY = (
    0  # of the noise if no key is given, so that the same latents make the same pixels
)
LEVEL = 1.0  # of noise in the one step
# Official tiles overlap by a multiple of these, in frames and pixels.
OVERLAP_FRAMES, OVERLAP_PIXELS = 8, 32
Noise = Callable[[int, tuple[int, ...]], mx.array]
"""A function of first frame and shape: the noise (B, 3, f, H, W) of a clip or a tile."""


class Ends(NamedTuple):
    """Which ends of the clip a tile has; there, doubling drops a frame, and the appendix is cut off."""

    first: bool = True
    last: bool = True


class Padded(NamedTuple):
    """Latents (B, C, F, H, W) padded to the size of every window, and the clip's place in their pixels."""

    latents: mx.array
    frames: int
    rows: slice
    columns: slice

    def clips(self, pieces: Iterator[mx.array]) -> Iterator[mx.array]:
        """The clip's part of consecutive ``pieces`` of pixels."""
        left = self.frames
        for pixels in pieces:
            if left:
                pixels = pixels[:, :, :left, self.rows, self.columns]
                left -= pixels.shape[2]
                yield pixels


class DiffusionDecoder(Network):
    """NADiffusionDecoder, whose output is the picture itself (x0): one step suffices.

    ``repeat_columns`` is Lightricks' default mode at the left and right borders; otherwise their "combined" mode.
    """

    CONFIG = DiffusionDecoderConfig
    NAMES: ClassVar = names_of(
        "decoder",
        {
            "t_embedder.mlp.0.*": "t_embedder.linear_1.*",
            "t_embedder.mlp.2.*": "t_embedder.linear_2.*",
            "shared_adaln.proj.*": "shared_adaln.*",
        },
    )

    def __init__(self, config: DiffusionDecoderConfig, repeat_columns: bool = True):
        super().__init__()
        self.config = config
        self.per_channel_statistics = PerChannelStatistics(config.in_channels)
        widths, head_dim = config.stage_channels, config.head_dim
        *stages, (dim, kernel, depth) = zip(
            widths, config.stage_kernels, config.stage_depths, strict=True
        )
        self.conv_in = nn.Linear(config.in_channels, widths[0])
        self.det_stages = [
            [NeighborhoodBlock(width, window, head_dim) for _ in range(count)]
            for width, window, count in stages
        ]
        self.upsamples = [
            Upsample(width, out, stride)
            for width, out, (stride, _) in zip(widths, widths[1:], config.upsamples)
        ]
        pixels = config.out_channels * config.patch_size**2
        self.conv_in_x_t = nn.Linear(pixels, dim)
        self.t_embedder = TimestepEmbedder(config.t_emb_dim)
        self.shared_adaln = nn.Linear(config.t_emb_dim, MODULATION * dim)
        self.diff_blocks = [
            DiffusionBlock(dim, kernel, head_dim, repeat_columns) for _ in range(depth)
        ]
        self.norm_out = nn.RMSNorm(dim, NORM_EPS)
        self.conv_out = nn.Linear(dim, pixels)

    @classmethod
    def sanitize(cls, weights: Weights) -> Weights:
        """The decoder's own tensors out of an official file's; ours come back unchanged."""
        taken = cls.NAMES.take(weights)
        if taken is None:
            return weights
        return without_strangers(taken)

    @property
    def scale(self) -> VideoScale:
        """Pixels per latent cell."""
        time, height, width = self._cells(len(self.upsamples))
        patch = self.config.patch_size
        return VideoScale(time, height * patch, width * patch)

    def __call__(
        self,
        latent: mx.array,
        key: mx.array | None = None,
        noise: mx.array | None = None,
    ) -> mx.array:
        """Normalised latents (B, 128, F, H, W) -> pixels (B, 3, 8*(F-1)+1, 32*H, 32*W) near [-1, 1].

        key    for the noise that becomes the pixels; ``None`` = always the same noise
        noise  instead of a key: (B, 3, F', H', W'), as large as the pixels, or for a clip smaller than a window as the
               padded clip's
        """
        return mx.concatenate(list(self.stream(latent, 2**62, key, noise)), axis=2)

    def stream(
        self,
        latent: mx.array,
        elements: int,
        key: mx.array | None = None,
        noise: mx.array | None = None,
    ) -> Iterator[mx.array]:
        """The same pixels in consecutive pieces, with memory bounded by ``elements`` and the size of a frame.

        ``elements`` applies to the last stage, which has the most cells. Evaluate each piece before taking the next.
        """
        padded = self._padded(latent)
        x, frames = self._enter(padded.latents), self._frames(padded.latents.shape)
        stages = self._context_stages(0) + self._pixel_stages(
            frames, _drawn(key, frames) if noise is None else _given(noise)
        )
        pieces = in_pieces(stages, x, Stream(), PIECE_SHARE * elements)
        del x
        return padded.clips(map(self._leave, pieces))

    def plans(self, shape: tuple[int, ...]) -> Iterator[StreamPlan]:
        """How latents of ``shape`` may be cut with the same pixels, along time only; the fastest first."""
        return map(StreamPlan, PIECES)

    def activation_bytes(self, shape: tuple[int, ...], tiling: Tiling) -> int:
        """About how much memory decoding latents of ``shape`` needs beside the weights, whatever their length.

        That is the frames each block keeps from before the current piece, the context that the last block still needs,
        the piece, and its bands of rows; for tiles the same for the largest tile, the cells that are cut into tiles, and
        the blended pixels.
        """
        shape = self._least_shape(shape)
        if isinstance(tiling, StreamPlan):
            return self._piece_bytes(shape, tiling.elements)
        stage = len(self.upsamples) - 1
        grid, scale = self.grid(shape, tiling), self._cells(stage)
        tile = [
            math.ceil(max(cut.source.stop - cut.source.start for cut in cuts) / cells)
            for cuts, cells in zip(grid, scale)
        ]
        B, _, F, H, W = shape
        frames = (F + self._appendix - 1) * scale[0] + 1
        cells = B * frames * H * W * math.prod(scale[1:])
        cells *= self.config.stage_channels[stage] * self.conv_in.weight.itemsize
        pixels = B * max(len(cut.mask) for cut in grid[0]) * H * W
        pixels *= math.prod(self.scale[1:]) * self.config.out_channels * FLOAT32
        # The cells exist twice while their pieces are joined.
        return self._piece_bytes((B, 0, *tile), PIECE) + 2 * cells + pixels

    def operations(self, shape: tuple[int, ...]) -> float:
        """As many of the transformer's floating-point operations as take as long as decoding latents of ``shape``."""
        B, _, F, H, W = self._least_shape(shape)
        total = 0
        for stage, blocks in enumerate([*self.det_stages, self.diff_blocks]):
            time, height, width = self._cells(stage)
            frames = (F + self._appendix - 1) * time + 1
            weights = tree_flatten([block.parameters() for block in blocks])
            size = sum(weight.size for _, weight in weights)
            total += frames * H * height * W * width * size
        return 2 * SLOWER * B * total

    def _piece_bytes(self, shape: tuple[int, ...], elements: int) -> int:
        """Bytes for padded latents that pass in pieces."""
        B, _, _, H, W = shape
        frames = [
            B * H * W * math.prod(self._cells(stage)[1:]) * width
            for stage, width in enumerate(self.config.stage_channels)
        ]
        blocks = [*map(len, self.det_stages), len(self.diff_blocks)]
        kernels = [kernel[0] for kernel in self.config.stage_kernels]
        kept = sum(n * (k - 1) * f for n, k, f in zip(blocks, kernels, frames))
        whole, last = self._frames(shape), frames[-1]
        count = PIECE_SHARE * elements // last
        piece = min(whole, max(self.scale.time, count))
        context = min(whole, blocks[-1] * (kernels[-1] // 2) + piece)
        band = min(BAND, (piece + kernels[-1] - 1) * last)
        held = kept + (context + LIVE_PIECES * piece) * last
        if on_gpu():
            return (held + LIVE_BANDS * band) * self.conv_in.weight.itemsize
        scores = self._scores(B, W, min(whole, count))
        attending = CPU_SCORES * scores + CPU_ATTENDING * band
        return round((held + max(CPU_MLP * band, attending)) * FLOAT32)

    def _scores(self, B: int, columns: int, frames: int) -> int:
        """Attention scores of neighbouring tiles of the last stage; a CPU keeps them."""
        *_, width = self.config.stage_channels
        tile = min(TILE[0], max(1, frames)), *TILE[1:]
        seen = math.prod(q + k - 1 for q, k in zip(tile, self.config.stage_kernels[-1]))
        tiles = math.ceil(columns * self._cells(len(self.upsamples))[2] / TILE[2])
        heads = width // self.config.head_dim
        return B * tiles * heads * math.prod(tile) * seen

    @property
    def receptive_field(self) -> int:
        """Latent rows or columns that affect a pixel: all, since noise is drawn for whole frames."""
        return sys.maxsize

    def tiled(
        self,
        latent: mx.array,
        tiling: TilingConfig,
        key: mx.array | None = None,
        noises: Iterator[Noise] | None = None,
    ) -> Iterator[mx.array]:
        """Pixels from overlapping tiles of the last two stages, as in Lightricks' code; one piece per tile of time.

        Tiles are at least as large, and overlap at least as much, as the windows need. Each draws its own noise, from
        ``key`` or the next of ``noises``.
        """
        padded = self._padded(latent)
        grid = self.grid(padded.latents.shape, tiling)
        x = self._enter(padded.latents)
        stages = self._context_stages(0, len(self.upsamples) - 1)
        pieces = each_piece_by_piece(in_pieces(stages, x, Stream(), PIECE))
        x = mx.concatenate(list(pieces), axis=1)
        mx.eval(x)
        if noises is None:
            keys = mx.random.split(_key(key), math.prod(map(len, grid)))
            noises = (_drawn(key, self._frames(padded.latents.shape)) for key in keys)

        def tile(time: Cut, row: Cut, column: Cut) -> mx.array:
            cells = x[:, time.source, row.source, column.source]
            ends = Ends(time.source.start == 0, time.source.stop == x.shape[1])
            return self._tile(cells, ends, len(time.mask), next(noises))

        return padded.clips(run_tiles(tile, grid))

    def _tile(self, x: mx.array, ends: Ends, frames: int, noise: Noise) -> mx.array:
        """``frames`` of pixels from a tile of cells of the second last stage, evaluated."""
        stages = self._context_stages(len(self.upsamples) - 1, None, ends.first)
        stages += self._pixel_stages(frames, noise)
        pieces = each_piece_by_piece(in_pieces(stages, x, Stream(), PIECE))
        pixels = mx.concatenate([self._leave(piece) for piece in pieces], axis=2)
        mx.eval(pixels)
        return pixels

    def grid(self, shape: tuple[int, ...], tiling: TilingConfig) -> Grid:
        """Cuts from cells of the second last stage to pixels, for padded latents of this ``shape``."""
        stage = len(self.upsamples) - 1
        time, height, width = self._cells(stage)
        stride = self.upsamples[stage].stride
        patch = self.config.patch_size
        frames, pixels = self.least_overlap
        last = (shape[2] + self._appendix - 1) * time + 1
        cells = (self._frames(shape) - 1) // stride[0] + 1
        times = time_cuts(cells, stride[0], tiling.temporal_config, frames)
        first = times[-1].source.start  # the last tile has the appendix too
        times[-1] = times[-1]._replace(source=slice(first, last))
        sides = shape[3] * height, shape[4] * width
        return times, *(
            side_cuts(side, max(sides), step * patch, tiling.spatial_config, pixels)
            for side, step in zip(sides, stride[1:])
        )

    @property
    def least_overlap(self) -> tuple[int, int]:
        """Fewest frames and pixels that tiles share: the reach of the windows of their stages."""
        *_, before, last = self.config.stage_kernels
        stride, patch = self.upsamples[-1].stride, self.config.patch_size
        time, *space = (
            max(
                len(self.det_stages[-1]) * (wide // 2) * step,
                len(self.diff_blocks) * (fine // 2),
            )
            for wide, fine, step in zip(before, last, stride)
        )
        return (
            math.ceil(time / OVERLAP_FRAMES) * OVERLAP_FRAMES,
            math.ceil(max(space) * patch / OVERLAP_PIXELS) * OVERLAP_PIXELS,
        )

    # From latents to cells, and what surrounds a clip

    def _cells(self, stage: int) -> tuple[int, int, int]:
        """Cells of a stage per latent cell, along each axis."""
        strides = [up.stride for up in self.upsamples[:stage]]
        return tuple(math.prod(s[axis] for s in strides) for axis in range(3))

    @property
    def least_latents(self) -> tuple[int, int, int]:
        """Fewest latent frames, rows and columns with which every window of every stage fits into the clip."""
        stages = [
            [math.ceil(size / cells) for size, cells in zip(kernel, self._cells(stage))]
            for stage, kernel in enumerate(self.config.stage_kernels)
        ]
        return tuple(map(max, *stages))

    @property
    def _appendix(self) -> int:
        """How often the last latent frame is repeated after the clip."""
        return self.config.stage_kernels[0][0] // 2 * 2

    def _frames(self, shape: tuple[int, ...]) -> int:
        """Frames that the last stage makes of padded latents; the context has those of the appendix too."""
        time = self._cells(len(self.upsamples))[0]
        return max((shape[2] - 1) * time + 1, self.config.stage_kernels[-1][0])

    def _least_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of latents once they are padded."""
        return *shape[:2], *map(max, self.least_latents, shape[2:])

    def _padded(self, latents: mx.array) -> Padded:
        """Latents below the least size, padded by repetition: after the last frame, and around each frame."""
        least = self._least_shape(latents.shape)
        lacking = [a - b for a, b in zip(least[2:], latents.shape[2:])]
        around = [(n // 2, n - n // 2) for n in lacking[1:]]
        padding = [(0, 0), (0, 0), (0, lacking[0]), *around]
        frames, height, width = latents.shape[2:]
        scale = self.scale
        rows, columns = (
            slice(before * size, (before + n) * size)
            for (before, _), n, size in zip(around, (height, width), scale[1:])
        )
        if any(lacking):
            latents = mx.pad(latents, padding, mode="edge")
        return Padded(latents, (frames - 1) * scale.time + 1, rows, columns)

    def _enter(self, latents: mx.array) -> mx.array:
        """Channels last, with the appendix."""
        x = self.per_channel_statistics.un_normalize(latents)
        x = mx.moveaxis(x, 1, -1).astype(self.conv_in.weight.dtype)
        return mx.concatenate([x] + [x[:, -1:]] * self._appendix, axis=1)

    def _leave(self, x: mx.array) -> mx.array:
        return unpatchify(x, self.config.patch_size)

    # Stages in order

    def _context_stages(
        self, first: int, stop: int | None = None, begins: bool = True
    ) -> list[Stage]:
        """From latents or a stage's cells to those of another; ``begins`` = the clip begins with these."""
        stages = [self._stage(self._first, 0)] if first == 0 else []
        numbered = list(enumerate(zip(self.det_stages, self.upsamples)))
        for number, (blocks, upsample) in numbered[first:stop]:
            stages += [self._stage(block, number) for block in blocks]
            grown = partial(upsample, begins=begins)
            stages.append(self._stage(grown, number))
        return stages

    def _stage(self, run: Callable, number: int) -> Stage:
        """A step of stage ``number``; its width makes pieces have equally many frames' worth of cells in each stage."""
        here, last = (math.prod(self._cells(n)) for n in (number, len(self.upsamples)))
        return Stage(run, self.config.stage_channels[-1] * last // here)

    def _first(self, x: mx.array, stream: Stream) -> mx.array:
        return self.conv_in(x)

    def _pixel_stages(self, frames: int, noise: Noise) -> list[Stage]:
        """From the context to patches of pixels, for ``frames`` in all."""
        number = len(self.upsamples)
        context = Context(len(self.diff_blocks))
        blocks = [
            partial(
                block.run,
                context=partial(context.take, reader=reader),
                modulation=block.rows(self._shared_rows()),
            )
            for reader, block in enumerate(self.diff_blocks)
        ]
        first = 0

        def begin(x: mx.array, stream: Stream) -> mx.array:
            nonlocal first
            x = x[:, : frames - first]
            if not x.shape[1]:  # the appendix
                raise Incomplete
            context.put(x)
            shape = self._pixels(x.shape)
            x_t = patchify(noise(first, shape), self.config.patch_size)
            first += x.shape[1]
            stream.last = first == frames
            return self.conv_in_x_t(x_t.astype(x.dtype))

        def end(x: mx.array, stream: Stream) -> mx.array:
            return self.conv_out(self.norm_out(x))

        return [self._stage(run, number) for run in (begin, *blocks, end)]

    def _pixels(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the pixels of cells (B, F, H, W, C) of the last stage."""
        B, F, H, W, _ = shape
        patch = self.config.patch_size
        return B, self.config.out_channels, F, H * patch, W * patch

    def _shared_rows(self) -> mx.array:
        """Scales and shifts (1, 7, C) for the noise level of the one step."""
        level = mx.array([LEVEL * self.config.timestep_scale_multiplier])
        rows = self.shared_adaln(nn.silu(self.t_embedder(level)))
        return mx.unflatten(rows, -1, (MODULATION, -1))


# Noise


def _key(key: mx.array | None) -> mx.array:
    return mx.random.key(DEFAULT_KEY) if key is None else key


def _drawn(key: mx.array | None, frames: int) -> Noise:
    """Draws each frame with a key of its own, so that cuts of a clip do not change its noise."""
    keys = mx.random.split(_key(key), frames)

    def draw(first: int, shape: tuple[int, ...]) -> mx.array:
        B, C, F, H, W = shape
        images = [
            mx.random.normal((B, C, H, W), key=k) for k in keys[first : first + F]
        ]
        return mx.stack(images, axis=2)

    return draw


def _given(noise: mx.array) -> Noise:
    return lambda first, shape: noise[:, :, first : first + shape[2]]
