"""Arrays out: pixels to 8-bit frames, a waveform to PCM. Knows ranges and axis orders, not files."""

from typing import Iterable, Iterator

import mlx.core as mx
import numpy as np

from mlx_video.types import Waveform


def frames(chunks: Iterable[mx.array]) -> Iterator[np.ndarray]:
    """RGB frames, uint8 (H, W, 3), of decoded pieces of one clip, (1, 3, F, H, W) in [-1, 1]; one piece at a time."""
    for chunk in chunks:
        yield from np.array(to_uint8(chunk[0]))


def to_uint8(pixels: mx.array) -> mx.array:
    """[-1, 1] to 0 ... 255, truncated as the official code does: (..., 3, F, H, W) -> (..., F, H, W, 3).

    In float32 whatever the dtype, since bfloat16 cannot tell 254 from 255.
    """
    x = mx.clip((pixels.astype(mx.float32) + 1) / 2, 0, 1) * 255
    return mx.moveaxis(x.astype(mx.uint8), -4, -1)


def to_pcm16(waveform: Waveform) -> np.ndarray:
    """Signed 16-bit samples, channels interleaved: int16 (n, channels). What exceeds [-1, 1] is clipped."""
    samples = np.array(waveform.samples.astype(mx.float32)).T
    return np.rint(np.clip(samples, -1, 1) * 32767).astype(np.int16)
