"""Resampling against torchaudio's numbers, the vocoder's official filter, and closed forms."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_video.models.ltx.audio_vae.signal import overlapping, resample
from tests.reference import MODULE_TOLERANCE, error, vectors


def tone(hertz: float, rate: int, seconds: float) -> mx.array:
    return mx.sin(2 * np.pi * hertz / rate * mx.arange(round(rate * seconds)))


def test_resample_is_torchaudio():
    v = vectors("audio", "ltx23_tiny")
    actual = resample(v["resample.wave44k"], 44100, 16000)
    assert error(actual, v["resample.wave16k"]) < MODULE_TOLERANCE


@pytest.mark.parametrize("release", ["ltx23_tiny", "ltx25_tiny"])
def test_three_times_the_rate_is_the_official_filter(release):
    v = vectors("audio", release)
    wide = resample(v["voc.low"], 16000, 48000, "edge")
    assert error(wide, v["voc.skip"]) < MODULE_TOLERANCE
    impulse = mx.zeros((1, 1, 15))
    impulse[..., 7] = 1
    response = resample(impulse, 1, 3)[..., :43]
    assert error(response, v["voc.resampler_filter"] * 3) < MODULE_TOLERANCE


@pytest.mark.parametrize("from_rate, to_rate", [(44100, 16000), (16000, 44100)])
def test_resample_keeps_a_tone(from_rate, to_rate):
    actual = resample(tone(440, from_rate, 0.5), from_rate, to_rate)
    expected = tone(440, to_rate, 0.5)
    assert actual.shape == expected.shape
    assert mx.abs(actual - expected)[200:-200].max().item() < 2e-3


def test_resample_drops_what_the_lower_rate_cannot_hold():
    aliased = resample(tone(15000, 48000, 0.2), 48000, 16000)
    assert mx.abs(aliased[200:-200]).max().item() < 2e-2


@pytest.mark.parametrize("n, expected", [(1, 1), (3, 2), (441, 160), (442, 161)])
def test_resample_rounds_up(n, expected):
    assert resample(mx.zeros((2, n)), 44100, 16000).shape == (2, expected)


def test_the_same_rate_is_the_same_sound():
    sound = tone(440, 16000, 0.1)
    assert (resample(sound, 16000, 16000) == sound).all().item()


def test_frames_overlap():
    assert overlapping(mx.arange(6), 3, 2).tolist() == [[0, 1, 2], [2, 3, 4]]
