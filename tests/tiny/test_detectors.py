"""The detectors say yes to the world's own clips, even soft and noisy, and no to wrong ones."""

from functools import lru_cache

import numpy as np
import pytest

from mlx_video.types import Waveform
from tiny import detectors, world
from tiny.detectors import look
from tiny.evaluate import judge
from tiny.world import Actor, Scene

pytestmark = pytest.mark.slow

FRAMES, SIZE = 25, 128
RATE = world.SAMPLE_RATE


def drawn(scenes, frames=FRAMES, size=SIZE):
    """Frames (F, H, W, 3) and waveform of each."""
    clips = np.array(world.draw(scenes, frames, size, size)).transpose(0, 2, 3, 4, 1)
    clips = np.clip(clips * 127.5 + 127.5, 0, 255).astype(np.uint8)
    sounds = world.sound(scenes, frames)
    return [(clip, Waveform(sound, RATE)) for clip, sound in zip(clips, sounds)]


def actor(thing="heart", colour="red", motion="still", **changes) -> Actor:
    y = {"rise": 0.7, "fall": 0.2}.get(motion, 0.5)
    reach = {"grow": 0.4, "shrink": 0.4, "bounce": 0.28}.get(motion, 0.2)
    period = world.PERIODS[motion]
    usual = Actor(thing, colour, motion, 0.18, 0.5, y, reach, period, 0.3, 1)
    return usual._replace(**changes)


def scene(background="plain", **changes) -> Scene:
    return Scene((actor(**changes),), background)


@lru_cache
def clip(scene, frames=FRAMES):
    return drawn([scene], frames)[0]


@lru_cache
def own_clips(count: int = 18):
    rng = np.random.default_rng(5)
    scenes = [world.random_scene(rng, unseen=bool(i % 2)) for i in range(count)]
    return list(zip(scenes, drawn(scenes)))


def agreeing(verdicts) -> float:
    asked = [right for verdict in verdicts for right in verdict.values()]
    return np.mean([right for right in asked if right is not None])


@pytest.mark.thorough
def test_own_clips_are_what_they_are():
    assert agreeing(judge(scene, *made) for scene, made in own_clips()) >= 0.98


@pytest.mark.thorough
def test_soft_and_noisy_clips_are_recognised():
    rng = np.random.default_rng(0)

    def spoilt(frames, waveform):
        soft = detectors._softened(frames, 3) + rng.normal(0, 6, frames.shape)
        sound = np.array(waveform.samples)
        sound = sound + rng.normal(0, 0.003, sound.shape)
        return np.clip(soft, 0, 255).astype(np.uint8), Waveform(sound, RATE)

    verdicts = [judge(scene, *spoilt(*made)) for scene, made in own_clips()[:8]]
    assert agreeing(verdicts) >= 0.98


def test_other_colours_are_not_taken_for_it():
    for scene, (frames, waveform) in own_clips(3):
        assert judge(scene, frames[..., [1, 2, 0]], waveform)["colour"] is False


@pytest.mark.parametrize("shown", world.THINGS)
def test_each_thing_is_itself_alone(shown):
    (seen,) = look(clip(scene(thing=shown), frames=2)[0])
    assert detectors.thing(seen) == shown


def test_among_two_things_the_likelier_is_chosen():
    (seen,) = look(clip(scene(thing="ring"), frames=2)[0])
    assert detectors.thing(seen, ("star", "ring")) == "ring"
    assert detectors.thing(seen, ("star", "arrow")) is None


@pytest.mark.parametrize("motion", world.MOTIONS)
def test_each_motion_is_itself_alone(motion):
    (seen,) = look(clip(scene(motion=motion))[0])
    assert detectors.motion(seen) == motion


@pytest.mark.parametrize(
    "motion, backwards",
    [("rise", "fall"), ("fall", "rise"), ("grow", "shrink"), ("shrink", "grow")],
)
def test_a_clip_backwards_moves_the_other_way(motion, backwards):
    (seen,) = look(clip(scene(motion=motion))[0][::-1])
    assert detectors.motion(seen) == backwards


def test_a_frozen_clip_is_still_and_a_short_one_nothing():
    frames, _ = clip(scene(motion="bounce"))
    (frozen,) = look(np.repeat(frames[:1], 25, axis=0))
    assert detectors.motion(frozen) == "still"
    assert detectors.motion(look(frames[:5])[0]) is None


@pytest.mark.parametrize("thing", ["ball", "ring", "square", "moon"])
@pytest.mark.parametrize("direction", [1, -1])
def test_turning_is_measured(thing, direction):
    """Over the time of 47 frames, in a clip of 49."""
    spin = scene(thing=thing, motion="spin", direction=direction)
    (seen,) = look(clip(spin, frames=49)[0])
    assert detectors.turning(seen) == pytest.approx(
        direction * 47 / 24 / world.PERIODS["spin"] * 360, rel=0.12
    )


@pytest.mark.parametrize("background", world.BACKGROUNDS)
def test_backgrounds_are_told_apart_and_floors_by_their_colour(background):
    floors = ("green", "blue") if background == "floor" else (None,)
    for floor in floors:
        frames, _ = clip(scene(background)._replace(floor=floor), 2)
        assert detectors.background(frames) == (background, floor)


def test_what_is_no_background_has_no_name():
    assert detectors.background(np.full((2, 64, 64, 3), 128, np.uint8)) == (None, None)


def test_noise_shows_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 3), np.uint8)
    assert look(noise) == [None]
    assert look(np.full_like(noise, 200), 2) == [None, None]


def test_what_is_there_for_a_moment_is_not_seen():
    frames = np.repeat(clip(scene(), frames=2)[0][:1], 25, axis=0)
    frames[10:] = 240
    assert look(frames) == [None]
    (seen,) = look(frames[:15])
    assert seen.times.tolist() == [n / 24 for n in range(10)]


def test_each_half_has_its_own_thing():
    two = actor("ball", "blue", x=0.25, size=0.1), actor("star", "pink", x=0.75)
    left, right = look(clip(Scene(two, "plain"), frames=2)[0], 2)
    assert (detectors.colour(left), detectors.colour(right)) == ("blue", "pink")
    assert left.x[0] == pytest.approx(0.25, abs=0.01)
    assert right.size[0] / left.size[0] > 1.1


def test_a_yellow_thing_keeps_its_size_before_red_floor_and_pale_wall():
    """What it takes to see it differs between them."""
    rise = scene("floor", colour="yellow", motion="rise")._replace(floor="red")
    (seen,) = look(clip(rise)[0])
    assert np.ptp(seen.size) < 0.01


# ---- sound


def heard(scene, frames=FRAMES):
    return np.array(clip(scene, frames)[1].samples)


@pytest.mark.parametrize("motion", world.MOTIONS)
def test_each_sound_is_itself_alone(motion):
    sound = np.array(world.sound([scene(motion=motion)], FRAMES)[0])
    assert detectors.sound_kind(sound, RATE) == world.SOUNDS[motion]


def test_the_louder_sound_counts():
    """A knock beside a tone twice as loud is none, and a tone beside a knock twice as loud is none."""
    moving, bouncing = actor(motion="left-right", x=0.25), actor(
        "ball", "blue", "bounce"
    )
    for actors, kind in (
        ((moving, bouncing), "steady"),
        ((bouncing, moving), "knocks"),
    ):
        sound = np.array(world.sound([Scene(actors, "plain")], FRAMES)[0])
        assert detectors.sound_kind(sound, RATE) == kind


def test_bounces_are_seen_and_knocks_are_heard_when_they_are():
    bounce = scene("meadow", thing="star", motion="bounce", y=0.7)
    frames, waveform = clip(bounce, 49)
    times = world.contacts(bounce.actors[0], 49)
    bounces = detectors.bounces(look(frames)[0])
    knocks = detectors.knocks(np.array(waveform.samples), RATE)
    assert len(times) == len(bounces) == len(knocks) == 2
    assert np.abs(times - bounces).max() < 0.02
    assert np.abs(times - knocks).max() < 0.02


def test_sound_that_comes_late_or_from_elsewhere_is_wrong():
    bounce = scene(motion="bounce", y=0.7)
    frames, waveform = clip(bounce)
    assert judge(bounce, frames, waveform)["knocks"] is True
    late = Waveform(np.roll(np.array(waveform.samples), 3600, axis=1), RATE)
    assert judge(bounce, frames, late)["sound"] is True
    assert judge(bounce, frames, late)["knocks"] is False
    tone = Waveform(world.sound([scene(motion="spin")], FRAMES)[0], RATE)
    verdict = judge(bounce, frames, tone)
    assert (verdict["sound"], verdict["knocks"]) == (False, False)
