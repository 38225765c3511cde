"""The world: what its pictures show, what its sounds are, and which scenes there are."""

import colorsys
import itertools
import re
from functools import lru_cache

import mlx.core as mx
import numpy as np
import pytest

from mlx_video.models.ltx.checkpoint import find
from tiny import world
from tiny.world import BACKGROUNDS, COLOURS, FPS, GROUND, MOTIONS, SPREAD, THINGS

PIXELS = 64


def actor(**changes):
    looks = dict(thing="ball", colour="red", motion="still", direction=1)
    place = dict(size=0.2, x=0.5, y=0.5, reach=0.2, period=1.0, phase=0.25)
    return world.Actor(**looks | place | changes)


def scene(background="plain", floor=None, silent=False, variant=0, **changes):
    return world.Scene((actor(**changes),), background, floor, variant, silent)


def pictures(scenes, frames=1, height=PIXELS, width=PIXELS):
    """(B, F, H, W, 3) in [0, 1]."""
    clips = np.array(world.draw(scenes, frames, height, width))
    return (clips.transpose(0, 2, 3, 4, 1) + 1) / 2


def hsv(pixels):
    """Hue in degrees, saturation and value, each (pixels,)."""
    flat = np.reshape(pixels, (-1, 3))
    return np.array([colorsys.rgb_to_hsv(*p) for p in flat]).T * [[360], [1], [1]]


def mask(clip):
    """Which pixels of (F, H, W, 3) are a thing's and not of the pale wall behind it."""
    return clip.max(-1) - clip.min(-1) > 0.35


def centres(clip):
    """Centroid of the thing in each frame (F, 2), x and y in frame heights, and its area (F,)."""
    found = mask(clip).astype(float)
    at = (np.arange(PIXELS) + 0.5) / PIXELS
    area = found.sum((1, 2))
    x = (found.sum(1) * at).sum(1) / area
    y = (found.sum(2) * at).sum(1) / area
    return np.stack([x, y], 1), area / PIXELS**2


@lru_cache
def random_scenes(count, seed=0, unseen=False):
    rng = np.random.default_rng(seed)
    return [world.random_scene(rng, unseen) for _ in range(count)]


# ---- pictures


def test_clips_are_in_range_and_of_the_asked_shape():
    clips = world.draw(random_scenes(12), 3, 48, 64)
    assert clips.shape == (12, 3, 3, 48, 64) and clips.dtype == mx.float32
    assert clips.min() >= -1 and clips.max() <= 1


@pytest.mark.parametrize("colour", COLOURS)
def test_things_have_their_colours_hue_and_stand_out(colour):
    drawn = pictures([scene(colour=colour, thing=t, size=0.3) for t in THINGS])
    hue, saturation, value = hsv(drawn[mask(drawn)])
    off = (hue - world.HUES[colour] + 180) % 360 - 180
    inside = saturation > 0.66
    assert inside.mean() > 0.9 and np.abs(off[inside]).max() < 2
    assert value[inside].min() > 0.4 and np.median(value[inside]) > 0.6


@pytest.mark.slow
def test_backgrounds_are_pale_or_dark_and_tell_from_each_other():
    kinds = [dict(background=b, variant=v) for b in BACKGROUNDS[:-1] for v in range(4)]
    kinds += [dict(background="floor", floor=c) for c in COLOURS]
    empty = pictures([scene(x=9, **kind) for kind in kinds])
    _, saturation, value = hsv(empty)
    assert np.all((saturation < 0.6) | (value < 0.4))
    for (a, one), (b, other) in itertools.combinations(zip(kinds, empty), 2):
        if a["background"] != b["background"]:
            assert np.abs(one - other).max() > 0.08


def test_a_floor_has_the_hue_of_its_colour():
    floors = pictures([scene(x=9, background="floor", floor=c) for c in COLOURS])
    for colour, floor in zip(COLOURS, floors):
        hue, saturation, _ = hsv(floor[:, -10:])
        assert np.abs((hue - world.HUES[colour] + 180) % 360 - 180).max() < 1
        assert saturation.min() > 0.4


def test_outlines_differ():
    drawn = pictures([scene(thing=thing, size=0.4) for thing in THINGS])
    shapes = mask(drawn)
    for one, other in itertools.combinations(shapes, 2):
        assert (one ^ other).sum() > 0.1 * (one | other).sum()


def test_outlines_are_distances_within_the_spread():
    v, u = np.mgrid[-1.3:1.3:260j, -1.3:1.3:260j]
    for thing in THINGS:
        distance = world.outline(thing, u, v)
        down, right = np.gradient(distance, u[0, 1] - u[0, 0])
        steep = np.hypot(down, right)
        assert abs(np.median(steep) - 1) < 0.01 and steep.max() < 1.08
        assert distance[np.hypot(u, v) > SPREAD].min() > 0 > distance.min()
        assert 0.5 < world.foot(thing) < SPREAD


def test_the_light_comes_from_the_upper_left():
    shaped = [scene(thing=thing, size=0.4) for thing in ("square", "ball")]
    square, ball = pictures(shaped)[:, 0]
    reds = square[..., 0]
    assert reds[22, 22] > reds[42, 42] + 0.01  # the flat middle slopes
    assert reds[14, 32] > reds[22, 32] + 0.02 > reds[42, 32] > reds[50, 32] + 0.04
    whites = square.min(-1) / square.max(-1)
    assert whites[14, 32] > whites[22, 32] + 0.01  # and the rim that it meets gleams
    assert np.ptp(ball[[20, 44], [20, 44], 0]) > 1.5 * np.ptp(reds[[20, 44], [20, 44]])


def test_colours_are_as_bright_as_they_are_said_to_be():
    red, green = pictures([scene(), scene(colour="green")])
    at = (0, PIXELS // 2 - 8, PIXELS // 2)
    for name, picture in (("red", red), ("green", green)):
        assert abs(picture[at].max() - world.VALUES[name]) < 0.05
    assert green[at].max() < red[at].max()


def test_the_horizon_is_anti_aliased():
    wall = pictures([scene(x=9, background="floor", floor="blue")])[0, 0, :, 0, 0]
    above, edge, below = wall[43:46]  # it lies at 44.8 pixels
    assert abs((above - edge) / (above - below) - 0.2) < 0.1


def test_the_night_has_stars_in_places_of_its_variant():
    skies = pictures([scene("night", x=9, variant=v) for v in range(4)], 1, 128, 128)
    bright = skies[:, 0].min(-1) > 0.3
    assert all(20 < stars.sum() < 200 for stars in bright)
    assert all((a & b).sum() < 60 for a, b in itertools.combinations(bright, 2))


@pytest.mark.parametrize("thing, u, v", [("ball", 0, 0), ("ring", 0, -0.68), ("tree", 0, 0.7)])  # fmt: skip
def test_bands_and_trunks_are_dark(thing, u, v):
    drawn = pictures([scene(thing=thing, size=0.4)])[0, 0, :, :, 0]
    at = lambda x, y: drawn[
        int((0.5 + 0.4 * y) * PIXELS), int((0.5 + 0.4 * x) * PIXELS)
    ]
    bright = {"ball": (0.1, 0.5), "ring": (0.1, 0.68), "tree": (0, 0.1)}[thing]
    assert at(u, v) < 0.85 * at(*bright)


def test_a_shadow_lies_below_and_fades_with_height():
    row, place = int(GROUND * PIXELS), PIXELS // 2
    low, high, none = pictures([scene(y=0.6), scene(y=0.3), scene(x=9)])[:, 0, row]
    assert low[place].mean() < high[place].mean() < none[place].mean() - 0.02


def test_edges_are_a_pixel_wide_and_follow_parts_of_pixels():
    squares = [scene(thing="square", size=0.45, x=0.5 + i / 4 / 256) for i in range(5)]
    rows = pictures(squares, 1, 256, 256)[:, 0, 128, :, 2]  # red on pale: no blue
    wall, inside = rows[0, 0], rows[0, 128]
    moved = np.diff(rows[:, :128].sum(1)) / (wall - inside)
    np.testing.assert_allclose(moved, 1 / 4, atol=0.02)
    mixed = (rows > inside + 0.1) & (rows < wall - 0.01)
    assert mixed.sum(1).max() <= 4


def test_the_same_scene_is_the_same_picture_at_every_size():
    scenes = random_scenes(16)
    large = pictures(scenes, 2, 128, 128)
    halved = large.reshape(16, 2, 64, 2, 64, 2, 3).mean((3, 5))
    off = np.abs(halved - pictures(scenes, 2))
    assert off.mean() < 0.002 and np.quantile(off, 0.999) < 0.1


def test_a_wider_frame_shows_more_on_both_sides():
    scenes = [*random_scenes(6), scene("night")]
    wide = pictures(scenes, 2, 64, 96)
    np.testing.assert_allclose(wide[..., 16:80, :], pictures(scenes, 2), atol=2e-3)


def test_a_batch_is_its_scenes():
    scenes = random_scenes(6)
    alone = np.concatenate([pictures([s], 2) for s in scenes])
    np.testing.assert_allclose(pictures(scenes, 2), alone, atol=1e-6)


def test_two_actors_have_their_own_halves():
    left, right = actor(x=0.25, size=0.15), actor(x=0.75, size=0.15, colour="blue")
    one, other, both = pictures(
        [world.Scene(a, "night") for a in ((left,), (right,), (right, left))]
    )
    np.testing.assert_allclose(both[:, :, :32], one[:, :, :32], atol=1e-6)
    np.testing.assert_allclose(both[:, :, 32:], other[:, :, 32:], atol=1e-6)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="thing must be one of ball, .*; got 'cube'"):
        world.outline("cube", np.zeros(1), np.zeros(1))
    with pytest.raises(ValueError, match="background must be one of plain, .*'sea'"):
        world.draw([scene("sea")], 1, 32, 32)


# ---- movement


def motion(name, **changes):
    """Centres (F, 2) and areas (F,) of two seconds, measured from the picture."""
    clip = pictures([scene(motion=name, **changes)], 49)[0]
    return centres(clip)


def test_pictures_follow_the_paths():
    times = np.arange(25) / FPS
    actors = [actor(motion=m, colour="blue", reach=0.25) for m in MOTIONS]
    clips = pictures([world.Scene((a,), "plain") for a in actors], 25)
    for each, clip in zip(actors, clips):
        at, area = centres(clip)
        track = world.path(each, times)
        np.testing.assert_allclose(at, np.stack([track.x, track.y], 1), atol=0.008)
        np.testing.assert_allclose(np.sqrt(area / np.pi), track.size * 0.95, atol=0.008)


def test_left_right_goes_to_and_fro():
    at, _ = motion("left-right", phase=0.0)
    assert np.ptp(at[:, 1]) < 0.01
    np.testing.assert_allclose([at[6, 0], at[12, 0], at[18, 0]], [0.7, 0.5, 0.3], atol=0.01)  # fmt: skip


@pytest.mark.parametrize("name, way", [("rise", -1), ("fall", 1)])
def test_rise_and_fall_go_one_way_half_of_it_in_a_period(name, way):
    at, _ = motion(name, reach=0.3)
    assert np.all(np.diff(at[:, 1]) * way > -0.002) and np.ptp(at[:, 0]) < 0.01
    np.testing.assert_allclose(at[24, 1] - at[0, 1], 0.15 * way, atol=0.01)


def test_grow_and_shrink_change_the_size_only():
    for name, way in (("grow", 1), ("shrink", -1)):
        at, area = motion(name, reach=0.4)
        assert np.all(np.diff(area) * way >= 0) and np.ptp(at) < 0.01
        assert max(area[0] / area[-1], area[-1] / area[0]) > 2


def test_circle_keeps_its_distance_and_goes_round():
    for direction in (1, -1):
        at, _ = motion("circle", direction=direction)
        away = at - 0.5
        np.testing.assert_allclose(np.hypot(*away.T), 0.2, atol=0.01)
        turned = np.unwrap(np.arctan2(away[:, 1], away[:, 0]))
        np.testing.assert_allclose((turned[24] - turned[0]) * direction, 2 * np.pi, atol=0.1)  # fmt: skip


@pytest.mark.parametrize("thing", THINGS)
def test_spinning_shows_and_turns_the_right_way(thing):
    clip = pictures([scene(motion="spin", thing=thing, period=1.0)], 25)[0]
    assert np.abs(clip[9] - clip[0]).mean() > 0.004
    np.testing.assert_allclose(clip[24], clip[0], atol=0.01)
    np.testing.assert_allclose(mask(clip)[6], mask(np.rot90(clip[0], -1)), atol=1)
    changed = (mask(clip)[6] ^ np.rot90(mask(clip)[0], -1)).mean()
    assert changed < 0.004


def test_bounces_touch_the_ground_at_their_contacts_only():
    for thing in THINGS:
        ball = actor(motion="bounce", thing=thing, y=GROUND - 0.2 * world.foot(thing))
        times = world.contacts(ball, 97)
        np.testing.assert_allclose(times, [0.75, 1.75, 2.75, 3.75])
        foot = lambda t: world.path(ball, t).y + 0.2 * world.foot(thing)
        np.testing.assert_allclose(foot(times), GROUND)
        np.testing.assert_allclose(foot(times - 0.5), GROUND - 0.2)
        assert np.all(foot(times - 0.1) < GROUND - 0.05)
        clip = pictures([world.Scene((ball,), "plain")], 19)[0]  # frame 18: 0.75 s
        assert abs(np.flatnonzero(mask(clip)[18].any(1)).max() + 0.5 - GROUND * 64) < 1


def test_only_bounces_have_contacts():
    assert not any(len(world.contacts(actor(motion=m), 97)) for m in MOTIONS if m != "bounce")  # fmt: skip


def test_every_bounce_knocks_within_the_first_second():
    for each in random_scenes(1500):
        for one in each.actors:
            assert one.motion != "bounce" or 0 < world.contacts(one, 25)[0] < 1


def test_actors_stay_in_their_zones_for_four_seconds():
    times = np.arange(97) / FPS
    for each in random_scenes(1500):
        for one in each.actors:
            x, y, size, _ = world.path(one, times)
            left, right = (0, 1) if len(each.actors) == 1 else np.floor(one.x * 2) / 2 + (0, 0.5)  # fmt: skip
            reach = size * SPREAD - 1e-9
            assert np.all(x - reach >= left) and np.all(x + reach <= right)
            assert np.all(y - reach >= 0)
            assert np.all(y + size * world.foot(one.thing) <= GROUND + 1e-9)


def test_eight_frames_take_nothing_farther_than_a_latent_can_show():
    times = np.arange(97) / FPS
    for each in random_scenes(600):
        for one in each.actors:
            x, y, *_ = world.path(one, times)
            way = np.hypot(x[8:] - x[:-8], y[8:] - y[:-8]).max()
            assert way < 0.29 if one.motion == "bounce" else way < 0.22, one


def test_what_goes_left_and_right_is_on_both_sides_within_two_seconds():
    times = np.arange(49) / FPS
    for each in random_scenes(600):
        for one in each.actors:
            if one.motion == "left-right":
                away = (world.path(one, times).x - one.x) / one.reach
                assert away.min() < -0.15 and away.max() > 0.15, one


def test_the_package_tells_users_of_all_things_and_colours():
    told = re.findall(r"\w+", find.DEMO_KNOWS)
    assert [word for word in told if word in THINGS] == list(THINGS)
    assert told[-3:] == ["in", "eight", "colours"] and len(world.COLOURS) == 8


# ---- scenes


def test_a_fifth_is_held_out_evenly():
    kinds = [kind for kind in itertools.product(THINGS, COLOURS, MOTIONS) if world.held_out(*kind)]  # fmt: skip
    assert len(kinds) * 5 == len(THINGS) * len(COLOURS) * len(MOTIONS)
    for place, names in ((0, THINGS), (1, COLOURS), (2, MOTIONS)):
        counts = [[kind[place] for kind in kinds].count(name) for name in names]
        assert max(counts) - min(counts) <= 1
    assert not world.held_out("ball", "red", "bounce")


@pytest.mark.slow
@pytest.mark.parametrize("unseen", [False, True])
def test_random_scenes_obey_what_is_held_out(unseen):
    for each in random_scenes(1500, unseen=unseen):
        held = [world.held_out(a.thing, a.colour, a.motion) for a in each.actors]
        assert held == [unseen, False][: len(held)]


def test_random_scenes_show_everything():
    scenes = random_scenes(1500)
    first = [each.actors[0] for each in scenes]
    assert {a.thing for a in first} == set(THINGS)
    assert {a.colour for a in first} == set(COLOURS)
    assert {a.motion for a in first} == set(MOTIONS)
    assert {(s.background, s.variant) for s in scenes} == set(itertools.product(BACKGROUNDS, range(4)))  # fmt: skip
    assert {s.floor for s in scenes} == {None, *COLOURS}
    assert 0.15 < np.mean([len(each.actors) == 2 for each in scenes]) < 0.35
    assert 0.05 < np.mean([each.silent for each in scenes]) < 0.15


@pytest.mark.parametrize("two, share", [(0.0, 0.0), (0.4, 0.345), (1.0, 1.0)])
def test_so_many_scenes_have_two_actors(two, share):
    rng = np.random.default_rng(0)
    scenes = [world.random_scene(rng, two=two) for _ in range(1500)]
    assert abs(np.mean([len(s.actors) == 2 for s in scenes]) - share) < 0.04


def test_first_actors_do_what_they_may():
    rng = np.random.default_rng(0)
    motions = ("spin", "spin", "rise")
    scenes = [world.random_scene(rng, motions=motions) for _ in range(600)]
    spinning = [each.actors[0].motion == "spin" for each in scenes]
    assert {each.actors[0].motion for each in scenes} == {"spin", "rise"}
    assert abs(np.mean(spinning) - 2 / 3) < 0.06


def test_what_spins_is_upright_at_first_and_turns_clockwise():
    actors = [a for each in random_scenes(500) for a in each.actors]
    spins = [a for a in actors if a.motion == "spin"]
    for one in spins:
        angle = world.path(one, np.array([0.0, 0.1])).angle
        assert angle[0] == 0 and angle[1] > 0
    assert len({a.period for a in spins}) == 3


def test_what_shares_a_scene_differs():
    for each in random_scenes(1500):
        colours = [a.colour for a in each.actors] + [each.floor]
        assert len(set(colours)) == len(colours)
        assert len({a.thing for a in each.actors}) == len(each.actors)
        assert (each.background == "floor") == (each.floor is not None)
        still = [a.motion == "still" for a in each.actors]
        assert all(still) or not still[0]
        assert not (still[0] and each.silent)


def test_the_same_seed_gives_the_same_scenes():
    assert random_scenes(20, 3) == random_scenes(20, 3) != random_scenes(20, 4)


# ---- sound


def heard(frames=49, rate=24000, **changes):
    return np.array(world.sound([scene(**changes)], frames, rate))[0]


def pitch(wave, rate=24000):
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 4 * len(wave)))
    return np.argmax(spectrum) * rate / 4 / len(wave)


@pytest.mark.parametrize("frames, rate", [(25, 24000), (33, 16000), (49, 44100), (97, 24000)])  # fmt: skip
def test_sounds_are_as_long_as_their_clips(frames, rate):
    scenes = random_scenes(8)
    wave = world.sound(scenes, frames, rate)
    assert wave.shape == (8, 2, round(frames / 24 * rate)) and wave.dtype == mx.float32
    assert 0.2 < mx.abs(wave).max() < 0.9
    assert world.sound(scenes[:1], 25, rate).shape[0] == 1


def test_silence_is_exactly_zero():
    silent = [scene(motion=m, silent=True, y=0.6) for m in MOTIONS] + [scene()]
    assert not np.array(world.sound(silent, 25)).any()
    assert {world.sound_kind(each) for each in silent} == {"silence"}
    assert world.knocks(scene(motion="bounce", silent=True), 97) == []


def test_kinds_of_sound_follow_the_first_actor():
    kinds = [world.sound_kind(scene(motion=m)) for m in MOTIONS]
    assert kinds == ["steady", "rising", "falling", "knocks", "hum", "swelling", "fading", "warble", "silence"]  # fmt: skip
    both = world.Scene((actor(motion="spin"), actor(motion="rise")), "plain")
    assert world.sound_kind(both) == "hum"


@pytest.mark.parametrize("rate", [16000, 24000])
def test_pitch_follows_the_way(rate):
    n = rate // 5
    rising, falling, steady = (heard(motion=m, rate=rate)[0] for m in ("rise", "fall", "left-right"))  # fmt: skip
    assert pitch(rising[-n:], rate) > 1.8 * pitch(rising[:n], rate)
    assert pitch(falling[-n:], rate) < pitch(falling[:n], rate) / 1.7
    middle = pitch(rising[rate - n // 2 : rate + n // 2], rate)
    assert abs(middle - 100 * (3 * 10) ** 0.5) < 60  # a period: half the way
    assert abs(pitch(steady[:n], rate) / 500 - 1) < 0.01
    assert abs(pitch(steady[-n:], rate) / 500 - 1) < 0.01


@pytest.mark.parametrize("rate", [16000, 24000])
def test_steady_tones_repeat_themselves_in_every_mel_frame(rate):
    wave = heard(motion="left-right", reach=0.0, rate=rate)[:, rate // 10 : rate]
    frames = wave.reshape(2, -1, rate // 100)
    np.testing.assert_allclose(frames, frames[:, :1].repeat(90, 1), atol=1e-5)


def test_glides_are_one_tone_at_a_time():
    rising = heard(motion="rise")[0, :48960].reshape(-1, 240)
    shares = np.sort(np.abs(np.fft.rfft(rising))[:, 3:9])  # from 300 to 800 Hz
    assert np.mean(shares[:, -1] > 10 * shares[:, -2]) > 0.6


def test_knocks_fall_on_the_nearest_beat():
    late = heard(motion="bounce", y=0.7, phase=0.2537)  # touches at 0.7463 s
    assert np.flatnonzero(late.any(0))[0] == 0.75 * 24000 + 1


def test_a_hum_is_low_and_a_warble_wavers():
    assert 90 < pitch(heard(motion="spin")[0]) < 110
    spans = [pitch(heard(motion="circle")[0][i : i + 1500]) for i in range(2400, 12000, 400)]  # fmt: skip
    assert np.ptp(spans) > 40


def test_small_things_sound_higher():
    for name in ("left-right", "bounce"):
        high, low = (pitch(heard(motion=name, size=size)[0]) for size in (0.1, 0.2))
        assert 1.1 < high / low < 1.5


def test_a_hum_has_a_strong_third_harmonic():
    spectrum = np.abs(np.fft.rfft(heard(motion="spin", size=0.17)[0, :48000]))
    assert 0.3 < spectrum[580:620].max() / spectrum[180:220].max() < 0.6  # 1/2 hertz


def test_a_hum_beats_five_times_a_second():
    loud = heard(motion="spin")[0][2400:48000].reshape(-1, 480).std(1)  # each 20 ms
    spectrum = np.abs(np.fft.rfft(loud - loud.mean(), 1000))
    assert abs(np.argmax(spectrum) * 50 / 1000 - 5) < 0.3 and np.ptp(loud) > 0.3 * loud.mean()  # fmt: skip


def test_tones_have_no_clicks():
    for name in ("rise", "spin", "circle", "grow", "left-right"):
        wave = heard(motion=name)
        fastest = 2 * np.pi * 1200 * 0.6 / 24000
        assert np.abs(np.diff(wave)).max() < 1.3 * fastest
        assert np.abs(wave[:, :120]).max() < 0.3 * np.abs(wave[:, 720:2400]).max()


def test_growing_swells_and_shrinking_fades():
    grow, shrink = (heard(motion=m).reshape(2, 7, -1).std((0, 2)) for m in ("grow", "shrink"))  # fmt: skip
    assert np.all(np.diff(grow) > 0) and grow[-1] > 1.5 * grow[0]
    assert np.all(np.diff(shrink[1:]) < 0) and shrink[1] > 1.2 * shrink[-1]


def test_knocks_sound_when_the_thing_touches_the_ground():
    bouncing = scene(motion="bounce", y=0.7)
    assert world.knocks(bouncing, 49) == [0.75, 1.75]
    wave = np.abs(heard(motion="bounce", y=0.7)).max(0)
    for time in (0.75, 1.75):
        begin = round(time * 24000)
        assert wave[begin - 2400 : begin].max() < 0.01
        assert wave[begin : begin + 120].max() > 0.3
    assert wave[:18000].max() == 0


def test_knocks_of_two_are_in_order():
    late, early = (actor(motion="bounce", phase=p, x=x) for p, x in ((0.2, 0.2), (0.6, 0.8)))  # fmt: skip
    np.testing.assert_allclose(world.knocks(world.Scene((late, early), "plain"), 49), [0.4, 0.8, 1.4, 1.8])  # fmt: skip


@pytest.mark.parametrize("name", ["spin", "bounce"])
def test_sound_comes_from_where_the_thing_is(name):
    left, middle, right = (heard(motion=name, x=x).std(1) for x in (0.2, 0.5, 0.8))
    assert left[0] > 2 * left[1] and right[1] > 2 * right[0]
    np.testing.assert_allclose(middle[0], middle[1], rtol=1e-4)
    np.testing.assert_allclose([(s**2).sum() for s in (left, right)], (middle**2).sum(), rtol=1e-3)  # fmt: skip


def test_pan_moves_with_the_thing():
    wave = heard(motion="left-right", phase=0.0, reach=0.3)
    to_right, to_left = wave[:, 5000:7000].std(1), wave[:, 17000:19000].std(1)
    assert to_right[1] > 2 * to_right[0] and to_left[0] > 2 * to_left[1]


def test_two_actors_are_mixed_the_second_half_as_loud():
    one, other = actor(motion="spin", x=0.25), actor(motion="rise", x=0.75)
    scenes = [world.Scene(a, "plain") for a in ((one,), (other,), (one, other))]
    first, second, both = np.array(world.sound(scenes, 25))
    np.testing.assert_allclose(both, first + second / 2, atol=1e-5)
