"""How the video autoencoder trades resolution for channels. Knows the order of the channels, not the blocks around."""

import math

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx.video_vae.convolution import (
    CausalConv3d,
    Triple,
    total,
)
from mlx_video.models.ltx.video_vae.stream import Stream


def patchify(pixels: mx.array, size: int) -> mx.array:
    """(B, C, F, H, W) -> (B, F, H/size, W/size, C*size*size); in a patch, rows are fastest, then columns."""
    B, C, F, H, W = pixels.shape
    x = pixels.reshape(B, C, F, H // size, size, W // size, size)
    x = x.transpose(0, 2, 3, 5, 1, 6, 4)  # (B, F, H, W, C, columns, rows)
    return x.reshape(*x.shape[:4], -1)


def unpatchify(x: mx.array, size: int) -> mx.array:
    """The inverse of ``patchify``."""
    B, F, H, W, _ = x.shape
    x = x.reshape(B, F, H, W, -1, size, size)
    x = x.transpose(0, 4, 1, 2, 6, 3, 5)  # (B, C, F, H, rows, W, columns)
    return x.reshape(B, -1, F, H * size, W * size)


def space_to_depth(x: mx.array, stride: Triple) -> mx.array:
    """(B, F, H, W, C) -> (B, F/f, H/h, W/w, C*f*h*w) for stride (f, h, w); columns are fastest, then rows, frames."""
    B, F, H, W, C = x.shape
    f, h, w = stride
    x = x.reshape(B, F // f, f, H // h, h, W // w, w, C)
    x = x.transpose(0, 1, 3, 5, 7, 2, 4, 6)  # (B, F, H, W, C, f, h, w)
    return x.reshape(*x.shape[:4], -1)


def depth_to_space(x: mx.array, stride: Triple) -> mx.array:
    """The inverse of ``space_to_depth``."""
    B, F, H, W, _ = x.shape
    f, h, w = stride
    x = x.reshape(B, F, H, W, -1, f, h, w)
    x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4)  # (B, F, f, H, h, W, w, C)
    return x.reshape(B, F * f, H * h, W * w, -1)


class SpaceToDepthDownsample(nn.Module):
    """Shrink by ``stride``: a convolution, unshuffled, plus the input, unshuffled and averaged to as many channels.

    If time is halved, the first frame counts twice, so that it keeps a cell of its own.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Triple,
        padding_mode: str = "zeros",
    ):
        super().__init__()
        self.stride = stride
        self.out_channels = out_channels
        self.conv = CausalConv3d(
            in_channels,
            out_channels // math.prod(stride),
            padding_mode=padding_mode,
        )

    def __call__(self, x: mx.array, stream: Stream) -> mx.array:
        """Pieces after the first must have a multiple of the stride in frames."""
        if stream.begins(self):
            x = mx.concatenate([x[:, :1]] * (self.stride[0] - 1) + [x], axis=1)
        y = space_to_depth(self.conv(x, stream), self.stride)
        skip = space_to_depth(x, self.stride)
        skip = mx.unflatten(skip, -1, (self.out_channels, -1))
        # Summed as arrays, since reducing an axis of 2 or 4 would cost more than all the rest.
        return _plus_mean(y, *(skip[..., i] for i in range(skip.shape[-1])))


@mx.compile
def _plus_mean(x: mx.array, *terms: mx.array) -> mx.array:
    """``x`` and the mean of ``terms``, which is taken in float32."""
    mean = sum(term.astype(mx.float32) for term in terms) / len(terms)
    return x + mean.astype(x.dtype)


class DepthToSpaceUpsample(nn.Module):
    """Grow by ``stride``: a convolution, shuffled; its channels are the input's divided by ``multiplier``.

    If time is doubled, the first frame is dropped: it lies before the clip. A ``residual`` adds the input, shuffled and
    tiled to as many channels.
    """

    def __init__(
        self,
        in_channels: int,
        stride: Triple,
        multiplier: int = 1,
        residual: bool = False,
        padding_mode: str = "zeros",
    ):
        super().__init__()
        self.stride = stride
        self.repeats = math.prod(stride) // multiplier if residual else 0
        self.conv = CausalConv3d(
            in_channels,
            in_channels * math.prod(stride) // multiplier,
            padding_mode=padding_mode,
        )

    def __call__(self, x: mx.array, stream: Stream) -> mx.array:
        skip = stream.delay(self, x, 1)
        y, bias = self.conv.linear(x, stream), self.conv.bias
        if self.repeats:
            # The shuffle moves whole channels, so the tiled input can be added before it.
            y, bias = (mx.unflatten(a, -1, (self.repeats, -1)) for a in (y, bias))
            y = total(y, bias, skip[..., None, :]).flatten(-2)
        else:
            y = total(y, bias)
        y = depth_to_space(y, self.stride)
        return y[:, self.stride[0] - 1 :] if stream.begins(self) else y
