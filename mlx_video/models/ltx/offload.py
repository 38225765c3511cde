"""A transformer's blocks read from its files as they are used, the next while the last one computes.

Knows when blocks come and go; not what a file holds or what a block computes.
"""

from collections import deque
from functools import partial
from typing import Callable, Iterator, Sequence

import mlx.core as mx

from mlx_video.models.ltx.transformer import TransformerBlock
from mlx_video.types import AV
from mlx_video.weights import materialize

# Read at a time; fusing a LoRA takes up to four times as much.
BATCH_BYTES = 128 * 2**20


class BlockStream:
    """The blocks of a transformer, to be gone through again and again; two of them are in memory at a time.

    build  gives the blocks with lazy weights, new ones each time, since MLX keeps what an array has once read
    """

    def __init__(self, build: Callable[[], Sequence[TransformerBlock]]):
        self.build = build
        # Of its own, so that reading need not wait for the block that computes.
        self.stream = mx.new_thread_local_stream(mx.default_device())

    def __iter__(self) -> Iterator[Callable[..., AV[mx.array]]]:
        with mx.stream(self.stream):
            blocks = deque(self.build())
        while blocks:
            block = blocks.popleft()
            materialize(block, BATCH_BYTES)
            mx.synchronize()  # The block before is done, and goes when this one is taken.
            yield partial(_started, block)


def _started(block: TransformerBlock, *inputs) -> AV[mx.array]:
    """What ``block`` makes of its inputs, under way."""
    x = block(*inputs)
    mx.async_eval(x.values)
    return x
