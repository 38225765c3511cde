"""Convolution over video, (B, F, H, W, C). Knows padding and how large one call may be, not what a block computes."""

import mlx.core as mx
import mlx.nn as nn

MAX_CONV_ELEMENTS = 1_500_000_000
"""Most elements one convolution may read or write. Metal's kernels returned zeros near 2e9 (ml-explore/mlx#3979)."""

Triple = tuple[int, int, int]


def conv3d(
    x: mx.array,
    weight: mx.array,
    bias: mx.array | None = None,
    *,
    stride: Triple = (1, 1, 1),
    padding: tuple[int, int] = (0, 0),
) -> mx.array:
    """Convolve (B, F, H, W, I) with (O, kF, kH, kW, I); ``padding`` is rows and columns of zeros, time has none.

    Every 3-D convolution of the package is this call. One that would pass ``MAX_CONV_ELEMENTS`` is computed in
    pieces over time that share input frames, so the result is the same. Raises ``ValueError`` where a single output
    frame is too large.
    """
    step, taps = stride[0], weight.shape[1]
    frames = (x.shape[1] - taps) // step + 1
    size = _frames_per_call(x.shape, weight.shape, stride, padding)
    pieces = [
        mx.conv3d(
            x[:, i * step : (min(i + size, frames) - 1) * step + taps],
            weight,
            stride=stride,
            padding=(0, *padding),
        )
        for i in range(0, frames, size)
    ]
    y = pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=1)
    return y if bias is None else y + bias


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

    Causal, the first frame is repeated before the clip, so that no frame sees a later one; otherwise half as many
    repeats of the first and last frame surround it. ``padding_mode`` says what lies around a frame: ``"zeros"`` or
    ``"reflect"`` (mirrored about the outermost cell).
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

    def __call__(self, x: mx.array, causal: bool = True) -> mx.array:
        reach = self.kernel_size // 2
        padding = (reach, reach)
        if self.padding_mode == "reflect":
            x = reflect(reflect(x, 2, reach), 3, reach)
            padding = (0, 0)
        before, after = (2 * reach, 0) if causal else (reach, reach)
        x = repeat_ends(x, before, after)
        return conv3d(x, self.weight, self.bias, stride=self.stride, padding=padding)


# Both by concatenation: mx.pad's "edge" and "reflect" copy the whole clip once for every side they fill.


def repeat_ends(x: mx.array, before: int, after: int) -> mx.array:
    """Repeat the first frame ``before`` times in front and the last ``after`` times behind: axis 1."""
    return mx.concatenate([x[:, :1]] * before + [x] + [x[:, -1:]] * after, axis=1)


def reflect(x: mx.array, axis: int, count: int) -> mx.array:
    """Mirror ``count`` cells about the first and the last cell of ``axis``. It must be longer than ``count``."""
    if count == 0:
        return x
    if x.shape[axis] <= count:
        raise ValueError(
            f"Reflect padding by {count} needs more than {count} cells on a side; got {x.shape[axis]}. "
            "Frames must be at least 2 latent cells (64 pixels) high and wide."
        )
    n = x.shape[axis]
    left = mx.take(x, mx.arange(count, 0, -1), axis=axis)
    right = mx.take(x, mx.arange(n - 2, n - 2 - count, -1), axis=axis)
    return mx.concatenate([left, x, right], axis=axis)
