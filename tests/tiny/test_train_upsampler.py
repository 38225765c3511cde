"""The training of the latent upsampler at its smallest: the loss falls, and what it writes is read back."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_video.models.ltx.upsampler import upsample_normalized
from tiny import model, train_upsampler, training
from tiny.model import fresh
from tiny.muon import Muon
from tiny.train_upsampler import Pairs
from tiny.training import Plan
from tiny.world import draw, random_scene

pytestmark = pytest.mark.slow


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty folder of checkpoints, and scenes at a quarter of their size."""
    for module in (model, training):
        monkeypatch.setattr(module, "WORK", tmp_path)
    monkeypatch.setattr(train_upsampler, "COARSE", 32)
    monkeypatch.setattr(train_upsampler, "FINE", 64)
    monkeypatch.setattr(train_upsampler, "PIXELS", 2 * 9 * 64**2)
    return tmp_path


@pytest.fixture
def encoder():
    """An untrained one, whose latents have some statistics."""
    encoder = fresh("video_encoder")
    encoder.per_channel_statistics.mean = mx.arange(128) / 128
    encoder.per_channel_statistics.std = 0.2 + mx.arange(128) / 256
    return encoder


def scenes(count):
    rng = np.random.default_rng(0)
    return [random_scene(rng) for _ in range(count)]


def test_pairs_are_the_same_scenes_at_two_sizes(work, encoder):
    pairs = train_upsampler.encode(encoder, scenes(3), 9)
    for latent, size in zip(pairs, (32, 64)):
        whole = encoder(draw(scenes(3), 9, size, size))
        np.testing.assert_allclose(latent, whole, atol=1e-4)


def test_a_batch_is_of_the_same_rows_and_length_at_both_sizes():
    scene = mx.arange(7)[:, None, None, None, None]
    frame = mx.arange(5)[:, None, None] * 100
    tell = lambda side: mx.broadcast_to(scene + frame, (7, 2, 5, side, side))
    pairs = Pairs(tell(2), tell(4))
    lengths = set()
    for step in range(20):
        coarse, fine = train_upsampler.training_batch(pairs, step, 3)
        assert mx.array_equal(mx.repeat(coarse, 2, axis=3)[..., :1], fine[..., :1])
        assert coarse[:, 0, 0, 0, 0].max() < 7 and len(coarse) == 3
        lengths.add(coarse.shape[2])
    assert lengths == {3, 4, 5}


def test_it_learns_and_is_stored(work, encoder):
    statistics = encoder.per_channel_statistics
    pairs = train_upsampler.encode(encoder, scenes(2), 9)
    upsampler = fresh("upsampler")

    def distance(module):
        x = upsample_normalized(module, statistics, pairs.coarse)
        return mx.mean(mx.abs(x - pairs.fine)).item()

    before = distance(upsampler)
    plan = Plan("upsampler", 8, learning_rate=3e-3, warmup=1, average=0.0, optimizer=Muon)  # fmt: skip
    train_upsampler.train_upsampler(upsampler, statistics, pairs, plan, 2)
    assert distance(upsampler) < 0.9 * before
    assert distance(model.load("upsampler")) == pytest.approx(distance(upsampler))


def test_it_is_measured_beside_repeated_latents_and_the_fine_ones(
    work, encoder, monkeypatch
):
    decoder = fresh("video_decoder")
    repeat = lambda _, __, x: mx.repeat(mx.repeat(x, 2, axis=3), 2, axis=4)
    monkeypatch.setattr(train_upsampler, "upsample_normalized", repeat)
    measured = train_upsampler.measure(None, encoder, decoder, 2, 9)
    assert measured["error"] == measured["error of repeated"] > 0
    assert measured["dB"] == measured["dB of repeated"]
    rng = np.random.default_rng(0)
    x = [draw([random_scene(rng, unseen=True)], 9, 64, 64) for _ in range(2)]
    decoded = [train_upsampler.psnr(decoder(encoder(x)), x) for x in x]
    assert measured["dB of fine"] == pytest.approx(np.mean(decoded), abs=1e-3)
