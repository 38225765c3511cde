"""The parts of the tiny checkpoint's audio side, and of the real one's unloaded."""

import json

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_video.models.ltx.audio_vae import AudioDecoder, AudioEncoder, Vocoder
from mlx_video.models.ltx.config import AudioVAEConfig, Config, VocoderConfig
from tests.reference import FIXTURES, checkpoint, manifest

BLOCKS = {
    AudioEncoder: ("audio_vae", AudioVAEConfig),
    AudioDecoder: ("audio_vae", AudioVAEConfig),
    Vocoder: ("vocoder", VocoderConfig),
}


def tiny_config(part: type) -> Config:
    _, config = checkpoint()
    block, config_class = BLOCKS[part]
    return config_class.from_dict(config[block])


def tiny(part: type, dtype: mx.Dtype = mx.float32) -> nn.Module:
    tensors, _ = checkpoint()
    model = part(tiny_config(part))
    weights = part.sanitize(tensors)
    model.load_weights([(key, value.astype(dtype)) for key, value in weights.items()])
    return model


def real_shapes(part: type) -> tuple[dict, dict]:
    """(what the full-size module expects, what the real file holds under our names), never evaluated."""
    config = json.loads((FIXTURES / "manifests/ltx-2-19b.config.json").read_text())
    block, config_class = BLOCKS[part]
    model = part(config_class.from_dict(config["config"][block]))
    tensors = {key: mx.zeros(shape) for key, shape in manifest("ltx-2-19b").items()}
    expected = {key: value.shape for key, value in tree_flatten(model.parameters())}
    return expected, {k: v.shape for k, v in part.sanitize(tensors).items()}
