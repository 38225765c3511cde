"""What is asked of a clip, how answers are counted, and what makes the clips."""

import json
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from mlx_video import Clip, VideoPixelShape
from mlx_video.recipes import Defaults
from tiny import evaluate, world
from tiny.evaluate import Score, judge
from tiny.world import Actor, Scene

SHAPE = VideoPixelShape(9, 128, 128, 24.0)


def still(thing, colour, x=0.5, size=0.17) -> Actor:
    return Actor(thing, colour, "still", size, x, 0.6, 0.0, 1.0, 0.3, 1)


HEART = Scene((still("heart", "red"),), "meadow")
TWO = Scene(
    (still("ball", "blue", 0.25, 0.1), still("star", "pink", 0.75, 0.1)), "plain"
)


@pytest.mark.slow
def test_a_clip_of_its_scene_is_right():
    verdict = judge(HEART, *evaluate.drawn(HEART, SHAPE))
    asked = ("colour", "motion", "thing", "background", "sound")
    assert verdict == {row: True for row in asked} | {"knocks": None}


@pytest.mark.slow
@pytest.mark.parametrize(
    "row, other",
    [
        ("colour", HEART._replace(actors=(still("heart", "blue"),))),
        ("thing", HEART._replace(actors=(still("star", "red"),))),
        ("background", HEART._replace(background="night")),
    ],
)
def test_a_clip_of_another_scene_is_wrong_in_that_alone(row, other):
    verdict = judge(HEART, *evaluate.drawn(other, SHAPE))
    assert [r for r, right in verdict.items() if right is False] == [row]


def test_a_background_that_the_sentence_leaves_open_is_not_asked():
    frames, sound = evaluate.drawn(HEART._replace(background="night"), SHAPE)
    verdict = judge(HEART, frames, sound, "a red heart rests")
    assert verdict["background"] is None
    verdict = judge(HEART, frames, sound, "a red heart rests on a meadow")
    assert verdict["background"] is False


def test_an_empty_clip_is_wrong_in_all_that_it_should_show():
    blank = [np.full((128, 128, 3), 240, np.uint8)] * 9
    verdict = judge(HEART, blank, None)
    assert not any(verdict.values())
    assert "sound" not in verdict


def test_two_may_stand_the_other_way_round_unless_the_sentence_tells_the_sides():
    mirrored = [frame[:, ::-1] for frame in evaluate.drawn(TWO, SHAPE)[0]]
    told = "a blue ball on the left and a pink star on the right"
    assert judge(TWO, mirrored, None)["two colours"] is True
    assert judge(TWO, mirrored, None, told)["two colours"] is False


def test_two_that_swapped_their_colours_are_wrong():
    colours = "pink", "blue"
    actors = (a._replace(colour=c) for a, c in zip(TWO.actors, colours))
    swapped = TWO._replace(actors=tuple(actors))
    verdict = judge(TWO, *evaluate.drawn(swapped, SHAPE))
    assert verdict["two colours"] is False


@pytest.mark.slow
def test_knocks_are_asked_of_each_bounce_but_not_of_a_silent_one():
    bounce = HEART.actors[0]._replace(motion="bounce", reach=0.4, period=0.72)
    scene = Scene((bounce,), "plain")
    frames, sound = evaluate.drawn(scene, SHAPE._replace(frames=49))
    assert evaluate.examine(scene, frames, sound)["knocks"] == Score(2, 2)
    mute = evaluate.examine(scene._replace(silent=True), frames, sound)
    assert mute["knocks"] == Score(0, 0)
    assert mute["sound"] == Score(0, 1)


# ---- counting


def test_scores_add_up_row_by_row():
    total = evaluate.added(
        {"colour": Score(1, 2)}, {"colour": Score(1), "thing": Score(0)}
    )
    assert total == {"colour": Score(2, 3), "thing": Score(0, 1)}
    assert Score(3, 4).percent == 75


def test_the_table_has_the_goals_and_no_share_of_nothing():
    scores = {"second thing": Score(1), "knocks": Score(0, 0), "colour": Score(1, 3)}
    assert evaluate.table(scores).splitlines()[2:] == [
        "| colour | 1 | 3 | 33.3% | 95% |",
        "| knocks | 0 | 0 | - | 80% |",
        "| second thing | 1 | 1 | 100.0% |  |",
    ]


def test_sentences_are_of_what_training_never_sees_and_the_same_every_time():
    found = list(evaluate.unseen(12, seed=3))
    assert all(world.held_out(*scene.actors[0][:3]) for _, scene, _ in found)
    assert found == list(evaluate.unseen(12, seed=3))
    assert found[1:] != list(evaluate.unseen(12, seed=4))[1:]


@pytest.mark.slow
def test_the_world_itself_is_judged_from_the_command_line(
    tmp_path, monkeypatch, capsys
):
    options = f"--world 3 --size 128 --frames 25 --json {tmp_path}/found.json"
    options += f" --sheets {tmp_path}/sheets"
    monkeypatch.setattr(sys, "argv", ["evaluate", *options.split()])
    evaluate.main()
    assert "| colour | 3 | 3 | 100.0% | 95% |" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert [clip["wrong"] for clip in found["clips"]] == [[], [], []]
    assert len(list((tmp_path / "sheets").glob("00?.png"))) == 3


# ---- what makes the clips


class Double:
    """A pipeline that draws what it is asked for, if that is the heart, in light that depends on the seed."""

    def __init__(self):
        self.requests = []
        part = lambda name: contextmanager(lambda: iter([lambda x: x]))()
        self.components = SimpleNamespace(lend=part)
        self.defaults = Defaults()

    def stream(self, request):
        self.requests.append(request)
        frames, sound = evaluate.drawn(HEART, request.shape)
        dark = 0 if request.seed < 100 else 40
        yield "a step"
        yield Clip((np.maximum(f, dark) - dark for f in frames), request.shape, sound)


def test_clips_are_made_as_anybody_would(tmp_path):
    double, shape = Double(), SHAPE._replace(frames=17)
    frames, sound = evaluate.maker(double, shape)(
        "a heart", 7, image=tmp_path / "a.png"
    )
    assert len(frames) == 17
    assert sound.samples.shape == (2, 17000)
    (request,) = double.requests
    assert (request.prompt, request.seed, request.shape) == ("a heart", 7, shape)
    assert [image.path for image in request.inputs] == [str(tmp_path / "a.png")]


def test_every_sentence_has_a_seed_and_a_verdict(monkeypatch):
    seeds = []

    def make(scene, sentence, seed):
        seeds.append(seed)
        return evaluate.drawn(scene, SHAPE._replace(frames=25))

    found = evaluate.read_sentences(2, 50, make, None)
    assert seeds == [clip["seed"] for clip in found["clips"]] == [50, 51]
    assert found["scores"]["colour"] == Score(2, 2)


def test_the_first_frame_is_held_against_its_picture(monkeypatch):
    monkeypatch.setattr(evaluate, "unseen", lambda count, seed: [(0, HEART, "a heart")])
    make = evaluate.maker(Double(), SHAPE)
    found = evaluate.read_images(1, 0, make, SHAPE)
    assert found["psnr"][0] > 80
    assert found["scores"]["thing"] == Score(1, 1)
    darker = evaluate.read_images(1, 100, make, SHAPE)
    assert darker["psnr"][0] < 30


def test_two_seeds_are_told_apart():
    (difference,) = evaluate.read_seeds(1, 0, evaluate.maker(Double(), SHAPE))
    assert 20 < difference <= 40


def test_an_exact_autoencoder_loses_nothing():
    assert min(evaluate.read_autoencoder(2, 0, Double().components, SHAPE)) > 80


def test_psnr_is_that_of_the_textbook():
    black, dark = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 5, np.uint8)
    assert evaluate.psnr(black, dark) == pytest.approx(20 * np.log10(255 / 5))
