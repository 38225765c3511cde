"""Is this output garbage? Looks at what each phase made, and says in one sentence what is wrong and what to try.

Knows numbers, not models. Every check raises ``HealthError``; none returns a verdict that could be overlooked.
"""

from typing import Iterator

import mlx.core as mx
import numpy as np

from mlx_video.types import AV, Waveform

# Pixel levels of 0 to 255. Real black frames carry codec and decoder noise well above these.
BLACK_LEVEL = 2.0  # brightest pixel's share of a clip that shows nothing
FLAT_LEVEL = 0.5  # standard deviation over the pixels of a frame that has one colour
STILL_LEVEL = 0.02  # mean change of a pixel over a clip in which nothing moves
SILENCE = 1e-5  # root mean square of samples in [-1, 1]: -100 dB
FLAT_LATENT = 1e-4  # standard deviation; healthy latents are near 1
WILD_LATENT = 100.0  # largest magnitude; healthy latents stay below 20

RELOAD = "Check the files with `mlx-video info`, then run again"
DECODE_AGAIN = "The latents are kept: try `mlx-video decode` with --tiling aggressive"


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


def check_waveform(waveform: Waveform) -> None:
    """Sound that was asked for."""
    samples = waveform.samples
    if not mx.isfinite(samples).all().item():
        raise HealthError(
            f"Decoding made sound with NaN or infinite samples. {DECODE_AGAIN}."
        )
    if (level := mx.sqrt(mx.square(samples).mean()).item()) < SILENCE:
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
    if not mx.isfinite(chunk).all().item():
        raise HealthError(
            f"Decoding made frames with NaN or infinite pixels. {DECODE_AGAIN}."
        )
    return chunk


def watched(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same uint8 frames (H, W, 3), and after the last a judgement of them all.

    Raises ``HealthError`` when they were all black, all of one colour, or all the same picture.
    """
    brightest, liveliest, motion, first = 0.0, 0.0, 0.0, None
    count = 0
    for frame in frames:
        # Every 4th row and column: a sixteenth of the work, and garbage does not hide from it.
        sample = frame[::4, ::4].astype(np.float32)
        first = sample if first is None else first
        brightest = max(brightest, np.percentile(sample, 99.9))
        liveliest = max(liveliest, sample.std(axis=(0, 1)).max())
        motion = max(motion, np.abs(sample - first).mean())
        count += 1
        yield frame
    if count == 0:
        raise HealthError(f"Decoding made no frames. {DECODE_AGAIN}.")
    if brightest <= BLACK_LEVEL:
        raise HealthError(
            f"All {count} frames are black (brightest pixel {brightest:.0f} of 255). {DECODE_AGAIN}."
        )
    if liveliest < FLAT_LEVEL:
        raise HealthError(
            f"All {count} frames have one colour (pixels vary by {liveliest:.2f} of 255). {DECODE_AGAIN}."
        )
    if count > 1 and motion < STILL_LEVEL:
        raise HealthError(
            f"All {count} frames are the same picture. Try another --seed or a prompt that says what moves, "
            "or --no-health-check if a still is what you want."
        )
