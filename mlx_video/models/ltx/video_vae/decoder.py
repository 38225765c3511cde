"""The convolutional video decoder: latents to pixels. Knows the order of its blocks, not how a clip is cut into tiles."""

import math
from fractions import Fraction
from functools import partial
from typing import ClassVar, Iterator

import mlx.core as mx
import mlx.nn as nn

from mlx_video.errors import UserError
from mlx_video.models.ltx.memory_table import FLOAT32
from mlx_video.models.ltx.parts import Network
from mlx_video.models.ltx.statistics import PerChannelStatistics
from mlx_video.models.ltx.vae_config import STRIDES, VideoVAEConfig
from mlx_video.models.ltx.video_vae.convolution import (
    CONVOLUTIONS,
    MAX_CONV_ELEMENTS,
    Block,
    CausalConv3d,
    MidBlock3D,
    convolutions,
    layers,
    on_gpu,
    read_blocks,
    unfolded_elements,
    video_names,
    widest,
)
from mlx_video.models.ltx.video_vae.decoding import PIECES, StreamPlan, Tiling
from mlx_video.models.ltx.video_vae.sampling import DepthToSpaceUpsample, unpatchify
from mlx_video.models.ltx.video_vae.stream import DecoderStep, FrameCache, in_pieces
from mlx_video.models.ltx.video_vae.tiling import (
    TilingConfig,
    blended_pixels,
    decode_grid,
    iterate_decode,
    largest_tile,
)

KEPT = 3  # frames that a convolution and the skip beside it keep for the next piece, at most
LIVE_PIECES, LIVE_WHOLE, LIVE_TILE = 8, 9.7, 18.5
"""Arrays that are alive at once on a GPU, measured on an H200: of the size of a piece; of the finest grid, for a clip of
one piece; and the same for a tile, which is not paced."""

QUEUED, AGAIN = 350e6, 1.6
"""Bytes of small results that a GPU may queue besides; and how many copies of kept frames exist, since the next are made
before the last are freed."""

FRAMES_CPU = 8
"""Frames of the largest layer that a CPU computes at once: as fast as all at once for large frames, and faster for small
ones, which then reuse memory."""

BEGUN = 0.4
"""The share of the next piece that a CPU holds beside the current one: measured as 0 to 0.45."""

SLOWER, SLOWER_CPU = 1.7, 0.9
"""Time of a convolution's operation relative to a transformer's, measured on an H200 and on two cores."""


class VideoDecoder(Network):
    """The decoder. It is not causal in LTX-2, so a pixel frame may depend on later latents."""

    CONFIG = VideoVAEConfig
    NAMES: ClassVar = video_names("decoder", CONVOLUTIONS)

    def __init__(self, config: VideoVAEConfig):
        super().__init__()
        self.config = config
        self.scale = config.decoder_scale
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels)

        padding_mode = config.decoder_spatial_padding_mode
        blocks = list(read_blocks(config.decoder_blocks))[::-1]
        channels = config.decoder_base_channels * math.prod(map(_narrowing, blocks))
        self.conv_in = CausalConv3d(config.latent_channels, channels, padding_mode)
        self.up_blocks = []
        for block in blocks:
            self.up_blocks.append(_up_block(block, channels, padding_mode))
            channels //= _narrowing(block)
        patch = config.out_channels * config.patch_size**2
        self.conv_out = CausalConv3d(channels, patch, padding_mode)

    def __call__(self, latent: mx.array) -> mx.array:
        """Normalised latents -> pixels near [-1, 1] (LTX-2: (B, 128, F, H, W) -> (B, 3, 8*(F-1)+1, 32*H, 32*W))."""
        return mx.concatenate(list(self.stream(latent, MAX_CONV_ELEMENTS)), axis=2)

    def stream(
        self, latent: mx.array, elements: int, key: mx.array | None = None
    ) -> Iterator[mx.array]:
        """The same pixels in consecutive pieces, so that no convolution touches more than about ``elements``.

        If each piece is evaluated before the next is taken, memory is bounded by ``elements`` and the size of a frame.
        ``key`` is for decoders that draw noise; this one ignores it.
        """
        cache = FrameCache(self.config.causal_decoder)
        x = mx.moveaxis(self.per_channel_statistics.un_normalize(latent), 1, -1)
        x = x.astype(self.conv_in.weight.dtype)
        pieces = in_pieces(self._stages(), x, cache, elements)
        del x
        yield from map(partial(unpatchify, size=self.config.patch_size), pieces)

    def tiled(
        self, latents: mx.array, tiling: TilingConfig, key: mx.array | None = None
    ) -> Iterator[mx.array]:
        """Pixels from overlapping tiles of the latents, as in Lightricks' code; one piece per tile of time."""
        return iterate_decode(self, latents, tiling, self.scale)

    def plans(self, shape: tuple[int, ...]) -> Iterator[StreamPlan]:
        """How latents of ``shape`` may be cut with the same pixels, the fastest first."""
        most = PIECES[0]
        if not on_gpu():
            cells = math.prod(shape) // math.prod(shape[1:3])  # of a latent frame
            largest = max(space * widest(layer) for layer, _, space in self._steps())
            most = FRAMES_CPU * cells * largest
        for tiles in range(1, max(shape[3:]) // 2):
            for elements in PIECES:
                yield StreamPlan(min(elements, most), tiles)

    def activation_bytes(self, shape: tuple[int, ...], tiling: Tiling) -> int:
        """About how many bytes decoding latents of ``shape`` needs besides the weights.

        In pieces: the current piece, and the frames that each convolution and its skip keep for the next. In tiles: a tile
        and the pixels before it, or the pixels while they are blended.
        """
        B, _, *cells = shape
        if isinstance(tiling, TilingConfig):
            grid = decode_grid(tuple(cells), tiling, self.scale)
            tile = [cut.source.stop - cut.source.start for cut in largest_tile(grid)]
            working = self._working_bytes(B, tile)
            pixel = B * self.config.out_channels * FLOAT32
            done, whole, blended = (n * pixel for n in blended_pixels(grid))
            return working + whole if on_gpu() else max(working + done, blended)
        halo = self.receptive_field if tiling.tiles > 1 else 0
        longer = cells[1] > cells[2]
        length = max(cells[1:])
        cells[1 if longer else 2] = min(length, -(-length // tiling.tiles) + 2 * halo)
        kept = tiling.tiles * sum(
            KEPT * conv.weight.shape[-1] * B * cells[1] * cells[2] * space
            for layer, _, space in self._steps()
            for conv in convolutions(layer)
        )
        return self._working_bytes(B, cells, tiling.elements, kept)

    def _working_bytes(
        self, B: int, cells: list[int], elements: int | None = None, kept: int = 0
    ) -> int:
        """Bytes for latents of ``cells`` (frames, rows, columns) in pieces of ``elements``; ``None`` = all at once.

        ``kept`` is how many elements wait between pieces.
        """
        F, H, W = cells
        most = whole = 0
        for layer, time, space in self._steps():
            frame = B * H * W * space
            count, width = (F - 1) * time + 1, widest(layer)
            whole = max(whole, count * frame * self.config.decoder_base_channels)
            lap = 1.0
            if elements is not None and elements < count * frame * width:
                count = max(1, elements // (frame * width))
                # A CPU begins the next piece before this one is freed, mostly where a layer has two convolutions.
                lap += 1 / count + BEGUN * (len(convolutions(layer)) - 1)
            if on_gpu():
                most = max(most, count * frame * width)
            else:
                taken = sum if elements is None else max  # a tile is not paced
                held = taken(
                    unfolded_elements(c, count, frame) for c in convolutions(layer)
                )
                most = max(most, round(lap * held))
        size = self.conv_in.weight.itemsize
        if not on_gpu():
            return most * FLOAT32 + kept * size
        if elements is None:
            return round(LIVE_TILE * whole * size)
        short = LIVE_WHOLE * whole * size
        pieces = (LIVE_PIECES * max(most, elements) + AGAIN * kept) * size
        return round(min(QUEUED, short) + min(short, pieces))

    def _steps(self) -> Iterator[tuple[nn.Module, int, int]]:
        """The layers in order, each with its frames per latent frame and its cells per latent cell of a frame."""
        time, height, width = 1, 1, 1
        for layer in [self.conv_in, *layers(self.up_blocks), self.conv_out]:
            yield layer, time, height * width
            if isinstance(layer, DepthToSpaceUpsample):
                f, h, w = layer.stride
                time, height, width = time * f, height * h, width * w

    def operations(self, shape: tuple[int, ...]) -> float:
        """The cost of decoding latents of ``shape``, in transformer operations that take as long."""
        B, _, F, H, W = shape
        slower = SLOWER if on_gpu() else SLOWER_CPU
        return sum(
            2 * slower * B * ((F - 1) * time + 1) * H * W * space * conv.weight.size
            for layer, time, space in self._steps()
            for conv in convolutions(layer)
        )

    @property
    def receptive_field(self) -> int:
        """How many latent rows or columns away a cell can be and still affect a pixel."""
        steps = (
            Fraction(len(convolutions(layer)), math.isqrt(space))
            for layer, _, space in self._steps()
        )
        return math.ceil(sum(steps))

    def _stages(self) -> list[DecoderStep]:
        *stages, (_, width) = (
            DecoderStep(layer, widest(layer)) for layer, *_ in self._steps()
        )
        return [*stages, DecoderStep(partial(self.conv_out, activate=True), width)]


def _narrowing(block: Block) -> int:
    """The divisor of a block's channels."""
    name, parameters = block
    return parameters.get("multiplier", 1) if name in STRIDES else 1


def _up_block(block: Block, channels: int, padding_mode: str) -> nn.Module:
    name, parameters = block
    if name == "res_x":
        return MidBlock3D(channels, parameters["num_layers"], padding_mode)
    if name in STRIDES:
        return DepthToSpaceUpsample(
            channels,
            STRIDES[name],
            multiplier=_narrowing(block),
            # The official decoder reads it for this block only.
            residual=name == "compress_all" and parameters.get("residual", False),
            padding_mode=padding_mode,
        )
    raise UserError(f"Video VAE decoder block {name!r} is not implemented.")
