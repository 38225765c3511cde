"""Limits how much of a network is queued on the device at once. Knows arrays and their order, not their meaning.

A GPU keeps all arrays of what is queued. So a network marks where its pieces of work end, and its caller evaluates each.
"""

from collections import deque
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Iterator

import mlx.core as mx

SMALL = 8 * 2**20  # bytes; a piece with a smaller result joins the next
QUEUED = 160 * 2**20  # bytes of results that may be queued by default, ...
PAIR = 384 * 2**20  # ... or of exactly two; a larger one is queued alone


class Pacer:
    """Queues a few pieces behind the one that runs, or at most one if they are large.

    So memory holds only what these need, the device is rarely idle, and no GPU command runs so long that macOS stops it.
    """

    def __init__(self, queued: float, pair: float):
        """Limits in bytes, see ``piece_by_piece``."""
        self.queued, self.pair = queued, pair
        self.queue: deque[tuple[mx.array, int]] = deque()

    def __call__(self, *arrays: mx.array, takes: int = 0) -> None:
        """Queue ``arrays``, after waiting until there is room for their bytes, or for ``takes`` if that is more."""
        size = max(takes, sum(array.nbytes for array in arrays))
        if size < SMALL:
            return
        while self.queue and self._too_much(size):
            mx.eval(self.queue.popleft()[0])
        mx.async_eval(*arrays)  # not earlier: queuing allocates memory
        self.queue.append((arrays[0], size))

    def _too_much(self, more: int) -> bool:
        total = more + sum(size for _, size in self.queue)
        return total > (self.pair if len(self.queue) == 1 else self.queued)


_pacer: ContextVar[Pacer | None] = ContextVar("pacer", default=None)


@contextmanager
def piece_by_piece(queued: float = QUEUED, pair: float = PAIR) -> Iterator[None]:
    """Within this block, ``end_piece`` evaluates its arrays. Not for gradients or compiled functions.

    queued, pair  bytes of results that may be queued: of any number, or of exactly two
    """
    token = _pacer.set(Pacer(queued, pair))
    try:
        yield
    finally:
        _pacer.reset(token)


def each_piece_by_piece(items: Iterator[mx.array]) -> Iterator[mx.array]:
    """``items``, of any shape, each computed within ``piece_by_piece``."""
    while True:
        with piece_by_piece():
            item = next(items, None)
        if item is None:
            return
        yield item
        del item  # or it would stay while the next one is computed


def end_piece(*arrays: mx.array, takes: int = 0) -> mx.array | tuple[mx.array, ...]:
    """``arrays``, unchanged; marks the end of a piece of work, which needs their bytes, or ``takes`` if that is more."""
    if (pacer := _pacer.get()) is not None:
        pacer(*arrays, takes=takes)
    return arrays if len(arrays) > 1 else arrays[0]
