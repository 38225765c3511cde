"""Layers of the convolutional decoder at the size of a clip, and what a CPU holds for their convolutions."""

import math
from itertools import pairwise
from typing import Iterable, NamedTuple, Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx.loading.memory_table import FLOAT32
from mlx_video.models.ltx.video_vae.convolution import (
    CausalConv3d,
    by_product,
    convolutions,
    preferred_form,
    widest,
)
from mlx_video.models.ltx.video_vae.sampling import DepthToSpaceUpsample

# Arrays of a convolution's input (normed, activated, padded) and output (sums, bias) that a CPU holds besides the unfolded
# input, since it runs a few operations ahead.
ACTIVATED, SUMMED = 9, 1


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
        convs = convolutions(self.layer)
        return [_unfolded(conv, self.frames, self.frame) for conv in convs]


def _unfolded(conv: CausalConv3d, frames: int, cells: int) -> int:
    O, *kernel, I = conv.weight.shape
    outputs, inputs = frames * cells, (frames + kernel[0] - 1) * cells
    if preferred_form(conv.weight.shape, conv.weight.dtype) is by_product:
        unfolded = kernel[1] * kernel[2]
        return inputs * I * (ACTIVATED + unfolded) + outputs * O * (SUMMED + kernel[0])
    unfolded = math.prod(kernel)
    return inputs * I * ACTIVATED + outputs * (I * unfolded + O * SUMMED)


def sized(layers: Sequence[nn.Module], B: int, F: int, H: int, W: int) -> list[Sized]:
    """The ``layers`` in order, of which the first reads (B, F, H, W) cells."""
    found, frames, frame = [], F, B * H * W
    for layer in layers:
        found.append(Sized(layer, frames, frame))
        if isinstance(layer, DepthToSpaceUpsample):
            f, h, w = layer.stride
            frames, frame = (frames - 1) * f + 1, frame * h * w
    return found


def pair_bytes(steps: Iterable[Sized], share: float) -> int:
    """Bytes that a CPU holds for two convolutions in turn, of whose arrays a ``share`` is alive at once.

    It copies weights that are not float32.
    """
    convs = [
        (unfolded, conv.weight.size if conv.weight.dtype != mx.float32 else 0)
        for step in steps
        for unfolded, conv in zip(step.unfolded, convolutions(step.layer))
    ]
    return FLOAT32 * max(
        round(share * (first + second)) + copy + other
        for (first, copy), (second, other) in pairwise(convs)
    )
