"""The small world: coloured things that move before a background, and what they sound like.

Knows how a scene looks and sounds at any size and rate; not what anybody says about it (``tiny.sentences``).

Places are in frame heights from the upper left corner of the square in the frame's middle, x to the right and y down;
times are seconds; angles are radians, clockwise.
"""

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np

THINGS = tuple("ball square triangle star heart ring arrow moon cloud tree".split())
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
BACKGROUNDS = ("plain", "gradient", "night", "meadow", "sunset", "floor")
MOTIONS = tuple("left-right rise fall bounce spin grow shrink circle still".split())
SAMPLE_RATE = 24000
FPS = 24.0

HUES = dict(zip(COLOURS, (0, 26, 52, 128, 182, 224, 274, 324)))  # degrees
VALUES = dict(zip(COLOURS, (0.9, 0.95, 0.95, 0.74, 0.85, 0.95, 0.85, 0.95)))
SATURATION = 0.82  # of a thing; no background comes near it except where it is dark
GROUND = 0.88  # where things stand and bounce, and where shadows lie
VARIANTS = 4  # pairs of pale colours, or places of the stars
SIZES = {"small": 0.155, "": 0.18, "big": 0.23}
PACES = {"quick": 0.8, "": 1.0, "slow": 1.3}  # parts of PERIODS
TWO = 0.9  # of the middle size things keep when two share the frame
# At most, so that within eight frames, which are one latent, nothing moves too far to be shown.
REACHES = {"left-right": 0.25, "circle": 0.22, "bounce": 0.28}
LANES = (-1, 0, 1)  # where things stand, in the room that they have
PHASES = (0.25, 0.5, 0.75)  # gone by at time 0; a bounce begins in the air
SPREAD = 1.1  # no place of a thing of radius 1 is farther from its centre
PERIODS = {  # seconds: of a cycle, between knocks, or until half of a way without end is gone
    "left-right": 2.9, "rise": 1.2, "fall": 1.2, "bounce": 1.0, "spin": 4.0,
    "grow": 1.2, "shrink": 1.2, "circle": 4.0, "still": 1.0,
}  # fmt: skip
SOUNDS = {
    "left-right": "steady", "rise": "rising", "fall": "falling", "bounce": "knocks", "spin": "hum",
    "grow": "swelling", "shrink": "fading", "circle": "warble", "still": "silence",
}  # fmt: skip


class Actor(NamedTuple):
    """A thing that moves about (x, y).

    ``size`` is its radius, the largest that it has. ``reach`` is the amplitude of left-right, the radius of the circle,
    the height of the bounce, or the length of the way up or down; for grow and shrink, the smallest size over the
    largest. ``phase`` is the part of the period gone by at time 0. ``direction`` is 1 or -1: a turn clockwise or not.
    """

    thing: str
    colour: str
    motion: str
    size: float
    x: float
    y: float
    reach: float
    period: float
    phase: float
    direction: int


class Scene(NamedTuple):
    """One or two actors, the second in the other half of the frame, before a background.

    ``floor`` is the colour of the floor where there is one; ``variant`` in [0, VARIANTS) picks pale colours or stars.
    """

    actors: tuple[Actor, ...]
    background: str
    floor: str | None = None
    variant: int = 0
    silent: bool = False


class Path(NamedTuple):
    """Where an actor is at each time: arrays of one shape."""

    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    angle: np.ndarray


# ---- scenes


def held_out(thing: str, colour: str, motion: str) -> bool:
    """Whether training never sees the combination: a fifth, two of the ten things for every colour and motion."""
    places = THINGS.index(thing), COLOURS.index(colour), MOTIONS.index(motion)
    return (places[0] + 2 * places[1] + 3 * places[2]) % 5 == 1


def random_scene(
    rng: np.random.Generator,
    unseen: bool = False,
    two: float = 0.25,
    motions: Sequence[str] = MOTIONS,
) -> Scene:
    """Any scene; ``unseen`` says whether its first actor is one of those held out. A second actor never is.

    ``two`` is the chance of each try at a second actor; a try fails where that has the first one's thing or colour.
    The first actor's motion is any of ``motions``.
    Where the first actor is still, so is the second: what the first does is always what is mainly heard.
    """
    kinds = [_combination(rng, unseen, pick(rng, motions))]
    while len(kinds) == 1 and rng.random() < two:
        still = kinds[0][2] == "still" or rng.random() < 0.6
        second = _combination(rng, False, "still" if still else pick(rng, MOTIONS))
        if second[0] != kinds[0][0] and second[1] != kinds[0][1]:
            kinds.append(second)
    zones = [(0.0, 1.0)]
    if len(kinds) == 2:
        zones = pick(rng, [[(0.0, 0.5), (0.5, 1.0)], [(0.5, 1.0), (0.0, 0.5)]])
    actors = tuple(_actor(rng, *kind, zone) for kind, zone in zip(kinds, zones))
    background, variant = pick(rng, BACKGROUNDS), pick(rng, range(VARIANTS))
    free = [colour for colour in COLOURS if colour not in [a.colour for a in actors]]
    floor = pick(rng, free) if background == "floor" else None
    silent = bool(rng.random() < 0.1) and actors[0].motion != "still"
    return Scene(actors, background, floor, variant, silent)


def pick(rng: np.random.Generator, values: Sequence):
    return values[rng.integers(len(values))]


def _combination(rng, unseen, motion) -> tuple[str, str, str]:
    while True:
        thing, colour = pick(rng, THINGS), pick(rng, COLOURS)
        if held_out(thing, colour, motion) == unseen:
            return thing, colour, motion


def _actor(rng, thing, colour, motion, zone) -> Actor:
    """An actor that never leaves the zone (x of its left and right) nor sinks into the ground.

    It has few sizes, lanes, paces and phases, so that what a sentence leaves open is a choice among few.
    """
    left, right = zone
    size = TWO * SIZES[""]
    if right - left == 1:
        size = pick(rng, list(SIZES.values()))
        size = SIZES["big"] if motion in ("grow", "shrink") else size
    lane = pick(rng, LANES)
    x, y, reach = _place(thing, motion, size, (left + right) / 2, right - left, lane)
    period = PERIODS[motion] * pick(rng, list(PACES.values()))
    phase, direction = pick(rng, PHASES), pick(rng, (1, -1))
    if motion == "spin":
        phase, direction = 0.0, 1  # upright at first
    return Actor(thing, colour, motion, size, x, y, reach, period, phase, direction)


def _place(thing, motion, size, middle, width, lane) -> tuple[float, float, float]:
    """x, y and reach; ``width`` is the zone's, around ``middle``."""
    room = width / 2 - SPREAD * size - 0.01  # that the centre has on either side
    top = SPREAD * size + 0.02
    bottom = GROUND - size * (SPREAD if motion == "spin" else foot(thing))
    x, between = middle + lane * min(room, 0.22), (top + bottom) / 2
    match motion:
        case "left-right":
            return middle, (top + 3 * bottom) / 4, min(room, REACHES[motion])
        case "circle":
            reach = min(room, (bottom - top) / 2, REACHES[motion])
            return middle + lane * (room - reach), between, reach
        case "rise":
            return x, bottom, bottom - top
        case "fall":
            return x, top, bottom - top
        case "bounce":
            return x, bottom, REACHES[motion]
        case "still":
            return x, bottom, 0.0
        case "grow" | "shrink":
            return x, between, 0.4
    return x, between, 0.0


# ---- movement


def path(actor: Actor, times: np.ndarray) -> Path:
    """Centre, radius and angle at the times (s)."""
    start = actor.x, actor.y, actor.size, 0.0
    x, y, size, angle = (np.full(np.shape(times), value) for value in start)
    turn = 2 * np.pi * (times / actor.period + actor.phase) * actor.direction
    gone = _gone(actor, times)
    match actor.motion:
        case "left-right":
            x += actor.reach * np.sin(turn)
        case "rise":
            y -= actor.reach * gone
        case "fall":
            y += actor.reach * gone
        case "bounce":
            part = (times / actor.period + actor.phase) % 1
            y -= actor.reach * 4 * part * (1 - part)
        case "spin":
            angle += turn
        case "grow":
            size *= actor.reach + (1 - actor.reach) * gone
        case "shrink":
            size *= 1 - (1 - actor.reach) * gone
        case "circle":
            x += actor.reach * np.cos(turn)
            y += actor.reach * np.sin(turn)
    return Path(x, y, size, angle)


def _gone(actor, times):
    """The part gone of a way that is never done: 0 at first, a half after a period; it slows but does not stop."""
    return times / (times + actor.period)


def contacts(actor: Actor, frames: int) -> np.ndarray:
    """Seconds at which the actor touches the ground in a clip of so many frames; none unless it bounces."""
    if actor.motion != "bounce":
        return np.zeros(0)
    turns = np.arange(1, frames / FPS / actor.period + actor.phase)
    return (turns - actor.phase) * actor.period


# ---- things


def _star_corners():
    turns, radii = np.arange(10) * np.pi / 5, np.where(np.arange(10) % 2, 0.42, 1.0)
    return np.stack([radii * np.sin(turns), -radii * np.cos(turns)], axis=1)


def _heart_corners():
    """The heart (sin^3 t; 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t) with its middle at the origin."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    up = sum(weight * np.cos(n * t) for n, weight in enumerate((2.5, 13, -5, -2, -1)))
    return np.stack([16 * np.sin(t) ** 3, -up], axis=1) / 17.5


POLYGONS = {  # corners, and the radius that rounds them
    "square": ([(-0.68, -0.68), (0.68, -0.68), (0.68, 0.68), (-0.68, 0.68)], 0.1),
    "triangle": ([(0, -1), (0.866, 0.5), (-0.866, 0.5)], 0.1),
    "star": (_star_corners(), 0.07),
    "heart": (_heart_corners(), 0.05),
    "arrow": ([(0.95, 0), (0.2, 0.75), (0.2, 0.27), (-0.9, 0.27),
               (-0.9, -0.27), (0.2, -0.27), (0.2, -0.75)], 0.08),
    "trunk": ([(-0.1, 0.3), (0.1, 0.3), (0.16, 0.9), (-0.16, 0.9)], 0.08),
}  # fmt: skip
PUFFS = np.array(  # of the cloud: x, y, radius; the last two end its straight base
    [(-0.12, -0.16, 0.55), (0.42, 0.02, 0.42), (-0.6, 0.2, 0.4), (0.68, 0.28, 0.32)]
)


def outline(thing: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance, negative inside, from a thing of radius 1 at angle 0; u right and v down of its centre."""
    r = np.hypot(u, v)
    match thing:
        case "ball":
            return r - 0.95
        case "ring":
            return np.abs(r - 0.68) - 0.27
        case "moon":
            return np.maximum(r - 0.97, 0.82 - np.hypot(u - 0.48, v + 0.2))
        case "cloud":
            puffs = [np.hypot(u - x, v - y) - radius for x, y, radius in PUFFS]
            base = np.hypot(u - np.clip(u, -0.6, 0.68), v - 0.3) - 0.3
            return np.minimum.reduce([*puffs, base])
        case "tree":
            return np.minimum(np.hypot(u, v + 0.3) - 0.72, outline("trunk", u, v))
    if thing not in POLYGONS:
        raise ValueError(f"thing must be one of {', '.join(THINGS)}; got {thing!r}")
    corners, rounding = POLYGONS[thing]
    return _polygon(corners, u, v) - rounding


def _polygon(corners, u, v):
    """Signed distance from a closed polygon: to its nearest edge, inside where a ray to the right crosses it oddly."""
    corners = np.asarray(corners)
    nearest, inside = np.full(np.shape(u), np.inf), np.zeros(np.shape(u), bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0)):
        ex, ey, px, py = bx - ax, by - ay, u - ax, v - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.hypot(px - along * ex, py - along * ey))
        if ey:
            inside ^= ((ay > v) != (by > v)) & (u < ax + ex * py / ey)
    return np.where(inside, -nearest, nearest)


def _marks(thing, u, v):
    """How bright each place of the thing is: a band shows that a ball or a ring turns, and a trunk is dark."""
    match thing:
        case "ball":
            edge = np.abs(v) - 0.24
        case "ring":
            edge = 0.78 * np.abs(u) + 0.62 * v
        case "tree":
            edge = np.maximum(0.72 - np.hypot(u, v + 0.3), 0.3 - v)
        case _:
            return np.ones_like(u)
    return 1 - 0.28 * np.clip(0.5 - edge / 0.05, 0, 1)


@lru_cache
def foot(thing: str) -> float:
    """How far below its centre the thing ends, at radius 1 and angle 0."""
    v, u = np.mgrid[0:1.2:601j, -1.2:1.2:601j]
    for rows in np.array_split(np.arange(600, -1, -1), 20):  # from below
        if (inside := outline(thing, u[rows], v[rows]) <= 0).any():
            return float(v[rows][inside].max())
    raise AssertionError(f"{thing} has no lower half")


# ---- pictures

GRID = 256  # cells a side of a thing's tables
SPAN = 1.25  # which reach from -SPAN to SPAN
LIGHT = (-0.6, -0.8)  # where it comes from
RIMS = {
    "ball": 0.95,
    "heart": 0.4,
    "cloud": 0.4,
}  # how wide a rim is rounded; else 0.27


def draw(scenes: Sequence[Scene], frames: int, height: int, width: int) -> mx.array:
    """The clips (B, 3, F, H, W) float32 in [-1, 1], 24 frames a second; about 80 bytes a pixel are in use at once."""
    x = mx.array((np.arange(width) + 0.5 - width / 2) / height + 0.5, mx.float32)
    y = mx.array((np.arange(height) + 0.5) / height, mx.float32)[:, None]
    cast = _cast(scenes, frames, x >= 0.5)
    cover, shade, gleam = _things(cast, x, y, height)
    behind = _backgrounds(scenes, height, width)
    kept = (1 - cover) * (2 - 2 * _shadow(cast, x, y))
    lit, white = cover * shade * (1 - gleam), 2 * cover * gleam - 1
    colours = cast.red, cast.green, cast.blue
    planes = [behind[:, i] * kept + (c * lit + white) for i, c in enumerate(colours)]
    return mx.stack(planes, axis=1)


class _Cast(NamedTuple):
    """What each column of pixels shows: each of two actors has its half of the frame. Arrays (B, F, 1, W)."""

    x: mx.array
    y: mx.array
    size: mx.array
    cos: mx.array
    sin: mx.array
    high: mx.array  # its foot above the ground
    table: mx.array  # the first cell of the thing's tables
    rim: mx.array
    red: mx.array  # twice the colour, in [0, 2]
    green: mx.array
    blue: mx.array


def _cast(scenes, frames, right) -> _Cast:
    """``right`` (W,) says which columns are in the right half."""
    times = np.arange(frames) / FPS
    rows = []
    for scene in scenes:
        halves = sorted((scene.actors * 2)[:2], key=lambda actor: actor.x)
        rows.append([_row(actor, times) for actor in halves])
    rows = mx.array(np.array(rows, np.float32))[..., None, None]  # (B, 2, 11, F, 1, 1)
    return _Cast(*(mx.where(right, rows[:, 1, i], rows[:, 0, i]) for i in range(11)))


def _row(actor, times):
    """The actor's fields of _Cast, (11, F)."""
    x, y, size, angle = path(actor, times)
    hue, value = HUES[actor.colour] / 360, VALUES[actor.colour]
    colour = colorsys.hsv_to_rgb(hue, SATURATION, value)
    high = GROUND - y - size * foot(actor.thing)
    table = THINGS.index(actor.thing) * GRID**2
    looks = table, RIMS.get(actor.thing, 0.27), *(2 * part for part in colour)
    looks = [np.full_like(times, look) for look in looks]
    return [x, y, size, np.cos(angle), np.sin(angle), high, *looks]


@lru_cache
def _tables() -> tuple[mx.array, ...]:
    """Of every cell of every thing, rows first: distance, its gradient right and down, and brightness."""
    v, u = (np.mgrid[0:GRID, 0:GRID] + 0.5) / GRID * 2 * SPAN - SPAN
    distance = np.stack([outline(thing, u, v) for thing in THINGS])
    down, right = np.gradient(distance, 2 * SPAN / GRID, axis=(1, 2))
    marks = np.stack([_marks(thing, u, v) for thing in THINGS])
    tables = distance, right, down, marks
    return tuple(mx.array(table.reshape(-1), mx.float32) for table in tables)


def _things(cast, x, y, height):
    """How much of each pixel things cover, how bright they are, and how white their light: (B, F, H, W) in [0, 1]."""
    cells = GRID / (2 * SPAN) / cast.size  # per frame height
    cos, sin = cast.cos * cells, cast.sin * cells
    dx, middle = x - cast.x, GRID / 2
    u = (cos * dx - sin * cast.y + middle) + sin * y
    v = (middle - sin * dx - cos * cast.y) + cos * y
    u, v = (mx.clip(a, 0, GRID - 1e-3) for a in (u, v))
    column, row = mx.floor(u), mx.floor(v)
    cell = (row * GRID + (column + cast.table)).astype(mx.int32)
    distance, right, down, marks = (table[cell] for table in _tables())
    off = right * (u - column - 0.5) + down * (v - row - 0.5)
    distance = distance + off * (2 * SPAN / GRID)
    cover = mx.clip(0.5 - distance * (cast.size * height), 0, 1)
    rim = mx.maximum(distance * (1 / cast.rim) + 1, 0)
    across, along = LIGHT
    facing = right * (cast.cos * across + cast.sin * along)
    facing = facing + down * (cast.cos * along - cast.sin * across)
    facing = facing * (rim * rim)
    slope = (across * dx - along * cast.y) / cast.size + (along / cast.size) * y
    shade = mx.minimum(0.95 + 0.1 * facing + 0.06 * slope, 1) * marks
    return cover, shade, mx.maximum(facing, 0) * 0.12


def _shadow(cast, x, y):
    """How much light things keep from the ground: less the higher they are. (B, F, H, W)."""
    high = mx.maximum(cast.high, 0)
    across = (x - cast.x) / (1.1 * cast.size)
    along = (y - GROUND - 0.005) / 0.045
    across, along = (mx.maximum(1 - a * a, 0) for a in (across, along))
    return (0.4 / (1 + 4 * high) * across * across) * (along * along)


PALE = (  # red, green, blue of a plain wall, and of one with a floor
    ((0.93, 0.94, 0.97), (0.97, 0.93, 0.90)),
    ((0.97, 0.95, 0.89), (0.90, 0.95, 0.93)),
    ((0.92, 0.92, 0.92), (0.95, 0.91, 0.96)),
    ((0.89, 0.94, 0.97), (0.97, 0.96, 0.91)),
)
SOFT = (  # at the top and the bottom of a gradient
    ((0.66, 0.80, 0.95), (0.97, 0.86, 0.80)),
    ((0.98, 0.90, 0.70), (0.75, 0.88, 0.86)),
    ((0.84, 0.76, 0.93), (0.93, 0.95, 0.82)),
    ((0.72, 0.90, 0.84), (0.95, 0.84, 0.92)),
)
NIGHT = ((0, (0.03, 0.04, 0.15)), (1, (0.12, 0.16, 0.36)))
SUNSET = ((0, (0.42, 0.32, 0.56)), (0.45, (0.80, 0.52, 0.60)), (1, (0.99, 0.74, 0.46)))
HORIZON = 0.7
SKY = ((0, (0.66, 0.83, 0.97)), (HORIZON, (0.88, 0.94, 0.98)))
GRASS = ((HORIZON, (0.56, 0.76, 0.46)), (1, (0.44, 0.66, 0.36)))


def _stops(scene):
    """Heights from the top down, and the colours there; between them a background blends."""
    wall, room = PALE[scene.variant]
    top, bottom = SOFT[scene.variant]
    match scene.background:
        case "plain":
            return ((0, wall),)
        case "gradient":
            return ((0.05, top), (0.95, bottom))
        case "night":
            return NIGHT
        case "meadow":
            return SKY + GRASS
        case "sunset":
            return SUNSET
        case "floor":
            hue, value = HUES[scene.floor] / 360, VALUES[scene.floor]
            far, near = (colorsys.hsv_to_rgb(hue, 0.5, value * v) for v in (0.95, 0.82))
            return ((0, room), (HORIZON, room), (HORIZON, far), (1, near))
    known = ", ".join(BACKGROUNDS)
    raise ValueError(f"background must be one of {known}; got {scene.background!r}")


def _backgrounds(scenes, height, width):
    """(B, 3, 1, H, W) in [0, 1]."""
    rows = np.stack([_blend(_stops(scene), height) for scene in scenes])
    rows = mx.array(rows, mx.float32)[:, :, None, :, None]
    stars = [_stars(s.background == "night", s.variant, height, width) for s in scenes]
    return rows + mx.stack(stars)[:, None, None] * (1 - rows)


def _blend(stops, height):
    """Colour of each row of pixels, (3, H), the mean of four samples: so the horizon is anti-aliased."""
    places, colours = zip(*stops)
    at = (np.arange(4 * height) + 0.5) / (4 * height)
    rows = np.stack([np.interp(at, places, part) for part in zip(*colours)])
    return rows.reshape(3, height, 4).mean(axis=-1)


@lru_cache(maxsize=64)
def _stars(night, variant, height, width) -> mx.array:
    """How white the stars make each pixel, (H, W) in [0, 1]: one star in each cell of a grid."""
    light, rng = np.zeros((height, width)), np.random.default_rng(variant)
    y, x = (np.mgrid[0:height, 0:width] + 0.5) / height
    x = x - width / height / 2 + 0.5
    for row, column in np.ndindex(3, 4) if night else ():
        away, down = rng.uniform(0.15, 0.85, 2) + (column, row)
        far = np.hypot(x - away / 4, y - down / 5) / rng.uniform(0.016, 0.022)
        light = np.maximum(light, 0.9 * np.maximum(1 - far**2, 0) ** 2)
    return mx.array(light, mx.float32)


# ---- sound

LOUDNESS = 0.55
GRID = 100  # hertz: all tones are multiples of it, and all sounds begin on its beat
TONES = {  # hertz at the start of the way and at its end; weight of the third harmonic
    "steady": (500, 500, 0.1),
    "rising": (300, 1100, 0.1),
    "falling": (1100, 300, 0.1),
    "hum": (100, 100, 0.45),
    "swelling": (400, 400, 0.1),
    "fading": (400, 400, 0.1),
    "warble": (700, 700, 0.1),
}
MULTIPLES = 45  # of GRID that are heard
KNOCK = ((520, 0.045, 0.8), (1310, 0.015, 0.5))  # partials: hertz, decay (s), weight


def sound_kind(scene: Scene) -> str:
    """What is to be heard of the first actor: one of SOUNDS' values."""
    return "silence" if scene.silent else SOUNDS[scene.actors[0].motion]


def knocks(scene: Scene, frames: int) -> list[float]:
    """Seconds of every knock in a clip of so many frames, in order."""
    times = [contacts(actor, frames) for _, actor in _heard(scene)]
    return sorted(float(time) for some in times for time in some)


def sound(
    scenes: Sequence[Scene], frames: int, sample_rate: int = SAMPLE_RATE
) -> mx.array:
    """What is heard (B, 2, n) float32 in [-1, 1], n = round(frames / FPS * sample_rate), panned to where the thing is.

    A second actor is half as loud. A spectrogram shows no phases, and a vocoder makes equal sound of equal frames, so
    that a steady tone comes out of it with a period of one frame, 10 ms, whatever went in. Hence tones are multiples of
    ``GRID`` here, glides run over them as on a natural trumpet, and knocks fall on its beat, at most 5 ms off.
    """
    count, block = round(frames / FPS * sample_rate), sample_rate // GRID
    times = np.arange(-(-count // block) + 1) / GRID
    out = np.zeros((len(scenes), 2, count), np.float32)
    owners, levels = [], []
    for b, scene in enumerate(scenes):
        for loudness, actor in _heard(scene):
            _knock(out[b], actor, loudness, contacts(actor, frames), sample_rate)
            if SOUNDS[actor.motion] in TONES:
                owners.append(b)
                levels.append(_levels(actor, loudness, times))
    out = mx.array(out)
    if not levels:
        return out
    tones = _tones(np.stack(levels), block)[..., :count]
    return out.at[mx.array(owners)].add(tones)


def _heard(scene):
    """Loudness and actor of each that makes a sound."""
    loudness = () if scene.silent else (LOUDNESS, LOUDNESS / 2)
    return list(zip(loudness, scene.actors))


def _levels(actor, loudness, times):
    """Amplitudes of GRID's multiples at the times, left and right: (2, times, MULTIPLES)."""
    kind, track, gone = SOUNDS[actor.motion], path(actor, times), _gone(actor, times)
    *ends, third = TONES[kind]
    size = (SIZES[""] / actor.size) ** 0.5
    first, last = (max(1, round(hertz * size / GRID)) for hertz in ends)
    multiple = first * (last / first) ** gone
    loud = loudness * np.minimum(times / 0.03, 1)  # begins without a click
    if kind == "warble":
        multiple = multiple + 0.5 + 0.5 * np.sin(2 * np.pi * 5 * times)
    if kind == "hum":
        loud = loud * (0.7 + 0.3 * np.cos(2 * np.pi * 5 * times))
    if kind in ("swelling", "fading"):
        loud = loud * (track.size / actor.size)
    away = np.abs(multiple[:, None] - np.arange(1, MULTIPLES + 1))
    share = np.clip(2.5 - 4 * away, 0, 1)  # for a quarter of the way it is two at once
    share[:, 2::3] += third * share[:, : MULTIPLES // 3]
    return loud[:, None] * share * _pan(track.x)[..., None]


def _pan(x):
    """Gains of left and right, of equal power: (2, n)."""
    turn = np.clip(x, 0, 1) * np.pi / 2
    return np.stack([np.cos(turn), np.sin(turn)])


def _tones(levels, block):
    """(N, 2, blocks + 1, MULTIPLES) -> (N, 2, blocks * block): the levels run straight between the beats."""
    part = mx.arange(block) / block
    waves = mx.sin(2 * np.pi * part * mx.arange(1, MULTIPLES + 1)[:, None])
    levels = mx.array(levels, mx.float32)
    out = levels[:, :, :-1] @ (waves * (1 - part)) + levels[:, :, 1:] @ (waves * part)
    return out.reshape(len(levels), 2, -1)


def _knock(out, actor, loudness, times, sample_rate):
    """Adds a wooden knock at each of the times to ``out`` (2, n)."""
    pitch = (SIZES[""] / actor.size) ** 0.5
    for time in times:
        begin = round(time * GRID) * (sample_rate // GRID)
        length = max(0, min(sample_rate // 2, out.shape[-1] - begin))
        after = np.arange(length) / sample_rate
        wave = sum(
            weight * np.exp(-after / decay) * np.sin(2 * np.pi * pitch * hertz * after)
            for hertz, decay, weight in KNOCK
        )
        gains = loudness * _pan(np.array([actor.x]))
        out[:, begin : begin + length] += gains * wave
