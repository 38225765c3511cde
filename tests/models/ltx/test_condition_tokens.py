"""Where conditions stand, against the official classes on the same clip."""

import mlx.core as mx
import pytest

from mlx_video.conditioning.latent import LatentState
from mlx_video.errors import UserError
from mlx_video.models.ltx.condition_tokens import (
    Place,
    evenly_spaced,
    generated_keyframes,
    keyframe,
    reference,
)
from mlx_video.types import VideoScale
from tests.reference import error, vectors

OFFICIAL = vectors("conditions", "ltx2_modes")
PLACE = Place(VideoScale(8, 32, 32), 24.0)


def given(name: str) -> mx.array:
    return OFFICIAL[f"cond.{name}"]


CASES = {
    "keyframe0": keyframe(given("one"), 0, PLACE, 0.8),
    "keyframe5": keyframe(given("one"), 5, PLACE, 0.8),
    "keyframe16": keyframe(given("one"), 16, PLACE, 0.8),
    "keyframe8_multi": keyframe(given("two"), 8, PLACE),
    "slots": generated_keyframes((5, 11), (2, 3), PLACE),
    "slots_seeded": generated_keyframes((5, 11), (2, 3), PLACE, given("two")),
    "reference": reference(given("ref"), PLACE),
    "reference_ds2": reference(given("ref_half"), PLACE, downscale=2, strength=0.9),
    "reference_ts2": reference(given("ref_t"), PLACE, every=2),
}


@pytest.mark.parametrize("case", CASES)
def test_tokens_and_positions_are_the_official_ones(case):
    initial = (OFFICIAL[f"initial.{name}"] for name in ("latent", "clean", "mask", "positions", "keyframes_mask"))  # fmt: skip
    state = CASES[case](LatentState(*initial))
    for name, ours in zip(("latent", "clean", "mask", "positions", "keyframes_mask"), state):  # fmt: skip
        assert error(ours, OFFICIAL[f"{case}.{name}"]) < 1e-6, name


@pytest.mark.parametrize(
    "count, frames, expected",
    [(2, 17, (5, 11)), (1, 121, (60,)), (3, 9, (2, 4, 6)), (3, 121, (30, 60, 90))],
)
def test_generated_keyframes_stand_evenly(count, frames, expected):
    assert evenly_spaced(count, frames) == expected


@pytest.mark.parametrize("count", [-1, 0, 8])
def test_more_generated_keyframes_than_frames_are_refused(count):
    with pytest.raises(
        UserError, match=f"from 1 to 7 generated keyframes; got {count}"
    ):
        evenly_spaced(count, 9)
    assert evenly_spaced(7, 9) == (1, 2, 3, 4, 5, 6, 7)
