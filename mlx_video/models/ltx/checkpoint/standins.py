"""Stand-ins for Lightricks' files before they are fetched: the same names, headers and lengths, without data.

A plan needs no more, since it reads only headers. Knows published names, shapes and configs, not what they mean.
"""

import json
import lzma
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Iterator, Mapping, NamedTuple

from mlx_video import hub
from mlx_video.formats.safetensors import TYPES
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.releases import Release, published

# Packed by benchmarks/store_headers.py. "transformer" stands for the file of either variant.
HEADERS = Path(__file__).with_name("published") / "headers.json.xz"
TRANSFORMER, TEXT_ENCODER = "transformer", "text_encoder"
TOKENIZER = '{"model": {"type": "WordLevel", "vocab": {"<bos>": 0}, "unk_token": "<bos>"}}'  # fmt: skip


class Published(NamedTuple):
    """The header of a file: its metadata, and each tensor's type and shape."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, tuple[str, list[int]]]


@cache
def headers(release: str) -> dict[str, Published]:
    """The header of every file of the release of that name; empty if they are not packed."""
    packed = json.loads(lzma.decompress(HEADERS.read_bytes()))
    files = packed.get(release, {}).items()
    return {file: Published(*header) for file, header in files}


@contextmanager
def stood_in(files: Files, variant: str) -> Iterator[Files]:
    """``files``; if they name a release that is not fully cached, with stand-ins for what they leave to it."""
    release = published(str(files.model))
    known = release is not None and headers(release.name)
    if not known or _is_here(release, variant):
        yield files
        return
    with TemporaryDirectory(prefix="mlx-video-") as folder:
        laid = _lay(release, variant, Path(folder))
        usual = {
            "text_encoder": laid[TEXT_ENCODER],
            "upsampler": laid[release.upsampler],
            "distilled_lora": laid[release.distilled_lora],
        }
        lacking = {k: v for k, v in usual.items() if getattr(files, k) is None}
        yield replace(files, model=laid[TRANSFORMER], **lacking)


def _is_here(release: Release, variant: str) -> bool:
    own = (*release.files(variant), release.upsampler)
    text = hub.named(release.text_encoder.place)
    return hub.is_cached(release.repository, own) and hub.is_cached(*text)


def _lay(release: Release, variant: str, folder: Path) -> dict[str, Path]:
    """Write every file of ``release`` under ``folder``; returns where each is."""
    names = {
        TRANSFORMER: release.transformers[variant],
        TEXT_ENCODER: "text_encoder/gemma.safetensors",
    }
    laid = {}
    for name, header in headers(release.name).items():
        laid[name] = folder / names.get(name, name)
        laid[name].parent.mkdir(parents=True, exist_ok=True)
        _write(laid[name], header)
    laid[TEXT_ENCODER].with_name("tokenizer.json").write_text(TOKENIZER)
    return laid


def _write(file: Path, header: Published) -> None:
    """Write a sparse file as long as the header says."""
    entries, end = {"__metadata__": header.metadata}, 0
    for name, (dtype, shape) in header.tensors.items():
        start, end = end, end + prod(shape) * TYPES[dtype].size
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(entries).encode()
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)
