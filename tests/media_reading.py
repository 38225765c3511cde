"""Reads back what was saved, as a player would, so that a test can look at it."""

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import mlx.core as mx
import numpy as np

from mlx_video.types import Waveform


class ReadClip(NamedTuple):
    """What a media file holds: uint8 RGB frames (H, W, 3), the video's rate, sound (``None`` if none), strings."""

    frames: list[np.ndarray]
    fps: Fraction
    audio: Waveform | None
    metadata: dict[str, str]


def read_clip(path: str | Path) -> ReadClip:
    """Decode all of a file. AAC comes in blocks of 1,024 samples, so the sound may end up to a block after the video."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video)]
        return ReadClip(
            frames, video.average_rate, _read_sound(path), dict(container.metadata)
        )


def _read_sound(path: str | Path) -> Waveform | None:
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None
        sound = container.streams.audio[0]
        pieces = [frame.to_ndarray() for frame in container.decode(sound)]
        samples = mx.array(np.concatenate(pieces, axis=1), dtype=mx.float32)
        return Waveform(samples, sound.sample_rate)
