"""The training of the video autoencoder at its smallest: the loss falls, and what it writes is read back."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tiny import model, start_video_vae, train_video_vae, training
from tiny.muon import Muon, orthogonal
from tiny.train_video_vae import Autoencoder, Cut, keep_trainable
from tiny.training import Plan
from tiny.world import draw, random_scene

pytestmark = pytest.mark.slow

CUT = Cut(64, 9, 128)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty folder of checkpoints, and statistics of little; the same random weights every time."""
    mx.random.seed(0)
    for module in (model, training):
        monkeypatch.setattr(module, "WORK", tmp_path)
    for name, value in {"SIZES": (64,), "SCENES": 2, "LENGTH": 9}.items():
        monkeypatch.setattr(train_video_vae, name, value)
    return tmp_path


def untrained():
    return Autoencoder(model.fresh("video_encoder"), model.fresh("video_decoder"))


def plan(steps):
    return Plan(
        "video_vae",
        steps,
        learning_rate=1e-3,
        warmup=1,
        average=0.0,
        optimizer=Muon,
    )


# ---- data


def test_crops_are_parts_of_the_clip_around_its_thing():
    crops = train_video_vae.draw_crops(np.random.default_rng(3), CUT, 2)
    clip = draw([random_scene(np.random.default_rng(3))], 9, 128, 128)
    assert crops.shape == (2, 3, 9, 64, 64)
    for crop in crops:
        nearest = min(
            mx.abs(clip[0, :, :, y : y + 64, x : x + 64] - crop).max().item()
            for y in range(65)
            for x in range(65)
            if mx.all(clip[0, :, 0, y, x] == crop[:, 0, 0, 0])
        )
        assert nearest == 0


def test_corners_lie_in_the_frame_and_see_the_thing():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = random_scene(rng)
        corners = [train_video_vae.corner(rng, scene, CUT) for _ in range(8)]
        assert all(0 <= at <= 64 for corner in corners for at in corner)
        assert len(set(corners)) > 1
        x, y = scene.actors[0].x * 128, scene.actors[0].y * 128
        far = 64 + scene.actors[0].size * 128 + 8 + scene.actors[0].reach * 128
        if len(scene.actors) == 1:
            assert all(abs(r + 32 - y) < far and abs(c + 32 - x) < far for r, c in corners)  # fmt: skip


def test_a_step_draws_as_many_pixels_whatever_the_cut():
    cuts = [CUT, Cut(64, 17, 64)]
    sizes = {train_video_vae.training_crops(i, 4 * CUT.pixels, cuts).shape for i in range(6)}  # fmt: skip
    assert sizes == {(4, 3, 9, 64, 64), (2, 3, 17, 64, 64)}
    again = train_video_vae.training_crops(1, CUT.pixels, [CUT])
    assert mx.array_equal(train_video_vae.training_crops(1, CUT.pixels, [CUT]), again)


# ---- objective


def test_the_distance_is_smooth_at_zero_and_counts_squares():
    zero = mx.zeros((4,))
    assert train_video_vae.distance(zero, zero).item() == pytest.approx(0.01)
    assert train_video_vae.distance(zero + 1, zero).item() == pytest.approx(
        21, rel=1e-3
    )


def test_noise_is_a_share_of_each_channels_deviation():
    latent = mx.random.normal((4, 3, 9, 20, 20), key=mx.random.key(1))
    latent = latent * mx.arange(1, 4)[:, None, None, None]
    noise = train_video_vae.noisy(latent, mx.random.key(0)) - latent
    np.testing.assert_allclose(mx.std(noise, axis=(0, 2, 3, 4)), [0.1, 0.2, 0.3], rtol=0.05)  # fmt: skip


def test_statistics_are_those_of_each_channel_and_none_is_blown_up():
    latent = mx.random.normal((4, 3, 9, 9, 9), key=mx.random.key(1)) * 2 + 5
    latent[:, 2] = 7.0
    mean, std = train_video_vae.statistics(latent)
    np.testing.assert_allclose(mean, [5, 5, 7], atol=0.1)
    np.testing.assert_allclose(std, [2, 2, 0.05 * 4 / 3], rtol=0.05)


def test_psnr_has_a_peak_of_two_and_cuts_what_lies_beyond():
    x = mx.ones((8,))
    assert train_video_vae.psnr(x - 0.02, x) == pytest.approx(40, abs=1e-3)
    assert train_video_vae.psnr(x + 9, x - 0.02) == pytest.approx(40, abs=1e-3)


# ---- training


@pytest.mark.thorough
def test_it_learns_and_what_it_stores_decodes_what_it_encodes(work):
    pair = untrained()
    x = train_video_vae.draw_crops(np.random.default_rng(0), CUT, 2)
    before = train_video_vae.distance(pair.decoder(pair.encoder(x)), x)
    train_video_vae.train_pair(pair, plan(8), CUT.pixels, [CUT])
    decoded = pair.decoder(pair.encoder(x))
    assert train_video_vae.distance(decoded, x) < 0.95 * before
    encoder, decoder = model.load("video_encoder"), model.load("video_decoder")
    np.testing.assert_allclose(decoder(encoder(x)), decoded, atol=1e-3)
    assert mx.abs(pair.encoder.per_channel_statistics.mean).max() == 0


def test_stored_latents_are_normalised_and_an_image_is_a_clips_beginning(work):
    train_video_vae.finish(untrained())
    encoder = model.load("video_encoder")
    rng = np.random.default_rng(0)
    clips = [draw([random_scene(rng)], 9, 64, 64) for _ in range(2)]
    latent = encoder(mx.concatenate(clips))
    assert mx.abs(mx.mean(latent, axis=(0, 2, 3, 4))).max() < 1e-2
    image = encoder(clips[0][:, :, :1])
    np.testing.assert_allclose(image, latent[:1, :, :1], atol=1e-3)


def test_an_encoder_that_is_not_trained_keeps_its_statistics(work):
    train_video_vae.finish(untrained())
    before = model.load("video_encoder").per_channel_statistics
    before.mean = before.mean + 1
    encoder = model.load("video_encoder")
    encoder.per_channel_statistics.update({"mean": before.mean, "std": before.std})
    pair = train_video_vae.Autoencoder(encoder, model.load("video_decoder"))
    train_video_vae.keep_trainable(pair, "decoder")
    train_video_vae.finish(pair)
    for name in ("video_encoder", "video_decoder"):
        after = model.load(name).per_channel_statistics
        assert mx.array_equal(after.mean, before.mean), name
        assert mx.array_equal(after.std, before.std), name


@pytest.mark.parametrize("only", ["residual", "decoder", "all"])
def test_only_what_was_asked_for_is_trained(only):
    pair = untrained()
    everything = {k for k, _ in tree_flatten(pair.trainable_parameters())}
    keep_trainable(pair, only)
    trained = {k for k, _ in tree_flatten(pair.trainable_parameters())}
    wanted = {
        "residual": {k for k in everything if "decoder" in k and "res_blocks" in k},
        "decoder": {k for k in everything if "decoder" in k},
        "all": everything,
    }
    assert trained == wanted[only] and trained


@pytest.mark.thorough
def test_linear_algebra_is_a_start_that_trained_parts_take_the_place_of(
    work, monkeypatch
):
    monkeypatch.setattr(train_video_vae, "WORK", work)
    for name, value in {"CLIPS": {64: 40}, "FRAMES": 9, "NOISE": 0.03}.items():
        monkeypatch.setattr(start_video_vae, name, value)
    pair = train_video_vae.begin()
    clip, *_ = start_video_vae._clips(np.random.default_rng(0))
    x = mx.array(clip)
    assert train_video_vae.psnr(pair.decoder(pair.encoder(x)), x) > 20
    pair.decoder.conv_out.bias = pair.decoder.conv_out.bias + 1
    train_video_vae.finish(pair)
    again = train_video_vae.begin()
    assert mx.array_equal(again.decoder.conv_out.bias, pair.decoder.conv_out.bias)
    assert mx.abs(again.encoder.per_channel_statistics.mean).max() == 0


def test_the_decoder_is_fitted_to_latents_with_noise_in_them():
    clip = draw([random_scene(np.random.default_rng(0))], 9, 64, 64)
    encoder = model.fresh("video_encoder")
    noisy = start_video_vae._latent(np.random.default_rng(0), encoder, np.array(clip))
    clean = np.moveaxis(np.array(encoder(clip)), 1, -1)
    scaled = (noisy - clean) / clean.std(axis=(0, 1, 2, 3))
    assert scaled.std() == pytest.approx(start_video_vae.NOISE, rel=0.1)


def test_least_squares_finds_the_map_from_rows_in_parts():
    rng = np.random.default_rng(0)
    weights, offset = rng.standard_normal((5, 3)), rng.standard_normal(3)
    fit = start_video_vae.LeastSquares()
    for _ in range(3):
        x = rng.standard_normal((40, 5))
        fit.add(x, x @ weights + offset)
    found, at = fit.solve()
    np.testing.assert_allclose(found, weights, atol=1e-4)
    np.testing.assert_allclose(at, offset, atol=1e-4)


# ---- its optimizer


@pytest.mark.parametrize("shape", [(6, 40), (40, 6)])
def test_steps_have_singular_values_near_one(shape):
    x = mx.random.normal(shape, key=mx.random.key(0))
    y = np.array(orthogonal(x))
    values = np.linalg.svd(y, compute_uv=False)
    assert 0.6 < values.min() and values.max() < 1.3
    left, _, right = np.linalg.svd(np.array(x), full_matrices=False)
    assert np.sum(y * (left @ right)) / np.linalg.norm(y) / 6**0.5 > 0.97


def test_kernels_and_biases_move_by_about_the_rate():
    weights = {"kernels": mx.zeros((2, 4, 216)), "bias": mx.zeros(5)}
    keys = mx.random.split(mx.random.key(0))
    gradients = {
        "kernels": mx.random.normal((2, 4, 216), key=keys[0]) * 50,
        "bias": mx.random.normal((5,), key=keys[1]),
    }
    muon = Muon(0.01, betas=[0.9, 0.99], weight_decay=0.0)
    after = muon.apply_gradients(gradients, weights)
    assert mx.sum(after["kernels"] * gradients["kernels"]).item() < 0
    step = mx.sqrt(mx.mean(mx.square(after["kernels"]))).item()
    assert step == pytest.approx(0.2 * 0.01, rel=0.25)
    adam = muon.state["bias"]
    assert set(adam) == {"m", "v"} and set(muon.state["kernels"]) == {"v"}
