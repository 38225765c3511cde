"""Decoded arrays as 8-bit frames and PCM."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_video.postprocess import fit_sound, frames, to_pcm16, to_uint8
from mlx_video.types import VideoPixelShape, Waveform
from tests.reference import vectors


def test_pixels_are_the_official_bytes():
    v = vectors("video_vae")
    assert mx.array_equal(to_uint8(v["dec.out"][0]), v["dec.uint8"])


def test_frames_of_all_pieces_in_order():
    v = vectors("video_vae")
    pieces = [v["dec.out"][:, :, :1], v["dec.out"][:, :, 1:]]
    actual = list(frames(pieces))
    assert len(actual) == 9 and actual[0].dtype == np.uint8
    np.testing.assert_array_equal(actual, v["dec.uint8"])


def test_frames_are_made_when_taken():
    def pieces():
        yield mx.zeros((1, 3, 1, 2, 2))
        pytest.fail("the second piece was decoded before its time")

    next(frames(pieces()))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_range(dtype):
    values = mx.array([-1, -1.5, 1, 2, 0, 0.9921875], dtype)
    (row,) = to_uint8(mx.broadcast_to(values, (3, 1, 1, 6)))[0].tolist()
    assert row == [[byte] * 3 for byte in (0, 0, 255, 255, 127, 254)]


def test_bfloat16_pixels_lose_nothing_more():
    pixels = mx.linspace(-1, 1, 3000).astype(mx.bfloat16).reshape(3, 1000, 1, 1)
    assert mx.array_equal(to_uint8(pixels), to_uint8(pixels.astype(mx.float32)))


def test_pcm():
    samples = mx.array([[0.0, 1.0, -1.0, 0.5], [2.0, -2.0, 1e-6, -0.5]])
    expected = [[0, 32767], [32767, -32767], [-32767, 0], [16384, -16384]]
    pcm = to_pcm16(Waveform(samples, 24000))
    assert pcm.dtype == np.int16 and pcm.tolist() == expected


# Sound as long as its clip

RATE = 24000


def steady(samples: int, channels: int = 2) -> Waveform:
    return Waveform(mx.ones((channels, samples)), RATE)


@pytest.mark.parametrize("fps", [24, 25, 23.976, 12.5])
@pytest.mark.parametrize("seconds", [0.2, 0.98, 3.0])
def test_sound_lasts_as_long_as_the_clip(fps, seconds):
    shape = VideoPixelShape(25, 64, 64, fps)
    sound = fit_sound(steady(round(seconds * RATE)), shape)
    assert sound.samples.shape == (2, round(25 / shape.rate * RATE))
    assert sound.sample_rate == RATE and sound.samples.dtype == mx.float32


def test_sound_has_no_click_at_its_ends():
    """Ten milliseconds up and down; between them nothing changes."""
    shape = VideoPixelShape(25, 64, 64, 25)
    whole = fit_sound(steady(RATE), shape).samples[0]
    assert whole[0].item() == whole[-1].item() == 0
    assert mx.abs(whole[1:] - whole[:-1]).max().item() < 0.01
    assert mx.array_equal(whole[240:-240], mx.ones(RATE - 480))


def test_the_thirty_milliseconds_that_decoding_leaves_out_are_the_end_mirrored():
    tone = mx.sin(mx.arange(RATE - 761) / 9)[None]
    sound = fit_sound(Waveform(tone, RATE), VideoPixelShape(25, 64, 64, 25)).samples[0]
    end = RATE - 761
    assert mx.array_equal(sound[240:end], tone[0, 240:])
    assert mx.allclose(sound[end : end + 500], tone[0, -501:-1][::-1])
    assert sound[-1].item() == 0


def test_sound_that_is_much_too_short_ends_in_silence():
    sound = fit_sound(steady(6000), VideoPixelShape(25, 64, 64, 25)).samples[0]
    assert sound[5999].item() == 0 and not mx.any(sound[6000:]).item()
    assert sound[3000].item() == 1


def test_sound_shorter_than_a_fade():
    sound = fit_sound(steady(5), VideoPixelShape(1, 64, 64, 25)).samples
    assert sound.shape == (2, 960) and mx.isfinite(sound).all().item()
