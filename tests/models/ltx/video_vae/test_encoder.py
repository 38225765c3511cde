"""The encoder against Lightricks' numbers, stage by stage, and every block the official config may list."""

import mlx.core as mx
import pytest

from mlx_video.models.ltx.video_vae import VideoEncoder
from mlx_video.models.ltx.video_vae.sampling import patchify
from mlx_video.models.ltx.video_vae.stream import FrameCache
from mlx_video.types import VideoScale
from tests.models.ltx.video_vae.tiny import (
    VECTORS,
    channels_first,
    encoder,
    small_config,
)
from tests.reference import MODULE_TOLERANCE, error

PIXELS = VECTORS["enc.in"]


def test_latents_of_a_clip():
    assert error(encoder()(PIXELS), VECTORS["enc.out"]) < MODULE_TOLERANCE


def test_latents_of_an_image():
    image = encoder()(PIXELS[:, :, :1])
    assert error(image, VECTORS["enc.image_out"]) < MODULE_TOLERANCE


def test_every_stage():
    model = encoder()
    x = patchify(PIXELS, model.config.patch_size)
    stages = {"patchified_frame0": channels_first(x)[:, :, 0]}
    x = model.conv_in(x, FrameCache())
    stages["conv_in_frame0"] = channels_first(x)[:, :, 0]
    for index, block in enumerate(model.down_blocks):
        x = block(x, FrameCache())
        stages[f"down{index}"] = channels_first(x)
    x = model.conv_out(x, FrameCache(), activate=True)
    stages["raw"] = channels_first(x)

    asked = {key[4:] for key in VECTORS if key.startswith("enc.")} - {
        "in",
        "out",
        "image_out",
    }
    assert asked <= stages.keys()
    for name in asked:
        assert error(stages[name], VECTORS[f"enc.{name}"]) < MODULE_TOLERANCE, name


def test_no_frame_sees_a_later_one():
    changed = mx.concatenate([PIXELS[:, :, :1], -PIXELS[:, :, 1:]], axis=2)
    first, second = encoder()(PIXELS), encoder()(changed)
    assert mx.allclose(first[:, :, 0], second[:, :, 0], atol=1e-5)
    assert not mx.allclose(first[:, :, 1], second[:, :, 1], atol=1e-2)


def test_bfloat16_batch():
    pixels = mx.concatenate([PIXELS, -PIXELS]).astype(mx.bfloat16)
    latents = encoder(mx.bfloat16)(pixels)
    assert latents.shape == (2, 128, 2, 2, 3)
    assert latents.dtype == mx.bfloat16
    assert error(latents[:1], VECTORS["enc.out"]) < 0.1


@pytest.mark.parametrize(
    "shape, nearest",
    [
        ((1, 3, 10, 64, 96), "Nearest: 9 frames of 96x64"),
        ((1, 3, 9, 70, 96), "Nearest: 9 frames of 96x64"),
    ],
)
def test_refuses_a_clip_off_the_grid(shape, nearest):
    with pytest.raises(ValueError, match=nearest):
        encoder()(mx.zeros(shape))


@pytest.mark.parametrize(
    "blocks, frames, scale",
    [
        ([["res_x", 2]], 3, VideoScale(1, 2, 2)),
        ([["compress_time_res", {"multiplier": 1}]], 5, VideoScale(2, 2, 2)),
        ([["compress_space_res", {}]], 3, VideoScale(1, 4, 4)),
        ([["compress_all_res", {}], ["compress_time_res", {}]], 9, VideoScale(4, 4, 4)),
    ],
)
@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_blocks(blocks, frames, scale, padding):
    model = VideoEncoder(small_config(blocks, encoder_spatial_padding_mode=padding))
    assert model.scale == scale
    latents = model(mx.random.normal((2, 3, frames, 16, 24)))
    cells = (frames - 1) // scale.time + 1, 16 // scale.height, 24 // scale.width
    assert latents.shape == (2, 4, *cells)
    assert mx.isfinite(latents).all()


@pytest.mark.parametrize(
    "log_var, channels",
    [("none", 4), ("uniform", 5), ("constant", 5), ("per_channel", 8)],
)
def test_log_variances_are_left_out(log_var, channels):
    model = VideoEncoder(small_config([["res_x", 1]], latent_log_var=log_var))
    assert model.conv_out.weight.shape[0] == channels
    assert model(mx.zeros((1, 3, 1, 4, 4))).shape == (1, 4, 1, 2, 2)


@pytest.mark.parametrize(
    "blocks, changes, message",
    [
        ([["attn", {}]], {}, "encoder block 'attn' is not implemented"),
        ([["compress_all", {}]], {}, "encoder block 'compress_all' is not implem"),
        ([["res_x", {"num_layers": 1, "heads": 2}]], {}, "'res_x': unknown .* heads"),
        (
            [],
            {"latent_log_var": "some"},
            "latent_log_var must be none or uniform or .*got 'some'",
        ),
        ([["res_x", 1]], {"norm_layer": "group_norm"}, "norm_layer = 'group_norm' is"),
        (
            [],
            {"encoder_spatial_padding_mode": "edge"},
            "padding_mode must be zeros or reflect; got 'edge'",
        ),
    ],
)
def test_refuses_what_it_does_not_know(blocks, changes, message):
    with pytest.raises(ValueError, match=message):
        VideoEncoder(small_config(blocks or [["res_x", 1]], **changes))
