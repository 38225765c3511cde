"""Numbers of Lightricks' own code, and how closely ours must meet them."""

import json
import lzma
import os
from functools import cache
from pathlib import Path

import mlx.core as mx


def unpacked(folder: Path) -> Path:
    """A copy of ``folder`` beside it in which no file is packed; git ignores it, and it is made once.

    Most numbers of the fixtures are kept as .xz, which is a quarter less to clone.
    """
    copy = folder.with_name(f".{folder.name}")
    for file in filter(Path.is_file, folder.rglob("*")):
        place = copy / file.relative_to(folder)
        packed = file.suffix == ".xz"
        place = place.with_suffix("") if packed else place
        if place.exists() and place.stat().st_mtime >= file.stat().st_mtime:
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = place.with_name(f".{os.getpid()}.{place.name}")
        data = file.read_bytes()
        aside.write_bytes(lzma.decompress(data) if packed else data)
        aside.replace(place)
    return copy


FIXTURES = unpacked(Path(__file__).parent / "fixtures")
TINY = FIXTURES / "ltx2_tiny"
CHECKPOINT = TINY / "ltx-2-tiny.safetensors"
UPSCALER = TINY / "ltx-2-tiny-spatial-upscaler-x2.safetensors"

MODULE_TOLERANCE = 1e-4
LOOP_TOLERANCE = 5e-4


@cache
def vectors(name: str, folder: str = "ltx2_tiny") -> dict[str, mx.array]:
    """Inputs and outputs of the official code: ``dit``, ``text``, ``video_vae``, ... (see the fixture's README)."""
    return mx.load(str(FIXTURES / folder / f"{name}.safetensors"))


@cache
def checkpoint(path: Path = CHECKPOINT) -> tuple[dict[str, mx.array], dict]:
    """All tensors of a tiny official-format file in float32, and its config."""
    weights, metadata = mx.load(str(path), return_metadata=True)
    return {k: v.astype(mx.float32) for k, v in weights.items()}, json.loads(
        metadata["config"]
    )


@cache
def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of a real file."""
    tensors = json.loads((FIXTURES / "manifests" / f"{name}.json").read_text())[
        "tensors"
    ]
    return {key: tuple(shape) for key, (shape, _) in tensors.items()}


def error(actual: mx.array, expected: mx.array) -> float:
    """max|a - b| / max|b|; infinite where shapes differ."""
    if actual.shape != expected.shape:
        return float("inf")
    a, b = actual.astype(mx.float32), expected.astype(mx.float32)
    return (mx.abs(a - b).max() / mx.abs(b).max()).item()
