"""The sizes and lengths that a model can make, by its latent cells. Imports nothing, so that the HTTP server can use it."""


def nearest_side(pixels: float, step: int) -> int:
    """The multiple of ``step`` pixels, 1 at least, nearest to ``pixels``."""
    return max(1, round(pixels / step)) * step


def nearest_frames(frames: float, step: int) -> int:
    """The number of frames of the form 1 + k * ``step`` nearest to ``frames``.

    >>> nearest_frames(5 * 24 + 1, step=8)  # the last frame begins after 5 seconds
    121
    """
    return max(0, round((frames - 1) / step)) * step + 1
