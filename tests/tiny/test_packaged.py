"""``ltx-2-tiny`` as it is packaged, end to end: what its clips show and sound like, as the detectors see and hear it."""

import numpy as np
import pytest

import mlx_video
from mlx_video import VideoPixelShape
from mlx_video.models.ltx.find import DEMO
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


# One sentence here and the rest in .ci/run: the first asks for each kind of row, knocks too.
SENTENCES = [
    pytest.param(sentence, marks=[pytest.mark.thorough] if n else [])
    for n, sentence in enumerate(SAID)
]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_the_packaged_model_shows_what_a_sentence_says(make, sentence):
    shown = scene(*SAID[sentence])
    asked = ROWS | ({"knocks"} if shown.actors[0].motion == "bounce" else set())
    clips = [make(sentence, seed) for seed in SEEDS]
    for seed, clip in zip(SEEDS, clips):
        rows = judge(shown, *clip, sentence)
        assert {row for row in rows if rows[row]} == asked, (seed, rows)
    one, other = (np.stack(frames).astype(np.int16) for frames, _ in clips)
    assert np.abs(one - other).mean() > VISIBLE
