"""How a CUDA kernel passes over the cells of a clip. Knows places and threads, not what is computed there."""

import math
from dataclasses import dataclass
from typing import Callable

import mlx.core as mx

from mlx_video.backend import on_cuda
from mlx_video.models.ltx.kernels import WARP, WIDTH, Kernel, Launch

BLOCK = 256  # threads

Shape = tuple[int, ...]


@mx.compile
def total(*terms: mx.array) -> mx.array:
    """The sum of arrays that broadcast, in one pass over them."""
    first, *others = terms
    return sum(others, first)


@dataclass(frozen=True)
class CellKernel(Kernel):
    """A kernel for clips (B, F, H, W, C), with a group of threads, a warp at most, for each cell of its output.

    shape     of the output, by the arguments
    channels  of the first argument: a multiple of this
    """

    shape: Callable[..., Shape] = lambda x, *_: x.shape
    channels: int = WIDTH

    def fits(self, x: mx.array) -> bool:
        """Whether this runs on CUDA, and a group's threads share the channels evenly."""
        packs = x.shape[-1] // WIDTH
        group = min(packs, WARP)
        even = group and not (WARP % group or packs % group)
        return on_cuda() and even and x.shape[-1] % self.channels == 0

    def launch(self, *arguments: mx.array | float | None) -> Launch:
        shape = self.shape(*arguments)
        threads = math.prod(shape[:-1]) * min(shape[-1] // WIDTH, WARP)
        return Launch(-(-threads // BLOCK) * BLOCK, BLOCK, shape)


# The place of a cell of the output, (B, frames, rows, columns, C), and the first channel of a thread that works on it;
# the thread's others lie ``step`` apart. In 32 bits, since a division of 64 costs more than all the rest.
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
