"""How the video autoencoder trades resolution for channels. Knows the order of channels, not other blocks."""

import math

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx.kernels import fused
from mlx_video.models.ltx.video_vae.cell_kernels import CELL, CellKernel, Shape, total
from mlx_video.models.ltx.video_vae.convolution import CausalConv3d, Triple
from mlx_video.models.ltx.video_vae.stream import FrameCache, joined


def patchify(pixels: mx.array, size: int) -> mx.array:
    """(B, C, F, H, W) -> (B, F, H/size, W/size, C*size*size); in a patch, rows are fastest, then columns."""
    B, C, F, H, W = pixels.shape
    x = pixels.reshape(B, C, F, H // size, size, W // size, size)
    x = x.transpose(0, 2, 3, 5, 1, 6, 4)  # (B, F, H, W, C, columns, rows)
    return x.reshape(*x.shape[:4], -1)


def unpatchify(x: mx.array, size: int) -> mx.array:
    """The inverse of ``patchify``: (B, F, H, W, C*size*size) -> (B, C, F, H*size, W*size)."""
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
    """The inverse of ``space_to_depth``: (B, F, H, W, C*f*h*w) -> (B, F*f, H*h, W*w, C)."""
    B, F, H, W, _ = x.shape
    f, h, w = stride
    x = x.reshape(B, F, H, W, -1, f, h, w)
    x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4)  # (B, F, f, H, h, W, w, C)
    return x.reshape(B, F * f, H * h, W * w, -1)


class SpaceToDepthDownsample(nn.Module):
    """Downsample by ``stride``: an unshuffled convolution, plus the input, unshuffled and averaged to as many channels.

    If time is halved, the first frame is repeated, so that it has a cell of its own.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: Triple, padding_mode: str
    ):
        super().__init__()
        self.stride = stride
        own = out_channels // math.prod(stride)
        self.conv = CausalConv3d(in_channels, own, padding_mode)

    def __call__(self, x: mx.array, cache: FrameCache) -> mx.array:
        """(B, F, H, W, I) -> (B, F / f, H / h, W / w, O); pieces after the first have a multiple of f frames."""
        if cache.begins(self):
            x = mx.concatenate([x[:, :1]] * (self.stride[0] - 1) + [x], axis=1)
        return shrunk(self.conv.linear(x, cache), x, self.conv.bias, *self.stride)


# A stride's frames, rows and columns, each 1 or 2, as exponents of 2.
STRIDE = """
  const unsigned bf = unsigned(number[0]) >> 1, bh = unsigned(number[1]) >> 1, bw = unsigned(number[2]) >> 1;
  const unsigned bits = bf + bh + bw, F = x_shape[1], H = x_shape[2], W = x_shape[3], C1 = x_shape[4];
"""


def _shrunk_shape(x: mx.array, *others) -> Shape:
    (B, F, H, W, C), (f, h, w) = x.shape, others[2:5]
    return B, F // f, H // h, W // w, C * f * h * w


def _grown_shape(x: mx.array, *others) -> Shape:
    (B, F, H, W, C), (f, h, w) = x.shape, others[2:5]
    return B, F * f, H * h, W * w, C // (f * h * w)


SHRUNK = CellKernel(
    "shrunk",
    ("x", "skip", "bias"),
    STRIDE
    + """
  const unsigned frames = F >> bf, rows = H >> bh, columns = W >> bw, C = C1 << bits;
"""
    + CELL
    + """
  const unsigned C0 = skip_shape[4], averaged = (C0 << bits) / C;
  const size_t first = ((batch * F + (frame << bf)) * H + (row << bh)) * W + (column << bw);
  auto place = [&](unsigned k) {
    const unsigned i = k >> (bh + bw) & ((1 << bf) - 1), j = k >> bw & ((1 << bh) - 1);
    return first + (size_t(i) * H + j) * W + (k & ((1 << bw) - 1));
  };
  for (unsigned c = channel; c < C; c += step) {
    Pack<T> v;
    for (unsigned n = 0; n < 8; ++n) {
      const unsigned k = c + n;
      float sum = 0;
      for (unsigned s = k * averaged; s < (k + 1) * averaged; ++s) sum += float(skip[place(s) * C0 + (s >> bits)]);
      const T own = T(float(x[place(k) * C1 + (k >> bits)]) + float(bias[k >> bits]));
      v.at[n] = T(float(own) + float(T(sum / averaged)));
    }
    store(to + c, v);
  }
""",
    shape=_shrunk_shape,
)

GROWN = CellKernel(
    "grown",
    ("x", "skip", "bias"),
    STRIDE
    + """
  const unsigned frames = F << bf, rows = H << bh, columns = W << bw, C = C1 >> bits;
"""
    + CELL
    + """
  const unsigned i = frame & ((1 << bf) - 1), j = row & ((1 << bh) - 1), inner = (i << bh | j) << bw | column & ((1 << bw) - 1);
  const size_t from = ((batch * F + (frame >> bf)) * H + (row >> bh)) * W + (column >> bw);
  const unsigned C0 = number[3];
  const T* more = reinterpret_cast<const T*>(skip) + from * C0;
  for (unsigned c = channel; c < C; c += step) {
    Pack<T> v;
    for (unsigned n = 0; n < 8; ++n) {
      const unsigned k = (c + n) << bits | inner;
      v.at[n] = T(float(x[from * C1 + k]) + float(bias[k]) + (C0 ? float(more[k % C0]) : 0.0f));
    }
    store(to + c, v);
  }
""",
    shape=_grown_shape,
    channels=64,
)


@fused(SHRUNK)
def shrunk(
    x: mx.array, skip: mx.array, bias: mx.array, f: int, h: int, w: int
) -> mx.array:
    """``x`` (B, F, H, W, C) plus ``bias``, unshuffled by (f, h, w), plus ``skip`` unshuffled, averaged to as many channels."""
    x = space_to_depth(total(x, bias), (f, h, w))
    skip = space_to_depth(skip, (f, h, w))
    skip = mx.unflatten(skip, -1, (x.shape[-1], -1))
    # Summed as arrays: reducing an axis of length 2 or 4 would cost more than all the rest.
    return _plus_mean(x, *(skip[..., i] for i in range(skip.shape[-1])))


@fused(GROWN)
def grown(
    x: mx.array,
    skip: mx.array | None,
    bias: mx.array,
    f: int,
    h: int,
    w: int,
    channels: int,
) -> mx.array:
    """``x`` (B, F, H, W, C) plus ``bias`` and ``skip``, repeated from ``channels`` (0 = no skip), shuffled by (f, h, w)."""
    if skip is None:
        return depth_to_space(total(x, bias), (f, h, w))
    # The shuffle moves whole channels, so the repeated input can be added before it.
    x, bias = (mx.unflatten(a, -1, (-1, channels)) for a in (x, bias))
    return depth_to_space(total(x, bias, skip[..., None, :]).flatten(-2), (f, h, w))


@mx.compile
def _plus_mean(x: mx.array, *terms: mx.array) -> mx.array:
    """``x`` plus the mean of ``terms``, computed in float32."""
    mean = sum(term.astype(mx.float32) for term in terms) / len(terms)
    return x + mean.astype(x.dtype)


class DepthToSpaceUpsample(nn.Module):
    """Upsample by ``stride``: a shuffled convolution.

    If time is doubled, the first frame is dropped: it precedes the clip. ``residual`` adds the input, shuffled and
    repeated to as many channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Triple,
        padding_mode: str,
        residual: bool = False,
    ):
        super().__init__()
        self.stride = stride
        self.residual = residual
        own = out_channels * math.prod(stride)
        self.conv = CausalConv3d(in_channels, own, padding_mode)

    def __call__(self, x: mx.array, cache: FrameCache) -> mx.array:
        """(B, F, H, W, I) -> (B, F' * f, H * h, W * w, O), without the frame before the clip."""
        kept, x = cache.delay(self, x, 1)
        y, skip, channels = self.conv.linear(x, cache), None, 0
        if self.residual:
            skip, channels = joined(kept, x)[:, : y.shape[1]], x.shape[-1]
        y = grown(y, skip, self.conv.bias, *self.stride, channels)
        return y[:, self.stride[0] - 1 :] if cache.begins(self) else y
