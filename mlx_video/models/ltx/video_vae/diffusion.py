"""The diffusion decoder of LTX-2.5: latents to pixels by neighbourhood attention, in one step from noise.

Four stages with more and more cells turn latents into a context, and the fifth turns noise into pixels given that
context. Knows stages and tiles, not what is inside a block.
"""

import math
import sys
from functools import partial
from typing import Callable, ClassVar, Iterator, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_video.models.ltx.adaln import TimestepEmbedder
from mlx_video.models.ltx.loading.parts import Network
from mlx_video.models.ltx.pacing import each_piece_by_piece
from mlx_video.models.ltx.statistics import PerChannelStatistics
from mlx_video.models.ltx.vae_config import DiffusionDecoderConfig
from mlx_video.models.ltx.video_vae.convolution import video_names
from mlx_video.models.ltx.video_vae.decoding import PIECE, PIECES, StreamPlan, Tiling
from mlx_video.models.ltx.video_vae.diffusion_blocks import (
    MODULATION,
    Context,
    DiffusionBlock,
    LinearUpsample,
    NeighborhoodBlock,
)
from mlx_video.models.ltx.video_vae.diffusion_cells import PIECE_SHARE, Cells
from mlx_video.models.ltx.video_vae.neighborhood import NORM_EPS
from mlx_video.models.ltx.video_vae.sampling import patchify, unpatchify
from mlx_video.models.ltx.video_vae.stream import (
    DecoderStep,
    FrameCache,
    Incomplete,
    in_pieces,
)
from mlx_video.models.ltx.video_vae.tiling import Cut, TilingConfig, run_tiles
from mlx_video.weights import Weights

SLOWER = 22  # time of an operation relative to a transformer's; docs/performance.md
DEFAULT_KEY = 0  # seed of the noise, so that equal latents make equal pixels
LEVEL = 1.0  # noise level of the single step
# Gate in an official file -> the layer whose output it multiplies, and into which we fold it.
GATES = {"gate_msa": "attn.proj", "gate_mlp": "mlp.w_down", "gate_ctx": "context_proj"}
COARSE = "coarse_"  # in the names of heads for training
STRANGER = 128  # elements of the single unknown tensor in the published file
Noise = Callable[[int, tuple[int, ...]], mx.array]
"""From a first frame and a shape (B, 3, f, H, W) to the noise of a clip or a tile."""


class Padded(NamedTuple):
    """Latents (B, C, F, H, W), padded so that every window fits, and the clip's place in their pixels."""

    latents: mx.array
    frames: int
    rows: slice
    columns: slice

    def clips(self, pieces: Iterator[mx.array]) -> Iterator[mx.array]:
        """The clip's part of consecutive ``pieces`` of pixels, (B, 3, f, H, W) each."""
        left = self.frames
        for pixels in pieces:
            if left:
                pixels = pixels[:, :, :left, self.rows, self.columns]
                left -= pixels.shape[2]
                yield pixels


class DiffusionDecoder(Network):
    """NADiffusionDecoder, which predicts the picture itself (x0), so that one step is enough.

    ``repeat_columns`` is Lightricks' default mode at the left and right borders; without it, their "combined" mode.
    """

    CONFIG = DiffusionDecoderConfig
    NAMES: ClassVar = video_names(
        "decoder",
        {
            "t_embedder.mlp.0.*": "t_embedder.linear_1.*",
            "t_embedder.mlp.2.*": "t_embedder.linear_2.*",
            "shared_adaln.proj.*": "shared_adaln.*",
        },
    )
    FRAME: ClassVar = StreamPlan()  # for previews; all scores at once take gigabytes

    def __init__(self, config: DiffusionDecoderConfig, repeat_columns: bool = True):
        super().__init__()
        self.config, self.cells = config, Cells(config)
        self.scale = config.decoder_scale
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
            LinearUpsample(width, out, stride)
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
        """As in ``Network``, with gates folded into their layers and without the heads for training."""
        if (taken := cls.NAMES.take(weights)) is None:
            return weights
        ours = {key: value for key, value in taken.items() if COARSE not in key}
        for gate in [key for key in ours if key.rpartition(".")[2] in GATES]:
            _fold(ours, gate)
        return ours

    def select(self, weights: Weights) -> Weights:
        """Drop the one unknown tensor of ``STRANGER`` elements; if there are others, all stay, so that loading fails."""
        known = dict(tree_flatten(self.parameters()))
        strangers = weights.keys() - known.keys()
        if [weights[name].size for name in strangers] == [STRANGER]:
            return {k: v for k, v in weights.items() if k in known}
        return weights

    def __call__(
        self,
        latent: mx.array,
        key: mx.array | None = None,
        noise: mx.array | None = None,
    ) -> mx.array:
        """Normalised latents -> pixels near [-1, 1] (LTX-2.5: (B, 128, F, H, W) -> (B, 3, 8*(F-1)+1, 32*H, 32*W)).

        key    of the noise; ``None`` = always the same noise
        noise  instead of a key: (B, 3, F', H', W'), of the size of the pixels, or of the padded pixels for a clip smaller
               than a window
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
        frames = self.cells.frames(padded.latents.shape)
        x = self._with_appendix(padded.latents)
        draw = _drawn(key, frames) if noise is None else _given(noise)
        stages = self._context_stages(0) + self._pixel_stages(frames, draw)
        pieces = in_pieces(stages, x, FrameCache(), PIECE_SHARE * elements)
        del x
        return padded.clips(map(self._unpatchified, pieces))

    def plans(self, shape: tuple[int, ...]) -> Iterator[StreamPlan]:
        """How latents of ``shape`` may be cut, along time only, with the same pixels; the fastest first."""
        return map(StreamPlan, PIECES)

    def activation_bytes(self, shape: tuple[int, ...], tiling: Tiling) -> int:
        """About how many bytes decoding latents of ``shape`` needs besides the weights."""
        itemsize = self.conv_in.weight.itemsize
        return self.cells.activation_bytes(shape, tiling, itemsize)

    def operations(self, shape: tuple[int, ...]) -> float:
        """The cost of decoding latents of ``shape``, in transformer operations that take as long."""
        B, _, _, H, W = shape = self.cells.least_shape(shape)
        total = 0
        for stage, blocks in enumerate([*self.det_stages, self.diff_blocks]):
            _, height, width = self.cells.per_latent(stage)
            frames = self.cells.all_frames(stage, shape)
            weights = tree_flatten([block.parameters() for block in blocks])
            size = sum(weight.size for _, weight in weights)
            total += frames * H * height * W * width * size
        return 2 * SLOWER * B * total

    @property
    def receptive_field(self) -> int:
        """Without limit, so that frames are never cut into tiles: noise is drawn for whole frames."""
        return sys.maxsize

    def tiled(
        self,
        latent: mx.array,
        tiling: TilingConfig,
        key: mx.array | None = None,
        noises: Iterator[Noise] | None = None,
    ) -> Iterator[mx.array]:
        """Pixels from overlapping tiles of the last two stages, as in Lightricks' code; one piece per tile of time.

        Tiles are at least as large, and overlap at least as much, as the windows need. Each has its own noise, drawn from
        ``key`` or the next of ``noises``.
        """
        padded = self._padded(latent)
        grid = self.cells.grid(padded.latents.shape, tiling)
        x = self._with_appendix(padded.latents)
        stages = self._context_stages(0, self.cells.last - 1)
        pieces = each_piece_by_piece(in_pieces(stages, x, FrameCache(), PIECE))
        x = mx.concatenate(list(pieces), axis=1)
        mx.eval(x)  # once, before the tiles that are cut from it
        if noises is None:
            keys = mx.random.split(_key(key), math.prod(map(len, grid)))
            noises = (
                _drawn(key, self.cells.frames(padded.latents.shape)) for key in keys
            )

        def tile(time: Cut, row: Cut, column: Cut) -> mx.array:
            cells = x[:, time.source, row.source, column.source]
            begins = time.source.start == 0
            return self._tile(cells, begins, len(time.mask), next(noises))

        return padded.clips(run_tiles(tile, grid))

    def _tile(self, x: mx.array, begins: bool, frames: int, noise: Noise) -> mx.array:
        """``frames`` of pixels from a tile of the second last stage's cells, evaluated; ``begins`` = it begins the clip."""
        stages = self._context_stages(self.cells.last - 1, None, begins)
        stages += self._pixel_stages(frames, noise)
        pieces = each_piece_by_piece(in_pieces(stages, x, FrameCache(), PIECE))
        pixels = mx.concatenate([self._unpatchified(piece) for piece in pieces], axis=2)
        mx.eval(pixels)  # or the next tile would be queued beside this one
        return pixels

    # From latents to cells

    def _padded(self, latents: mx.array) -> Padded:
        """Pad latents below the least size by repetition, after the last frame and around each frame."""
        least = self.cells.least_shape(latents.shape)
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

    def _with_appendix(self, latents: mx.array) -> mx.array:
        """Latents (B, C, F, H, W), un-normalised, channels last, followed by the appendix of repeated last frames."""
        x = self.per_channel_statistics.un_normalize(latents)
        x = mx.moveaxis(x, 1, -1).astype(self.conv_in.weight.dtype)
        return mx.concatenate([x] + [x[:, -1:]] * self.cells.appendix, axis=1)

    def _unpatchified(self, x: mx.array) -> mx.array:
        return unpatchify(x, self.config.patch_size)

    # Stages in order

    def _context_stages(
        self, first: int, stop: int | None = None, begins: bool = True
    ) -> list[DecoderStep]:
        """Steps from the input of stage ``first`` to that of stage ``stop``; ``begins`` = the input begins the clip."""
        embed = self._stage(lambda x, _: self.conv_in(x), 0)
        stages = [embed] if first == 0 else []
        numbered = list(enumerate(zip(self.det_stages, self.upsamples)))
        for number, (blocks, upsample) in numbered[first:stop]:
            stages += [self._stage(block, number) for block in blocks]
            grown = partial(upsample, begins=begins)
            stages.append(self._stage(grown, number))
        return stages

    def _stage(self, run: Callable, number: int) -> DecoderStep:
        """A step of stage ``number``, whose width gives pieces the same duration in every stage."""
        here, last = (
            math.prod(self.cells.per_latent(n)) for n in (number, self.cells.last)
        )
        return DecoderStep(run, self.config.stage_channels[-1] * last // here)

    def _pixel_stages(self, frames: int, noise: Noise) -> list[DecoderStep]:
        """Steps from the context to patches of pixels, for ``frames`` in total."""
        context = Context(len(self.diff_blocks))
        begin = partial(self._begin, context=context, noise=noise, frames=frames)
        blocks = [
            partial(
                block.run,
                context=partial(context.take, reader=reader),
                modulation=block.rows(self._shared_rows()),
            )
            for reader, block in enumerate(self.diff_blocks)
        ]
        number = self.cells.last
        return [self._stage(run, number) for run in (begin, *blocks, self._end)]

    def _begin(
        self,
        x: mx.array,
        cache: FrameCache,
        context: Context,
        noise: Noise,
        frames: int,
    ) -> mx.array:
        """Store cells (B, F, H, W, C) of the context, up to ``frames`` in all, and return as many of embedded noise."""
        first = context.count
        x = x[:, : frames - first]
        if not x.shape[1]:  # the appendix
            raise Incomplete
        context.put(x)
        (B, F, H, W, _), patch = x.shape, self.config.patch_size
        shape = B, self.config.out_channels, F, H * patch, W * patch
        x_t = patchify(noise(first, shape), patch)
        cache.last = context.count == frames
        return self.conv_in_x_t(x_t.astype(x.dtype))

    def _end(self, x: mx.array, _: FrameCache) -> mx.array:
        """Cells (B, F, H, W, C) of the last block -> patches of pixels."""
        return self.conv_out(self.norm_out(x))

    def _shared_rows(self) -> mx.array:
        """Scales and shifts (1, 7, C) for the noise level of the single step."""
        level = mx.array([LEVEL * self.config.timestep_scale_multiplier])
        dtype = self.t_embedder.linear_1.weight.dtype
        rows = self.shared_adaln(nn.silu(self.t_embedder(level, dtype)))
        return mx.unflatten(rows, -1, (MODULATION, -1))


def _fold(weights: Weights, gate: str) -> None:
    """Fold a gate into its layer's weight and bias."""
    block, _, kind = gate.rpartition(".")
    factor = weights.pop(gate).astype(mx.float32).flatten()
    for part in ("weight", "bias"):
        layer = f"{block}.{GATES[kind]}.{part}"
        if (value := weights.get(layer)) is not None:
            rows = factor.reshape(-1, *[1] * (value.ndim - 1))
            weights[layer] = (value * rows).astype(value.dtype)


def _key(key: mx.array | None) -> mx.array:
    return mx.random.key(DEFAULT_KEY) if key is None else key


def _drawn(key: mx.array | None, frames: int) -> Noise:
    """Noise with a key per frame, so that it does not depend on how a clip is cut."""
    keys = mx.random.split(_key(key), frames)

    def draw(first: int, shape: tuple[int, ...]) -> mx.array:
        B, C, F, H, W = shape
        own = keys[first : first + F]
        images = [mx.random.normal((B, C, H, W), key=key) for key in own]
        return mx.stack(images, axis=2)

    return draw


def _given(noise: mx.array) -> Noise:
    return lambda first, shape: noise[:, :, first : first + shape[2]]
