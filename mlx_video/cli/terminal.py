"""How text reaches the terminal, with control codes escaped here and nowhere else, and how Ctrl-C is heard."""

import os
import signal
import sys
import threading
import traceback
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
    """A line for a person, on stderr."""
    if sys.stderr is not None:  # as it is where the shell closed it
        print(harmless(str(text)), file=sys.stderr, flush=True)


def tell(text: object, end: str = "\n") -> None:
    """A result, on stdout. Nothing fails if the reader has closed it; raises ``UserError`` where its disk is full."""
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


def fault(error: Exception) -> str:
    """The traceback of a fault of ours, and what to do with it."""
    return "".join(traceback.format_exception(error)) + OUR_FAULT


def watched() -> bool:
    """Whether stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def harmless(text: str) -> str:
    """``text`` with control codes, and marks that reverse the direction of writing, escaped."""
    kinds = {c: unicodedata.category(c) for c in {*text} - {*ALLOWED}}
    steer = (c for c, kind in kinds.items() if kind in (*STEERING, "Cs"))
    return text.translate({ord(c): ascii(c)[1:-1] for c in steer})


@contextmanager
def interrupts() -> Iterator[None]:
    """Answer Ctrl-C at once, though Python acts on it only when MLX is done with a step; a second one ends the process.

    A request to terminate ends a run as Ctrl-C does.
    """
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
    """Say that Ctrl-C was heard, and end the process at the second. The next run cleans up what this one left."""
    stops = (signal.SIGINT, signal.SIGTERM)
    count = 0
    with open(pipe, "rb", buffering=0) as signals:
        while heard := signals.read(1):
            count += heard[0] in stops
            if heard[0] in stops and count == 1 and watched():
                os.write(2, STOPPING.encode())
            if count > 1:
                os._exit(128 + signal.SIGINT)
