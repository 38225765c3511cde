"""Euler steps against the official numbers."""

import mlx.core as mx
import pytest

from mlx_video.conditioning.latent import LatentState
from mlx_video.sampling.samplers import euler, euler_step, to_velocity
from mlx_video.sampling.schedules import STAGE_1_SIGMAS
from mlx_video.types import AV
from tests.reference import error, vectors

OFFICIAL = vectors("sampling")
SAMPLE, DENOISED = OFFICIAL["euler.sample"], OFFICIAL["euler.denoised"]


@pytest.mark.parametrize("index", [0, 5, 7])
def test_a_step_is_the_official_one(index):
    step = euler_step(SAMPLE, DENOISED, *STAGE_1_SIGMAS[index : index + 2])
    assert error(step, OFFICIAL[f"euler.step{index}"]) < 1e-5


def test_velocity_is_the_official_one():
    velocity = to_velocity(SAMPLE, DENOISED, 0.725)
    assert error(velocity, OFFICIAL["x0.to_velocity"]) < 1e-6


def test_a_model_that_knows_the_answer_reaches_it_and_pinned_tokens_stay():
    answer = mx.random.normal((1, 6, 4), key=mx.random.key(0))
    state = LatentState.fresh(mx.ones((1, 6, 4)), mx.zeros((1, 1, 6, 2)))
    mask = mx.array([0.0, 1, 1, 1, 1, 1]).reshape(1, 6, 1)
    states = AV(state._replace(denoise_mask=mask))
    *_, (states, sigma) = euler(lambda s, sigma: AV(answer), states, STAGE_1_SIGMAS)
    assert sigma == 0.0
    assert error(states.video.latent[:, 1:], answer[:, 1:]) < 1e-5
    assert mx.allclose(states.video.latent[:, 0], mx.ones((1, 4)), atol=1e-6)
