"""How large and long a clip may be, and what a model can make of that, by its latent cells. Imports no MLX: the server uses it."""

from typing import Callable

LARGEST_SIDE = 16_384  # pixels, H.264's limit
SLOWEST, FASTEST = 1, 240  # frames per second
LONGEST_CLIP = 600  # seconds
MOST_FRAMES = LONGEST_CLIP * FASTEST + 1
MOST_STEPS = 10_000  # of a stage; more must be a mistake


def nearest_side(pixels: float, step: int) -> int:
    """The multiple of ``step`` pixels, 1 at least, nearest to ``pixels``."""
    return max(1, round(pixels / step)) * step


def nearest_frames(frames: float, step: int) -> int:
    """The number of frames of the form 1 + k * ``step`` nearest to ``frames``.

    >>> nearest_frames(5 * 24 + 1, step=8)  # the last frame begins after 5 seconds
    121
    """
    return max(0, round((frames - 1) / step)) * step + 1


def rounded_frames(frames: int, step: int, warn: Callable[[str], object]) -> int:
    """``nearest_frames``; ``warn`` is called with a sentence if that is another number."""
    if (nearest := nearest_frames(frames, step)) != frames:
        warn(f"{frames} frames became {nearest}: frames are 1 + a multiple of {step}.")
    return nearest
