"""How the words after options become values, and the errors for those that cannot."""

import argparse
import math
import re
from pathlib import Path

from mlx_video.clip_settings import AUTO
from mlx_video.disk import typed_path
from mlx_video.errors import UserError

UNITS = {"": 1e9, "m": 1e6, "g": 1e9, "t": 1e12, "mi": 2**20, "gi": 2**30, "ti": 2**40}
LONGEST_CLIP = 600  # seconds


def byte_size(word: str) -> float:
    """24, 24GB, 24 GiB or 24000MB."""
    found = re.fullmatch(r"\s*([\d.]+)\s*((?:[mgt]i?)?)b?\s*", word.lower())
    try:
        size = float(found[1]) * UNITS[found[2]]
    except (TypeError, ValueError):
        size = 0
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(
            f"must be an amount of memory above 0, such as 24GB; got {word}"
        )
    return size


def path(word: str) -> Path:
    """A path with ~ expanded."""
    try:
        return typed_path(word)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seconds(word: str) -> float:
    """Seconds, 0 or more."""
    if not (found := _number(word)) >= 0:
        raise argparse.ArgumentTypeError(
            f"must be seconds, 0 or more, such as 60; got {word}"
        )
    return found


def duration(word: str) -> str | float:
    """``AUTO``, or seconds above 0 and up to ``LONGEST_CLIP``."""
    if word != AUTO and not 0 < _number(word) <= LONGEST_CLIP:
        raise argparse.ArgumentTypeError(
            f"must be auto, or seconds up to {LONGEST_CLIP}, such as 5; got {word}"
        )
    return word if word == AUTO else float(word)


def _number(word: str) -> float:
    """The number that ``word`` is, or NaN."""
    try:
        return float(word)
    except ValueError:
        return math.nan
