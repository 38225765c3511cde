"""How a run keeps weights in memory: whole, quantized, by blocks, or for the next run. Does not know what they compute."""

import ctypes
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Callable, Iterator, Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.loading.parts import Network, quantizable
from mlx_video.types import AV
from mlx_video.weights import materialize

GROUP_SIZE = 64  # weights per scale, when quantized on load
BLOCKS_AT_ONCE = 2  # in memory, where blocks are read as they are used
BATCH_BYTES = 128 * 2**20  # read at a time; fusing a LoRA needs up to four times that


@dataclass(frozen=True)
class Residency:
    """How weights are kept in memory. A plan tries several; a run uses one.

    dtype       of floating-point weights
    quantize    bits to which blocks are quantized on load, see ``bits``; ``None`` = as stored
    low_memory  whether the blocks of ``STREAMED`` networks are read as they are used instead of kept
    keep        names of parts that stay loaded after use, on a ``Shelf``
    """

    dtype: mx.Dtype
    quantize: int | None = None
    low_memory: bool = False
    keep: frozenset[str] = frozenset()

    def bits(self, network: type[Network], source: Source) -> int | None:
        """Bits to which blocks are quantized on load; ``None`` = as stored, such as blocks that are read in each step."""
        passing = self.low_memory and network.STREAMED
        stays = passing or not network.BLOCKS or source.quantization
        return None if stays else self.quantize

    def weight_bytes(self, part: Network, source: Source) -> int:
        """Bytes of ``part``, lazy and in this dtype, while it is lent."""
        network = part.network
        total = nbytes(network)
        if bits := self.bits(type(part), source):
            for layer in quantizable(network, GROUP_SIZE).values():
                weight, groups = layer.weight, layer.weight.size // GROUP_SIZE
                # Each group keeps a scale and a bias.
                kept = weight.size * bits // 8 + 2 * groups * weight.itemsize
                total += kept - weight.nbytes
        if self.low_memory and part.STREAMED:
            blocks = [nbytes(block) for block in part.transformer_blocks]
            total += BLOCKS_AT_ONCE * max(blocks) - sum(blocks)
        return total


def nbytes(module: nn.Module) -> int:
    """Bytes of all parameters, lazy or not."""
    return sum(value.nbytes for _, value in tree_flatten(module.parameters()))


@contextmanager
def cache_limited(limit: int | None) -> Iterator[None]:
    """Within this block MLX keeps at most ``limit`` bytes of freed memory (``None`` changes nothing); after it, none."""
    before = None if limit is None else mx.set_cache_limit(limit)
    try:
        yield
    finally:
        if before is not None:
            mx.set_cache_limit(before)
        mx.clear_cache()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
            trim(0)


def default_dtype() -> mx.Dtype:
    """bfloat16 on a GPU; float32 on a CPU, where it is faster."""
    return mx.bfloat16 if mx.default_device() == mx.gpu else mx.float32


class BlockStream:
    """The blocks of a transformer, read in each pass; two of them are in memory at a time.

    build  returns new blocks with lazy weights, since an array that was read once stays in memory
    """

    def __init__(self, build: Callable[[], Sequence[nn.Module]]):
        self.build = build
        # A stream of its own, so that reading does not wait for the block that computes.
        self.stream = mx.new_thread_local_stream(mx.default_device())

    def __iter__(self) -> Iterator[Callable[..., AV[mx.array]]]:
        with mx.stream(self.stream):
            blocks = deque(self.build())
        while blocks:
            block = blocks.popleft()
            materialize(block, BATCH_BYTES)
            mx.synchronize()  # The previous block is done, and is freed when this one is taken.
            yield partial(_started, block)


def _started(block: nn.Module, *inputs) -> AV[mx.array]:
    """The output of ``block``, already being computed."""
    x = block(*inputs)
    mx.async_eval(x.values)
    return x


class Shelf:
    """Loaded parts that wait for the next run, at most one of each name.

    Each has a mark: all that determines its weights, such as its files, its residency and the LoRAs fused into it.
    """

    def __init__(self):
        self._parts: dict[str, tuple[object, Network]] = {}

    def take(self, name: str, mark: object) -> Network | None:
        """The part ``name`` if it has this ``mark``; else ``None``, and a part of that name is freed."""
        found, part = self._parts.pop(name, (None, None))
        if part is not None and found != mark:
            _free(part)
            return None
        return part

    def put(self, name: str, mark: object, part: Network) -> None:
        """Keep a part, replacing any of that name."""
        self._parts[name] = mark, part

    def clear(self, but: Mapping[str, object] = {}) -> None:
        """Free all parts except those with these marks."""
        for name in list(self._parts):
            if self._parts[name][0] != but.get(name):
                _free(self._parts.pop(name)[1])

    @property
    def names(self) -> set[str]:
        """Names of the parts on the shelf."""
        return set(self._parts)


def _free(part: Network) -> None:
    """Empty the module, so that its weights are freed whoever still refers to it."""
    part.network.clear()
    mx.clear_cache()
