"""Numbers of Lightricks' own code, and how closely ours must meet them."""

import json
from functools import cache
from pathlib import Path

import mlx.core as mx

FIXTURES = Path(__file__).parent / "fixtures"
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
