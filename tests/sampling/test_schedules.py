"""Schedules against the official numbers."""

import mlx.core as mx
import pytest

from mlx_video.sampling.schedules import (
    STAGE_1_SIGMAS,
    STAGE_2_SIGMAS,
    beta_scheduler,
    linear_quadratic_scheduler,
    ltx2_scheduler,
)
from tests.reference import error, vectors

OFFICIAL = vectors("sampling")
SHIFTED = [key for key in OFFICIAL if key.startswith("sigmas.ltx2.")]


@pytest.mark.parametrize("name", SHIFTED)
def test_shifted_schedule_is_the_official_one(name):
    _, _, steps, variant = name.split(".")
    steps = int(steps.removeprefix("steps"))
    if variant == "nostretch":
        sigmas = ltx2_scheduler(steps, stretch=False)
    else:
        sigmas = ltx2_scheduler(steps, int(variant.removeprefix("tokens")))
    assert error(sigmas, OFFICIAL[name]) < 2e-7
    assert sigmas[0].item() == OFFICIAL[name][0].item()  # to the last bit


def test_without_tokens_the_schedule_is_that_of_4096():
    assert mx.array_equal(ltx2_scheduler(7), ltx2_scheduler(7, 4096))


def test_linear_quadratic_schedule_is_the_official_one():
    official = OFFICIAL["sigmas.linear_quadratic.steps8"]
    assert error(linear_quadratic_scheduler(8), official) < 1e-6


def test_beta_schedule_is_the_official_one():
    assert error(beta_scheduler(8), OFFICIAL["sigmas.beta.steps8"]) < 1e-6


def test_distilled_sigmas_are_the_official_ones():
    assert error(mx.array(STAGE_1_SIGMAS), OFFICIAL["sigmas.distilled"]) < 1e-7
    assert error(mx.array(STAGE_2_SIGMAS), OFFICIAL["sigmas.distilled_stage2"]) < 1e-7


@pytest.mark.parametrize(
    "schedule, steps",
    [(ltx2_scheduler, 0), (beta_scheduler, 0), (linear_quadratic_scheduler, 1)],
)
def test_too_few_steps_are_refused(schedule, steps):
    with pytest.raises(ValueError, match=f"steps must be at least .*got {steps}"):
        schedule(steps)
