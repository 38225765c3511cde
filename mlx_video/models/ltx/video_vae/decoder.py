"""The convolutional video decoder: latents to pixels. Knows the order of its blocks, and the memory that a clip needs."""

import math
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import ClassVar, Iterator, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_video.errors import UserError
from mlx_video.models.ltx.loading.memory_table import FLOAT32, on_gpu
from mlx_video.models.ltx.loading.parts import Network
from mlx_video.models.ltx.statistics import PerChannelStatistics
from mlx_video.models.ltx.vae_config import STRIDES, VideoVAEConfig
from mlx_video.models.ltx.video_vae import convolution, decoding
from mlx_video.models.ltx.video_vae.convolution import CausalConv3d, MidBlock3D, widest
from mlx_video.models.ltx.video_vae.decoding import StreamPlan, spans
from mlx_video.models.ltx.video_vae.sampling import DepthToSpaceUpsample, unpatchify
from mlx_video.models.ltx.video_vae.stream import DecoderStep, FrameCache, in_pieces
from mlx_video.models.ltx.video_vae.tiling import TilingConfig, held_pixels, run_tiles

KEPT = 3  # frames that a convolution and the skip beside it keep for the next piece, at most
# Arrays that are alive at once on a GPU, measured on an H200, ...
LIVE_PIECES = 8  # ... of the size of a piece
LIVE_WHOLE = 9.7  # ... of the size of the finest grid, for a clip of one piece
LIVE_TILE = 18.5  # ... of the size of a tile's finest grid; a tile is not paced
QUEUED = 350e6  # bytes of small results that a GPU may queue besides
AGAIN = 1.6  # copies of kept frames on a GPU, where the next are made before the last are freed
FRAMES_CPU = 8  # of the largest layer at once on a CPU: as fast as all of them, and faster for small frames
# Share of two convolutions' arrays that a CPU holds, if it copies their weights to float32, by the padding: ours, or MLX's.
PAIRED = {"reflect": 0.92, "zeros": 1.32}
# Arrays of a convolution's input (normed, activated, padded) and output (sums, bias) that a CPU holds besides the unfolded
# input, since it runs a few operations ahead.
ACTIVATED, SUMMED = 9, 1
BEGUN = 0.4  # share of the next piece that a CPU holds beside the current one; measured as 0 to 0.45
# Time of a convolution's operation relative to a transformer's, measured on an H200 and on two CPU cores.
SLOWER, SLOWER_CPU = 1.7, 0.9


class VideoDecoder(Network):
    """The decoder. It is not causal in LTX-2, so a pixel frame may depend on later latents."""

    CONFIG = VideoVAEConfig
    NAMES: ClassVar = convolution.video_names("decoder")
    FRAME: ClassVar = decoding.WHOLE  # how previews decode one latent frame

    def __init__(self, config: VideoVAEConfig):
        super().__init__()
        self.config = config
        self.scale = config.decoder_scale
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels)

        padding_mode, blocks = config.decoder_spatial_padding_mode, []
        channels = config.decoder_base_channels
        for block in convolution.read_blocks(config.decoder_blocks):
            module, channels = _up_block(block, channels, padding_mode)
            blocks.insert(0, module)  # the config goes from pixels to latents
        self.conv_in = CausalConv3d(config.latent_channels, channels, padding_mode)
        self.up_blocks = blocks
        patch = config.out_channels * config.patch_size**2
        self.conv_out = CausalConv3d(config.decoder_base_channels, patch, padding_mode)

    def __call__(self, latent: mx.array) -> mx.array:
        """Normalised latents -> pixels near [-1, 1] (LTX-2: (B, 128, F, H, W) -> (B, 3, 8*(F-1)+1, 32*H, 32*W))."""
        pieces = self.stream(latent, convolution.MAX_CONV_ELEMENTS)
        return mx.concatenate(list(pieces), axis=2)

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
        pieces = in_pieces(self._steps(), x, cache, elements)
        del x
        yield from map(partial(unpatchify, size=self.config.patch_size), pieces)

    def tiled(
        self, latents: mx.array, tiling: TilingConfig, key: mx.array | None = None
    ) -> Iterator[mx.array]:
        """Pixels from overlapping tiles of the latents, as in Lightricks' code; one piece per tile of time."""

        def tile(*cuts) -> mx.array:
            return self(latents[:, :, *(cut.source for cut in cuts)])

        return run_tiles(tile, tiling.grid(latents.shape[2:], self.scale))

    @property
    def layers(self) -> list[nn.Module]:
        """All layers, in the order in which they run."""
        return [self.conv_in, *convolution.layers_of(self.up_blocks), self.conv_out]

    def _steps(self) -> list[DecoderStep]:
        *steps, last = (DecoderStep(layer, widest(layer)) for layer in self.layers)
        finish = partial(self.conv_out, activate=True)
        return [*steps, DecoderStep(finish, last.width)]

    # What a clip needs

    def plans(self, shape: tuple[int, ...]) -> Iterator[StreamPlan]:
        """How latents of ``shape`` may be cut with the same pixels, the fastest first."""
        most, (B, _, _, H, W) = decoding.PIECES[0], shape
        if not on_gpu():
            frames = sized(self.layers, B, 1, H, W)
            most = FRAMES_CPU * max(step.elements for step in frames)
        for tiles in range(1, max(H, W) // 2):
            for elements in decoding.PIECES:
                yield StreamPlan(min(elements, most), tiles)

    def activation_bytes(self, shape: tuple[int, ...], tiling: decoding.Tiling) -> int:
        """About how many bytes decoding latents of ``shape`` needs besides the weights.

        In pieces: the current piece, and the frames that each convolution and its skip keep for the next. In tiles: a tile
        and the pixels before it, or the pixels while they are blended.
        """
        if isinstance(tiling, TilingConfig):
            return self._bytes_in_tiles(shape, tiling)
        B, _, *cells = shape
        longer = 1 if cells[1] > cells[2] else 2
        start, stop, *_ = spans(cells[longer], tiling.tiles, self.receptive_field)[0]
        cells[longer] = stop - start
        steps = sized(self.layers, B, *cells)
        kept = tiling.tiles * sum(
            KEPT * conv.weight.shape[-1] * step.frame * self.itemsize
            for step in steps
            for conv in convolution.within(step.layer)
        )
        if on_gpu():
            return self._gpu_bytes(steps, tiling.elements, kept)
        return self._cpu_bytes(steps, tiling.elements) + kept

    def operations(self, shape: tuple[int, ...]) -> float:
        """The cost of decoding latents of ``shape``, in transformer operations that take as long."""
        B, _, *cells = shape
        products = sum(
            step.frames * step.frame * conv.weight.size
            for step in sized(self.layers, B, *cells)
            for conv in convolution.within(step.layer)
        )
        return 2 * (SLOWER if on_gpu() else SLOWER_CPU) * products

    @property
    def receptive_field(self) -> int:
        """How many latent rows or columns away a cell can be and still affect a pixel."""
        steps = (
            Fraction(len(convolution.within(step.layer)), math.isqrt(step.frame))
            for step in sized(self.layers, 1, 1, 1, 1)
        )
        return math.ceil(sum(steps))

    @property
    def itemsize(self) -> int:
        """Bytes of an element of the layers' results."""
        return self.conv_in.weight.itemsize

    def _bytes_in_tiles(self, shape: tuple[int, ...], tiling: TilingConfig) -> int:
        B, _, *cells = shape
        grid = tiling.grid(tuple(cells), self.scale)
        tile = (max(cut.cells for cut in cuts) for cuts in grid)
        steps = sized(self.layers, B, *tile)
        pixel = B * self.config.out_channels * FLOAT32
        done, whole, blended = (n * pixel for n in held_pixels(grid))
        if on_gpu():
            return round(LIVE_TILE * self._finest(steps)) + whole
        if self.itemsize != FLOAT32:
            working = self._bytes_of_pairs(steps)
        else:  # a tile is not paced, so that all convolutions of a layer are alive at once
            working = max(sum(step.unfolded) for step in steps) * FLOAT32
        return max(working + done, blended)

    def _gpu_bytes(self, steps: list["Sized"], elements: int, kept: int) -> int:
        """Bytes that a GPU holds for pieces of ``elements``, with ``kept`` bytes between them."""
        whole = LIVE_WHOLE * self._finest(steps)
        most = max(elements, *(step.piece(elements).elements for step in steps))
        pieces = LIVE_PIECES * most * self.itemsize + AGAIN * kept
        return round(min(QUEUED, whole) + min(whole, pieces))

    def _cpu_bytes(self, steps: list["Sized"], elements: int) -> int:
        """Bytes that a CPU holds for pieces of ``elements``, without those kept between them."""
        if self.itemsize != FLOAT32:
            return self._bytes_of_pairs([step.piece(elements) for step in steps])
        most = 0
        for step in steps:
            piece, lap = step.piece(elements), 1.0
            if elements < step.elements:
                # The next piece begins before this one is freed, mostly where a layer has two convolutions.
                lap += 1 / piece.frames + BEGUN * (len(piece.unfolded) - 1)
            most = max(most, round(lap * max(piece.unfolded)))
        return most * FLOAT32

    def _bytes_of_pairs(self, steps: list["Sized"]) -> int:
        """Bytes that a CPU holds for two convolutions in turn; it copies weights that are not float32."""
        share = PAIRED[self.config.decoder_spatial_padding_mode]
        convs = [
            (unfolded, conv.weight.size if conv.weight.dtype != mx.float32 else 0)
            for step in steps
            for unfolded, conv in zip(step.unfolded, convolution.within(step.layer))
        ]
        return FLOAT32 * max(
            round(share * (first + second)) + copy + other
            for (first, copy), (second, other) in pairwise(convs)
        )

    def _finest(self, steps: list["Sized"]) -> int:
        """Bytes of the finest grid with the channels of the last blocks."""
        cells = steps[-1].frames * steps[-1].frame
        return cells * self.config.decoder_base_channels * self.itemsize


def _up_block(
    block: convolution.Block, channels: int, padding_mode: str
) -> tuple[nn.Module, int]:
    """A block of the decoder that returns ``channels``, and the channels of its input."""
    name, parameters = block
    if name == "res_x":
        return MidBlock3D(channels, parameters["num_layers"], padding_mode), channels
    if stride := STRIDES.get(name):
        wider = channels * parameters.get("multiplier", 1)
        # The official decoder reads it for this block only.
        residual = name == "compress_all" and parameters.get("residual", False)
        up = DepthToSpaceUpsample(wider, channels, stride, padding_mode, residual)
        return up, wider
    raise UserError(f"Video VAE decoder block {name!r} is not implemented.")


class Sized(NamedTuple):
    """A layer for a clip of a known size: the frames that it computes, and the positions in each, of all batch items."""

    layer: nn.Module
    frames: int
    frame: int

    @property
    def elements(self) -> int:
        """Of the layer's widest array."""
        return self.frames * self.frame * widest(self.layer)

    def piece(self, elements: int) -> "Sized":
        """The layer for one piece, in which no array has more than about ``elements``."""
        frames = max(1, elements // (self.frame * widest(self.layer)))
        return self._replace(frames=min(self.frames, frames))

    @property
    def unfolded(self) -> list[int]:
        """Float32 elements that a CPU holds during each of the layer's convolutions."""
        convs = convolution.within(self.layer)
        return [_unfolded(conv, self.frames, self.frame) for conv in convs]


def _unfolded(conv: CausalConv3d, frames: int, cells: int) -> int:
    O, *kernel, I = conv.weight.shape
    outputs, inputs = frames * cells, (frames + kernel[0] - 1) * cells
    form = convolution.preferred_form(conv.weight.shape, conv.weight.dtype)
    if form is convolution.by_product:
        unfolded = kernel[1] * kernel[2]
        return inputs * I * (ACTIVATED + unfolded) + outputs * O * (SUMMED + kernel[0])
    unfolded = math.prod(kernel)
    return inputs * I * ACTIVATED + outputs * (I * unfolded + O * SUMMED)


def sized(layers: list[nn.Module], B: int, F: int, H: int, W: int) -> list[Sized]:
    """The ``layers`` in order, of which the first reads (B, F, H, W) cells."""
    found, frames, frame = [], F, B * H * W
    for layer in layers:
        found.append(Sized(layer, frames, frame))
        if isinstance(layer, DepthToSpaceUpsample):
            f, h, w = layer.stride
            frames, frame = (frames - 1) * f + 1, frame * h * w
    return found
