"""Passes over the cells of a clip between two convolutions: one kernel on CUDA, plain MLX elsewhere.

As separate operations, a norm, SiLU and both kinds of padding move every cell through memory five times. ``sampling`` has
more such kernels.
"""

import math
from dataclasses import dataclass
from typing import Callable

import mlx.core as mx

from mlx_video.backend import on_cuda
from mlx_video.cpu_ops import silu
from mlx_video.models.ltx.kernels import WARP, WIDTH, Kernel, Launch, fused
from mlx_video.models.ltx.video_vae.stream import joined

BLOCK = 256  # threads
NORM_EPS = 1e-8

Shape = tuple[int, ...]


@mx.compile
def total(*terms: mx.array) -> mx.array:
    """The sum of broadcastable arrays, in one pass."""
    first, *others = terms
    return sum(others, first)


@dataclass(frozen=True)
class CellKernel(Kernel):
    """A kernel for clips (B, F, H, W, C), with a group of threads, at most a warp, for each cell of its output.

    shape     a function from the arguments to the output's shape
    channels  the first argument must have a multiple of them
    """

    shape: Callable[..., Shape] = lambda x, *_: x.shape
    channels: int = WIDTH

    def fits(self, x: mx.array) -> bool:
        """Whether this runs on CUDA, and the threads of a group share the channels evenly."""
        packs = x.shape[-1] // WIDTH
        group = min(packs, WARP)
        even = group and not (WARP % group or packs % group)
        return on_cuda() and even and x.shape[-1] % self.channels == 0

    def launch(self, *arguments: mx.array | float | None) -> Launch:
        """As in ``Kernel``."""
        shape = self.shape(*arguments)
        threads = math.prod(shape[:-1]) * min(shape[-1] // WIDTH, WARP)
        return -(-threads // BLOCK) * BLOCK, BLOCK, shape


# The position of an output cell in (B, frames, rows, columns, C), and the first channel of a thread that works on it; its
# others are ``step`` apart. In 32 bits, since a 64-bit division costs more than all the rest.
CELL = """
  const unsigned group = min(C / 8, 32), step = 8 * group;
  const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x, cell = thread / group;
  const unsigned channel = thread % group * 8;
  unsigned column = cell / columns, row = column / rows, frame = row / frames;
  const size_t batch = frame;
  if (batch >= x_shape[0]) return;
  frame = row - frame * frames, row = column - row * rows, column = cell - column * columns;
  T* to = out + size_t(cell) * C;
"""


def _window_shape(x: mx.array, kept: mx.array | None, *others) -> Shape:
    _, _, before, after, border, _ = others
    B, F, H, W, C = x.shape
    return B, before + F + after, H + 2 * border, W + 2 * border, C


WINDOW = CellKernel(
    "window",
    ("x", "kept", "bias"),
    """
  const int F = x_shape[1], H = x_shape[2], W = x_shape[3], C = x_shape[4];
  const int before = number[1], border = number[3];
  const unsigned frames = before + F + int(number[2]), rows = H + 2 * border, columns = W + 2 * border;
"""
    + CELL
    + """
  if (frame < before && number[0] > 0) {  // a result of this kernel
    const T* from = reinterpret_cast<const T*>(kept) + (((batch * before + frame) * rows + row) * columns + column) * C;
    for (int c = channel; c < C; c += step) store(to + c, load(from + c));
    return;
  }
  int i = int(row) - border, j = int(column) - border;
  i = min(abs(i), 2 * (H - 1) - abs(i)), j = min(abs(j), 2 * (W - 1) - abs(j));
  const int k = min(max(int(frame) - before, 0), F - 1);
  const T* from = x + (((batch * F + k) * H + i) * W + j) * C;
  const T* more = bias_shape[0] == C ? reinterpret_cast<const T*>(bias) : nullptr;
  if (number[4] == 0) {
    for (int c = channel; c < C; c += step) store(to + c, more ? add_rows(load(more + c), load(from + c)) : load(from + c));
    return;
  }
  float squares = 0;
  for (int c = channel; c < C; c += step) {
    auto v = load(from + c);
    if (more) v = add_rows(load(more + c), v);
    for (int n = 0; n < 8; ++n) squares += float(v.at[n]) * float(v.at[n]);
  }
  const unsigned members = group == 32 ? 0xffffffff : ((1u << group) - 1) << (threadIdx.x % 32 / group * group);
  for (int lane = group / 2; lane > 0; lane /= 2) squares += __shfl_xor_sync(members, squares, lane);
  const float inverse = rsqrtf(squares / C + 1e-8f);
  for (int c = channel; c < C; c += step) {
    auto v = load(from + c);
    if (more) v = add_rows(load(more + c), v);
    for (int n = 0; n < 8; ++n) {
      const float normed = float(v.at[n]) * inverse;
      v.at[n] = T(__fdividef(normed, 1 + expf(-normed)));
    }
    store(to + c, v);
  }
""",
    shape=_window_shape,
)

PLUS_DELAYED = CellKernel(
    "plus_delayed",
    ("x", "kept", "skip", "bias"),
    """
  const unsigned frames = x_shape[1], rows = x_shape[2], columns = x_shape[3], C = x_shape[4];
"""
    + CELL
    + """
  const unsigned known = number[0];
  const T* old = frame < known ? reinterpret_cast<const T*>(kept) + (batch * known + frame) * rows * columns * C
                               : skip + (batch * skip_shape[1] + frame - known) * rows * columns * C;
  old += size_t(row * columns + column) * C;
  for (int c = channel; c < C; c += step) {
    auto v = load(x + size_t(cell) * C + c);
    const auto b = load(bias + c), s = load(old + c);
    for (int n = 0; n < 8; ++n) v.at[n] = T(float(v.at[n]) + float(b.at[n]) + float(s.at[n]));
    store(to + c, v);
  }
""",
)


@fused(WINDOW)
def window(
    x: mx.array,
    kept: mx.array | None,
    bias: mx.array | None,
    known: int,
    before: int,
    after: int,
    border: int,
    activate: int,
) -> mx.array:
    """A convolution's padded input for a piece of a clip: (B, before + F + after, H + 2*border, W + 2*border, C).

    x         the piece (B, F, H, W, C); ``bias`` (C), if any, is added to it first
    kept      the ``before`` frames that precede it, from an earlier result; without them ``known`` is 0 and the first
              frame is repeated. The last one is repeated ``after`` times
    border    how many cells are mirrored about the outermost rows and columns
    activate  whether cells are RMS-normed over the channels and go through SiLU
    """
    if bias is not None:
        x = total(x, bias)
    if activate:
        x = activated(x)
    x = reflect(x, border)
    front = [kept] if known else [x[:, :1]] * before
    return mx.concatenate([*front, x, *[x[:, -1:]] * after], axis=1)


@fused(PLUS_DELAYED)
def plus_delayed(
    x: mx.array, kept: mx.array | None, skip: mx.array, bias: mx.array, known: int
) -> mx.array:
    """``x`` (B, F, H, W, C) plus ``bias`` (C) and the first F frames of ``kept`` (``known`` frames) followed by ``skip``."""
    return total(x, bias, joined(kept, skip)[:, : x.shape[1]])


def activated(x: mx.array) -> mx.array:
    """SiLU of ``x`` (..., C), RMS-normed over the channels."""
    return silu(mx.fast.rms_norm(x, None, NORM_EPS))


def reflect(x: mx.array, count: int) -> mx.array:
    """(B, F, H, W, C) with ``count`` cells mirrored about the outermost rows and columns; needs more than ``count`` of each."""
    for axis in (2, 3) if count else ():
        n = x.shape[axis]
        left = mx.take(x, mx.arange(count, 0, -1), axis=axis)
        right = mx.take(x, mx.arange(n - 2, n - 2 - count, -1), axis=axis)
        # Concatenated: mx.pad copies the clip once per side, and gathering all cells was slower on an H200.
        x = mx.concatenate([left, x, right], axis=axis)
    return x
