"""How the weights of a run are kept in memory: a value that a plan tries and a run uses."""

import ctypes
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_video.models.ltx.network import Network, quantizable
from mlx_video.models.ltx.source import Source

GROUP_SIZE = 64  # weights that share a scale, if they are quantized on load
BLOCKS_AT_ONCE = 2  # in memory, of a network whose blocks are read as they are used


@dataclass(frozen=True)
class Residency:
    """How weights are kept.

    dtype       of floating-point weights
    quantize    bits for the networks' blocks, quantized on load, see ``bits``; ``None`` = as stored
    low_memory  whether the blocks of ``STREAMED`` networks are read as they are used instead of kept
    keep        names of parts that stay loaded after use, on a ``Shelf``
    """

    dtype: mx.Dtype
    quantize: int | None = None
    low_memory: bool = False
    keep: frozenset[str] = frozenset()

    def bits(self, network: type[Network], source: Source) -> int | None:
        """Bits to which a network's blocks are quantized on load; ``None`` = as stored.

        What is quantized already stays so, and blocks that are read in each step are not worth the work.
        """
        passing = self.low_memory and network.STREAMED
        stays = passing or not network.BLOCKS or source.quantization
        return None if stays else self.quantize

    def weight_bytes(self, part: Network, source: Source) -> int:
        """Bytes of ``part``, which is lazy and in this dtype, while it is lent."""
        network = part.network
        total = nbytes(network)
        if bits := self.bits(type(part), source):
            layers = quantizable(network, GROUP_SIZE).values()
            total -= sum(_saved(layer.weight, bits) for layer in layers)
        if self.low_memory and part.STREAMED:
            blocks = [nbytes(block) for block in part.blocks]
            total += BLOCKS_AT_ONCE * max(blocks) - sum(blocks)
        return total


def nbytes(module: nn.Module) -> int:
    return sum(value.nbytes for _, value in tree_flatten(module.parameters()))


def _saved(weight: mx.array, bits: int) -> int:
    """Bytes that quantizing saves: each group keeps a scale and a bias."""
    groups = weight.size // GROUP_SIZE
    return weight.nbytes - weight.size * bits // 8 - 2 * groups * weight.itemsize


def give_back_freed() -> None:
    """Give the system what is free: what MLX keeps for reuse, and what glibc's malloc does."""
    mx.clear_cache()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def default_dtype() -> mx.Dtype:
    return mx.bfloat16 if mx.default_device() == mx.gpu else mx.float32
