"""``mlx-video check``: a table of what this machine computes rightly, and the report that goes with an issue."""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

from mlx_video import __version__
from mlx_video.check import Outcome
from mlx_video.cli import FAULT
from mlx_video.cli.parser import group
from mlx_video.cli.terminal import say, tell
from mlx_video.disk import file_errors, typed_path

REPORT = "mlx-video-check.json"
NAMES = 51  # columns of the table for names
SLOW = 0.1  # seconds from which the table has them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the report goes."""
    group(parser)("--output -o", "JSON report to write", REPORT, metavar="FILE")


def check(args: argparse.Namespace) -> None:
    """Test this machine's MLX, and write a report to attach to an issue.

    The report is written anew after each check. Ends with 1 where a result is wrong.
    """
    os.environ.setdefault("MLX_ENABLE_TF32", "0")  # float32 as a CPU has it
    from mlx_video.check import run
    from mlx_video.check.table import checks

    path, outcomes = typed_path(args.output), []
    write(path, outcomes, finished=False)
    tell(f"{'check':{NAMES}}{'error':>9}{'allowed':>9}")
    for outcome in run(checks()):
        outcomes.append(outcome)
        tell(line(outcome))
        write(path, outcomes, finished=False)
    write(path, outcomes, finished=True)
    wrong = [outcome for outcome in outcomes if not outcome.ok]
    if wrong:
        say(f"{len(wrong)} of {len(outcomes)} checks failed. Please attach {path} to an issue.")  # fmt: skip
        sys.exit(FAULT)
    say(f"All {len(outcomes)} checks passed. The report is in {path}.")


def line(outcome: Outcome) -> str:
    """A row of the table."""
    verdict = "ok" if outcome.ok else "WRONG"
    seconds = f"  {outcome.seconds:.1f} s" if outcome.seconds > SLOW else ""
    numbers = f"{outcome.error:9.1e}{outcome.tolerance:9.0e}"
    return f"{outcome.name:{NAMES}}{numbers}  {outcome.problem or verdict}{seconds}"


def write(path: Path, outcomes: list[Outcome], finished: bool) -> None:
    """The machine and what was found so far; where a check ends the process, the report holds those before it."""
    import mlx.core as mx

    report = {
        "mlx_video": __version__,
        "mlx": mx.__version__,
        "device": str(mx.default_device()),
        "device_info": mx.device_info(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "finished": finished,
        "checks": [o._asdict() | {"error": str(o.error), "ok": o.ok} for o in outcomes],
    }
    with file_errors(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1), encoding="utf-8")
