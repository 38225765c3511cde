"""The terminal: what is typed, what is shown, and the exit code. Apart from ``python -m mlx_video.backend``, only this folder prints.

0 is done, 1 a fault of ours, 2 bad input, 3 garbage, 130 Ctrl-C. Nothing heavy is imported before ``guarded`` answers for it.
"""

import gc
import json
import sys
from contextlib import suppress
from functools import cache
from types import ModuleType
from typing import Callable, Sequence

from mlx_video.disk import short
from mlx_video.errors import UserError

DONE, FAULT, BAD_INPUT, BAD_OUTPUT, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None, *before: str, **usual) -> int:
    """The exit code of the ``mlx-video`` command for ``argv``, by default the process's, with words ``before`` them.

    usual  defaults of ``generate``'s options in place of the usual ones; --help shows them
    """
    words = [*before, *(sys.argv[1:] if argv is None else argv)]

    def command() -> None:
        _commands().run(words, **usual)

    # Not by argparse, whose own errors are told as JSON too.
    return guarded(command, json_errors="--json" in words)


@cache
def _commands() -> ModuleType:
    """The module of all commands, which Python's collector of garbage never walks through: that took a fifth of a start."""
    gc.disable()
    try:
        from mlx_video.cli import commands

        gc.freeze()
    finally:
        gc.enable()
    return commands


def guarded(run: Callable[[], None], json_errors: bool = False) -> int:
    """The exit code of ``run``. What ends it is said on stderr: an error in one sentence, a fault of ours with its traceback.

    With ``json_errors`` stdout gets ``{"error": ...}`` as well.
    """
    from mlx_video.cli import terminal

    try:
        with terminal.interrupts():
            run()
    except UserError as error:
        code, ended, said = BAD_INPUT, error, f"error: {error}"
    except PermissionError as error:  # of a closed file or folder, wherever it is met
        fault = f"{short(error.filename)} cannot be used: permission denied."
        code, ended, said = BAD_INPUT, error, f"error: {fault}"
    except KeyboardInterrupt as error:
        code, ended, said = INTERRUPTED, error, "stopped"
    except Exception as error:
        from mlx_video.health import HealthError

        code, ended, said = BAD_OUTPUT, error, f"error: {error}"
        if not isinstance(error, HealthError):
            code, said = FAULT, terminal.fault(error)
    else:
        return DONE
    notes = () if code == FAULT else getattr(ended, "__notes__", ())
    terminal.say("\n".join([said, *notes]))  # such as where the work is kept
    if json_errors:
        with suppress(UserError):  # stdout may be what failed
            told = str(ended) if code == FAULT else said.removeprefix("error: ")
            terminal.tell(json.dumps({"error": told}))
    return code
