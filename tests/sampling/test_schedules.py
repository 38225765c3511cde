"""Schedules against the official numbers."""

import mlx.core as mx
import pytest

from mlx_video.sampling.schedules import (
    STAGE_1_SIGMAS,
    STAGE_2_SIGMAS,
    ltx2_scheduler,
)
from tests.reference import error, vectors

OFFICIAL = vectors("sampling")
SHIFTED = [key for key in OFFICIAL if key.startswith("sigmas.ltx2.")]


def test_shifted_schedules_are_the_official_ones():
    assert len(SHIFTED) > 10
    for name in SHIFTED:
        _, _, steps, variant = name.split(".")
        steps = int(steps.removeprefix("steps"))
        if variant == "nostretch":
            sigmas = ltx2_scheduler(steps, stretch=False)
        else:
            sigmas = ltx2_scheduler(steps, int(variant.removeprefix("tokens")))
        assert mx.array_equal(sigmas, OFFICIAL[name]), name  # to the last bit


def test_without_tokens_the_schedule_is_that_of_4096():
    assert mx.array_equal(ltx2_scheduler(7), ltx2_scheduler(7, 4096))


def test_distilled_sigmas_are_the_official_ones():
    assert error(mx.array(STAGE_1_SIGMAS), OFFICIAL["sigmas.distilled"]) < 1e-7
    assert error(mx.array(STAGE_2_SIGMAS), OFFICIAL["sigmas.distilled_stage2"]) < 1e-7


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="steps must be from 1 to 10,000; got 0"):
        ltx2_scheduler(0)
