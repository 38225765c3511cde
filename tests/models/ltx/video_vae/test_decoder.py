"""The decoder against Lightricks' numbers, stage by stage, and every block that a published config lists."""

import mlx.core as mx
import pytest

from mlx_video.models.ltx.vae_config import VideoVAEConfig
from mlx_video.models.ltx.video_vae import VideoDecoder
from mlx_video.models.ltx.video_vae.stream import FrameCache
from mlx_video.types import VideoScale
from tests.models.ltx.video_vae.tiny import (
    VECTORS,
    channels_first,
    decoder,
    small_config,
)
from tests.reference import MODULE_TOLERANCE, error

LATENT = VECTORS["dec.in"]


def test_pixels_of_a_clip():
    assert error(decoder()(LATENT), VECTORS["dec.out"]) < MODULE_TOLERANCE


def test_pixels_of_a_single_frame():
    pixels = decoder()(VECTORS["dec.in_single"])
    assert error(pixels, VECTORS["dec.out_single"]) < MODULE_TOLERANCE


def test_causal():
    pixels = decoder(causal=True)(LATENT)[..., ::2, ::2]
    assert error(pixels, VECTORS["dec.out_causal_sub"]) < MODULE_TOLERANCE


def test_every_stage():
    model = decoder()
    denormalised = model.per_channel_statistics.un_normalize(LATENT)
    stages = {"denorm": denormalised}
    x = model.conv_in(mx.moveaxis(denormalised, 1, -1), FrameCache(causal=False))
    stages["conv_in"] = channels_first(x)
    for index, block in enumerate(model.up_blocks):
        x = block(x, FrameCache(causal=False))
        stages[f"up{index}"] = channels_first(x)

    asked = ["denorm", "conv_in", "up0", "up1", "up2", "up3", "up4"]
    assert all(f"dec.{name}" in VECTORS for name in asked)
    for name in asked:
        assert error(stages[name], VECTORS[f"dec.{name}"]) < MODULE_TOLERANCE, name


def test_statistics_undo_themselves():
    statistics = decoder().per_channel_statistics
    assert error(statistics.normalize(statistics.un_normalize(LATENT)), LATENT) < 1e-6


def test_bfloat16_batch():
    latents = mx.concatenate([LATENT, -LATENT]).astype(mx.bfloat16)
    pixels = decoder(mx.bfloat16)(latents)
    assert pixels.shape == (2, 3, 9, 64, 96)
    assert pixels.dtype == mx.bfloat16
    assert error(pixels[:1], VECTORS["dec.out"]) < 0.1


def test_float32_latents_do_not_widen_the_network():
    assert decoder(mx.bfloat16)(LATENT).dtype == mx.bfloat16


@pytest.mark.parametrize(
    "block, scale, width",
    [
        (["res_x", 2], VideoScale(1, 2, 2), 32),
        (["compress_time", {}], VideoScale(2, 2, 2), 32),
        (["compress_time", {"multiplier": 2}], VideoScale(2, 2, 2), 64),
        (["compress_space", {"multiplier": 2}], VideoScale(1, 4, 4), 64),
        (["compress_all", {}], VideoScale(2, 4, 4), 32),
        (["compress_all", {"residual": True}], VideoScale(2, 4, 4), 32),
        (
            ["compress_all", {"multiplier": 4, "residual": True}],
            VideoScale(2, 4, 4),
            128,
        ),
    ],
)
@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_blocks(block, scale, width, padding):
    model = VideoDecoder(
        small_config(decoder_blocks=[block], decoder_spatial_padding_mode=padding)
    )
    assert model.scale == scale
    assert model.conv_in.weight.shape[0] == width
    pixels = model(mx.random.normal((2, 4, 3, 4, 5)))
    size = 2 * scale.time + 1, 4 * scale.height, 5 * scale.width
    assert pixels.shape == (2, 3, *size)
    assert mx.isfinite(pixels).all()


def test_only_compress_all_reads_residual():
    blocks = [[f"compress_{kind}", {"residual": True}] for kind in ("all", "space")]
    space, both = VideoDecoder(small_config(decoder_blocks=blocks)).up_blocks
    assert (space.residual, both.residual) == (False, True)


@pytest.mark.parametrize(
    "block, message",
    [
        (["attn_res_x", {"num_layers": 1}], "decoder block 'attn_res_x' is not impl"),
        (
            ["attn_res_x", {"num_layers": 1, "attention_head_dim": 8}],
            "'attn_res_x': unknown parameters attention_head_dim",
        ),
        (["compress_all_res", {}], "decoder block 'compress_all_res' is not impl"),
        (
            ["res_x", {"num_layers": 1, "inject_noise": True}],
            "'res_x': unknown parameters inject_noise",
        ),
    ],
)
def test_refuses_what_it_does_not_know(block, message):
    with pytest.raises(ValueError, match=message):
        VideoDecoder(small_config(decoder_blocks=[block]))


@pytest.mark.parametrize("conditioned", [True, None])
def test_a_decoder_that_takes_timesteps_is_refused(conditioned):
    """Where the key is absent, the official code has it on."""
    config = {"encoder_blocks": [], "decoder_blocks": [["res_x", 1]]}
    if conditioned:
        config["timestep_conditioning"] = True
    with pytest.raises(ValueError, match="timestep_conditioning = True is not impl"):
        VideoVAEConfig.from_dict(config)


def test_a_key_changes_nothing():
    (keyed,) = decoder().stream(LATENT, 10**9, key=mx.random.key(7))
    assert mx.array_equal(keyed, decoder()(LATENT))


def test_mirrored_borders_need_two_cells():
    with pytest.raises(ValueError, match="at least 2 latent cells"):
        decoder()(LATENT[..., :1])
