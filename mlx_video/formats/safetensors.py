"""The header of a safetensors file, checked before use, and strict reading of JSON. Reads no tensors."""

import json
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from mlx_video.disk import file_errors
from mlx_video.errors import UserError, clip
from mlx_video.formats.sniff import EMPTY, SAFETENSORS, UNKNOWN, sniff

LONGEST_AXIS = 2**31 - 1  # MLX counts an axis in 32 bits
# Stored type -> MLX's.
TYPES = {
    "BOOL": mx.bool_,
    **{f"U{bits}": getattr(mx, f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"I{bits}": getattr(mx, f"int{bits}") for bits in (8, 16, 32, 64)},
    **dict.fromkeys(("F8_E4M3", "F8_E8M0"), mx.uint8),
    **{"F16": mx.float16, "BF16": mx.bfloat16, "F32": mx.float32, "C64": mx.complex64},
}
FOREIGN = {
    EMPTY: "is empty: the download did not finish. Fetch it again.",
    UNKNOWN: "is not a safetensors file, because it does not begin with a table of contents. Give one, or fetch it again.",
}
# What the library finds, in our words; the rest needs none.
FAULTS = {
    "offset for tensor `(.*)`": "tensor {} is misplaced",
    "missing field `(.*)`": "a tensor has no {}",
    "not fully covered": "its tensors need a different number",
}


class Header(NamedTuple):
    """The header of a file of tensors: name -> {dtype, shape}, and free-form strings."""

    tensors: dict[str, dict]
    metadata: dict[str, str]


def read_header(file: Path) -> Header:
    """The header of ``file``. Raises ``UserError`` for wrong sizes, types or offsets of tensors, or a wrong file length.

    MLX reads tensors lazily, and would notice a truncated file only during a run.
    """
    if (kind := sniff(file)) != SAFETENSORS:
        told = FOREIGN.get(kind, f"is not a safetensors file, but a {kind}.")
        raise UserError(f"{file} {told}")
    with file_errors(file):
        found = file.stat()
        return _checked(file, found.st_size, found.st_ino, found.st_mtime_ns)


@lru_cache(maxsize=16)  # opening a checkpoint reads each header many times
def _checked(file: Path, size: int, *version: int) -> Header:
    """The header of ``file`` with this size, inode and time; do not change it."""
    try:
        with safe_open(file, "numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        raise _refused(file, size, str(error)) from error
    tensors = {
        name: {"dtype": found.get_dtype(), "shape": found.get_shape()}
        for name, found in slices.items()
    }
    for name, entry in tensors.items():
        if entry["dtype"] not in TYPES:
            raise _unread(file, f"{entry['dtype']} (tensor {clip(name)})")
        if any(axis > LONGEST_AXIS for axis in entry["shape"]):
            raise damaged(file, size)
    return Header(tensors, metadata)


def _unread(file: Path, kind: str) -> UserError:
    return UserError(
        f"{file} holds numbers of type {kind}, which MLX does not read; use a file in bfloat16, or in fp8 of kind e4m3."
    )


def _refused(file: Path, size: int, fault: str) -> UserError:
    if kind := re.search("unknown variant `(.*?)`", fault):
        return _unread(file, clip(kind[1]))
    for pattern, words in FAULTS.items():
        if found := re.search(pattern, fault):
            return damaged(file, size, words.format(*map(clip, found.groups())))
    return damaged(file, size)


def json_object(text: bytes | str, subject: str) -> dict:
    """The JSON object in ``text``. Raises ``UserError``, a sentence about ``subject``, for anything else or repeated names."""

    def once(pairs: list[tuple[str, object]]) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise UserError(f"{subject} names {clip(name)} twice.")
        return found

    try:
        found = json.loads(text, object_pairs_hook=once)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        known = isinstance(error, json.JSONDecodeError)
        place = f" (line {error.lineno}, column {error.colno})" if known else ""
        raise UserError(f"{subject} is not valid JSON{place}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{subject} must be a JSON object; got {clip(found)}.")
    return found


def damaged(file: Path, size: int, fault: str = "") -> UserError:
    """The error for a file of ``size`` bytes whose header is wrong, with the ``fault`` if it is known."""
    fault = f" ({fault})" if fault else ""
    return UserError(
        f"{file} is cut off or damaged: its table of contents does not describe its {size:,} bytes{fault}. Fetch it again."
    )
