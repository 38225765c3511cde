"""Paths as people type them, and what the system says of files, in sentences. Knows no format."""

import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from mlx_video.errors import MissingFileError, UserError

LONGEST_NAME = 255  # bytes of a file's name, on every usual file system


@contextmanager
def file_errors(path: str | Path, doing: str = "read") -> Iterator[None]:
    """Turn what the system says of ``path`` ("[Errno 13] ...") into a sentence; ``doing`` is "read" or "written"."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise MissingFileError(f"There is no file or folder {short(path)}.") from None
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UserError(f"{short(path)} cannot be {doing}: {why}.") from None


def typed_path(text: str | Path) -> Path:
    """The path that was typed, with ~ expanded.

    Raises ``UserError`` for what can name nothing: an empty text, a user that is not here, too long a name.
    """
    if not str(text):
        raise UserError("A path is empty; give the name of a file or folder.")
    if "\0" in str(text):
        raise UserError("A path holds a zero byte; give the name of a file or folder.")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        user = Path(text).parts[0]
        raise UserError(
            f"There is no user {short(user[1:])} here, so {short(text)} is no path."
        ) from None
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise UserError(
            f"{short(path)} is too long a name; at most {LONGEST_NAME} bytes are possible."
        )
    return path


def is_there(path: Path) -> bool:
    """Whether there is a file or folder ``path``; a folder that may not be entered is a ``UserError``."""
    with file_errors(path):
        return path.exists()


def short(text: object, most: int = 120) -> str:
    """``text``, for a sentence: its end where it is longer than ``most`` characters."""
    text = str(text)
    return text if len(text) <= most else f"...{text[3 - most:]}"


def file_size(file: Path) -> int:
    """The length of an ordinary file in bytes; pipes and devices, which could block for ever, are refused."""
    with file_errors(file):
        found = os.stat(file)
    if not stat.S_ISREG(found.st_mode):
        raise UserError(
            f"{file} is not an ordinary file; name one that is neither a pipe nor a device."
        )
    return found.st_size
