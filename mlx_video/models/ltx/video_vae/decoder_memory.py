"""What the convolutional decoder needs besides its weights, and how a clip may be cut to fit.

Arithmetic on layers and on shapes of latents, (B, C, F, H, W).
"""

import math
from fractions import Fraction
from itertools import pairwise
from typing import Iterator, NamedTuple, Sequence

import mlx.nn as nn

from mlx_video.models.ltx.loading.memory_table import FLOAT32
from mlx_video.models.ltx.vae_config import VideoVAEConfig
from mlx_video.models.ltx.video_vae.convolution import (
    convolutions,
    on_gpu,
    unfolded_elements,
    widest,
)
from mlx_video.models.ltx.video_vae.decoding import PIECES, StreamPlan, Tiling
from mlx_video.models.ltx.video_vae.sampling import DepthToSpaceUpsample
from mlx_video.models.ltx.video_vae.tiling import (
    TilingConfig,
    blended_pixels,
    decode_grid,
)

KEPT = 3  # frames that a convolution and the skip beside it keep for the next piece, at most
# Arrays that are alive at once on a GPU, measured on an H200, ...
LIVE_PIECES = 8  # ... of the size of a piece
LIVE_WHOLE = 9.7  # ... of the size of the finest grid, for a clip of one piece
LIVE_TILE = 18.5  # ... of the size of a tile's finest grid; a tile is not paced
QUEUED = 350e6  # bytes of small results that a GPU may queue besides
# Copies of kept frames on a GPU, where the next are made before the last are freed.
AGAIN = 1.6
# Frames of the largest layer that a CPU computes at once. As fast as all at once for large frames; faster for small ones,
# which then reuse memory.
FRAMES_CPU = 8
# Share of two convolutions' arrays that a CPU holds, if it copies their weights to float32, by the padding: ours, or MLX's.
PAIRED = {"reflect": 0.92, "zeros": 1.32}
BEGUN = 0.4  # share of the next piece that a CPU holds beside the current one; measured as 0 to 0.45
# Time of a convolution's operation relative to a transformer's, ...
SLOWER = 1.7  # ... measured on an H200
SLOWER_CPU = 0.9  # ... and on two CPU cores


class Sized(NamedTuple):
    """A layer for latents of a known shape: the frames that it computes, and the positions in each, of all batch items."""

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
        convs = convolutions(self.layer)
        return [unfolded_elements(conv, self.frames, self.frame) for conv in convs]


class DecoderMemory:
    """The part of the decoder that foresees bytes, operations and cuts, from its ``config`` and its ``layers`` in order."""

    config: VideoVAEConfig
    layers: Sequence[nn.Module]

    @property
    def itemsize(self) -> int:
        """Bytes of an element of the layers' results."""
        return self.layers[0].weight.itemsize

    def plans(self, shape: tuple[int, ...]) -> Iterator[StreamPlan]:
        """How latents of ``shape`` may be cut with the same pixels, the fastest first."""
        most = PIECES[0]
        if not on_gpu():
            cells = math.prod(shape) // math.prod(shape[1:3])  # of a latent frame
            largest = max(
                space * widest(layer) for layer, _, space in self._scaled_layers()
            )
            most = FRAMES_CPU * cells * largest
        for tiles in range(1, max(shape[3:]) // 2):
            for elements in PIECES:
                yield StreamPlan(min(elements, most), tiles)

    def activation_bytes(self, shape: tuple[int, ...], tiling: Tiling) -> int:
        """About how many bytes decoding latents of ``shape`` needs besides the weights.

        In pieces: the current piece, and the frames that each convolution and its skip keep for the next. In tiles: a tile
        and the pixels before it, or the pixels while they are blended.
        """
        if isinstance(tiling, TilingConfig):
            return self._bytes_in_tiles(shape, tiling)
        B, _, *cells = shape
        longer = 1 if cells[1] > cells[2] else 2
        halo = self.receptive_field if tiling.tiles > 1 else 0
        across = -(-cells[longer] // tiling.tiles) + 2 * halo
        cells[longer] = min(cells[longer], across)
        steps = self._sized(B, *cells)
        kept = tiling.tiles * sum(
            KEPT * conv.weight.shape[-1] * step.frame
            for step in steps
            for conv in convolutions(step.layer)
        )
        if on_gpu():
            return self._gpu_bytes(steps, tiling.elements, kept * self.itemsize)
        return self._cpu_bytes(steps, tiling.elements) + kept * self.itemsize

    def operations(self, shape: tuple[int, ...]) -> float:
        """The cost of decoding latents of ``shape``, in transformer operations that take as long."""
        B, _, *cells = shape
        products = sum(
            step.frames * step.frame * conv.weight.size
            for step in self._sized(B, *cells)
            for conv in convolutions(step.layer)
        )
        return 2 * (SLOWER if on_gpu() else SLOWER_CPU) * products

    @property
    def receptive_field(self) -> int:
        """How many latent rows or columns away a cell can be and still affect a pixel."""
        steps = (
            Fraction(len(convolutions(layer)), math.isqrt(space))
            for layer, _, space in self._scaled_layers()
        )
        return math.ceil(sum(steps))

    def _bytes_in_tiles(self, shape: tuple[int, ...], tiling: TilingConfig) -> int:
        B, _, *cells = shape
        grid = decode_grid(tuple(cells), tiling, self.config.decoder_scale)
        tile = [max(cut.cells for cut in cuts) for cuts in grid]
        steps = self._sized(B, *tile)
        pixel = B * self.config.out_channels * FLOAT32
        done, whole, blended = (n * pixel for n in blended_pixels(grid))
        if on_gpu():
            return round(LIVE_TILE * self._finest(steps)) + whole
        if self.itemsize != FLOAT32:
            working = self._bytes_of_pairs(steps)
        else:  # a tile is not paced, so that all convolutions of a layer are alive at once
            working = max(sum(step.unfolded) for step in steps) * FLOAT32
        return max(working + done, blended)

    def _gpu_bytes(self, steps: list[Sized], elements: int, kept: int) -> int:
        """Bytes that a GPU holds for pieces of ``elements``, with ``kept`` bytes between them."""
        whole = LIVE_WHOLE * self._finest(steps)
        most = max(elements, *(step.piece(elements).elements for step in steps))
        pieces = LIVE_PIECES * most * self.itemsize + AGAIN * kept
        return round(min(QUEUED, whole) + min(whole, pieces))

    def _cpu_bytes(self, steps: list[Sized], elements: int) -> int:
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

    def _bytes_of_pairs(self, steps: Sequence[Sized]) -> int:
        """Bytes that a CPU holds for weights that are not float32: for two convolutions in turn, with copies of their weights."""
        paired = PAIRED[self.config.decoder_spatial_padding_mode]
        convs = [
            (unfolded, conv.weight.size)
            for step in steps
            for unfolded, conv in zip(step.unfolded, convolutions(step.layer))
        ]
        return FLOAT32 * max(
            round(paired * (first + second)) + copy + other
            for (first, copy), (second, other) in pairwise(convs)
        )

    def _finest(self, steps: list[Sized]) -> int:
        """Bytes of the finest grid with the channels of the last blocks."""
        most = max(step.frames * step.frame for step in steps)
        return most * self.config.decoder_base_channels * self.itemsize

    def _sized(self, B: int, F: int, H: int, W: int) -> list[Sized]:
        """The layers in order, for latents of (B, F, H, W) cells."""
        return [
            Sized(layer, (F - 1) * time + 1, B * H * W * space)
            for layer, time, space in self._scaled_layers()
        ]

    def _scaled_layers(self) -> Iterator[tuple[nn.Module, int, int]]:
        """The layers in order, each with its frames per latent frame and its cells per latent cell of a frame."""
        time, height, width = 1, 1, 1
        for layer in self.layers:
            yield layer, time, height * width
            if isinstance(layer, DepthToSpaceUpsample):
                f, h, w = layer.stride
                time, height, width = time * f, height * h, width * w
