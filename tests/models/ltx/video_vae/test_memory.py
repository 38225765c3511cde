"""What decoders and the encoder say they take beside what was measured, and how that grows."""

from dataclasses import replace

import mlx.core as mx
import pytest

from mlx_video.models.ltx.loading import memory_table
from mlx_video.models.ltx.video_vae import VideoDecoder, VideoEncoder
from mlx_video.models.ltx.video_vae.decoding import StreamPlan, decode_stream
from mlx_video.models.ltx.video_vae.tiling import TilingConfig
from tests.memory import most_taken
from tests.models.ltx.video_vae.test_names import real_config
from tests.models.ltx.video_vae.tiny import small_config

MB = 1e6
AGGRESSIVE = TilingConfig.aggressive()


def part(network, release: str, channels: int, dtype=mx.float32):
    config = network.CONFIG.from_dict(real_config(release))
    side = "encoder" if network is VideoEncoder else "decoder"
    model = network(replace(config, **{f"{side}_base_channels": channels}))
    model.set_dtype(dtype)
    return model


@pytest.mark.parametrize(
    "release, channels, latents, tiling, measured",
    [
        ("ltx-2-19b", 16, (7, 8, 12), StreamPlan(), 637),
        ("ltx-2.3-22b", 16, (7, 8, 12), StreamPlan(), 605),
        ("ltx-2.3-22b", 16, (7, 8, 12), StreamPlan(2_000_000), 266),
        ("ltx-2-19b", 16, (6, 16, 16), AGGRESSIVE, 397),
        ("ltx-2-19b", 32, (4, 8, 8), StreamPlan(), 375),
        ("ltx-2-19b", 160, (2, 4, 4), StreamPlan(), 236),
    ],
)
def test_decoders_on_a_cpu(release, channels, latents, tiling, measured):
    """MB measured in float32 on two cores, 28 November 2026; hardly ever less is planned, and at most a quarter more."""
    model = part(VideoDecoder, release, channels)
    said = model.activation_bytes((1, 128, *latents), tiling)
    assert 0.95 < said / (measured * MB) < 1.25


@pytest.mark.parametrize(
    "release, channels, latents, tiling, measured",
    [
        ("ltx-2-19b", 16, (7, 8, 12), StreamPlan(), 1397),
        ("ltx-2-19b", 16, (7, 8, 12), StreamPlan(2_000_000), 592),
        ("ltx-2-19b", 16, (6, 16, 16), AGGRESSIVE, 613),
        ("ltx-2-19b", 32, (2, 2, 2), AGGRESSIVE, 36),
        ("ltx-2-19b", 32, (4, 8, 8), AGGRESSIVE, 933),
        ("ltx-2-19b", 32, (4, 8, 8), StreamPlan(2_097_152), 602),
        ("ltx-2-19b", 64, (2, 4, 6), StreamPlan(1_572_864), 255),
        ("ltx-2-19b", 128, (2, 4, 4), StreamPlan(2_097_152), 579),
        ("ltx-2.3-22b", 16, (2, 4, 6), StreamPlan(2_097_152), 95),
        ("ltx-2.3-22b", 16, (2, 8, 8), StreamPlan(2_097_152), 252),
        ("ltx-2.3-22b", 16, (4, 8, 8), StreamPlan(2_097_152), 677),
        ("ltx-2.3-22b", 32, (4, 8, 8), StreamPlan(2_097_152), 925),
    ],
)
def test_decoders_on_a_cpu_that_copies(release, channels, latents, tiling, measured):
    """MB measured in bfloat16 on two cores, 28 November 2026."""
    model = part(VideoDecoder, release, channels, mx.bfloat16)
    said = model.activation_bytes((1, 128, *latents), tiling)
    assert said == pytest.approx(measured * MB, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "latents", [(2, 2, 2), pytest.param((2, 4, 6), marks=pytest.mark.thorough)]
)
def test_a_decoder_in_bfloat16_here_and_now(latents):
    """The first takes most for copies of weights, the second for unfolded frames."""
    model = part(VideoDecoder, "ltx-2-19b", 32, mx.bfloat16)
    x, tiling = mx.random.normal((1, 128, *latents)), StreamPlan(786_432)
    mx.eval(x, model.parameters())

    def decode() -> None:
        for pixels in decode_stream(model, x, tiling):
            del pixels

    said = model.activation_bytes(x.shape, tiling)
    with mx.stream(mx.cpu):
        seen = most_taken(decode, 2, said)
    assert said == pytest.approx(seen, rel=0.15)


@pytest.mark.parametrize(
    "dtype, size, measured",
    [
        (mx.float32, (256, 384), 336),
        (mx.float32, (512, 512), 968),
        (mx.bfloat16, (64, 64), 939),
        (mx.bfloat16, (256, 256), 995),
    ],
)
def test_the_full_encoder_on_a_cpu(dtype, size, measured):
    """MB measured on two cores, 28 November 2026; in bfloat16 most are copies of weights."""
    model = part(VideoEncoder, "ltx-2-19b", 128, dtype)
    assert model.activation_bytes(*size) == pytest.approx(measured * MB, rel=0.06)


# Latents, how they are cut, and MB beside the weights, most of three: one H200, bfloat16, 27 November 2026.
ON_A_GPU = [
    ((3, 16, 24), StreamPlan(), 1362),
    ((4, 16, 24), StreamPlan(), 1768),
    ((7, 16, 24), StreamPlan(), 1959),
    ((16, 16, 24), StreamPlan(), 2240),
    ((16, 32, 48), StreamPlan(), 4584),
    ((16, 32, 48), StreamPlan(20_000_000), 3045),
    ((16, 16, 24), TilingConfig.default(), 3322),
    ((16, 32, 48), TilingConfig.default(), 5414),
]


@pytest.mark.parametrize("latents, tiling, measured", ON_A_GPU)
def test_the_full_decoder_on_a_gpu(monkeypatch, latents, tiling, measured):
    monkeypatch.setattr(memory_table, "live", lambda *_: memory_table.GPU)
    model = part(VideoDecoder, "ltx-2-19b", 128, mx.bfloat16)
    said = model.activation_bytes((1, 128, *latents), tiling)
    assert said == pytest.approx(measured * MB, rel=0.16)


def test_a_longer_clip_takes_no_more_on_a_gpu(monkeypatch):
    monkeypatch.setattr(memory_table, "live", lambda *_: memory_table.GPU)
    model = part(VideoDecoder, "ltx-2-19b", 128, mx.bfloat16)
    short, long = (
        model.activation_bytes((1, 128, frames, 16, 24), StreamPlan())
        for frames in (16, 61)
    )
    assert short == long


@pytest.mark.parametrize(
    "size, measured",
    [((256, 384), 287), ((512, 768), 1019), ((768, 1024), 1037), ((1024, 1536), 1491)],
)
def test_the_full_encoder_on_a_gpu(monkeypatch, size, measured):
    """MB beside the weights on one H200, most of four, 27 November 2026."""
    monkeypatch.setattr(memory_table, "live", lambda *_: memory_table.GPU)
    model = part(VideoEncoder, "ltx-2-19b", 128, mx.bfloat16)
    assert model.activation_bytes(*size) == pytest.approx(measured * MB, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    "tiling",
    [
        StreamPlan(),
        *(
            pytest.param(t, marks=pytest.mark.thorough)
            for t in (StreamPlan(300_000), AGGRESSIVE)
        ),
    ],
)
def test_a_small_decoder_here_and_now(tiling):
    """Tiled decoding of small decoders was planned at a quarter of what it took."""
    blocks = [["compress_all", {}], ["res_x", 2], ["compress_all", {}]]
    config = small_config(decoder_blocks=blocks, decoder_spatial_padding_mode="zeros")
    model = VideoDecoder(config)
    latents = mx.random.normal((1, 4, 9, 16, 16))
    mx.eval(latents, model.parameters())

    def decode() -> None:
        for pixels in decode_stream(model, latents, tiling):
            del pixels

    with mx.stream(mx.cpu):
        seen = most_taken(decode)
    assert seen / 1.5 < model.activation_bytes(latents.shape, tiling) < 2 * seen


@pytest.mark.slow
@pytest.mark.parametrize(
    "release", ["ltx-2-19b", pytest.param("ltx-2.3-22b", marks=pytest.mark.thorough)]
)
def test_a_frame_for_a_preview_takes_no_more_than_planned(release):
    """More is planned than it takes: the plan is fitted to clips."""
    model = part(VideoDecoder, release, 16)
    latents = mx.random.normal((1, 128, 1, 8, 12))
    mx.eval(latents, model.parameters())
    with mx.stream(mx.cpu):
        seen = most_taken(lambda: mx.eval(model(latents)), 3)
    assert seen / 1.15 < model.activation_bytes(latents.shape, model.FRAME) < 3 * seen
