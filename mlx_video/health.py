"""Is this output garbage? Looks at what each phase made, and says in one sentence what is wrong and what to try.

Knows numbers, not models. Every check raises ``HealthError``; none returns a verdict that could be overlooked.
"""

from typing import Iterable, Iterator

import mlx.core as mx
import numpy as np

from mlx_video.types import AV, Waveform

# Pixel levels of 0 to 255. Real black frames carry codec and decoder noise well above these.
BLACK_LEVEL = 2  # what nearly all of a clip that shows nothing stays within
LIT_SHARE = 0.001  # of a frame's values above it, from which the frame shows something
FLAT_LEVEL = 0.5  # standard deviation over the pixels of a frame that has one colour
LIVELY_LEVEL = (
    8.0  # standard deviation of a picture from which no fade gets to one colour at once
)
STILL_LEVEL = 0.02  # mean change of a pixel over a clip in which nothing moves
EVERY = 8  # which rows and columns are looked at: a 64th of the work, and garbage does not hide from it
FEW = 64  # the same, for a first look
DEAD_FRAMES, DEAD_SHARE = (
    8,
    0.25,
)  # in a row, and of the clip, that a failed tile leaves

SILENCE = 1e-5  # root mean square of samples in [-1, 1]: -100 dB
FLAT_LATENT = 1e-4  # standard deviation; healthy latents are near 1
WILD_LATENT = 100.0  # largest magnitude; healthy latents stay below 20

RELOAD = "Check the files with `mlx-video info`, then run again"
DECODE_AGAIN = "Try --tiling aggressive, then --dtype float32"
SOUND_AGAIN = "Try --dtype float32, and check the files with `mlx-video info`"


class HealthError(RuntimeError):
    """A phase made something that cannot be right; the message names the phase, what was seen and what to try."""


def check_embeddings(embeddings: AV[mx.array]) -> None:
    """The connectors' output for one prompt, (B, L, D) per modality."""
    for modality in embeddings.present:
        _check_tensor(embeddings[modality], f"the {modality.value} prompt embedding")


def check_latents(latents: AV[mx.array], phase: str) -> None:
    """Latents, (B, C, ...) per modality, as ``phase`` left them."""
    for modality in latents.present:
        x = latents[modality]
        _check_tensor(x, f"the {modality.value} latent after {phase}")
        if (peak := mx.abs(x).max().item()) > WILD_LATENT:
            raise HealthError(
                f"The {modality.value} latent after {phase} reaches {peak:.3g}, and healthy ones stay below "
                f"{WILD_LATENT:g}. Try a lower --cfg-scale; if there is no guidance: {RELOAD}."
            )


def check_waveform(waveform: Waveform, silent: bool = False) -> None:
    """Sound that was asked for; ``silent`` if it may be so."""
    samples = waveform.samples
    if not mx.isfinite(samples).all().item():
        raise HealthError(
            f"Decoding made sound with NaN or infinite samples. {SOUND_AGAIN}."
        )
    level = mx.sqrt(mx.square(samples).mean()).item()
    if level < SILENCE and not silent:
        raise HealthError(
            f"Decoding made silence (root mean square {level:.1e} of 1) where sound was asked for. "
            "Try another --seed, or --no-health-check if silence is what the prompt wants."
        )


def _check_tensor(x: mx.array, name: str) -> None:
    finite, deviation = mx.isfinite(x).all(), mx.std(x.astype(mx.float32))
    if not finite.item():
        raise HealthError(f"There are NaN or infinite values in {name}. {RELOAD}.")
    if deviation.item() < FLAT_LATENT:
        raise HealthError(
            f"There is nothing in {name}: it varies by {deviation.item():.1e} only. {RELOAD}."
        )


def check_pixels(chunk: mx.array) -> mx.array:
    """Decoded pixels (B, 3, f, H, W) on their way to frames; returned unchanged."""
    # What is not finite shows in the sum of its row, and there are fewer of those to look at.
    if not mx.isfinite(chunk.sum(axis=-1)).all().item():
        raise HealthError(
            f"Decoding made frames with NaN or infinite pixels. {DECODE_AGAIN}."
        )
    return chunk


def watched(frames: Iterable[np.ndarray], still: bool = False) -> Iterator[np.ndarray]:
    """The same uint8 frames (H, W, 3), and after the last a judgement of them all.

    Raises ``HealthError`` when they were all black, all of one colour, or, unless they may be ``still``, all the same
    picture; or when the picture died: at least 8 frames in a row, and a quarter of the clip, in which all pixels are
    exactly equal. Decoder noise keeps real frames from that, but at the ends of the range clipping hides it, so that a
    fade may end in exact black or white: such frames count only if they follow a lively picture at once, as no fade
    does. Dark scenes pass.
    """
    seen = _Seen()
    for frame in frames:
        seen.look(frame)
        yield frame
    seen.judge(still)


class _Seen:
    """What the frames of a clip have shown so far. Each question is asked until a frame answers it."""

    def __init__(self) -> None:
        self.count = 0
        self.lit = self.moves = False
        self.deviation = 0.0  # the largest up to the first frame that is not flat
        self.run = self.dead = 0  # frames that died: in a row just now, and at most
        self.first: np.ndarray | None = None
        self.last: np.ndarray | None = None

    def look(self, frame: np.ndarray) -> None:
        self.count += 1
        if not (self.lit and self.moves and self.deviation >= FLAT_LEVEL):
            self._ask(_sampled(frame))
        self.run = self.run + 1 if self._died(frame) else 0
        self.dead = max(self.dead, self.run)
        self.last = frame

    def _ask(self, sample: np.ndarray) -> None:
        self.first = sample if self.first is None else self.first
        self.lit = self.lit or (sample > BLACK_LEVEL).mean() > LIT_SHARE
        self.moves = self.moves or _change(self.first, sample) >= STILL_LEVEL
        if self.deviation < FLAT_LEVEL:
            self.deviation = max(self.deviation, _deviation(sample))

    def _died(self, frame: np.ndarray) -> bool:
        """Whether this frame is of exactly one colour, and no fade can have made it so."""
        colour = frame[0, 0]
        # A few pixels tell nearly every frame that lives; only the others are looked at as a whole.
        if (frame[::FEW, ::FEW] != colour).any() or (frame != colour).any():
            return False
        clipped = ((colour == 0) | (colour == 255)).all()
        if self.run or not clipped:
            return True
        return self.last is not None and _deviation(_sampled(self.last)) >= LIVELY_LEVEL

    def judge(self, still: bool) -> None:
        """Raise ``HealthError`` if the clip is garbage."""
        if self.count == 0:
            raise HealthError(f"Decoding made no frames. {DECODE_AGAIN}.")
        if not self.lit:
            raise HealthError(f"All {self.count} frames are black. {DECODE_AGAIN}.")
        if self.deviation < FLAT_LEVEL:
            raise HealthError(
                f"All {self.count} frames have one colour (pixels vary by {self.deviation:.2f} of 255). {DECODE_AGAIN}."
            )
        if self.dead >= max(DEAD_FRAMES, DEAD_SHARE * self.count):
            raise HealthError(
                f"The picture dies: {self.dead} of {self.count} frames in a row have exactly one colour. "
                f"{DECODE_AGAIN}; or --no-health-check if that is what the prompt wants."
            )
        if self.count > 1 and not self.moves and not still:
            raise HealthError(
                f"All {self.count} frames are the same picture. Try another --seed or a prompt that says what moves, "
                "or --no-health-check if a still is what you want."
            )


def _sampled(frame: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(frame[::EVERY, ::EVERY])


def _deviation(sample: np.ndarray) -> float:
    """Standard deviation over the pixels (h, w, 3), of the colour channel where it is largest."""
    return float(sample.std(axis=(0, 1), dtype=np.float32).max())


def _change(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference of two uint8 pictures."""
    return float(np.abs(a.astype(np.int16) - b).mean())
