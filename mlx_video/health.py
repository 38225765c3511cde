"""Checks the output of each phase for garbage, and raises ``HealthError`` for it. Knows numbers, not models."""

from collections import Counter
from typing import Iterable, Iterator

import mlx.core as mx
import numpy as np

from mlx_video.types import AV, VideoScale, Waveform

# Latents, whose mean is near 0 and deviation near 1.
FLAT_LATENT = 1e-4  # standard deviation
WILD_LATENT = 100.0  # largest magnitude; healthy latents stay below 20
# Noise: variance of channel means (1 = by chance), correlation of neighbours, and fewest cells to judge by.
NOISE_MEANS, NOISE_LIKENESS, FEW_CELLS = 1.5, 0.25, 4

# Decoded values, in [-1, 1] except for some overshoot.
SATURATED, SATURATED_SHARE = 3.0, 0.01  # a magnitude, and the share that may exceed it
# Pixels of a latent cell (row, column as shares of it) that are compared with those of the next cells.
PLACES = ((0.1, 0.16), (0.35, 0.66), (0.6, 0.3), (0.85, 0.91))

# Pixel levels from 0 to 255. Real black frames have codec and decoder noise well above these.
BLACK_LEVEL = 2  # brightest pixel of a black frame
LIT_SHARE = 0.001  # share of brighter pixels that makes a frame lit
FLAT_LEVEL, FLAT_RANGE = 0.5, 2  # deviation, or range, of a frame of one colour
LIVELY_LEVEL = 8.0  # standard deviation of a picture that shows something
STILL_LEVEL = 0.02  # mean change of a pixel over a clip in which nothing moves
FLICKER_LEVEL, FLICKER_SHARE = 4.0, 0.25  # change of every frame, and of every second
# Steps between the rows and columns of a sample, and of a first check; how many of each to check of a matrix.
EVERY, FEW, GLANCE = 8, 64, 16
DEAD_FRAMES, DEAD_SHARE = 8, 0.25  # in a row, and of the clip: a failed tile
BLANK_SHARE = 0.6  # the same for exact black or white, which a clip may cut to
FEW_FRAMES = 4  # in a row: fewer are never judged
DEAD_SIDE = 0.2  # share of the width or height that a failed tile leaves blank

# Samples in [-1, 1].
SILENCE, QUIET = 1e-5, 1e-3  # root mean squares: -100 dB; too quiet to judge
OFFSET = 0.95  # mean / root mean square, in every channel
RAIL, RAIL_SHARE = 0.99, 0.25  # a magnitude, and the share that may reach it
LOUD, WHITE = 0.5, 0.5  # root mean square and spectral flatness of noise at full scale
# Deviation / mean of the loudness of frames, their length, and how many are needed.
STEADY, LOUDNESS_SECONDS, STEADY_FRAMES = 0.007, 0.125, 8

RELOAD = "Check the files with `mlx-video info`, then run again"
WANTED = "or --no-health-check if that is what the prompt wants"


class HealthError(RuntimeError):
    """The output of a phase cannot be right; the message names the phase, the finding and what to try."""


def sound_again() -> str:
    """What to try for sound that is wrong; a CPU computes in float32 anyway."""
    exact = "--dtype float32, then " if mx.default_device() != mx.cpu else ""
    return f"Try {exact}another copy of the files (see `mlx-video info`)"


def decode_again() -> str:
    """What to try for a video that is wrong."""
    return sound_again().replace("Try ", "Try --tiling aggressive, then ")


def check_embeddings(embeddings: AV[mx.array]) -> None:
    """Check the connectors' output for one prompt, (B, L, D) per modality."""
    for modality in embeddings.present:
        _check_tensor(embeddings[modality], f"the {modality.value} prompt embedding")


def check_weights(part: str, weights: Iterable[tuple[str, mx.array]]) -> None:
    """Raise ``HealthError`` if a matrix of a part's weights is zero everywhere, as in a broken download.

    Checks only 2-D weights with at least GLANCE rows and columns: the demo's vocoder has convolutions that learned nothing.
    Reads a few numbers of a matrix, and all of them only if these are zero.
    """
    matrices = {k: w for k, w in weights if w.ndim == 2 and min(w.shape) >= GLANCE}
    few = [w[:: len(w) // GLANCE, :: w.shape[1] // GLANCE] for w in matrices.values()]
    zero = [(some == 0).all() for some in few]
    mx.eval(zero)
    zero = [k for k, none in zip(matrices, zero) if none.item()]
    if dead := [k for k in zero if (matrices[k] == 0).all().item()]:
        raise HealthError(
            f"{len(dead)} of the {len(matrices)} matrices of the {part} are zero everywhere, such as {dead[0]}. "
            f"{RELOAD.replace('info', 'info --verify')}."
        )


def check_latents(latents: AV[mx.array], phase: str, remedy: str = RELOAD) -> None:
    """Check the latents of ``phase``, video (B, C, F, H, W) and audio (B, C, T, M); ``remedy`` says what to do."""
    for modality in latents.present:
        x, name = latents[modality], f"the {modality.value} latent after {phase}"
        _check_tensor(x, name, remedy)
        cells = tuple(range(2, x.ndim))
        if x[0, 0].size >= FEW_CELLS and mx.std(x, axis=cells).max() < FLAT_LATENT:
            raise HealthError(
                f"There is nothing in {name}: it is the same everywhere. {remedy}."
            )
        if (peak := mx.abs(x).max().item()) > WILD_LATENT:
            raise HealthError(
                f"{name.capitalize()} reaches {peak:.3g}, but healthy ones stay below "
                f"{WILD_LATENT:g}. Try a lower --cfg-scale; if there is no guidance: {remedy}."
            )
        if x.ndim >= 4 and _is_noise(np.array(x[0].astype(mx.float32))):
            what = "is still the noise that it began as; the transformer removed none"
            raise HealthError(f"{name.capitalize()} {what}. {remedy}.")


def _check_tensor(x: mx.array, name: str, remedy: str = RELOAD) -> None:
    finite, deviation = mx.isfinite(x).all(), mx.std(x.astype(mx.float32))
    if not finite.item():
        raise HealthError(f"There are NaN or infinite values in {name}. {remedy}.")
    if deviation.item() < FLAT_LATENT:
        raise HealthError(
            f"There is nothing in {name}: it varies by only {deviation.item():.1e}. {remedy}."
        )


def _is_noise(x: np.ndarray) -> bool:
    """Whether the cells of (C, F, H, W) or (C, T, M) are unrelated, unlike those of any picture or sound.

    The first frame may be a given image, so if there are others it counts only as their predecessor.
    """
    rest = x[:, 1:] if x.shape[1] > 1 else x
    axes = (1, 2, 3) if x.ndim == 4 else (1,)  # each mel bin is a channel of its own
    means = rest.mean(axis=axes, keepdims=True)
    cells = rest.size // means.size
    if cells < FEW_CELLS:
        return False
    within = np.square(rest - means).sum() / (means.size * (cells - 1))
    if cells * np.square(means).mean() > NOISE_MEANS * within:
        return False
    alike = [_likeness(x, 1), *(_likeness(rest, axis) for axis in range(2, x.ndim))]
    return max(alike) < NOISE_LIKENESS


def _likeness(x: np.ndarray, axis: int) -> float:
    """Correlation of neighbours along ``axis``, 0 to 1."""
    if x.shape[axis] == 1:
        return 0.0
    a, b = np.delete(x, 0, axis), np.delete(x, -1, axis)
    return float(abs((a * b).mean()) / np.square(x).mean())


def check_waveform(waveform: Waveform, silent: bool = False) -> None:
    """Check generated sound; ``silent`` = silence is fine."""
    if not mx.isfinite(waveform.samples).all().item():
        raise HealthError(
            f"Decoding made sound with NaN or infinite samples. {sound_again()}."
        )
    samples = np.array(waveform.samples.astype(mx.float32))
    level = float(np.sqrt(np.square(samples).mean()))
    if level < SILENCE and not silent:
        raise HealthError(
            f"Decoding made silence (root mean square {level:.1e} of 1) where sound was asked for. "
            "Try another seed. If silence is what the prompt wants, add --no-health-check."
        )
    if level > QUIET and (what := _wrong_with(samples, waveform.sample_rate)):
        raise HealthError(f"Decoding made {what}. {sound_again()}; {WANTED}.")


def _wrong_with(samples: np.ndarray, rate: int) -> str | None:
    """What is wrong with samples (channels, n), in words; ``None`` = nothing."""
    levels = np.sqrt(np.square(samples).mean(axis=1))
    if levels.min() < QUIET * levels.max():
        return f"sound in one channel only; the other is silent ({levels.min():.1e})"
    if (np.abs(samples.mean(axis=1)) > OFFSET * levels).all():
        return "sound that is little more than a constant offset"
    if (share := (np.abs(samples) > RAIL).mean()) > RAIL_SHARE:
        return f"sound of which {share:.0%} is at full scale"
    if levels.max() > LOUD and _flatness(samples) > WHITE:
        return "white noise at full loudness"
    if all(_is_steady(channel, rate) for channel in samples):
        return "a drone, whose loudness never changes"
    return None


def _flatness(samples: np.ndarray) -> float:
    """Spectral flatness of the mean spectrum: 1 for white noise, 0 for tones."""
    n = samples.shape[1] // 1024 * 1024
    power = np.square(np.abs(np.fft.rfft(samples[:, :n].reshape(-1, 1024))))
    power = power.mean(axis=0)[1:] + 1e-12 if n else np.array([1e-12, 1.0])
    return float(np.exp(np.log(power).mean()) / power.mean())


def _is_steady(channel: np.ndarray, rate: int) -> bool:
    """Whether the loudness is constant; the ends are left out, since they may be faded."""
    size = round(LOUDNESS_SECONDS * rate)
    window = np.hanning(size)
    starts = range(size // 2, len(channel) - size * 3 // 2, size // 2)
    loudness = [np.sqrt(np.square(channel[i : i + size]) @ window) for i in starts]
    if len(loudness) < STEADY_FRAMES:
        return False
    return bool(np.std(loudness) < STEADY * np.mean(loudness))


def check_pixels(chunk: mx.array, cell: VideoScale) -> mx.array:
    """Check decoded pixels (B, 3, f, H, W); returns them unchanged.

    ``cell`` is the size of a latent cell: a decoder without input repeats itself from cell to cell.
    """
    # A non-finite value makes the sum of its row non-finite, and there are fewer sums to check.
    finite = mx.isfinite(chunk.sum(axis=-1)).all()
    x = chunk[..., ::EVERY, ::EVERY]
    saturated = (mx.abs(x) > SATURATED).astype(mx.float32).mean()
    repeated = mx.stack([_repeats(chunk, cell, *place) for place in PLACES]).all(axis=0)
    mx.eval(finite, saturated, repeated)
    if not finite.item():
        what = "frames with NaN or infinite pixels"
    elif saturated.item() > SATURATED_SHARE:
        what = f"frames of which {saturated.item():.0%} is far out of range"
    elif repeated.any().item():
        what = "a picture in which a part repeats exactly, as if it were missing"
    else:
        return chunk
    raise HealthError(f"Decoding made {what}. {decode_again()}.")


def _repeats(chunk: mx.array, cell: VideoScale, row: float, column: float) -> mx.array:
    """Where a pixel of a latent cell exactly equals that of the next cells in all colours: bool (B, f, h, w)."""
    sides = zip(chunk.shape[-2:], cell[1:], (row, column))
    rows, columns = (slice(int(at * n), side // n * n, n) for side, n, at in sides)
    x = chunk[..., rows, columns]
    here, right = x[..., :-1, :-1], x[..., :-1, 1:]
    below, across = x[..., 1:, :-1], x[..., 1:, 1:]
    return ((here == right) & (here == below) & (here == across)).all(axis=1)


def watched(frames: Iterable[np.ndarray], still: bool = False) -> Iterator[np.ndarray]:
    """Yield uint8 frames (H, W, 3) unchanged, and judge all of them after the last.

    Raises ``HealthError`` if all are black, of one colour, or (unless the clip may be ``still``) the same picture; or if
    many in a row are one exact colour, frozen, flickering between two pictures, or blank on one side. A decoder's noise
    rules that out for real frames, except where it is clipped: clips may fade or cut to exact black or white.
    """
    seen = _Seen()
    for frame in frames:
        seen.look(frame)
        yield frame
    if what := seen.whole(still) or seen.part(still):
        raise HealthError(what)


class _Seen:
    """Findings about the frames of a clip so far."""

    def __init__(self) -> None:
        self.count = 0
        self.lit = self.moves = self.shows = False
        self.deviation = 0.0  # the largest up to a frame that shows something
        self.now, self.most = Counter(), Counter()  # frames in a row, by finding
        self.frame: np.ndarray | None = None  # the last one
        self.lively = False  # whether it was
        self.samples: list[np.ndarray] = []  # of the first frame and of the last two

    def look(self, frame: np.ndarray) -> None:
        sample = np.ascontiguousarray(frame[::EVERY, ::EVERY])
        first, before, last = self.samples or [sample] * 3
        deviation = _deviation(sample)
        self.lit = self.lit or (sample > BLACK_LEVEL).mean() > LIT_SHARE
        self.moves = self.moves or _change(first, sample) >= STILL_LEVEL
        if not self.shows:
            self.deviation = max(self.deviation, deviation)
            self.shows = _shows(sample)
        self._look_for_death(frame)
        self.lively = lively = deviation >= LIVELY_LEVEL
        self._mark("half", lively and all(map(_lacks_a_side, (sample, frame))))
        self._mark("frozen", self.moves and lively and _equal(self.frame, frame))
        self._mark("flickers", self.count > 1 and _flickers(before, last, sample))
        self.count, self.frame = self.count + 1, frame
        self.samples = [first, last, sample]

    def _look_for_death(self, frame: np.ndarray) -> None:
        """Mark frames of exactly one colour; for black and white, only right after a lively picture."""
        colour = frame[0, 0]
        # A few pixels clear nearly every good frame; only the rest are checked in full.
        plain = not ((frame[::FEW, ::FEW] != colour).any() or (frame != colour).any())
        blank = plain and _clipped(colour)
        self._mark("dead", plain and not blank)
        self._mark("blank", blank and (self.now["blank"] or self.lively))

    def _mark(self, what: str, seen: object) -> None:
        self.now[what] = self.now[what] + 1 if seen else 0
        self.most[what] = max(self.most[what], self.now[what])

    def whole(self, still: bool) -> str | None:
        """What is wrong with the whole clip."""
        if self.count == 0:
            return f"Decoding made no frames. {decode_again()}."
        if not self.lit:
            return f"All {self.count} frames are black. {decode_again()}."
        if not self.shows:
            return f"All {self.count} frames have one colour (pixels vary by {self.deviation:.2f} of 255). {decode_again()}."
        if self.count > 1 and not self.moves and not still:
            return (
                f"All {self.count} frames are the same picture. Try another seed or a prompt that says what moves. "
                "If a still is what you want, add --no-health-check."
            )
        return None

    def part(self, still: bool) -> str | None:
        """What is wrong with many frames in a row."""
        long = max(DEAD_FRAMES, DEAD_SHARE * self.count)
        dies = "The picture dies: {} have exactly one colour"
        asked = {
            "dead": (long, dies),
            "blank": (max(long, BLANK_SHARE * self.count), dies),
            "flickers": (min(DEAD_FRAMES, self.count - 2), "The picture flickers: {} equal the one before last"),
            "half": (min(long, self.count), "A side of the picture has exactly one colour in {}"),
            "frozen": (DEAD_SHARE * self.count, "The picture freezes: {} equal the one before"),
        }  # fmt: skip
        for what, (least, text) in asked.items():
            if still and what in ("half", "frozen"):
                continue
            if self.most[what] >= max(least, FEW_FRAMES):
                run = f"{self.most[what]} of {self.count} frames in a row"
                return f"{text.format(run)}. {decode_again()}; {WANTED}."
        return None


def _deviation(sample: np.ndarray) -> float:
    """The largest standard deviation of a colour channel over the pixels (h, w, 3)."""
    return float(sample.std(axis=(0, 1), dtype=np.float32).max())


def _change(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference of two uint8 pictures."""
    return float(np.abs(a.astype(np.int16) - b).mean())


def _shows(sample: np.ndarray) -> bool:
    """Whether the picture has more than one colour, apart from noise."""
    low, high = np.quantile(sample, (0.001, 0.999), axis=(0, 1))
    return _deviation(sample) >= FLAT_LEVEL and bool((high - low).max() > FLAT_RANGE)


def _clipped(colour: np.ndarray) -> bool:
    return bool(((colour == 0) | (colour == 255)).all())


def _equal(a: np.ndarray | None, b: np.ndarray) -> bool:
    if a is None or (a[::FEW, ::FEW] != b[::FEW, ::FEW]).any():
        return False
    return bool((a == b).all())


def _flickers(before: np.ndarray, last: np.ndarray, now: np.ndarray) -> bool:
    """Whether a sample resembles the one before last, but not the last."""
    change = _change(last, now)
    return change >= FLICKER_LEVEL and _change(before, now) < FLICKER_SHARE * change


def _lacks_a_side(picture: np.ndarray) -> bool:
    """Whether one side of a picture is exactly one colour up to a straight edge, but the opposite side is not.

    Black and white may be shadow or sky: they count only on the left and right, and up to a sharp edge.
    """
    for view, upright in ((picture, False), (picture.swapaxes(0, 1), True)):
        for side, other in ((view, view[:, ::-1]), (view[:, ::-1], view)):
            count, colour = _plain_columns(side), side[0, 0]
            if count < DEAD_SIDE * side.shape[1] or _plain_columns(other):
                continue
            sharp = _change(colour, side[:, count]) >= LIVELY_LEVEL
            if not _clipped(colour) or (sharp and not upright):
                return True
    return False


def _plain_columns(sample: np.ndarray) -> int:
    """How many columns from the left have exactly the colour of the first pixel."""
    plain = (sample == sample[0, 0]).all(axis=(0, 2))
    return int(np.append(plain, False).argmin())
