"""Latents that are turned decode to what they did, and have the variances asked for."""

import mlx.core as mx
import numpy as np
import pytest

from tiny.even_latents import fold, restate, turn
from tiny.model import fresh


def test_variances_are_raised_to_the_power():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    tokens = rng.standard_normal((5000, 4)) * [100, 9, 4, 1] @ basis + 3
    turned = tokens @ turn(tokens, 0.5).T
    before = np.linalg.eigvalsh(np.cov(tokens.T)) ** 0.5
    after = np.linalg.eigvalsh(np.cov(turned.T))
    assert after == pytest.approx(before / before.mean())
    assert turn(tokens, 1.0) == pytest.approx(
        np.eye(4) / np.sqrt(np.cov(tokens.T).trace() / 4)
    )


@pytest.mark.slow
def test_what_is_folded_in_comes_out_again():
    mx.random.seed(0)
    parts = {
        name: fresh(name) for name in ("video_encoder", "video_decoder", "upsampler")
    }
    clip = mx.random.normal((1, 3, 9, 64, 64))

    def run():
        latent = parts["video_encoder"](clip)
        finer = parts["upsampler"](latent)
        return latent, parts["video_decoder"](latent), parts["video_decoder"](finer)

    latent, whole, finer = run()
    matrix = turn(
        np.random.default_rng(0).standard_normal((500, 128)) * np.linspace(0.5, 3, 128),
        0.5,
    )
    fold(parts, matrix)
    turned, whole_again, finer_again = run()
    rows = np.array(latent).reshape(128, -1).T @ matrix.T
    assert np.array(turned).reshape(128, -1).T == pytest.approx(rows, abs=1e-3)
    assert mx.allclose(whole, whole_again, atol=1e-3)
    assert mx.allclose(finer, finer_again, atol=1e-2)
    restate(parts, rows)
    normal = np.array(parts["video_encoder"](clip)).reshape(128, -1)
    assert normal.mean(1) == pytest.approx(np.zeros(128), abs=1e-3)
    assert normal.std(1) == pytest.approx(np.ones(128), abs=1e-3)
    assert mx.allclose(
        parts["video_decoder"](parts["video_encoder"](clip)), whole, atol=1e-3
    )
