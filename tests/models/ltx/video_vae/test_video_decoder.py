"""The decoder against Lightricks' numbers, stage by stage, every block the official config may list, and its noise."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map

from mlx_video.models.ltx.video_vae import VideoDecoder
from mlx_video.models.ltx.video_vae.stream import Stream
from mlx_video.types import VideoScale
from tests.models.ltx.video_vae.tiny import (
    VECTORS,
    channels_first,
    decoder,
    small_config,
)
from tests.reference import MODULE_TOLERANCE, error

LATENT = VECTORS["dec.in"]
KEY = mx.random.key(7)


def test_pixels_of_a_clip():
    assert error(decoder()(LATENT), VECTORS["dec.out"]) < MODULE_TOLERANCE


def test_pixels_of_a_single_frame():
    pixels = decoder()(VECTORS["dec.in_single"])
    assert error(pixels, VECTORS["dec.out_single"]) < MODULE_TOLERANCE


def test_causal():
    pixels = decoder()(LATENT, causal=True)[..., ::2, ::2]
    assert error(pixels, VECTORS["dec.out_causal_sub"]) < MODULE_TOLERANCE


def test_causality_by_config():
    blocks = [["res_x", 1], ["compress_time", {}]]
    causal = VideoDecoder(small_config(decoder_blocks=blocks, causal_decoder=True))
    latent = mx.random.normal((1, 4, 3, 2, 2))
    assert mx.array_equal(causal(latent), causal(latent, causal=True))
    assert not mx.allclose(causal(latent), causal(latent, causal=False))


def test_every_stage():
    model = decoder()
    denormalised = model.per_channel_statistics.un_normalize(LATENT)
    stages = {"denorm": denormalised}
    x = model.conv_in(mx.moveaxis(denormalised, 1, -1), Stream(causal=False))
    stages["conv_in"] = channels_first(x)
    for index, block in enumerate(model.up_blocks):
        x = block(x, Stream(causal=False))
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
        (["res_x_y", {"multiplier": 3}], VideoScale(1, 2, 2), 96),
        (["res_x_y", {}], VideoScale(1, 2, 2), 64),
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
        small_config(
            decoder_blocks=[block],
            decoder_spatial_padding_mode=padding,
            norm_layer="group_norm",
        )
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
    assert (space.repeats, both.repeats) == (0, 8)


def test_a_changed_width_is_projected():
    """res_x_y: with both branches' last layers zero but for the biases, the block returns their sum."""
    block = VideoDecoder(small_config(decoder_blocks=[["res_x_y", {}]])).up_blocks[0]
    block.conv2.weight *= 0
    block.conv2.bias += 2
    x = mx.random.normal((1, 2, 3, 4, 64)) * 3 + 1
    mean, variance = x.mean(), x.var()  # over the whole clip, as official: one group
    shortcut = (x - mean) * mx.rsqrt(variance + 1e-6)
    shortcut = shortcut @ block.conv_shortcut.weight.reshape(32, 64).T
    assert error(block(x, Stream()), shortcut + 2) < 1e-5


@pytest.mark.parametrize(
    "block, message",
    [
        (["attn_res_x", {"num_layers": 1}], "decoder block 'attn_res_x' is not impl"),
        (
            ["attn_res_x", {"num_layers": 1, "attention_head_dim": 8}],
            "'attn_res_x': unknown parameters attention_head_dim",
        ),
        (["compress_all_res", {}], "decoder block 'compress_all_res' is not impl"),
    ],
)
def test_refuses_what_it_does_not_know(block, message):
    with pytest.raises(ValueError, match=message):
        VideoDecoder(small_config(decoder_blocks=[block]))


def test_mirrored_borders_need_two_cells():
    with pytest.raises(ValueError, match="at least 2 latent cells"):
        decoder()(LATENT[..., :1])


# Timesteps and noise, which no released checkpoint uses


def conditioned(inject_noise=False) -> VideoDecoder:
    blocks = [["res_x", {"num_layers": 2, "inject_noise": inject_noise}]]
    model = VideoDecoder(
        small_config(
            decoder_blocks=blocks + [["compress_all", {}]] + blocks,
            timestep_conditioning=True,
        )
    )
    mx.random.seed(3)
    noisy = tree_map(lambda x: mx.random.normal(x.shape) * 0.1, model.parameters())
    model.update(noisy)
    model.timestep_scale_multiplier = mx.array(1000.0)
    model.per_channel_statistics.std = mx.ones(4)
    return model


def test_the_timestep_matters_and_has_a_default():
    model, latent = conditioned(), mx.random.normal((2, 4, 2, 3, 3))
    default = model(latent)
    assert error(model(latent, timestep=mx.array([0.05, 0.05])), default) < 1e-6
    assert error(model(latent, timestep=mx.array([0.5, 0.5])), default) > 1e-3


def test_each_item_has_its_timestep():
    model, latent = conditioned(), mx.random.normal((2, 4, 2, 3, 3))
    both = model(latent, timestep=mx.array([0.1, 0.9]))
    for item, level in enumerate([0.1, 0.9]):
        alone = model(latent[item : item + 1], timestep=mx.array([level]))
        assert error(both[item : item + 1], alone) < 1e-5


def test_a_key_adds_noise_and_repeats_it():
    model, latent = conditioned(inject_noise=True), mx.random.normal((1, 4, 2, 3, 3))
    noisy = model(latent, key=KEY)
    assert mx.array_equal(noisy, model(latent, key=KEY))
    assert not mx.allclose(noisy, model(latent))
    assert not mx.allclose(noisy, model(latent, key=mx.random.key(8)))


def test_the_latent_is_mixed_with_noise():
    model, latent = conditioned(), mx.ones((1, 4, 8, 32, 32))
    noisy = model._add_noise(latent, KEY)
    assert abs(noisy.mean().item() - 0.975) < 1e-3
    assert abs(mx.std(noisy).item() - 0.025) < 1e-3


def test_noise_is_one_image_for_all_frames_and_channels():
    block = conditioned(inject_noise=True).up_blocks[0].res_blocks[0]
    x = mx.zeros((2, 3, 5, 6, 32))
    (noise,) = block._noise(x, "per_channel_scale2", KEY)
    noise = noise / block.per_channel_scale2
    assert noise.shape == (5, 6, 32)
    assert mx.allclose(noise, mx.broadcast_to(noise[..., :1], noise.shape))
    assert mx.std(noise[..., 0]) > 0.5


def test_without_conditioning_a_key_changes_nothing():
    assert mx.array_equal(decoder()(LATENT, key=KEY), decoder()(LATENT))


def test_the_official_formula_of_a_conditioned_block():
    """norm, scale and shift, SiLU, convolution; rows of the table: shift, scale, shift, scale."""
    block = conditioned().up_blocks[0].res_blocks[0]
    x, embedding = mx.random.normal((1, 2, 3, 3, 32)), mx.random.normal((1, 128))
    shift1, scale1, shift2, scale2 = block.scale_shift_table + embedding.reshape(4, 32)
    h = block.conv1(nn.silu(block.norm1(x) * (1 + scale1) + shift1), Stream())
    h = block.conv2(nn.silu(block.norm2(h) * (1 + scale2) + shift2), Stream())
    assert error(block(x, Stream(), embedding), x + h) < 1e-5
