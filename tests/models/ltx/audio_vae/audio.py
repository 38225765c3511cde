"""The parts of the tiny checkpoints' audio side, and of the real ones' unloaded."""

import json

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_video.models.ltx.loading.schema import Config
from mlx_video.models.ltx.vae_config import AudioVAEConfig
from mlx_video.weights import Weights
from tests.reference import CHECKPOINT, FIXTURES, checkpoint, manifest

NEWER = {
    "ltx23_tiny": FIXTURES / "ltx23_tiny/ltx-2.3-tiny.safetensors",
    "ltx25_tiny": FIXTURES / "ltx25_tiny/ltx-2.5-tiny-audio-vae-bf16.safetensors",
}
TINY = {"ltx2_tiny": CHECKPOINT} | NEWER


def block(part: type) -> str:
    """Which block of a checkpoint's config describes a part."""
    return "audio_vae" if part.CONFIG is AudioVAEConfig else "vocoder"


def tiny_config(part: type, release: str = "ltx2_tiny") -> Config:
    _, config = checkpoint(TINY[release])
    return part.CONFIG.from_dict(config[block(part)])


def tiny_weights(part: type, release: str = "ltx2_tiny") -> Weights:
    """The part's tensors in the checkpoint, under their official names."""
    tensors, _ = checkpoint(TINY[release])
    wanted = f"{block(part)}."
    return {key: value for key, value in tensors.items() if key.startswith(wanted)}


def tiny(
    part: type, dtype: mx.Dtype = mx.float32, release: str = "ltx2_tiny"
) -> nn.Module:
    model = part(tiny_config(part, release))
    weights = part.sanitize(tiny_weights(part, release))
    model.load_weights([(key, value.astype(dtype)) for key, value in weights.items()])
    return model


# Tensors and config of the real files, by the names of their manifests.
REAL = {
    "ltx-2-19b": "ltx-2-19b",
    "ltx-2.3-22b": "ltx-2.3-22b",
    "ltx-2.5-audio-vae": "ltx-2.5",
}


def full_size(part: type, file: str = "ltx-2-19b") -> nn.Module:
    """The part of the real ``file``, never evaluated."""
    config = json.loads((FIXTURES / f"manifests/{REAL[file]}.config.json").read_text())
    if file == "ltx-2.5-audio-vae":
        config = config["vae/ltx-2.5-audio-vae-bf16.safetensors"]["metadata"]
    return part(part.CONFIG.from_dict(config["config"][block(part)]))


def real_shapes(part: type, file: str = "ltx-2-19b") -> tuple[dict, dict]:
    """(what the full-size module expects, what the real ``file`` holds under our names), never evaluated."""
    parameters = tree_flatten(full_size(part, file).parameters())
    given = {key: mx.zeros(shape) for key, shape in manifest(file).items()}
    given = part.sanitize(given)
    return {k: v.shape for k, v in parameters}, {k: v.shape for k, v in given.items()}
