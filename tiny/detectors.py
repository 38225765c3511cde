"""What is to be seen and heard in a clip of the small world, found by measuring: no learning, no weights.

Knows how the world looks and sounds; not how a clip was made, nor what it was meant to show (``tiny.evaluate``).

Places and sizes are in frame heights, x to the right and y down; times are seconds; angles are degrees, clockwise.
"""

from functools import lru_cache
from typing import NamedTuple, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tiny import world
from tiny.world import BACKGROUNDS, COLOURS, FPS, HUES, THINGS, VARIANTS, Actor, Scene

# ---- what is there

HEIGHT = 128  # pixels that are measured; larger pictures are averaged down to it
EDGE = 0.025  # of the width at each side, where things are seldom seen
FAINT = 0.15  # strangeness from which a pixel may be a thing's; that of a thing is 0.25 to 1
LEAST = 0.02  # radius of the smallest thing
NEAR = 25.0  # degrees of hue that one thing's pixels are from its own
MOSTLY = (
    0.5  # of what is strange is the thing's, in as many of the frames, if there is one
)
SPOKES, RINGS = 72, 20  # of the polar picture of an outline
REACH = 2.2  # how far that goes, in root mean square radii


class Seen(NamedTuple):
    """One thing over those F frames of a clip that show it.

    times     (F,) of the frames
    x, y      (F,) of its centre of mass
    size      (F,) radius of a disc of the same area
    hue       degrees
    outline   (F, RINGS, SPOKES) how much of each place about the centre it covers, scaled to its size; spokes from the
              right, clockwise; rings weighted by their area
    light     the same, where its dark parts cover less
    """

    times: np.ndarray
    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    hue: float
    outline: np.ndarray
    light: np.ndarray


def look(frames: np.ndarray, count: int = 1) -> list[Seen | None]:
    """What is seen in uint8 RGB frames (F, H, W, 3) of one thing, or of one in each half; ``None`` where nothing is.

    It must be there in half of the frames.
    """
    pixels = _shrunk(frames)
    behind = _backdrop(pixels)
    edges = np.linspace(0, pixels.shape[3], count + 1).astype(int)
    return [_look(pixels, behind, *half) for half in zip(edges, edges[1:])]


def _backdrop(pixels: np.ndarray) -> np.ndarray:
    """The colour of each row behind the things, (3, H): what pixels (3, F, H, W) mostly show at both sides."""
    side = max(2, round(EDGE * pixels.shape[3]))
    sides = np.concatenate([pixels[..., :side], pixels[..., -side:]], axis=3)
    return np.median(sides, axis=(1, 3))


def _shrunk(frames: np.ndarray) -> np.ndarray:
    """Blocks of pixels averaged: uint8 (F, H, W, 3) -> (3, F, H, W) in [0, 1]."""
    by = max(1, frames.shape[1] // HEIGHT)
    F, H, W, _ = frames.shape
    rows = sum(frames[:, i : H // by * by : by].astype(np.float32) for i in range(by))
    blocks = sum(rows[:, :, i : W // by * by : by] for i in range(by))
    return np.ascontiguousarray(np.moveaxis(blocks, 3, 0)) / np.float32(255 * by * by)


def _strangeness(pixels: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """What of each pixel's colour is not that of the backdrop, (3, F, H, W); nothing in its shadows and its stars.

    A shadow darkens all colours alike, so the nearest darker backdrop is taken away; and stars have no colour.
    """
    behind = behind[:, None, :, None]
    share = (pixels * behind).sum(0) / np.maximum((behind**2).sum(0), 1e-4)
    rest = pixels - np.minimum(share, 1) * behind
    return rest * (np.ptp(rest, axis=0) > 0.5 * np.abs(rest).max(0))


def _look(pixels, behind, left, right) -> Seen | None:
    """The thing of the commonest strange hue in columns ``left`` to ``right``."""
    pixels, height = pixels[..., left:right], pixels.shape[2]
    strange = _strangeness(pixels, behind)
    bold = (strange**2).sum(0) > FAINT**2
    if bold.mean() < LEAST**2:
        return None
    colours = pixels[:, bold]
    hue = _commonest(_hues(colours), np.ptp(colours, axis=0))
    own = abs(_turn(_hues(colours) - hue)) < NEAR
    if own.mean() < MOSTLY:
        return None
    vivid = np.ptp(colours, axis=0) * own
    colour = colours[:, vivid >= np.median(vivid[vivid > 0])].mean(1)
    cover = _cover(strange, _strangeness(colour[:, None, None, None], behind))
    y, x = (np.mgrid[:height, left:right] + 0.5) / height
    x, y, spread, area = _moments(cover, x.astype(np.float32), y.astype(np.float32))
    there = np.flatnonzero(area > np.pi * LEAST**2)
    if len(there) < MOSTLY * len(area):
        return None
    x, y, spread, area, cover = (a[there] for a in (x, y, spread, area, cover))
    light = pixels[:, there].max(0)
    light = cover * np.minimum(light / np.median(light[cover > 0.5]), 1.2)
    polar = (_polar(part, x - left / height, y, spread) for part in (cover, light))
    return Seen(there / FPS, x, y, np.sqrt(area / np.pi), hue, *polar)


def _hues(colours: np.ndarray) -> np.ndarray:
    """Degrees, of colours (3, ...)."""
    red, green, blue = colours
    return np.degrees(np.arctan2(3**0.5 * (green - blue), 2 * red - green - blue)) % 360


def _turn(degrees):
    """The same angle within half a turn."""
    return (degrees + 180) % 360 - 180


def _commonest(hues: np.ndarray, weights: np.ndarray) -> float:
    """The middle of the fullest 20 degrees."""
    counts = np.bincount((hues // 5).astype(int) % 72, weights, minlength=72)
    fullest = 5 * sum(np.roll(counts, shift) for shift in range(4)).argmax() - 5
    apart = _turn(hues - fullest)
    near = abs(apart) <= 10
    return float(fullest + np.average(apart[near], weights=weights[near])) % 360


def _cover(strange: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """How much of each pixel is the thing's, in [0, 1]; ``whole`` (3, 1, H, 1) is how strange it is before each row."""
    along, least = (strange * whole).sum(0), np.maximum((whole**2).sum(0), 1e-4)
    alike = along > 0.8 * np.sqrt((strange**2).sum(0) * least)
    cover = np.clip(along / least, 0, 1)
    return cover * (alike & (cover > 0.3))


def _moments(cover, x, y):
    """Centre, root mean square radius and area of the cover (F, H, W) in each frame; what lies far off is left out."""
    weight = cover
    for _ in range(3):
        mass = np.maximum(weight.sum((1, 2)), 1e-6)
        middles = [(weight * axis).sum((1, 2)) / mass for axis in (x, y)]
        away = sum((axis - m[:, None, None]) ** 2 for axis, m in zip((x, y), middles))
        spread = np.sqrt((weight * away).sum((1, 2)) / mass)
        weight = cover * (away < (2.5 * spread[:, None, None]) ** 2)
    return *middles, spread, mass / len(y) ** 2


def _polar(cover, x, y, spread) -> np.ndarray:
    """Cover (F, H, W) about the centres, by bilinear sampling: (F, RINGS, SPOKES)."""
    F, H, W = cover.shape
    radii = (np.arange(RINGS) + 0.5)[:, None] / RINGS * REACH
    angles = np.arange(SPOKES) * 2 * np.pi / SPOKES
    places = []
    for middle, axis in ((x, np.cos(angles)), (y, np.sin(angles))):
        at = middle[:, None, None] + spread[:, None, None] * radii * axis
        places.append(at * H - 0.5)
    columns, rows = np.clip(places[0], 0, W - 1.01), np.clip(places[1], 0, H - 1.01)
    left, top = columns.astype(int), rows.astype(int)
    right, low = columns - left, rows - top
    frame = np.arange(F)[:, None, None]
    corner = lambda down, on: cover[frame, top + down, left + on]
    upper = corner(0, 0) * (1 - right) + corner(0, 1) * right
    lower = corner(1, 0) * (1 - right) + corner(1, 1) * right
    return (upper * (1 - low) + lower * low) * np.sqrt(radii)


# ---- colour, background, thing

ALIKE = 0.93  # likeness of outlines, 1 at most, of one thing; softened ones reach 0.98


def colour(seen: Seen) -> str:
    """The nearest of the world's colours."""
    return min(COLOURS, key=lambda name: abs(_turn(seen.hue - HUES[name])))


def background(frames: np.ndarray) -> tuple[str | None, str | None]:
    """The nearest of the world's backgrounds, and the colour of the floor where it has one; ``None`` if none is near."""
    profile = _profile(_backdrop(_shrunk(frames)))
    names, profiles = _profiles()
    away = np.abs(profiles - profile).mean((1, 2))
    return names[away.argmin()] if away.min() < 0.1 else (None, None)


def _profile(backdrop):
    """32 colours from the top down."""
    return np.stack([p.mean(1) for p in np.array_split(backdrop, 32, axis=1)])


@lru_cache
def _profiles():
    """Names and profiles of all backgrounds."""
    names = [(b, f) for b in BACKGROUNDS for f in (COLOURS if b == "floor" else [None])]
    names = [name for name in names for _ in range(VARIANTS)]
    one = Scene((_sample("ball"),), "plain")
    scenes = [
        one._replace(background=b, floor=f, variant=i % VARIANTS)
        for i, (b, f) in enumerate(names)
    ]
    clips = _drawn(scenes, 64)
    return names, np.stack([_profile(_backdrop(_shrunk(clip))) for clip in clips])


def thing(seen: Seen, among: Sequence[str] = THINGS) -> str | None:
    """Which of the things has the likest outline, turned however it may be; ``None`` if none is like it."""
    large = np.flatnonzero(seen.size > 0.8 * seen.size.max())
    some = large[np.linspace(0, len(large) - 1, 12).astype(int)]
    outlines = _normal(seen.outline[some])
    likeness = {
        name: np.mean([_matches(outlines, one).max(1) for one in _outlines()[name]], 1)
        for name in among
    }
    best = max(among, key=lambda name: likeness[name].max())
    return best if likeness[best].max() > ALIKE else None


def _normal(outlines):
    return outlines / np.maximum(
        np.linalg.norm(outlines, axis=(1, 2), keepdims=True), 1e-6
    )


def _matches(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Likeness of outlines (..., RINGS, SPOKES) when a is turned on by each number of spokes: (..., SPOKES)."""
    spectra = np.fft.rfft(b) * np.conj(np.fft.rfft(a))
    return np.fft.irfft(spectra.sum(-2), SPOKES)


@lru_cache
def _outlines() -> dict[str, np.ndarray]:
    """Of each thing, sharp and ever softer."""
    clips = _drawn([Scene((_sample(name),), "plain") for name in THINGS], HEIGHT)
    found = {}
    for name, clip in zip(THINGS, clips):
        softened = [_softened(clip, width) for width in (1, 5, 9)]
        found[name] = _normal(np.concatenate([look(c)[0].outline for c in softened]))
    return found


def _sample(thing: str) -> Actor:
    return Actor(thing, "blue", "still", 0.22, 0.5, 0.5, 0.0, 1.0, 0.0, 1)


def _drawn(scenes, height: int) -> np.ndarray:
    """Their first frames, uint8 (B, 1, H, W, 3)."""
    clips = np.array(world.draw(scenes, 1, height, height)).transpose(0, 2, 3, 4, 1)
    return np.clip(clips * 127.5 + 127.5, 0, 255).astype(np.uint8)


def _softened(frames: np.ndarray, width: int) -> np.ndarray:
    """Twice the mean of ``width`` pixels, down and across."""
    x = frames.astype(np.float32)
    for axis in (1, 2, 1, 2):
        pad = [(0, 0)] * 4
        pad[axis] = (width // 2, width // 2)
        x = sliding_window_view(np.pad(x, pad, "edge"), width, axis).mean(-1)
    return x.astype(np.uint8)


# ---- motion

STILL = 0.035  # way below which nothing moved
LARGER, SMALLER = 1.22, 0.84  # of the size in the end over that at first
TURNED = 50.0  # degrees
ASKEW = 0.22  # width over length of a way that is no line
ONWARD = 0.8  # of a way, that leads on and never back


def motion(seen: Seen) -> str | None:
    """Which of the world's motions the path is; ``None`` where it is too short to say."""
    if len(seen.times) < 9:
        return None
    third = len(seen.times) // 8 + 1
    ratio = np.median(seen.size[-third:]) / np.median(seen.size[:third])
    if not SMALLER < ratio < LARGER:
        return "grow" if ratio > 1 else "shrink"
    if abs(turning(seen)) > TURNED:
        return "spin"
    x, y = _smooth(seen.x), _smooth(seen.y)
    across, down = np.ptp(x), np.ptp(y)
    if max(across, down) < STILL:
        return "still"
    if min(across, down) > ASKEW * max(across, down):
        return "circle"
    if across > down:
        return "left-right"
    if abs(y[-1] - y[0]) > ONWARD * np.abs(np.diff(y)).sum():
        return "fall" if y[-1] > y[0] else "rise"
    return "bounce"


def turning(seen: Seen) -> float:
    """How far the thing has turned on the spot, degrees clockwise, from each frame to the next but one."""
    light = _normal(seen.light)
    likeness = np.stack([_matches(a, b) for a, b in zip(light, light[2:])])
    most = 7  # spokes; a star looks the same every 14.4
    likeness = np.roll(likeness, most, axis=1)[:, : 2 * most + 1]
    best = np.clip(likeness.argmax(1), 1, 2 * most - 1)
    before, at, after = (likeness[np.arange(len(best)), best + i] for i in (-1, 0, 1))
    bend = np.minimum(before - 2 * at + after, -1e-9)
    turns = best - most + np.clip((before - after) / (2 * bend), -1, 1)
    return float(turns.sum() / 2 * 360 / SPOKES)


def _smooth(track):
    """The median of three."""
    return np.median(sliding_window_view(np.pad(track, 1, "edge"), 3), axis=1)


def bounces(seen: Seen) -> list[float]:
    """Seconds at which the thing is lowest between a fall and a rise, to a fraction of a frame."""
    y, found = seen.y, []
    deep = 0.15 * np.ptp(y)
    for i in range(2, len(y) - 2):
        before, after = y[max(0, i - 6) : i], y[i + 1 : i + 7]
        lowest = y[i] >= before.max() and y[i] > after.max()
        if lowest and min(y[i] - before.min(), y[i] - after.min()) > deep:
            found.append(float(np.interp(_corner(y, i), np.arange(len(y)), seen.times)))
    return found


def _corner(y, i) -> float:
    """Where the line through the two places before i meets that through the two after."""
    falling, rising = y[i - 1] - y[i - 2], y[i + 2] - y[i + 1]
    if falling - rising < 1e-6:
        return i
    meet = (y[i + 1] - y[i - 1] - rising * (i + 1) + falling * (i - 1)) / (
        falling - rising
    )
    return float(np.clip(meet, i - 1, i + 1))


# ---- sound

HOP = 0.01  # seconds between spectra
WINDOW = 0.043  # seconds that each of them spans
LOW, HIGH = 80.0, 3000.0  # Hz that are listened to
KNOCKING, OVERTONE = (
    430.0,
    1100.0,
)  # Hz from which a knock is heard, and its second partial
QUIET = 0.04  # amplitude below which it is silent
CLEAR = (
    0.7  # of the tone's amplitude, which a knock has that is not only heard beside it
)
LAG = 0.012  # seconds from a knock to the middle of the spectrum in which it is loudest


def sound_kind(sound: np.ndarray, rate: int) -> str:
    """Which of the world's sounds is mainly heard in samples (channels, n)."""
    power, hertz = _spectra(sound, rate)
    amplitude = np.sqrt(power.sum(1))
    if amplitude.max() < QUIET:
        return "silence"
    if _knocking(power, hertz).max() > max(CLEAR * np.median(amplitude), QUIET):
        return "knocks"
    return _tone_kind(power[amplitude > 0.2 * amplitude.max()], hertz)


def knocks(sound: np.ndarray, rate: int) -> list[float]:
    """Seconds of every knock that is heard."""
    clear = _knocking(*_spectra(sound, rate))
    least = max(QUIET, 0.35 * clear.max())
    return [float(i * HOP - LAG) for i in np.flatnonzero(clear > least)]


def _spectra(sound, rate) -> tuple[np.ndarray, np.ndarray]:
    """Power of all channels every HOP (T, bins), a sine of amplitude 1 adds up to 1; and the hertz of the bins."""
    window = round(WINDOW * rate)
    centred = np.pad(sound, ((0, 0), (window // 2, window // 2)))
    pieces = sliding_window_view(centred, window, axis=1)[:, :: round(HOP * rate)]
    size = 4 * window  # so that the bins are finer than the peaks
    spectra = np.fft.rfft(pieces * np.hanning(window), size)
    hertz = np.fft.rfftfreq(size, 1 / rate)
    heard = (hertz >= LOW) & (hertz <= HIGH)
    power = (np.abs(spectra[..., heard]) ** 2).sum(0) * (8 / 3 / window / size * 4)
    return power, hertz[heard]


def _knocking(power, hertz) -> np.ndarray:
    """Amplitude of the knock in each spectrum (T,): what stands out from what is heard before and after it, or 0."""
    loud, high = (power[:, hertz >= least].sum(1) for least in (KNOCKING, OVERTONE))
    beside, above = (
        x - np.maximum(_most(x, -9, -5), _most(x, 14, 26)) for x in (loud, high)
    )
    peak = (loud == _most(loud, -5, 5)) & (np.arange(len(loud)) * HOP > 0.04)
    both = peak & (above > 0.01 * beside) & (above < 0.8 * beside)  # no tones that beat
    return np.sqrt(np.maximum(beside, 0)) * both


def _most(x: np.ndarray, first: int, last: int) -> np.ndarray:
    """The largest from ``first`` to ``last`` places on from each."""
    padded = np.pad(x, (max(0, -first), max(0, last)))
    start = max(0, first)
    windows = sliding_window_view(padded[start:], last - first + 1)
    return windows.max(1)[: len(x)]


def _tone_kind(power, hertz) -> str:
    """Which tone is mainly heard: by its pitch, and how that and its loudness change."""
    pitch = _pitches(power, hertz)
    usual, third = np.median(pitch), len(pitch) // 3 + 1
    way = np.median(pitch[-third:]) - np.median(pitch[:third])
    slope = np.mean(pitch[40:] - pitch[:-40]) if len(pitch) > 40 else 0.0
    if abs(way) > 0.25 and way * slope > 0 and abs(slope) > 0.002:
        return "rising" if way > 0 else "falling"
    if usual < np.log2(200):
        return "hum"
    if _wobble(pitch[abs(pitch - usual) < 0.3]) > 0.035:
        return "warble"
    tone = abs(np.log2(hertz) - usual) < 0.1
    loud = np.sqrt(power[:, tone].sum(1))
    change = np.polyfit(np.linspace(0, 1, len(loud)), loud, 1)[0] / loud.mean()
    if abs(change) < 0.15:
        return "steady"
    return "swelling" if change > 0 else "fading"


def _pitches(power, hertz) -> np.ndarray:
    """Octaves above 1 Hz of the loudest partial in each spectrum."""
    return np.log2(hertz)[power[:, hertz < 1500].argmax(1)]


def _wobble(track) -> float:
    """Root mean square distance from the straight line through it."""
    places = np.arange(len(track))
    return float(np.std(track - np.polyval(np.polyfit(places, track, 1), places)))
