"""How much of a network may wait on the device at once. Knows arrays and their order, not what they are.

MLX builds a graph as long as nobody evaluates it, and on a GPU keeps every intermediate array of what is queued. So a
network marks where a piece of its work ends, and whoever runs it may have the pieces evaluated as they come.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from typing import Iterator

import mlx.core as mx

SMALL = 8 * 2**20  # bytes; a piece that ends in less joins the next


class Pacer:
    """Lets one piece run while the next is prepared and queued, and no more wait.

    So memory holds what two pieces need instead of what the whole network does, the device is never idle, and no GPU
    command runs for seconds, which macOS would stop.
    """

    def __init__(self):
        self.running: mx.array | None = None

    def __call__(self, *arrays: mx.array) -> None:
        if sum(array.nbytes for array in arrays) < SMALL:
            return
        mx.async_eval(*arrays)
        if self.running is not None:
            mx.eval(self.running)
        self.running = arrays[0]


_pacer: ContextVar[Pacer | None] = ContextVar("pacer", default=None)


@contextmanager
def piece_by_piece() -> Iterator[None]:
    """Within this block, what ``end_piece`` sees is evaluated. Not for a gradient or a compiled function."""
    token = _pacer.set(Pacer())
    try:
        yield
    finally:
        _pacer.reset(token)


def end_piece(*arrays: mx.array) -> mx.array | tuple[mx.array, ...]:
    """``arrays``, unchanged: the end of a piece of work, from which the next goes on."""
    if (pacer := _pacer.get()) is not None:
        pacer(*arrays)
    return arrays if len(arrays) > 1 else arrays[0]
