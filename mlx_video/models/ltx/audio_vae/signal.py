"""Sound as numbers: overlapping frames, and resampling by a windowed sinc. Knows no model and no file."""

import math
from functools import cache

import mlx.core as mx
import numpy as np

ZEROS = 6  # of the sinc on either side, within the window
ROLLOFF = 0.99  # of the lower Nyquist frequency, where the filter cuts off


def overlapping(x: mx.array, length: int, hop: int) -> mx.array:
    """Overlapping pieces that begin ``hop`` samples apart: (..., n) -> (..., 1 + (n - length) // hop, length)."""
    starts = mx.arange(0, x.shape[-1] - length + 1, hop)
    return x[..., starts[:, None] + mx.arange(length)]


def resample(
    waveform: mx.array, from_rate: int, to_rate: int, padding: str = "constant"
) -> mx.array:
    """The same sound at another rate: (..., n) -> (..., ceil(n * to_rate / from_rate)), float32.

    A sinc with a Hann window, as torchaudio's default. ``padding`` beyond both ends is "constant" (silence) or "edge"
    (repeats the last sample).
    """
    x = waveform.astype(mx.float32)
    if from_rate == to_rate:
        return x
    divisor = math.gcd(from_rate, to_rate)
    step, phases = from_rate // divisor, to_rate // divisor
    kernel = _sinc_kernel(step, phases)
    reach = (kernel.shape[1] - step) // 2
    beyond = [(0, 0)] * (x.ndim - 1) + [(reach, reach + step)]
    pieces = overlapping(mx.pad(x, beyond, mode=padding), kernel.shape[1], step)
    y = (pieces @ mx.array(kernel.T, dtype=mx.float32)).flatten(-2)
    return y[..., : -(-x.shape[-1] * phases // step)]


@cache
def _sinc_kernel(step: int, phases: int) -> np.ndarray:
    """The kernel that makes ``phases`` samples from every ``step``: float64 (phases, 2 * reach + step)."""
    cutoff = min(step, phases) * ROLLOFF
    reach = math.ceil(ZEROS * step / cutoff)
    at = np.arange(-reach, reach + step) / step - np.arange(phases)[:, None] / phases
    at = np.clip(at * cutoff, -ZEROS, ZEROS)
    window = np.cos(at * np.pi / ZEROS / 2) ** 2
    return np.sinc(at) * window * cutoff / step
