"""Converts outputs: pixels to 8-bit frames, and sound to the clip's length and to PCM. Knows ranges and axes, not files."""

from pathlib import Path
from typing import Iterable, Iterator

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike

from mlx_video.types import Clip, VideoPixelShape, Waveform

FADE = 0.01  # seconds at both ends of a sound, to avoid clicks
MIRRORED = 0.05  # the most seconds by which mirroring may lengthen a sound


def frames(chunks: Iterable[mx.array]) -> Iterator[np.ndarray]:
    """RGB frames, uint8 (H, W, 3), from the decoded pieces of a clip, (1, 3, F, H, W) in [-1, 1]; one piece at a time."""
    for chunk in chunks:
        pictures = np.array(to_uint8(chunk[0]))
        del chunk  # so that it is freed while the next one is decoded
        yield from pictures


def to_uint8(pixels: mx.array) -> mx.array:
    """[-1, 1] to 0 ... 255, truncated as the official code does: (..., 3, F, H, W) -> (..., F, H, W, 3).

    In float32 for any dtype, since bfloat16 cannot tell 254 from 255.
    """
    x = mx.clip((pixels.astype(mx.float32) + 1) / 2, 0, 1) * 255
    return mx.moveaxis(x.astype(mx.uint8), -4, -1)


def to_pcm16(waveform: Waveform) -> np.ndarray:
    """Signed 16-bit samples, channels interleaved: int16 (n, channels). Values beyond [-1, 1] are clipped."""
    samples = np.array(waveform.samples.astype(mx.float32)).T
    return np.rint(np.clip(samples, -1, 1) * 32767).astype(np.int16)


def fit_sound(sound: Waveform, shape: VideoPixelShape) -> Waveform:
    """``sound`` with exactly the clip's length, faded in and out.

    Longer sound is cut. The decoder omits 30 ms at the end; such a short gap is filled by mirroring, a longer one with
    silence.
    """
    total = round(shape.frames * sound.sample_rate / shape.rate)
    x = sound.samples.astype(mx.float32)[:, :total]
    lacking = total - x.shape[1]
    if 0 < lacking < min(x.shape[1], round(MIRRORED * sound.sample_rate)):
        x = mx.concatenate([x, x[:, -2 : -2 - lacking : -1]], axis=1)
    x = mx.pad(_faded(x, sound.sample_rate), ((0, 0), (0, total - x.shape[1])))
    return Waveform(x, sound.sample_rate)


def _faded(samples: mx.array, sample_rate: int) -> mx.array:
    """``samples`` with a raised-cosine fade at both ends."""
    from_end = mx.arange(samples.shape[1])
    from_end = mx.minimum(from_end, from_end[::-1]) / (FADE * sample_rate)
    return samples * (0.5 - 0.5 * mx.cos(mx.pi * mx.minimum(from_end, 1)))


def save_video(frames: ArrayLike, path: str | Path, fps: float = 24.0) -> None:
    """Write frames, uint8 (F, H, W, 3), as a clip without sound, for scripts; see ``media.save``."""
    from mlx_video import media  # imports codecs

    frames = np.asarray(frames)
    F, H, W, _ = frames.shape
    media.save(Clip(iter(frames), VideoPixelShape(F, H, W, float(fps))), path)
