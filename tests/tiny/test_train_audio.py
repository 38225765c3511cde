"""The trainings of the audio parts, at their smallest: losses fall, and what they write is read back."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_video.types import VideoPixelShape
from tiny import linear_vocoder, model, train_audio_vae, train_vocoder, training
from tiny.training import Plan

pytestmark = pytest.mark.slow


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty folder of checkpoints."""
    monkeypatch.setattr(model, "WORK", tmp_path)
    monkeypatch.setattr(training, "WORK", tmp_path)
    return tmp_path


def tones(count, rate, seed=0):
    """Half a second of sines of multiples of 100 Hz that swell or fade, of one for each ear: (count, 2, rate / 2)."""
    rng = np.random.default_rng(seed)
    multiples = rng.integers(3, 12, (count, 2, 1))
    first, last = rng.uniform(0.1, 0.5, (2, count, 2, 1))
    part = np.arange(rate // 2) / (rate // 2)
    waves = np.sin(np.pi * 100 * multiples * part)
    return mx.array((first + (last - first) * part) * waves, mx.float32)


def tone_pairs(count, seed=0):
    log_mel = train_audio_vae.log_mel(tones(count, 16000, seed), train_audio_vae.CONFIG)
    return log_mel[:, :, :-1], tones(count, 24000, seed)


def plan(name, steps, rate):
    return Plan(name, steps, learning_rate=rate, warmup=1, average=0.0)


def test_a_spectrogram_is_as_long_as_its_latents_decode_to():
    scenes, frames = train_audio_vae.draw_scenes(0, 2)
    log_mel = train_audio_vae.spectrograms(scenes, frames)
    pair = train_audio_vae.Autoencoder()
    latent = pair.encoder(log_mel)
    assert latent.shape == (
        2,
        8,
        model.GEOMETRY.audio_frames(VideoPixelShape(frames, 0, 0, 24.0)),
        16,
    )
    assert pair.decoder(latent).shape == log_mel.shape


def test_scenes_follow_from_the_step():
    draw = train_audio_vae.draw_scenes
    assert draw(3, 2) == draw(3, 2) != draw(4, 2)


def test_statistics_are_those_of_each_cell():
    latent = mx.random.normal((3, 8, 20, 16), key=mx.random.key(1)) * 2 + 5
    latent[:, 1] = 7.0
    mean, std = (x.reshape(8, 16) for x in train_audio_vae.statistics(latent))
    np.testing.assert_allclose(mean, mx.mean(latent, axis=(0, 2)), rtol=1e-5)
    np.testing.assert_allclose(std[0], mx.std(latent[:, 0], axis=(0, 1)), rtol=1e-5)
    assert 0.05 < std[1].max() < 0.1  # no cell is blown up that never changes


def test_noise_is_a_share_of_each_cells_deviation():
    latent = mx.random.normal((8, 8, 50, 16), key=mx.random.key(1))
    latent = latent * mx.arange(1, 9)[:, None, None]
    noise = train_audio_vae.noisy(latent, mx.random.key(0)) - latent
    np.testing.assert_allclose(mx.std(noise, axis=(0, 2, 3)), 0.1 * np.arange(1, 9), rtol=0.1)  # fmt: skip


def test_errors_of_loud_cells_count_more():
    silent, loud = mx.full((1, 2, 1, 64), train_audio_vae.SILENCE), mx.zeros((1, 2, 1, 64))  # fmt: skip
    assert train_audio_vae.distance(silent + 1, silent).item() == pytest.approx(1)
    assert train_audio_vae.distance(loud + 1, loud).item() == pytest.approx(4)


@pytest.mark.thorough
def test_the_autoencoder_learns_and_is_stored(work, monkeypatch):
    target = tone_pairs(2)[0][:, :, :49]
    monkeypatch.setattr(train_audio_vae, "spectrograms", lambda *_: target)
    pair = train_audio_vae.Autoencoder()
    before = train_audio_vae.distance(pair.decoder(pair.encoder(target)), target)
    train_audio_vae.train_pair(pair, plan("audio_vae", 6, 2e-3), 1)
    decoded = pair.decoder(pair.encoder(target))
    assert train_audio_vae.distance(decoded, target) < 0.97 * before
    encoder, decoder = model.load("audio_encoder"), model.load("audio_decoder")
    latent = encoder(target)
    np.testing.assert_allclose(decoder(latent), decoded, atol=1e-3)
    mean, std = train_audio_vae.statistics(latent)
    np.testing.assert_allclose(mean, mx.zeros(128), atol=1e-3)
    assert std.max().item() == pytest.approx(1, abs=1e-3)
    assert mx.abs(pair.encoder.per_channel_statistics.mean).max() == 0


def test_figures_of_spectrograms(monkeypatch):
    target = mx.full((2, 2, 4, 64), train_audio_vae.SILENCE)
    target[0, :, 0] = 0.0
    monkeypatch.setattr(train_audio_vae, "spectrograms", lambda *_: target)
    off = lambda log_mel: log_mel + mx.where(log_mel > -1, 0.5, 0.1)
    figures = train_audio_vae.measure(lambda log_mel: log_mel, off, 2)
    assert figures == pytest.approx({"all": 0.15, "loud": 0.5, "silent": 0.1}, rel=1e-4)


# ---- vocoder


@pytest.fixture(scope="module")
def front():
    """A vocoder before its training, for tones alone."""
    vocoder = model.fresh("vocoder")
    basis = linear_vocoder.begin_linear(vocoder, *tone_pairs(64))
    return train_vocoder.Front(vocoder, basis)


def signal_to_error(made, waveform):
    """In dB, without the ends, where the spectrogram shows a reflection."""
    made, waveform = made[..., 1200:-1200], waveform[..., 1200:-1200]
    return -10 * mx.log10(mx.mean((made - waveform) ** 2) / mx.mean(waveform**2)).item()


def pair_of(step):
    return train_vocoder.pairs(step, 2, 240, train_vocoder.as_it_is)


def test_a_vocoder_begins_with_clean_tones(front):
    log_mel, waveform = tone_pairs(16, seed=1)
    assert signal_to_error(front(log_mel), waveform) > 12


def test_figures_are_those_of_the_sounds():
    figures = train_vocoder.measure(lambda log_mel: mx.full((12, 2, 48240), 1e-6), train_vocoder.as_it_is, 12)  # fmt: skip
    assert figures["signal to error (dB)"] == pytest.approx(0, abs=1e-3)
    assert figures["peak of silence"] in (0, pytest.approx(1e-6))
    sounds = train_vocoder.sound(*train_vocoder.unseen_scenes(12))[..., :48240]
    figures = train_vocoder.measure(lambda log_mel: 1.1 * sounds, train_vocoder.as_it_is, 12)  # fmt: skip
    assert figures["signal to error (dB)"] == pytest.approx(20, abs=1e-3)
    assert figures["level error (dB)"] == pytest.approx(20 * np.log10(1.1), abs=1e-3)


def test_its_front_makes_what_the_whole_vocoder_does(front, work):
    log_mel, waveform = pair_of(1)
    made = front(log_mel)
    assert made.shape == waveform.shape
    front.finish()
    np.testing.assert_allclose(made, model.load("vocoder")(log_mel), atol=1e-4)
    np.testing.assert_allclose(made, front(log_mel))


def test_it_hears_only_as_many_bands_as_it_has_channels():
    vocoder = model.fresh("vocoder")
    with pytest.raises(ValueError, match="must be the number of bands, 60; got 128"):
        linear_vocoder.begin_linear(vocoder, mx.zeros((1, 2, 4, 30)), mx.zeros((1, 2, 960)))  # fmt: skip


def test_every_other_spectrogram_is_decoded():
    true, waveform = pair_of(0)
    mixed, same = train_vocoder.pairs(0, 2, 240, lambda log_mel, key: log_mel + 1)
    np.testing.assert_allclose(mixed[0], true[0] + 1)
    np.testing.assert_array_equal(mixed[1], true[1])
    np.testing.assert_array_equal(waveform, same)
    assert waveform.shape == (2, 2, 240 * true.shape[2])


def test_an_error_counts_by_its_share_of_the_clip():
    target = mx.stack([mx.zeros((2, 2400)), mx.full((2, 2400), 0.1)])
    distance = train_vocoder.distance
    assert distance(target + 0.01, target).item() == pytest.approx((1 + 0.0995) / 2, rel=1e-3)  # fmt: skip
    assert distance(target, target).item() < 0.01


def test_the_vocoder_learns_and_is_stored(front, work, monkeypatch):
    monkeypatch.setattr(train_vocoder, "pairs", lambda *_: tone_pairs(4))
    log_mel, waveform = tone_pairs(4)
    front.up.weight = 0.1 * front.up.weight
    before = train_vocoder.distance(front(log_mel), waveform)
    train_vocoder.train_front(front, train_vocoder.as_it_is, plan("vocoder", 12, 1e-4), 4)  # fmt: skip
    made = front(log_mel)
    assert train_vocoder.distance(made, waveform) < 0.97 * before
    np.testing.assert_allclose(made, model.load("vocoder")(log_mel), atol=1e-4)
