"""Convolution over video, (B, F, H, W, C). Knows padding and how large one call may be, not what a block computes."""

from typing import Callable

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx.video_vae.stream import Stream

MAX_CONV_ELEMENTS = 1_500_000_000
"""Most elements one convolution may read or write. Metal's kernels returned zeros near 2e9 (ml-explore/mlx#3979)."""

Triple = tuple[int, int, int]
Form = Callable[[mx.array, mx.array, Triple, tuple[int, int]], mx.array]


def conv3d(
    x: mx.array,
    weight: mx.array,
    bias: mx.array | None = None,
    *,
    stride: Triple = (1, 1, 1),
    padding: tuple[int, int] = (0, 0),
    form: Form | None = None,
) -> mx.array:
    """Convolve (B, F, H, W, I) with (O, kF, kH, kW, I); ``padding`` is rows and columns of zeros, time has none.

    Every 3-D convolution of the package is this call, in the ``form`` that suits the machine unless one is named. One
    that would pass ``MAX_CONV_ELEMENTS`` is computed in pieces over time that share input frames, so the result is
    the same. Raises ``ValueError`` where a single output frame is too large.
    """
    form = form or preferred_form()
    step, taps = stride[0], weight.shape[1]
    frames = (x.shape[1] - taps) // step + 1
    size = _frames_per_call(x.shape, weight.shape, stride, padding)
    pieces = [
        form(
            x[:, i * step : (min(i + size, frames) - 1) * step + taps],
            weight,
            stride,
            padding,
        )
        for i in range(0, frames, size)
    ]
    y = pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=1)
    return y if bias is None else total(y, bias)


def preferred_form() -> Form:
    """``by_frames`` on Metal, where it was reported to be 2 to 5 times faster, else ``by_volume``."""
    metal = mx.metal.is_available() and mx.default_device() == mx.gpu
    return by_frames if metal else by_volume


def by_volume(
    x: mx.array, weight: mx.array, stride: Triple, padding: tuple[int, int]
) -> mx.array:
    """MLX's own 3-D convolution."""
    return mx.conv3d(x, weight, stride=stride, padding=(0, *padding))


def by_frames(
    x: mx.array, weight: mx.array, stride: Triple, padding: tuple[int, int]
) -> mx.array:
    """The same as a sum of 2-D convolutions, one for each frame of the kernel."""
    step, taps = stride[0], weight.shape[1]
    B, frames = x.shape[0], (x.shape[1] - taps) // step + 1

    def one(tap: int) -> mx.array:
        images = x[:, tap : tap + (frames - 1) * step + 1 : step].flatten(0, 1)
        return mx.conv2d(images, weight[:, tap], stride=stride[1:], padding=padding)

    return mx.unflatten(total(*map(one, range(taps))), 0, (B, frames))


@mx.compile
def total(*terms: mx.array) -> mx.array:
    """The sum of arrays that broadcast, in one pass over them."""
    first, *others = terms
    return sum(others, first)


def _frames_per_call(x: Triple, weight: Triple, stride: Triple, padding) -> int:
    """The most output frames of which neither the input nor the output passes ``MAX_CONV_ELEMENTS``."""
    B, _, H, W, I = x
    O, *kernel, _ = weight
    rows = (H + 2 * padding[0] - kernel[1]) // stride[1] + 1
    columns = (W + 2 * padding[1] - kernel[2]) // stride[2] + 1
    read = (MAX_CONV_ELEMENTS // (B * H * W * I) - kernel[0]) // stride[0] + 1
    written = MAX_CONV_ELEMENTS // (B * rows * columns * O)
    if min(read, written) < 1:
        raise ValueError(
            f"A convolution of {W}x{H} cells with {I} -> {O} channels passes {MAX_CONV_ELEMENTS:,} elements "
            "in a single frame. Use smaller spatial tiles, for example TilingConfig.default()."
        )
    return min(read, written)


class CausalConv3d(nn.Module):
    """Convolution with a cubic kernel that keeps the size (over its stride), padded by the clip itself in time.

    ``padding_mode`` says what lies around a frame: ``"zeros"`` or ``"reflect"`` (mirrored about the outermost cell).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: Triple = (1, 1, 1),
        padding_mode: str = "zeros",
    ):
        super().__init__()
        if padding_mode not in ("zeros", "reflect"):
            raise ValueError(
                f"Spatial padding must be 'zeros' or 'reflect'; got {padding_mode!r}."
            )
        bound = (in_channels * kernel_size**3) ** -0.5
        shape = (out_channels, kernel_size, kernel_size, kernel_size, in_channels)
        self.weight = mx.random.uniform(-bound, bound, shape)
        self.bias = mx.zeros(out_channels)
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding_mode = padding_mode

    def __call__(self, x: mx.array, stream: Stream) -> mx.array:
        return total(self.linear(x, stream), self.bias)

    def linear(self, x: mx.array, stream: Stream) -> mx.array:
        """Without the bias, for a caller that adds more to it in the same pass."""
        reach = self.kernel_size // 2
        padding = (reach, reach)
        x = stream.extend(self, x, self.kernel_size, self.stride[0])
        if self.padding_mode == "reflect":
            x, padding = reflect(x, reach), (0, 0)
        return conv3d(x, self.weight, stride=self.stride, padding=padding)


def reflect(x: mx.array, count: int) -> mx.array:
    """Mirror ``count`` cells about the outermost rows and columns. There must be more than ``count`` of each."""
    if count and min(x.shape[2:4]) <= count:
        raise ValueError(
            f"Reflect padding by {count} needs more than {count} cells on a side; got {min(x.shape[2:4])}. "
            "Frames must be at least 2 latent cells (64 pixels) high and wide."
        )
    for axis in (2, 3) if count else ():
        n = x.shape[axis]
        left = mx.take(x, mx.arange(count, 0, -1), axis=axis)
        right = mx.take(x, mx.arange(n - 2, n - 2 - count, -1), axis=axis)
        # By concatenation: mx.pad copies the clip once a side, and a gather of all cells was slower on an H200.
        x = mx.concatenate([left, x, right], axis=axis)
    return x
