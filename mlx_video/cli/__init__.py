"""The terminal: what is typed, what is shown, and the exit code. The only folder that prints.

0 is done, 1 a fault of ours, 2 bad input, 3 garbage, 130 Ctrl-C. Nothing heavy is imported before ``guarded`` answers for it.
"""

from typing import Callable, Sequence

from mlx_video.errors import UserError

DONE, FAULT, BAD_INPUT, BAD_OUTPUT, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the ``mlx-video`` command."""

    def command() -> None:
        from mlx_video.cli import commands

        commands.run(argv)

    return guarded(command)


def door(
    description: str, variant: str, *, audio: bool, argv: Sequence[str] | None
) -> int:
    """The exit code of a generating door; the path of its clip goes to stdout."""

    def generate() -> None:
        from mlx_video.cli import commands

        commands.run_door(description, variant, audio, argv)

    return guarded(generate)


def guarded(run: Callable[[], None]) -> int:
    """The exit code of ``run``; whatever ends it is said on stderr: in a sentence, unless it is a fault of ours."""
    from mlx_video.cli import terminal

    try:
        with terminal.interrupts():
            run()
    except UserError as error:
        return _failed(f"error: {error}", error, BAD_INPUT)
    except KeyboardInterrupt as error:
        return _failed("stopped", error, INTERRUPTED)
    except Exception as error:
        from mlx_video.health import HealthError

        if isinstance(error, HealthError):
            return _failed(f"error: {error}", error, BAD_OUTPUT)
        terminal.say_fault(error)
        return FAULT
    return DONE


def _failed(sentence: str, error: BaseException, code: int) -> int:
    """Say what happened, and what the error carries along: where the work is kept."""
    from mlx_video.cli import terminal

    terminal.say("\n".join([sentence, *getattr(error, "__notes__", ())]))
    return code
