"""The header of a safetensors file: what it holds and where, checked before use. Reads no tensors."""

import json
from functools import lru_cache
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Mapping, NamedTuple

from mlx_video.disk import file_errors, file_size
from mlx_video.errors import UserError
from mlx_video.formats.sniff import UNKNOWN, kind_of

LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
LONGEST_AXIS = 2**31 - 1  # MLX counts an axis in 32 bits
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "C64"), 64),
}
ENTRY = {"dtype", "shape", "data_offsets"}


class Header(NamedTuple):
    """The table of contents of a safetensors file: name -> {dtype, shape, data_offsets}, and free-form strings."""

    tensors: dict[str, dict]
    metadata: dict[str, str]


def read_header(file: Path) -> Header:
    """The header of ``file``, fully checked: sizes, types and places of all tensors, and the file's length.

    MLX reads tensors lazily and would notice a truncated file only in the middle of a run. Raises ``UserError``, naming
    the file and the fault.
    """
    size = file_size(file)
    return _checked(file, size, *_read_text(file, size))


@lru_cache(maxsize=16)  # opening a checkpoint asks for each header many times
def _checked(file: Path, size: int, text: bytes, start: int) -> Header:
    """The header that ``text`` is, of a file of ``size`` bytes whose tensors begin at ``start``; not to be changed."""
    entries = parse_json(text, f"{file} is damaged: its table of contents")
    if not isinstance(entries, dict):
        raise _damaged(file, "its table of contents is not an object")
    metadata = _metadata(entries.pop("__metadata__", None), file)
    for name, entry in entries.items():
        if fault := _fault(entry):
            raise _damaged(file, f"tensor {clip(name)} {fault}")
        if entry["dtype"] not in BITS:
            raise UserError(
                f"{file} holds numbers of type {clip(entry['dtype'], 30)} (tensor {clip(name)}), which MLX does not "
                "read; use a file in bfloat16, or in fp8 of kind e4m3."
            )
    _check_places(file, entries, start, size)
    return Header(entries, metadata)


def parse_json(text: bytes | str, subject: str) -> object:
    """The value of JSON ``text``. Raises ``UserError``, a sentence that begins with ``subject``, where it is not JSON."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        fault = "is nested too deeply"
    except UnicodeDecodeError as error:
        fault = f"is not UTF-8 text (byte {error.start})"
    except json.JSONDecodeError as error:
        fault = f"is not JSON (line {error.lineno}, column {error.colno})"
    except ValueError as error:  # a name that occurs twice, or thousands of digits
        long = "digits" in str(error)
        fault = "holds a number that is too long" if long else str(error)
    raise UserError(f"{subject} {fault}.")


def clip(text: object, most: int = 80) -> str:
    """``text``, or another value as JSON, for a message; at most ``most`` characters."""
    text = text if isinstance(text, str) else json.dumps(text, default=str)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"names {clip(twice)} twice")
    return found


def _read_text(file: Path, size: int) -> tuple[bytes, int]:
    """The bytes of the table of contents, and the offset at which the tensors begin."""
    if size == 0:
        raise UserError(
            f"{file} is empty: the download did not finish. Fetch it again."
        )
    with file_errors(file), open(file, "rb") as stream:
        begin = stream.read(64)
        length = int.from_bytes(begin[:8], "little")
        stream.seek(8)
        text = stream.read(min(length, size, LONGEST_HEADER))
    if text[:1] != b"{":
        raise _foreign(file, kind_of(begin))
    if length > LONGEST_HEADER and size > LONGEST_HEADER:
        raise _damaged(file, f"its table of contents claims {length:,} bytes")
    if len(text) < length:
        raise _wrong_size(file, size, 8 + length)
    return text, 8 + length


def _metadata(found: object, file: Path) -> dict[str, str]:
    found = {} if found is None else found  # MLX writes null
    strings = isinstance(found, dict) and all(
        isinstance(value, str) for value in found.values()
    )
    if not strings:
        raise _damaged(file, "its __metadata__ is not an object of strings")
    return found


def _fault(entry: object) -> str:
    """What is wrong with a tensor's entry, in words that follow its name; empty if nothing."""
    if not isinstance(entry, dict) or not ENTRY <= entry.keys():
        return "has no proper dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        return f"has a dtype that is not a name: {clip(dtype, 30)}"
    if not _counts(shape, LONGEST_AXIS):
        return f"has a shape that is not a list of sizes: {clip(shape, 60)}"
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"has data_offsets that are not two places in order: {clip(offsets, 60)}"
    wanted, given = prod(shape) * BITS.get(dtype, 0) // 8, offsets[1] - offsets[0]
    if dtype in BITS and wanted != given:
        return f"of type {dtype} and shape {clip(shape, 60)} takes {clip(f'{wanted:,}', 30)} bytes, and has {given:,}"
    return ""


def _counts(found: object, most: int | None = None) -> bool:
    """Whether ``found`` is a list of whole numbers from 0 to ``most``."""
    return isinstance(found, list) and all(
        type(n) is int and n >= 0 and (most is None or n <= most) for n in found
    )


def _check_places(file: Path, entries: Mapping[str, dict], start: int, size: int):
    """Raise ``UserError`` where tensors overlap, or the file has another length than they say."""
    places = sorted((*entry["data_offsets"], name) for name, entry in entries.items())
    places = [place for place in places if place[0] < place[1]]  # empty ones need none
    for (_, end, one), (begin, _, other) in pairwise(places):
        if begin < end:
            raise _damaged(file, f"tensors {clip(one)} and {clip(other)} overlap")
    wanted = start + max((end for _, end, _ in places), default=0)
    if size != wanted:
        raise _wrong_size(file, size, wanted)


HINTS = {
    "Git LFS pointer": "; fetch the file with `git lfs pull`",
    "web page": ": fetch the file that the page offers",
    "GGUF file": ": give it a name that ends in .gguf",
}


def _foreign(file: Path, kind: str) -> UserError:
    told = f"but a {kind}{HINTS.get(kind, '')}"
    if kind == UNKNOWN:
        told = "because it does not begin with a table of contents. Fetch it again"
    return UserError(f"{file} is not a safetensors file, {told}.")


def _damaged(file: Path, what: str) -> UserError:
    return UserError(f"{file} is damaged: {what}. Fetch it again.")


def _wrong_size(file: Path, size: int, wanted: int) -> UserError:
    state = "cut off" if size < wanted else "damaged"
    return UserError(
        f"{file} is {state}: it is {size:,} bytes long, its table of contents asks for {clip(f'{wanted:,}', 40)}. "
        "Fetch it again."
    )
