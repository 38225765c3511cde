"""How much of a network may wait on the device at once. Knows arrays and their order, not what they are.

MLX builds a graph as long as nobody evaluates it, and on a GPU keeps every intermediate array of what is queued. So a
network marks where a piece of its work ends, and whoever runs it may have the pieces evaluated as they come.
"""

from collections import deque
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Iterator

import mlx.core as mx

SMALL = 8 * 2**20  # bytes; a piece that ends in less joins the next
QUEUED = 320 * 2**20  # bytes that unfinished pieces may end in ...
PAIR = 768 * 2**20  # ... or two of them alone; a larger one has nothing beside it


class Pacer:
    """Lets a few pieces wait behind the one that runs; of large ones, one or none.

    So memory holds what they need instead of what the whole network does, the device is hardly ever idle, and no GPU
    command runs for seconds, which macOS would stop.
    """

    def __init__(self):
        self.queue: deque[tuple[mx.array, int]] = deque()

    def __call__(self, *arrays: mx.array, takes: int = 0) -> None:
        size = max(takes, sum(array.nbytes for array in arrays))
        if size < SMALL:
            return
        while self.queue and self._too_much(size):
            mx.eval(self.queue.popleft()[0])
        mx.async_eval(*arrays)  # not before: what waits on the device has its memory
        self.queue.append((arrays[0], size))

    def _too_much(self, more: int) -> bool:
        total = more + sum(size for _, size in self.queue)
        return total > (PAIR if len(self.queue) == 1 else QUEUED)


_pacer: ContextVar[Pacer | None] = ContextVar("pacer", default=None)


@contextmanager
def piece_by_piece() -> Iterator[None]:
    """Within this block, what ``end_piece`` sees is evaluated. Not for a gradient or a compiled function."""
    token = _pacer.set(Pacer())
    try:
        yield
    finally:
        _pacer.reset(token)


def each_piece_by_piece(items: Iterator[mx.array]) -> Iterator[mx.array]:
    """``items``, each made as within ``piece_by_piece``; what is done between them is not."""
    while True:
        with piece_by_piece():
            item = next(items, None)
        if item is None:
            return
        yield item


def end_piece(*arrays: mx.array, takes: int = 0) -> mx.array | tuple[mx.array, ...]:
    """``arrays``, unchanged: the end of a piece of work, from which the next goes on.

    takes  bytes that the work needs, where they are more than those of ``arrays``
    """
    if (pacer := _pacer.get()) is not None:
        pacer(*arrays, takes=takes)
    return arrays if len(arrays) > 1 else arrays[0]
