"""Names and shapes: our full-size modules take every tensor of the real checkpoints, and only those."""

import json

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_video.models.ltx.vae_config import VideoVAEConfig
from mlx_video.models.ltx.video_vae import VideoDecoder, VideoEncoder
from tests.models.ltx.video_vae.tiny import CONVOLUTIONAL, LTX_2_3
from tests.reference import CHECKPOINT, FIXTURES, checkpoint, manifest

PARTS = [VideoEncoder, VideoDecoder]
CONV = "vae/ltx-2.5-video-vae-conv-bf16.safetensors"
DIFFUSION = "vae/ltx-2.5-video-vae-bf16.safetensors"
PARAMETERS = (
    {  # of encoder and decoder, in millions; the latents' statistics are in both
        "ltx-2-19b": (694, 528),
        "ltx-2.3-22b": (319, 407),
        "ltx-2.5-video-vae-conv": (319, 407),
    }
)


def shapes(tensors) -> dict:
    return {name: tensor.shape for name, tensor in tensors}


def real_config(name: str) -> dict:
    """Block ``vae`` of a real file."""
    if name.startswith("ltx-2.5"):
        files = json.loads((FIXTURES / "manifests/ltx-2.5.config.json").read_text())
        file = CONV if "conv" in name else DIFFUSION
        return files[file]["metadata"]["config"]["vae"]
    path = FIXTURES / "manifests" / f"{name}.config.json"
    return json.loads(path.read_text())["config"]["vae"]


def real_weights(name: str) -> dict[str, mx.array]:
    return {key: mx.zeros(shape) for key, shape in manifest(name).items()}


@pytest.mark.parametrize("index, part", [*enumerate(PARTS)])
@pytest.mark.parametrize("name", PARAMETERS)
def test_full_size(name, index, part):
    """Lazy on both sides: nothing is allocated."""
    model = part(part.CONFIG.from_dict(real_config(name)))
    ours = tree_flatten(model.parameters())
    assert shapes(part.sanitize(real_weights(name)).items()) == shapes(ours)
    count = sum(tensor.size for _, tensor in ours)
    assert round(count / 1e6) == PARAMETERS[name][index]


@pytest.mark.parametrize("name", PARAMETERS)
def test_nothing_of_the_autoencoder_is_left_over(name):
    official = [k for k in manifest(name) if k.startswith("vae.") or "2.5" in name]
    taken = [
        part.sanitize(dict.fromkeys(official, mx.zeros(1))).keys() for part in PARTS
    ]
    # Both have two of the latents' statistics; LTX-2.0 has three more that are dropped by name.
    dropped = 3 if name == "ltx-2-19b" else 0
    assert sum(map(len, taken)) == len(official) - dropped + 2


def test_encoder_of_the_diffusion_autoencoder():
    name = "ltx-2.5-video-vae-diffusion.partial"
    model = VideoEncoder(VideoEncoder.CONFIG.from_dict(real_config(name)))
    ours = shapes(tree_flatten(model.parameters()))
    assert shapes(VideoEncoder.sanitize(real_weights(name)).items()) == ours
    assert model.scale == (8, 32, 32)


@pytest.mark.parametrize("file", [CHECKPOINT, LTX_2_3, CONVOLUTIONAL])
@pytest.mark.parametrize("part", PARTS)
def test_sanitize_twice_is_once(part, file):
    weights, config = checkpoint(file)
    once = part.sanitize(weights)
    assert part.sanitize(once) is once
    part(part.CONFIG.from_dict(config["vae"])).load_weights(list(once.items()))


@pytest.mark.parametrize("file", [CHECKPOINT, LTX_2_3, CONVOLUTIONAL])
@pytest.mark.parametrize("part", PARTS)
def test_official_names_of_every_tensor(part, file):
    weights = checkpoint(file)[0]
    if not any(key.startswith("vae.") for key in weights):
        weights = {f"vae.{key}": value for key, value in weights.items()}
    for key in part.sanitize(weights):
        official = part.NAMES.official(key)
        assert list(part.sanitize({official: weights[official]})) == [key]


def test_unknown_keys_stop_the_load_of_either_part():
    config = real_config("ltx-2.3-22b") | {"new": 1}
    for part in PARTS:
        with pytest.raises(ValueError, match="unknown keys new"):
            part.CONFIG.from_dict(config)


def test_borders_where_a_file_says_nothing():
    config = VideoVAEConfig.from_dict(real_config("ltx-2-19b"))
    assert config.encoder_spatial_padding_mode == "zeros"
    assert config.decoder_spatial_padding_mode == "reflect"
    config = VideoVAEConfig.from_dict(real_config("ltx-2.3-22b"))
    assert config.decoder_spatial_padding_mode == "zeros"
