"""What decoders and the encoder say they take beside what was measured, and how that grows."""

from dataclasses import replace

import mlx.core as mx
import pytest

from mlx_video.models.ltx import fitted
from mlx_video.models.ltx.video_vae import VideoDecoder, VideoEncoder, decoder, encoder
from mlx_video.models.ltx.video_vae.streaming_decode import StreamPlan
from mlx_video.models.ltx.video_vae.tiling import TilingConfig, decode_stream
from tests.models.ltx.video_vae.test_video_names import real_config
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
        ("ltx-2-19b", 16, (3, 8, 12), StreamPlan(), 300),
        ("ltx-2.3-22b", 16, (3, 8, 12), StreamPlan(), 321),
        ("ltx-2.3-22b", 16, (3, 8, 12), StreamPlan(2_000_000), 271),
        ("ltx-2-19b", 16, (6, 16, 16), AGGRESSIVE, 382),
        ("ltx-2-19b", 32, (2, 8, 8), StreamPlan(), 203),
        ("ltx-2-19b", 160, (2, 4, 4), StreamPlan(), 436),
    ],
)
def test_decoders_on_a_cpu(release, channels, latents, tiling, measured):
    """MB measured in float32 on two cores, 27 November 2026; to 25 %, most to 15."""
    model = part(VideoDecoder, release, channels)
    said = model.activation_bytes((1, 128, *latents), tiling)
    assert said == pytest.approx(measured * MB, rel=0.25)


@pytest.mark.parametrize("dtype", (mx.float32, mx.bfloat16))
def test_the_full_encoder_on_a_cpu(dtype):
    """MB measured in float32 on two cores, 25 November 2026; a CPU computes bfloat16 in float32 too."""
    model = part(VideoEncoder, "ltx-2-19b", 128, dtype)
    assert model.activation_bytes(256, 384) == pytest.approx(668 * MB, rel=0.03)
    assert model.activation_bytes(512, 512) == pytest.approx(1758 * MB, rel=0.03)


def test_the_full_decoder_on_a_gpu(monkeypatch):
    """MB beside the weights of one H100 at 512 x 768 and 1024 x 1536, however long the clip; a tile as large as it is."""
    monkeypatch.setattr(fitted, "live", lambda: fitted.GPU)
    model = part(VideoDecoder, "ltx-2-19b", 128, mx.bfloat16)
    short, long = (
        model.activation_bytes((1, 128, frames, 16, 24), StreamPlan())
        for frames in (16, 61)
    )
    assert short == long
    assert short > model.activation_bytes((1, 128, 16, 16, 24), StreamPlan(5_000_000))
    tile = 65 * (11 * 32) * (16 * 32) / 4**2 * 128 * 2
    pixels = 65 * 1024 * 1536 * 3 * 4
    said = model.activation_bytes((1, 128, 16, 32, 48), TilingConfig.default())
    assert said == decoder.LIVE_TILE * tile + pixels


def test_the_full_encoder_on_a_gpu(monkeypatch):
    monkeypatch.setattr(fitted, "live", lambda: fitted.GPU)
    model = part(VideoEncoder, "ltx-2-19b", 128, mx.bfloat16)
    cells = 128 * 192
    assert model.activation_bytes(512, 768) == encoder.LIVE * cells * 128 * 2


@pytest.mark.slow
@pytest.mark.parametrize("tiling", [StreamPlan(), StreamPlan(300_000), AGGRESSIVE])
def test_a_small_decoder_here_and_now(tiling):
    """Tiled decoding of small decoders was planned at a quarter of what it took."""
    blocks = [["compress_all", {}], ["res_x", 2], ["compress_all", {}]]
    config = small_config(decoder_blocks=blocks, decoder_spatial_padding_mode="zeros")
    model = VideoDecoder(config)
    latents = mx.random.normal((1, 4, 12, 24, 24))
    mx.eval(latents, model.parameters())
    with mx.stream(mx.cpu):
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        for pixels in decode_stream(model, latents, tiling):
            del pixels
        seen = mx.get_peak_memory() - before
    assert seen / 1.5 < model.activation_bytes(latents.shape, tiling) < 2 * seen
