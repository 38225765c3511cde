"""Encoded pictures and clips as conditions: their tokens and positions. Knows grids and frames, no network."""

from typing import NamedTuple, Sequence

import mlx.core as mx
import numpy as np

from mlx_video.conditioning.latent import (
    AppendedTokens,
    GeneratedKeyframes,
    patchify_video,
)
from mlx_video.errors import UserError
from mlx_video.models.ltx.patchify import position_grid
from mlx_video.types import VideoScale


class Place(NamedTuple):
    """How latents relate to a clip: pixels per latent cell, and pixel frames per second."""

    scale: VideoScale
    fps: float


def keyframe(
    latent: mx.array, frame: int, place: Place, strength: float = 1.0
) -> AppendedTokens:
    """A picture (B, C, 1, H, W) at pixel frame ``frame``, or a clip (B, C, f, H, W) that begins there."""
    *_, F, H, W = latent.shape
    # A clip's first latent is one frame only if it begins at frame 0; a picture is always one frame.
    single = F == 1 or frame == 0
    positions = position_grid((F, H, W), *place, causal_fix=single, first_frame=frame)
    return AppendedTokens(patchify_video(latent), positions, strength)


def generated_keyframes(
    frames: Sequence[int],
    size: tuple[int, int],
    place: Place,
    latents: mx.array | None = None,
) -> GeneratedKeyframes:
    """Slots for pictures at pixel ``frames`` of a clip of ``size`` (rows, columns) in latent cells.

    latents  (B, C, len(frames), H, W) to mix their noise into; ``None`` = zeros
    """
    each = [position_grid((1, *size), *place, first_frame=frame) for frame in frames]
    tokens = None if latents is None else patchify_video(latents)
    return GeneratedKeyframes(mx.concatenate(each, axis=2), tokens)


def evenly_spaced(count: int, frames: int) -> tuple[int, ...]:
    """Pixel frames for ``count`` keyframes, evenly spaced within a clip of ``frames``.

    Raises ``UserError`` if there are too many for the clip.
    """
    if not 1 <= count <= frames - 2:
        raise UserError(
            f"A clip of {frames} frames takes from 1 to {frames - 2} generated keyframes; got {count}."
        )
    inner = np.linspace(0, frames - 1, count + 2)[1:-1]
    return tuple(int(frame) for frame in np.rint(inner))


def reference(
    latent: mx.array,
    place: Place,
    *,
    downscale: int = 1,
    every: int = 1,
    strength: float = 1.0,
) -> AppendedTokens:
    """A reference (B, C, f, H, W) for the whole clip.

    downscale  how many times smaller its sides are than the clip's
    every      it holds frame 0, frame 1 and then every ``every``-th frame
    """
    fps = place.fps / every
    positions = position_grid(latent.shape[2:], place.scale, fps)
    seconds, pixels = positions[:, :1], positions[:, 1:]
    seconds = mx.maximum(seconds - (every - 1) / place.fps, 0)
    positions = mx.concatenate([seconds, pixels * downscale], axis=1)
    return AppendedTokens(patchify_video(latent), positions, strength)
