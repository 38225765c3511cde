"""The mel front end against the official numbers, closed forms, and NumPy's Fourier transform."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_video.models.ltx.audio_vae import AudioEncoder
from tests.models.ltx.audio_vae.audio import tiny_config
from tests.reference import MODULE_TOLERANCE, error, vectors
from tiny.mel import filterbank, hz_to_mel, log_mel, mel_to_hz

CONFIG = tiny_config(AudioEncoder)
BANK = filterbank(513, 64, 16000, 0, 8000)


def test_log_mel():
    v = vectors("audio")
    assert error(log_mel(v["mel.wave16k"], CONFIG), v["mel.log_mel"]) < MODULE_TOLERANCE


def test_filterbank():
    bank = mx.array(BANK, dtype=mx.float32)
    assert error(bank, vectors("audio")["mel.filterbank"]) < MODULE_TOLERANCE


@pytest.mark.slow
def test_bands_have_unit_area():
    """On a fine grid, over which a triangle's area is the sum of its samples times their distance."""
    fine = filterbank(80001, 64, 16000, 0, 8000)
    np.testing.assert_allclose(fine.sum(axis=0) * 0.1, 1, rtol=1e-4)


def test_mel_scale():
    hz = np.array([0, 200, 1000, 6400, 8000])
    np.testing.assert_allclose(hz_to_mel(hz)[:4], [0, 3, 15, 42])
    np.testing.assert_allclose(mel_to_hz(hz_to_mel(hz)), hz)


@pytest.mark.parametrize("win_length", [1024, 400])
def test_agrees_with_numpy(win_length):
    config = replace(CONFIG, win_length=win_length)
    sound = np.random.default_rng(0).uniform(-1, 1, 4000)
    padded = np.pad(sound, 512, mode="reflect")
    n = np.arange(win_length)
    window = np.sin(np.pi * n / win_length) ** 2
    window = np.pad(window, (1024 - win_length) // 2)
    frames = [padded[i : i + 1024] * window for i in range(0, 4001, 160)]
    mel = np.abs(np.fft.rfft(frames)) @ BANK
    expected = mx.array(np.log(np.maximum(mel, 1e-5)), dtype=mx.float32)
    actual = log_mel(mx.array(sound, dtype=mx.float32)[None, None], config)
    assert error(actual[0, 0], expected) < MODULE_TOLERANCE


def test_a_tone_is_loudest_in_its_band():
    tone = mx.sin(2 * np.pi * 440 / 16000 * mx.arange(16000))
    middle = log_mel(tone[None, None], CONFIG)[0, 0, 50]
    assert middle.argmax().item() == BANK[round(440 / 8000 * 512)].argmax()


def test_silence_is_the_floor():
    actual = log_mel(mx.zeros((2, 2, 1600)), CONFIG)
    assert actual.shape == (2, 2, 11, 64)
    assert error(actual, mx.full(actual.shape, np.log(1e-5))) < 1e-6


def test_channels_and_batch_are_independent():
    sound = vectors("audio")["mel.wave16k"]
    both = mx.concatenate([sound, sound[:, ::-1]])
    actual = log_mel(both, CONFIG)
    assert error(actual[1, ::-1], actual[0]) < 1e-6


def test_too_short():
    with pytest.raises(ValueError, match=r"longer than 512 samples \(0.032 s\); got 9"):
        log_mel(mx.zeros((1, 2, 9)), CONFIG)
