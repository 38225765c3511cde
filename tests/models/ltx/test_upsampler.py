"""The latent upsampler against Lightricks' numbers, in every form that a checkpoint has."""

import json
from functools import cache

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_video.models.ltx.config import UpsamplerConfig
from mlx_video.models.ltx.upsampler import LatentUpsampler, upsample_normalized
from mlx_video.models.ltx.video_vae import VideoEncoder
from tests.models.ltx.video_vae.tiny import LTX_2_3, VECTORS, encoder, part_of
from tests.reference import (
    FIXTURES,
    MODULE_TOLERANCE,
    UPSCALER,
    checkpoint,
    error,
    manifest,
    vectors,
)


def upsampler(file=UPSCALER, dtype=mx.float32) -> LatentUpsampler:
    weights, config = checkpoint(file)
    model = LatentUpsampler(UpsamplerConfig.from_dict(config))
    weights = LatentUpsampler.sanitize(weights)
    model.load_weights([(k, v.astype(dtype)) for k, v in weights.items()])
    return model


def small(**changes) -> LatentUpsampler:
    options = {
        "in_channels": 4,
        "mid_channels": 32,
        "num_blocks_per_stage": 1,
        "spatial_upsample": True,
        "temporal_upsample": False,
    }
    return LatentUpsampler(UpsamplerConfig.from_dict(options | changes))


X2 = {"rational_resampler": False}
X2_RATIONAL = {"rational_resampler": True}
X15 = {"spatial_scale": 1.5, "rational_resampler": True}
TIME = {"spatial_upsample": False, "temporal_upsample": True, "spatial_scale": 1.0}


def test_upsample():
    out = upsampler()(VECTORS["ups.raw_in"])
    assert error(out, VECTORS["ups.raw_out"]) < MODULE_TOLERANCE


def test_upsample_normalized():
    statistics = encoder().per_channel_statistics
    out = upsample_normalized(upsampler(), statistics, VECTORS["ups.in"])
    assert error(out, VECTORS["ups.out"]) < MODULE_TOLERANCE


def test_bfloat16_batch():
    latents = mx.concatenate([VECTORS["ups.raw_in"]] * 2).astype(mx.bfloat16)
    out = upsampler(dtype=mx.bfloat16)(latents)
    assert out.shape == (2, 128, 2, 4, 6)
    assert out.dtype == mx.bfloat16
    assert error(out[:1], VECTORS["ups.raw_out"]) < 0.1


@pytest.mark.parametrize(
    "options, shape",
    [
        (X2, (3, 8, 12)),
        (X2_RATIONAL, (3, 8, 12)),
        (X15, (3, 6, 9)),
        (TIME, (5, 4, 6)),
    ],
)
def test_sizes(options, shape):
    out = small(**options)(mx.random.normal((2, 4, 3, 4, 6)))
    assert out.shape == (2, 4, *shape)
    assert mx.isfinite(out).all()


def test_blur_keeps_every_second_cell_of_a_binomial_mean():
    blur = small(**X15).resample.blur
    x = mx.random.normal((2, 1, 7, 8, 3))
    row = mx.array([1, 4, 6, 4, 1]) / 16
    padded = mx.pad(x, [(0, 0), (0, 0), (2, 2), (2, 2), (0, 0)])
    expected = sum(
        row[i] * row[j] * padded[:, :, i : i + 7 : 2, j : j + 8 : 2]
        for i in range(5)
        for j in range(5)
    )
    assert error(blur(x), expected) < 1e-6


def test_time_drops_the_first_of_the_doubled_frames():
    """Of channel pairs (earlier, later), the first frame's earlier half goes."""
    resample = small(**TIME).resample
    x = mx.random.normal((1, 3, 2, 2, 32))
    pairs = resample.conv(x).reshape(1, 3, 2, 2, 32, 2)
    out = resample(x)
    assert mx.array_equal(out[:, 0::2], pairs[..., 1])
    assert mx.array_equal(out[:, 1::2], pairs[:, 1:, ..., 0])


@pytest.mark.parametrize(
    "name",
    [
        "ltx-2-spatial-upscaler-x2-1.0",
        "ltx-2-temporal-upscaler-x2-1.0",
        "ltx-2.3-spatial-upscaler-x2-1.1",
        "ltx-2.3-spatial-upscaler-x1.5-1.0",
        "ltx-2.3-temporal-upscaler-x2-1.0",
        "ltx-2.5-latent-spatial-upscaler-x2-bf16-1.0",
        "ltx-2.5-latent-temporal-upscaler-x2-bf16-1.0",
    ],
)
def test_full_size(name):
    configs = FIXTURES / "manifests" / "ltx-2-upscalers.config.json"
    config = json.loads(configs.read_text())[f"{name}.safetensors"]["config"]
    model = LatentUpsampler(UpsamplerConfig.from_dict(config))
    official = {key: mx.zeros(shape) for key, shape in manifest(name).items()}
    sanitized = LatentUpsampler.sanitize(official)
    ours = {key: x.shape for key, x in tree_flatten(model.parameters())}
    assert {key: x.shape for key, x in sanitized.items()} == ours
    assert LatentUpsampler.sanitize(sanitized) == sanitized


# The upscalers of LTX-2.3; those of 2.5 have the names and sizes of x2 and temporal.


@cache
def upsampler_2_3(name: str) -> LatentUpsampler:
    return upsampler(FIXTURES / "ltx23_tiny" / f"ltx-2.3-tiny-{name}.safetensors")


@pytest.mark.parametrize(
    "name, case",
    [
        ("spatial-upscaler-x2", "spatial-x2"),
        ("spatial-upscaler-x1.5", "spatial-x1.5"),
        ("temporal-upscaler-x2", "temporal-x2"),
    ],
)
def test_upscalers_of_2_3_are_the_official_ones(name, case):
    official = vectors("video_vae", "ltx23_tiny")
    model = upsampler_2_3(name)
    latent = official[f"ups.{case}.in"]
    assert error(model(latent), official[f"ups.{case}.raw_out"]) < MODULE_TOLERANCE
    statistics = part_of(VideoEncoder, LTX_2_3).per_channel_statistics
    normalized = upsample_normalized(model, statistics, latent)
    assert error(normalized, official[f"ups.{case}.out"]) < MODULE_TOLERANCE


@pytest.mark.parametrize(
    "file", [UPSCALER, *(FIXTURES / "ltx23_tiny").glob("*upscaler*")], ids=str
)
def test_names_lead_there_and_back(file):
    weights, _ = checkpoint(file)
    ours = LatentUpsampler.sanitize(weights)
    assert {LatentUpsampler.NAMES.official(key) for key in ours} == weights.keys()
    assert len(ours) == len(weights)


def test_folders_written_before_are_read():
    """A rational upsampler's convolution had the name of the plain one's."""
    model = small(**X2_RATIONAL)
    ours = dict(tree_flatten(model.parameters()))
    before = {
        key.replace("resample.expand", "resample.conv"): x for key, x in ours.items()
    }
    assert before.keys() != ours.keys()
    assert LatentUpsampler.sanitize(before) == ours


@pytest.mark.parametrize(
    "options",
    [
        {"temporal_upsample": True},
        {"spatial_upsample": False},
        {"spatial_scale": 4.0, "rational_resampler": True},
        {"spatial_scale": 1.5},
    ],
)
def test_refuses_other_resamplers(options):
    with pytest.raises(ValueError, match="is not implemented; known are x2 and"):
        small(**options)


def test_refuses_unknown_tensors():
    with pytest.raises(ValueError, match="unknown tensor 'extra.weight'"):
        LatentUpsampler.sanitize(
            {"initial_conv.weight": mx.zeros((1,) * 5), "extra.weight": mx.zeros(1)}
        )
