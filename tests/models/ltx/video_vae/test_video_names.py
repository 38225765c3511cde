"""Names and shapes: our full-size modules take every tensor of the real checkpoints, and only those."""

import json

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_video.models.ltx.config import VideoVAEConfig
from mlx_video.models.ltx.video_vae import VideoDecoder, VideoEncoder
from tests.models.ltx.video_vae.tiny import config, small_config
from tests.reference import FIXTURES, checkpoint, manifest

PARTS = [VideoEncoder, VideoDecoder]


def shapes(tensors) -> dict:
    return {name: tensor.shape for name, tensor in tensors}


def real_config() -> VideoVAEConfig:
    path = FIXTURES / "manifests" / "ltx-2-19b.config.json"
    return VideoVAEConfig.from_dict(json.loads(path.read_text())["config"]["vae"])


@pytest.mark.parametrize("part", PARTS)
def test_full_size(part):
    """Lazy on both sides: nothing is allocated."""
    tensors = {name: mx.zeros(shape) for name, shape in manifest("ltx-2-19b").items()}
    ours = shapes(tree_flatten(part(real_config()).parameters()))
    assert shapes(part.sanitize(tensors).items()) == ours


def test_nothing_of_the_autoencoder_is_left_over():
    names = {name for name in manifest("ltx-2-19b") if name.startswith("vae.")}
    taken = sum(len(part.sanitize(dict.fromkeys(names, mx.zeros(1)))) for part in PARTS)
    # Both have the statistics; three of the five vectors are dropped by name.
    assert taken == len(names) - 3 + 2


@pytest.mark.parametrize("part", PARTS)
def test_sanitize_twice_is_once(part):
    once = part.sanitize(checkpoint()[0])
    assert part.sanitize(once) == once
    part(config()).load_weights(list(once.items()))


def test_names_of_everything_a_config_may_switch_on():
    """Official names of parts that no released checkpoint has, in the shapes of PyTorch."""
    model = VideoDecoder(
        small_config(
            decoder_blocks=[
                ["res_x_y", {}],
                ["res_x", {"num_layers": 1, "inject_noise": True}],
            ],
            timestep_conditioning=True,
            norm_layer="group_norm",
        )
    )
    official = {
        "up_blocks.0.time_embedder.timestep_embedder.linear_1.weight": (256, 256),
        "up_blocks.0.res_blocks.0.per_channel_scale1": (64, 1, 1),
        "up_blocks.0.res_blocks.0.scale_shift_table": (4, 64),
        "up_blocks.0.res_blocks.0.norm1.weight": (64,),
        "up_blocks.1.conv1.conv.weight": (32, 64, 3, 3, 3),
        "up_blocks.1.conv_shortcut.weight": (32, 64, 1, 1, 1),
        "up_blocks.1.norm3.bias": (64,),
        "last_time_embedder.timestep_embedder.linear_2.bias": (64,),
        "last_scale_shift_table": (2, 32),
        "timestep_scale_multiplier": (),
        "conv_norm_out.weight": (32,),
    }
    official = {"vae.decoder." + key: mx.zeros(s) for key, s in official.items()}
    ours = shapes(tree_flatten(model.parameters()))
    assert shapes(VideoDecoder.sanitize(official).items()).items() <= ours.items()


def test_names_of_a_bare_strided_convolution():
    model = VideoEncoder(small_config([["compress_all", {}]]))
    official = {"vae.encoder.down_blocks.0.conv.weight": mx.zeros((32, 32, 3, 3, 3))}
    ours = shapes(tree_flatten(model.parameters()))
    assert shapes(VideoEncoder.sanitize(official).items()).items() <= ours.items()
