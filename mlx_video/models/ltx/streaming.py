"""A transformer's blocks read from its files as they are used, the next while the last one computes.

Knows when blocks come and go; not what a file holds or what a block computes.
"""

from collections import deque
from typing import Callable, Iterator, Sequence

import mlx.core as mx

from mlx_video.models.ltx.transformer import TransformerBlock


class BlockStream:
    """The blocks of a transformer, to be gone through again and again; none of them stays.

    build  gives the blocks with lazy weights, new ones each time, since MLX keeps what an array has once read
    """

    def __init__(self, build: Callable[[], Sequence[TransformerBlock]]):
        self.build = build
        # Of its own, so that on CUDA the copy to the device need not wait for the block that computes.
        self.stream = mx.new_thread_local_stream(mx.default_device())

    def __iter__(self) -> Iterator[TransformerBlock]:
        """Begin to read a block when its turn comes; whoever asks has set the block before it to work."""
        with mx.stream(self.stream):
            blocks = deque(self.build())
        while blocks:
            block = blocks.popleft()
            mx.async_eval(block.parameters())
            yield block
