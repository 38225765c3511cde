"""The terminal: arguments, output and exit codes. Only this folder prints, apart from ``python -m mlx_video.backend``.

Exit codes: 0 success, 1 a bug, 2 bad input, 3 a garbage result, 130 Ctrl-C. Imports nothing heavy outside ``guarded``.
"""

import gc
import json
import sys
import traceback
from contextlib import suppress
from functools import cache
from types import ModuleType
from typing import Callable, Sequence

from mlx_video.cli import terminal
from mlx_video.disk import short
from mlx_video.errors import UserError

DONE, FAULT, BAD_INPUT, BAD_OUTPUT, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None, before: Sequence[str] = (), **usual) -> int:
    """Run ``mlx-video`` with the words ``before`` and ``argv``, by default the process's; returns the exit code.

    usual  other defaults of ``generate``'s options, which --help shows
    """
    words = [*before, *(sys.argv[1:] if argv is None else argv)]
    # Not by argparse, since its own errors appear as JSON too.
    return guarded(lambda: _commands().run(words, **usual), "--json" in words)


@cache
def _commands() -> ModuleType:
    """The module of all commands, hidden from Python's garbage collector, which took a fifth of the start."""
    gc.disable()
    try:
        from mlx_video.cli import commands

        gc.freeze()
    finally:
        gc.enable()
    return commands


def guarded(run: Callable[[], None], json_errors: bool = False) -> int:
    """Call ``run``; returns the exit code. Prints an error to stderr as one sentence, a bug with its traceback.

    With ``json_errors``, also prints ``{"error": ...}`` to stdout.
    """
    try:
        with terminal.interrupts():
            run()
        return DONE
    except UserError as error:
        code, ended, said = BAD_INPUT, error, f"error: {error}"
    except PermissionError as error:  # for a file or folder
        fault = f"{short(error.filename)} cannot be used: permission denied."
        code, ended, said = BAD_INPUT, error, f"error: {fault}"
    except KeyboardInterrupt as error:
        code, ended, said = INTERRUPTED, error, "stopped"
    except Exception as error:
        from mlx_video.health import HealthError

        code, ended, said = BAD_OUTPUT, error, f"error: {error}"
        if not isinstance(error, HealthError):
            trace = "".join(traceback.format_exception(error))
            code, said = FAULT, trace + terminal.OUR_FAULT
    notes = () if code == FAULT else getattr(ended, "__notes__", ())
    terminal.say("\n".join([said, *notes]))  # such as where the work is kept
    if json_errors:
        with suppress(UserError):  # stdout may be what failed
            told = str(ended) if code == FAULT else said.removeprefix("error: ")
            terminal.tell(json.dumps({"error": told}))
    return code
