"""Checks whether a checkpoint's bytes are the published ones and look intact. Knows files and tensors, not networks."""

import hashlib
import re
from collections import defaultdict
from pathlib import Path
from typing import Iterable, Iterator, NamedTuple

import mlx.core as mx

from mlx_video.disk import file_errors
from mlx_video.formats.safetensors import read_header
from mlx_video.formats.sniff import GGUF, sniff
from mlx_video.weights import some, tensor_files

# Zero bytes in a row, as a broken download leaves, but training does not.
HOLE = 2**14
FP8_NAN = 0x7F  # of E4M3, whatever the sign
NO_NUMBERS = "values that are not numbers (NaN or infinity)"


class Finding(NamedTuple):
    """A sentence about a file; ``certain`` = it is damaged, not just unusual."""

    text: str
    certain: bool


def verify(paths: Iterable[Path]) -> Iterator[Finding]:
    """What is wrong with the bytes of files and folders of tensors; nothing if they are intact.

    Reads everything: about a second per gigabyte. Compares with the hub's checksum if the cache or the download folder has
    it. Names tensors with NaN or infinity and, in files without a checksum, those with only zeros or a hole of zeros.
    Raises ``UserError`` if a file cannot be read.
    """
    for file in dict.fromkeys(file for path in paths for file in tensor_files(path)):
        yield from _verify_file(file)


def _verify_file(file: Path) -> Iterator[Finding]:
    found = stated = published_checksum(file)
    if stated:
        digest = digest_like(stated, file.stat().st_size)
        with file_errors(file), open(file, "rb") as stream:
            found = hashlib.file_digest(stream, lambda: digest).hexdigest()
    if found != stated:
        yield Finding(
            f"{file} is not as it was published: its checksum is {found[:12]}..., the hub's {stated[:12]}.... "
            "Fetch it again.",
            True,
        )
    for fault, names in sorted(_faults(file).items()):
        if fault != NO_NUMBERS and found:
            continue  # it was published like that
        have = "has" if len(names) == 1 else "have"
        yield Finding(f"{file}: {some(names)} {have} {fault}.", fault == NO_NUMBERS)


def _faults(file: Path) -> dict[str, list[str]]:
    """Fault in words -> the tensors that have it."""
    faults = defaultdict(list)
    if sniff(file) == GGUF:  # its packed bytes show none of these
        return faults
    header = read_header(file)
    for name, value in mx.load(str(file)).items():
        if fault := _fault(value, header.tensors[name]["dtype"]):
            faults[fault].append(name)
    return faults


def published_checksum(file: Path) -> str | None:
    """The hub's checksum of ``file``: sha256, or git's sha1 for small files; ``None`` = unknown.

    A file in the cache links to a blob named by its checksum; a download folder has it in a note.
    """
    name = file.resolve().name
    if file.resolve().parent.name == "blobs" and _is_checksum(name):
        return name
    for folder in file.absolute().parents:
        within = file.absolute().relative_to(folder)
        note = folder / ".cache/huggingface/download" / f"{within}.metadata"
        if note.is_file():
            with file_errors(note):
                lines = note.read_text(errors="replace").splitlines()
            stated = lines[1].strip('" ') if len(lines) > 1 else ""
            return stated if _is_checksum(stated) else None
    return None


def _is_checksum(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", text) is not None


def digest_like(checksum: str, size: int) -> "hashlib._Hash":
    """A new hash of the kind of ``checksum``, for a file of ``size`` bytes."""
    if len(checksum) == 40:  # git's
        return hashlib.sha1(f"blob {size}\0".encode())
    return hashlib.sha256()


def _fault(value: mx.array, stored: str) -> str:
    """What is wrong with a tensor, in words; empty if nothing."""
    if stored == "F8_E4M3":
        value = value & FP8_NAN
        broken = value == FP8_NAN
    elif mx.issubdtype(value.dtype, mx.floating):
        broken = ~mx.isfinite(value)
    else:
        broken = mx.array(False)
    raw = value.flatten().view(mx.uint8) if value.size else mx.array([1], mx.uint8)
    blocks = raw[: raw.size // HOLE * HOLE].reshape(-1, HOLE)
    holes = (blocks == 0).all(axis=1).sum()
    count, empty, holes = (x.item() for x in (broken.sum(), (raw == 0).all(), holes))
    if count:
        return NO_NUMBERS
    if empty and value.ndim > 1:
        return "only zeros, as after a broken download, or in a layer that was never trained"
    return "a hole of zeros, as after a broken download" if holes and not empty else ""
