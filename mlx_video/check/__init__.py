"""Checks whether this machine computes correctly: runs each check of ``table`` on MLX's device and measures its error.

Knows how results are compared, not what is computed. Each result is compared with a CPU's numbers stored beside this file
and, unless MLX's device is the CPU, with the full result of this machine's CPU.
"""

import json
import math
import platform
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterable, Iterator, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_video import __version__
from mlx_video.backend import suit_cpu
from mlx_video.disk import file_errors

STORED = Path(__file__).with_name("stored.json")  # benchmarks/store_checks.py writes it
PARTS = 2  # of a result; two numbers are stored for each
DIGITS = 5
NAMES = 51  # columns of the table for names
SLOW = 0.1  # seconds from which the table has them
HEAD = f"{'check':{NAMES}}{'error':>9}{'allowed':>9}"


class Check(NamedTuple):
    """A computation, and the allowed error as a share of the expected numbers' root mean square."""

    name: str
    tolerance: float
    compute: Callable[[], mx.array]


class Outcome(NamedTuple):
    """The outcome of a check.

    error    of the result; NaN if it has NaN or could not be computed
    seconds  that the device took, including compilation
    peak     bytes of MLX's memory
    """

    name: str
    error: float
    tolerance: float
    seconds: float
    peak: int
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; NaN never is."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = self.problem or ("ok" if self.ok else "WRONG")
        seconds = f"  {self.seconds:.1f} s" if self.seconds > SLOW else ""
        numbers = f"{self.error:9.1e}{self.tolerance:9.0e}"
        return f"{self.name:{NAMES}}{numbers}  {verdict}{seconds}"


def write(path: Path, outcomes: list[Outcome], finished: bool = False) -> None:
    """The report: the machine, and the outcomes so far, which stay if a check ends the process."""
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


def run(checks: Iterable[Check]) -> Iterator[Outcome]:
    """The outcome of each check, in order."""
    suit_cpu(0)
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    for check in checks:
        yield _outcome(check, stored.get(check.name, []))


def summary(result: mx.array) -> list[float]:
    """For each of ``PARTS`` equal parts of a result: its middle number and its root mean square."""
    parts = np.array_split(_numbers(result), PARTS)
    both = ((part[len(part) // 2], _size(part)) for part in parts)
    return [float(f"{number:.{DIGITS}g}") for pair in both for number in pair]


def _outcome(check: Check, stored: list[float]) -> Outcome:
    mx.clear_cache()
    mx.reset_peak_memory()
    start = time.perf_counter()
    error, problem = math.nan, ""
    try:
        result = _evaluated(check)
        seconds = time.perf_counter() - start
        peak = mx.get_peak_memory()
        error = _off(np.array(summary(result)), np.array(stored))
        if mx.default_device() != mx.cpu:
            with _on_cpu():
                expected = _evaluated(check)
            # np.maximum keeps NaN.
            error = float(np.maximum(error, _off(_numbers(result), _numbers(expected))))
    except Exception as raised:  # whatever it is, report it and continue
        seconds, peak = time.perf_counter() - start, mx.get_peak_memory()
        problem = f"{type(raised).__name__}: {raised}"
    return Outcome(check.name, error, check.tolerance, seconds, peak, problem)


def _evaluated(check: Check) -> mx.array:
    result = check.compute()
    mx.eval(result)
    # Metal reports a failed command only once the next one is done.
    mx.eval(mx.zeros(1) + 1)
    mx.synchronize()
    return result


@contextmanager
def _on_cpu() -> Iterator[None]:
    """Make MLX compute on the CPU, without compilation."""
    mx.disable_compile()
    try:
        with mx.stream(mx.cpu):
            yield
    finally:
        mx.enable_compile()


def _numbers(result: mx.array) -> np.ndarray:
    return np.array(result.astype(mx.float32)).astype(np.float64).flatten()


def _off(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference as a share of the expected numbers' root mean square; infinite if sizes differ."""
    if actual.shape != expected.shape:
        return math.inf
    return float(np.abs(actual - expected).max() / _size(expected))


def _size(numbers: np.ndarray) -> float:
    return math.sqrt(np.square(numbers).mean())
