"""``ltx-2-tiny`` as it is packaged, end to end: what its clips show and sound like, as the detectors see and hear it."""

from itertools import pairwise

import numpy as np
import pytest

import mlx_video
from mlx_video import VideoPixelShape
from mlx_video.models.ltx.checkpoint.find import DEMO
from tiny.evaluate import VISIBLE, judge, maker
from tiny.world import Actor, Scene

pytestmark = pytest.mark.slow

SHAPE = VideoPixelShape(49, 256, 256, 24.0)
SEEDS = (2, 3)  # whose clips of one sentence visibly differ
ROWS = {"colour", "background", "motion", "thing", "sound"}
SAID = {  # sentence: thing, colour and motion; background; colour of the floor
    "a red ball bounces on a blue floor": ("ball red bounce", "floor", "blue"),
    "a yellow square rests on a meadow in silence": (
        "square yellow still",
        "meadow",
        None,
    ),
    "a pink heart grows on a gradient": ("heart pink grow", "gradient", None),
    "an orange cloud moves left and right over the grass": (
        "cloud orange left-right",
        "meadow",
        None,
    ),
    "cyan tree falling, plain wall": ("tree cyan fall", "plain", None),
    "a purple heart spins in front of a sunset": ("heart purple spin", "sunset", None),
}


def scene(looks: str, background: str, floor: str | None) -> Scene:
    """What is asked of a clip; sizes and places, which are not, are anything."""
    actor = Actor(*looks.split(), 0.2, 0.5, 0.5, 0.2, 1.0, 0.0, 1)
    return Scene((actor,), background, floor)


@pytest.fixture(scope="module")
def make():
    return maker(mlx_video.load(DEMO), SHAPE)


# One clip here and the rest in .ci/run: the first sentence asks for each kind of row, knocks too.
FIRST, *_ = SAID
CASES = [
    (FIRST, SEEDS[:1]),
    *(pytest.param(said, SEEDS, marks=pytest.mark.thorough) for said in SAID),
]


@pytest.mark.parametrize("sentence, seeds", CASES)
def test_the_packaged_model_shows_what_a_sentence_says(make, sentence, seeds):
    shown = scene(*SAID[sentence])
    asked = ROWS | ({"knocks"} if shown.actors[0].motion == "bounce" else set())
    clips = [make(sentence, seed) for seed in seeds]
    for seed, clip in zip(seeds, clips):
        rows = judge(shown, *clip, sentence)
        assert {row for row in rows if rows[row]} == asked, (seed, rows)
    for one, other in pairwise(
        np.stack(frames).astype(np.int16) for frames, _ in clips
    ):
        assert np.abs(one - other).mean() > VISIBLE
