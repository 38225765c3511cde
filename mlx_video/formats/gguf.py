"""GGUF files: their header, and their tensors made dense, including k-quants. Knows no networks.

The whole header is checked before a tensor is read, and a tensor becomes dense when it is evaluated. The ``gguf`` package,
with which the tests compare, hangs on a wrong count, and unpacks eagerly and 2 to 10 times more slowly on a CPU.
"""

import struct
from functools import partial
from math import prod
from pathlib import Path
from typing import Callable, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_video.disk import file_errors, file_size
from mlx_video.errors import UserError, clip
from mlx_video.formats.safetensors import LONGEST_AXIS, Header, damaged

ALIGNMENT = "general.alignment"
ARCHITECTURE = "general.architecture"
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # of a tensor that was reshaped
LONGEST_HEADER = 100_000_000  # bytes

# Kinds of values in the header -> struct's letter; 8 is a string and 9 a list.
VALUES = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING, LIST = 8, 9


class Tensor(NamedTuple):
    """Where a tensor is and how it is packed; ``begin`` counts from the start of the file."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


class Packing(NamedTuple):
    """A way to pack numbers: ggml's code, numbers and bytes per block, and a function that unpacks blocks (n, bytes)."""

    code: int
    numbers: int
    bytes: int
    unpack: Callable[[mx.array], mx.array]


def read(file: Path) -> dict[str, mx.array]:
    """The tensors of a GGUF file, lazily dense: quantized ones become float32, others keep their stored type."""
    tensors, _ = _contents(file)
    with file_errors(file):
        data = np.memmap(file, mode="r")
    return {name: _dense(data, tensor) for name, tensor in tensors.items()}


def read_header(file: Path) -> Header:
    """What a GGUF file holds: its tensors, and its text values, such as the model's config and version."""
    tensors, values = _contents(file)
    return Header(
        {k: {"dtype": t.kind, "shape": list(t.shape)} for k, t in tensors.items()},
        {k: value for k, value in values.items() if isinstance(value, str)},
    )


def _contents(file: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Where a file's tensors are, and its values. Raises ``UserError``, naming the file."""
    size = file_size(file)
    wrong = partial(damaged, file, size)
    with file_errors(file), open(file, "rb") as stream:
        cursor = _Cursor(stream.read(LONGEST_HEADER))
    try:
        values, entries = _table(file, cursor, wrong)
    except KeyError as error:
        raise wrong(f"{cursor.last} is of unknown kind {error}") from None
    except (struct.error, ArithmeticError):
        raise wrong(f"it ends too early, after {cursor.last}") from None
    alignment = values.get(ALIGNMENT, 32)
    if type(alignment) is not int or alignment < 1:
        raise wrong(f"{ALIGNMENT} must be a number above 0; got {clip(alignment)}")
    start, tensors = -(-cursor.place // alignment) * alignment, {}
    for name, (shape, code, offset) in entries.items():
        if code not in KINDS:
            raise UserError(
                f"{file} packs tensor {clip(name)} as {OTHERS.get(code, f'kind {code}')}, which this version does not read; "
                f"use a file of {', '.join(KINDS.values())}."
            )
        stated = values.get(ORIGINAL_SHAPE + name, shape)
        tensors[name] = tensor = _placed(KINDS[code], shape, stated, start + offset)
        if tensor is None:
            raise wrong(f"tensor {clip(name)} cannot have the shape {clip(stated)}")
        if (over := tensor.begin + tensor.nbytes - size) > 0:
            raise wrong(f"tensor {clip(name)} ends {over:,} bytes beyond the file")
    return tensors, values


class _Cursor:
    """Reads values from the bytes of a header, one after another; raises ``struct.error`` at the end."""

    def __init__(self, data: bytes):
        self.data, self.place = data, 0
        self.last = "its first bytes"  # name read, for a message

    def take(self, letters: str) -> tuple:
        found = struct.unpack_from(f"<{letters}", self.data, self.place)
        self.place += struct.calcsize(f"<{letters}")
        return found

    def named(self, what: str) -> str:
        name = self.text()
        self.last = f"{what} {clip(name)}"
        return name

    def text(self) -> str:
        (length,) = self.take("Q")
        (raw,) = self.take(f"{length}s")
        return raw.decode("utf-8", "replace")

    def value(self) -> object:
        (kind,) = self.take("I")
        if kind == STRING:
            return self.text()
        if kind != LIST:
            return self.take(VALUES[kind])[0]
        kind, count = self.take("IQ")
        if kind == STRING:
            return [self.text() for _ in range(count)]
        return list(self.take(f"{count}{VALUES[kind]}"))


def _table(
    file: Path, cursor: _Cursor, wrong: Callable[[str], UserError]
) -> tuple[dict[str, object], dict[str, tuple]]:
    """The values of a header, and each tensor's shape, code and offset from the header's end."""
    magic, version, tensors, values = cursor.take("4sIQQ")
    if magic != b"GGUF":
        raise wrong("it does not begin with GGUF")
    if version not in (2, 3):
        raise UserError(
            f"{file} is a GGUF file of version {version}; only versions 2 and 3 are supported. Use a newer conversion."
        )
    metadata, entries = {}, {}
    for _ in range(values):
        name = cursor.named("value")
        metadata[name] = cursor.value()
    for _ in range(tensors):
        if (name := cursor.named("tensor")) in entries:
            raise wrong(f"tensor {clip(name)} is listed twice")
        (axes,) = cursor.take("I")
        shape = cursor.take(f"{axes}Q")[::-1]  # the fastest axis is first there
        entries[name] = (shape, *cursor.take("IQ"))
    return metadata, entries


def _placed(kind: str, shape: tuple, stated: object, begin: int) -> Tensor | None:
    """A tensor of ``shape``, read as the ``stated`` shape; ``None`` if that is impossible."""
    packing = PACKINGS[kind]
    blocks, rest = divmod(prod(shape), packing.numbers)
    counts = isinstance(stated, tuple | list) and all(
        type(n) is int and 0 <= n <= LONGEST_AXIS for n in stated
    )
    if rest or not counts or prod(stated) != prod(shape):
        return None
    return Tensor(kind, tuple(stated), begin, blocks * packing.bytes)


def _dense(data: np.ndarray, tensor: Tensor) -> mx.array:
    packing = PACKINGS[tensor.kind]
    raw = mx.array(data[tensor.begin : tensor.begin + tensor.nbytes])
    return packing.unpack(raw.reshape(-1, packing.bytes)).reshape(tensor.shape)


# Packings as in ggml: from blocks (n, bytes) uint8 to (n, numbers) float32.


def _half(blocks: mx.array, place: int) -> mx.array:
    """The float16 at byte ``place`` of each block, as float32 (n, 1)."""
    raw = mx.contiguous(blocks[:, place : place + 2])
    return raw.view(mx.float16).astype(mx.float32)


def _nibbles(packed: mx.array) -> mx.array:
    """The low halves of bytes (..., m), then the high ones: (..., 2 m)."""
    return mx.concatenate([packed & 15, packed >> 4], axis=-1)


def _bits(packed: mx.array, count: int) -> mx.array:
    """Bytes (n, m) split into groups of ``count`` bits, lowest first: (n, 8 / count, m)."""
    shifts = mx.arange(0, 8, count, dtype=mx.uint8)[:, None]
    return (packed[:, None] >> shifts) & (2**count - 1)


def _signed(raw: mx.array) -> mx.array:
    return mx.contiguous(raw).view(mx.int8).astype(mx.float32)


def _four_bits(blocks: mx.array, fifth: bool = False, least: bool = False) -> mx.array:
    """32 numbers of 4 bits, or 5, whose fifth bits are separate; around zero, or above a stored minimum (``least``)."""
    start = 4 if least else 2
    codes = _nibbles(blocks[:, start + 4 * fifth :])
    if fifth:
        bits = _bits(blocks[:, start : start + 4], 1)  # (n, bit, byte)
        codes = codes | bits.swapaxes(1, 2).flatten(1) << 4
    if least:
        return _half(blocks, 0) * codes + _half(blocks, 2)
    return _half(blocks, 0) * (codes - (16.0 if fifth else 8.0))


def _q2_k(blocks: mx.array) -> mx.array:
    """16 groups of 16, each with a scale and a minimum of 4 bits."""
    scales, codes = blocks[:, :16], blocks[:, 16:80].reshape(-1, 32)
    codes = _bits(codes, 2).reshape(-1, 16, 16)
    d, least = (_half(blocks, place)[..., None] for place in (80, 82))
    scale, offset = d * (scales & 15)[..., None], (scales >> 4)[..., None]
    return (scale * codes - least * offset).flatten(1)


def _q3_k(blocks: mx.array) -> mx.array:
    """16 groups of 16; the third bits are separate, and so are two bits of each scale."""
    high = _bits(blocks[:, :32], 1).reshape(-1, 16, 16)
    codes = _bits(blocks[:, 32:96].reshape(-1, 32), 2).reshape(-1, 16, 16)
    packed = blocks[:, 96:108]
    scales = _nibbles(packed[:, :8]) | (_bits(packed[:, 8:], 2).flatten(1) << 4)
    scale = _half(blocks, 108) * (scales - 32.0)
    return (scale[..., None] * ((codes | high << 2) - 4.0)).flatten(1)


def _q4_k(blocks: mx.array, fifth: bool = False) -> mx.array:
    """8 groups of 32 numbers of 4 bits, or 5; their scales and minima have 6 bits each, in 12 bytes."""
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = mx.concatenate([a & 63, (c & 15) | (a >> 6) << 4], axis=1)
    minima = mx.concatenate([b & 63, (c >> 4) | (b >> 6) << 4], axis=1)
    scale, least = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    packed = blocks[:, 48 if fifth else 16 :].reshape(-1, 4, 32)
    codes = _nibbles(packed).reshape(-1, 8, 32)
    if fifth:
        codes = codes | _bits(blocks[:, 16:48], 1) << 4
    return (scale[..., None] * codes - least[..., None]).flatten(1)


def _q6_k(blocks: mx.array) -> mx.array:
    """16 groups of 16 with signed scales; the two high bits are separate, in halves of 128."""
    low = _nibbles(blocks[:, :128].reshape(-1, 64))
    high = _bits(blocks[:, 128:192].reshape(-1, 32), 2).flatten(1)
    codes = (low | high << 4).reshape(-1, 16, 16) - 32.0
    scale = _half(blocks, 208) * _signed(blocks[:, 192:208])
    return (scale[..., None] * codes).flatten(1)


IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _iq4_nl(blocks: mx.array) -> mx.array:
    return _half(blocks, 0) * mx.array(IQ4, mx.float32)[_nibbles(blocks[:, 2:])]


def _iq4_xs(blocks: mx.array) -> mx.array:
    """8 groups of 32, each with a scale of 6 bits."""
    high = _bits(blocks[:, 2:4], 2).swapaxes(1, 2).flatten(1)  # (n, 8)
    low = _bits(blocks[:, 4:8], 4).swapaxes(1, 2).flatten(1)
    scale = _half(blocks, 0) * ((low | high << 4) - 32.0)
    codes = _nibbles(blocks[:, 8:].reshape(-1, 8, 16))
    return (scale[..., None] * mx.array(IQ4, mx.float32)[codes]).flatten(1)


PACKINGS = {
    "F32": Packing(0, 1, 4, lambda raw: raw.view(mx.float32)),
    "F16": Packing(1, 1, 2, lambda raw: raw.view(mx.float16)),
    "BF16": Packing(30, 1, 2, lambda raw: raw.view(mx.bfloat16)),
    "Q4_0": Packing(2, 32, 18, _four_bits),
    "Q4_1": Packing(3, 32, 20, partial(_four_bits, least=True)),
    "Q5_0": Packing(6, 32, 22, partial(_four_bits, fifth=True)),
    "Q5_1": Packing(7, 32, 24, partial(_four_bits, fifth=True, least=True)),
    "Q8_0": Packing(8, 32, 34, lambda raw: _half(raw, 0) * _signed(raw[:, 2:])),
    "Q2_K": Packing(10, 256, 84, _q2_k),
    "Q3_K": Packing(11, 256, 110, _q3_k),
    "Q4_K": Packing(12, 256, 144, _q4_k),
    "Q5_K": Packing(13, 256, 176, partial(_q4_k, fifth=True)),
    "Q6_K": Packing(14, 256, 210, _q6_k),
    "IQ4_NL": Packing(20, 32, 18, _iq4_nl),
    "IQ4_XS": Packing(23, 256, 136, _iq4_xs),
}
PACKED = {name for name, packing in PACKINGS.items() if packing.numbers > 1}
KINDS = {packing.code: name for name, packing in PACKINGS.items()}
OTHERS = {16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S"}
OTHERS |= {22: "IQ2_S", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"}
