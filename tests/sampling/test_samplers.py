"""Steps against the official numbers, loops against plain float64, and runs that are resumed."""

import math
from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from mlx_video.conditioning.latent import LatentState
from mlx_video.errors import UserError
from mlx_video.sampling.samplers import (
    Sampler,
    ancestral_step,
    euler,
    euler_ancestral,
    euler_step,
    gaussian,
    normalized,
    res_2s,
    sde_step,
)
from mlx_video.sampling.schedules import STAGE_1_SIGMAS, STAGE_2_SIGMAS, ltx2_scheduler
from mlx_video.types import AV
from tests.reference import error, vectors

OFFICIAL = vectors("sampling")
ANCESTRAL = vectors("ancestral", "ltx25_tiny")
MODES = vectors("conditions", "ltx2_modes")
SAMPLE, DENOISED = OFFICIAL["euler.sample"], OFFICIAL["euler.denoised"]
SIGMAS = mx.array(STAGE_1_SIGMAS).tolist()  # in float32, as the official ones
HQ_SIGMAS = ltx2_scheduler(15, 384).tolist()


def test_the_second_stage_of_the_ancestral_recipe_has_the_official_noise_levels():
    assert mx.array_equal(mx.array(STAGE_2_SIGMAS), ANCESTRAL["sigmas_stage2"])


@pytest.mark.parametrize("index", [0, 5, 7])
def test_an_euler_step_is_the_official_one(index):
    step = euler_step(SAMPLE, DENOISED, *SIGMAS[index : index + 2])
    assert error(step, OFFICIAL[f"euler.step{index}"]) < 1e-5


@pytest.mark.parametrize("index", [0, 4, 6])
@pytest.mark.parametrize("eta, name", [(1.0, "eta1"), (0.5, "eta05"), (0.0, "eta0")])
def test_an_ancestral_step_is_the_official_one(index, eta, name):
    x, x0, noise = (ANCESTRAL[f"step.{k}"] for k in ("sample", "denoised", "noise"))
    step = ancestral_step(x, x0, noise, *SIGMAS[index : index + 2], eta)
    assert error(step, ANCESTRAL[f"step.{name}.{index}"]) < 1e-5


@pytest.mark.parametrize("index", [1, 5])
def test_a_step_of_res_2s_with_noise_is_the_official_one(index):
    x, y, noise = (MODES[f"cfgpp.{name}"] for name in ("sample", "cond", "noise"))
    step = sde_step(x, y, *SIGMAS[index : index + 2], noise)
    assert error(step, MODES[f"res2s.step{index}"]) < 1e-6


# Loops over a model that is a formula


def start(seed=0) -> AV[LatentState]:
    def state(tokens: int, key: int) -> LatentState:
        x, clean = mx.random.normal((2, 1, tokens, 4), key=mx.random.key(key))
        mask = mx.array([0.0, 0.3] + [1.0] * (tokens - 2)).reshape(1, -1, 1)
        return LatentState(x, clean, mask, mx.zeros((1, 1, tokens, 2)))

    return AV(state(6, seed + 1), state(9, seed + 2))


def predict(x, sigma):
    """A smooth x0, for arrays of either library."""
    return 0.8 * abs(x) ** 0.5 * (1 - sigma) - 0.3 * x * sigma + 0.1


def denoise(states: AV[LatentState], sigma: float, step: int) -> AV[mx.array]:
    return states.map(lambda state: predict(state.latent, sigma))


NOISE = gaussian(mx.random.key(7), 40)
SAMPLERS = {
    "euler": euler,
    "ancestral": partial(euler_ancestral, noise=NOISE, eta=0.5),
    "res_2s": partial(res_2s, noise=normalized(NOISE)),
}


def latents(states: AV[LatentState]) -> AV[mx.array]:
    return states.map(lambda state: state.latent)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_resumed_at_any_step_ends_in_the_same_bytes(name):
    sampler = SAMPLERS[name]
    steps = list(sampler(denoise, start(), HQ_SIGMAS))
    assert len(steps) == 15 and steps[-1][1] == 0.0
    for step in (1, 7, 14):
        kept = latents(steps[step - 1][0])
        resumed = start().map(lambda s, x: s._replace(latent=mx.array(x)), kept)
        *_, (states, _) = sampler(denoise, resumed, HQ_SIGMAS, start=step)
        assert all(map(mx.array_equal, latents(states).values, latents(steps[-1][0]).values))  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_model_that_knows_the_answer_reaches_it_and_pinned_tokens_stay(name):
    answer = start(seed=5).map(lambda state: state.latent)
    *_, (states, sigma) = SAMPLERS[name](lambda *_: answer, start(), STAGE_1_SIGMAS)
    assert sigma == 0.0
    for state, x0 in zip(states.values, answer.values):
        expected = state.masked(x0)
        assert mx.allclose(state.latent[:, 0], state.clean_latent[:, 0], atol=1e-6)
        assert mx.allclose(state.latent[:, 1:], expected[:, 1:], atol=1e-5)


def test_without_eta_ancestral_steps_are_euler_steps():
    free = start().map(lambda s: s._replace(denoise_mask=mx.ones_like(s.denoise_mask)))
    *_, (ours, _) = euler_ancestral(denoise, free, STAGE_1_SIGMAS, noise=NOISE, eta=0.0)
    *_, (plain, _) = euler(denoise, free, STAGE_1_SIGMAS)
    assert error(ours.video.latent, plain.video.latent) < 1e-5


def literal_res_2s(state: LatentState, sigmas: list[float], noises: list) -> np.ndarray:
    """The official algorithm as it is written, in float64: with its hundred iterations of the anchor."""
    x, clean, mask = (np.array(a, np.float64) for a in state[:3])
    noises = (np.array(noise, np.float64) for noise in noises)

    def masked(x):
        return x * mask + clean * (1 - mask)

    def sde(x, y, s, n):
        up = min(0.5 * n, 0.9999 * n)
        r = math.sqrt(n**2 - up**2)
        alpha = (1 - n) + r
        eps = (x - y) / (s - n)
        return masked(alpha * ((x - s * eps) + r / alpha * eps) + up * next(noises))

    sigmas = [*sigmas[:-1], 0.0011]
    for s, n in zip(sigmas, sigmas[1:]):
        h = math.log(s / n)
        phi1, phi2 = (lambda z: (math.exp(z) - 1) / z), (lambda z: (math.exp(z) - 1 - z) / z**2)  # fmt: skip
        a21, b2 = 0.5 * phi1(-h / 2), 2 * phi2(-h)
        b1, m = phi1(-h) - b2, math.sqrt(s * n)
        x1 = masked(predict(x, s))
        eps1 = x1 - x
        mid = sde(x, x + h * a21 * eps1, s, m)
        if h < 0.5 and s > 0.03:
            for _ in range(100):
                x = mid - h * a21 * eps1
                eps1 = x1 - x
        x2 = masked(predict(mid, m))
        x = sde(x, x + h * (b1 * eps1 + b2 * (x2 - x)), s, n)
    return masked(predict(x, 0.0011))


@pytest.mark.parametrize(
    "sigmas", [HQ_SIGMAS, [0.3, 0.2, 0.06, 0.05, 0.025, 0.02, 0.0]]
)
def test_res_2s_in_float32_meets_the_official_algorithm_in_float64(sigmas):
    """Also where steps are short at small noise levels, and the anchor moves above 0.03 alone."""
    noise = normalized(NOISE)
    drawn = [noise(draw, start()).video for draw in range(30)]
    expected = literal_res_2s(start().video, sigmas, drawn)
    *_, (states, _) = res_2s(denoise, start(), sigmas, noise=noise)
    assert error(states.video.latent, mx.array(expected.astype(np.float32))) < 2e-6


def test_a_sampler_as_data_is_the_function_of_that_name():
    key = mx.random.key(7)
    noise = gaussian(key, 2 * len(HQ_SIGMAS))
    functions = {
        Sampler(): euler,
        Sampler("euler_ancestral", eta=0.5): partial(
            euler_ancestral, noise=noise, eta=0.5
        ),
        Sampler("res_2s"): partial(res_2s, noise=normalized(noise)),
    }
    for sampler, function in functions.items():
        ours = list(sampler(denoise, start(), HQ_SIGMAS, key=key))
        theirs = list(function(denoise, start(), HQ_SIGMAS))
        assert [sigma for _, sigma in ours] == [sigma for _, sigma in theirs]
        assert mx.array_equal(ours[-1][0].audio.latent, theirs[-1][0].audio.latent)
        middle = latents(ours[4][0])
        resumed = start().map(lambda s, x: s._replace(latent=x), middle)
        *_, (again, _) = sampler(denoise, resumed, HQ_SIGMAS, key=key, start=5)
        assert mx.array_equal(again.audio.latent, theirs[-1][0].audio.latent)


def test_an_unknown_sampler_is_refused():
    with pytest.raises(UserError, match="no sampler 'dpm'; known are euler, "):
        Sampler("dpm")


# Noise


def test_noise_is_a_function_of_key_and_draw():
    noise, again = (gaussian(mx.random.key(3), 9) for _ in range(2))
    late = again(5, start())
    early = noise(0, start())
    assert all(map(mx.array_equal, noise(5, start()).values, late.values))
    assert not mx.array_equal(early.video, late.video)
    assert not mx.array_equal(early.video, early.audio[:, :6])


def test_normalized_noise_has_mean_0_and_deviation_1():
    for x in normalized(NOISE)(0, start()).values:
        assert abs(x.mean().item()) < 1e-6 and abs(mx.std(x, ddof=1).item() - 1) < 1e-6
