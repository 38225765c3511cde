"""Prints text, with control codes escaped here and nowhere else, and handles Ctrl-C."""

import os
import signal
import sys
import threading
import unicodedata
from contextlib import contextmanager
from typing import Iterator

from mlx_video.disk import file_errors
from mlx_video.errors import ALLOWED, STEERING, UserError

OUR_FAULT = (
    "This is a fault of mlx-video, not of what you typed. Please report it with the lines above, the command and what "
    "`mlx-video --version` prints."
)
STOPPING = "\nstopping after this step; Ctrl-C again stops at once\n"


def say(text: object) -> None:
    """Print a line for the user to stderr."""
    if sys.stderr is not None:  # as when the shell closed it
        print(harmless(str(text)), file=sys.stderr, flush=True)


def tell(text: object, end: str = "\n") -> None:
    """Print a result to stdout. A closed pipe is not an error; raises ``UserError`` if the disk is full."""
    if sys.stdout is None:
        return
    encoding = sys.stdout.encoding or "utf-8"
    text = harmless(str(text)).encode(encoding, "backslashreplace").decode(encoding)
    try:
        with file_errors("stdout", "written"):
            print(text, end=end, flush=True)
    except UserError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error.__context__, BrokenPipeError):
            raise


def watched() -> bool:
    """Whether stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def harmless(text: str) -> str:
    """``text`` with control codes and marks of writing direction escaped."""
    kinds = {c: unicodedata.category(c) for c in {*text} - {*ALLOWED}}
    steer = (c for c, kind in kinds.items() if kind in (*STEERING, "Cs"))
    return text.translate({ord(c): ascii(c)[1:-1] for c in steer})


@contextmanager
def interrupts() -> Iterator[None]:
    """Acknowledge Ctrl-C or SIGTERM at once, though Python handles it only after MLX's step; a second one ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_hear, args=(reading,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        os.close(writing)
        signal.signal(signal.SIGTERM, before)


def _hear(pipe: int) -> None:
    """Acknowledge Ctrl-C, and end the process at the second. The next run cleans up after this one."""
    stops = (signal.SIGINT, signal.SIGTERM)
    count = 0
    with open(pipe, "rb", buffering=0) as signals:
        while heard := signals.read(1):
            count += heard[0] in stops
            if heard[0] in stops and count == 1 and watched():
                os.write(2, STOPPING.encode())
            if count > 1:
                os._exit(128 + signal.SIGINT)
