"""What a person sees while waiting: a bar per phase, and a table of seconds and memory at the end; all on stderr."""

import json
import sys
import time
from typing import Iterable

import mlx.core as mx
from tqdm import tqdm

from mlx_video.models.ltx.describe import Description, PartSummary
from mlx_video.plan import Phase, Plan
from mlx_video.types import Step

GB = 1e9


class Report:
    """A progress bar a phase on stderr, and at the end seconds and peak memory of each."""

    def __init__(self, quiet: bool):
        self.quiet = quiet
        self.phases: list[tuple[str, float, int]] = []
        self.bar: tqdm | None = None
        self.phase: str | None = None
        self.told: set[str] = set()

    def show(self, step: Step) -> None:
        if step.phase != self.phase:
            self._end_phase()
            self._begin_phase(step)
        self.bar.n = step.index
        if step.sigma is not None:
            self.bar.set_postfix(sigma=f"{step.sigma:.3f}", refresh=False)
        self.bar.refresh()

    def tell(self, lines: Iterable[str]) -> None:
        """Print those of ``lines`` that were not told yet."""
        for line in lines:
            if line not in self.told and not self.quiet:
                print(line, file=sys.stderr)
            self.told.add(line)

    def close(self) -> None:
        """End the last phase and print the table."""
        self._end_phase()
        if self.quiet or not self.phases:
            return
        print(f"\n{'phase':<20}{'seconds':>9}{'peak GB':>9}", file=sys.stderr)
        for name, seconds, peak in self.phases:
            print(f"{name:<20}{seconds:>9.1f}{peak / GB:>9.2f}", file=sys.stderr)
        seconds = sum(phase[1] for phase in self.phases)
        peak = max(phase[2] for phase in self.phases)
        print(f"{'total':<20}{seconds:>9.1f}{peak / GB:>9.2f}", file=sys.stderr)

    def _begin_phase(self, step: Step) -> None:
        self.phase, self.started = step.phase, time.perf_counter()
        mx.reset_peak_memory()
        self.bar = tqdm(
            total=step.total,
            desc=f"{step.phase:<18}",
            disable=self.quiet or not sys.stderr.isatty(),
            bar_format="{desc} {bar:24} {n_fmt}/{total_fmt} {elapsed}{postfix}",
        )

    def _end_phase(self) -> None:
        if self.bar is None:
            return
        self.bar.close()
        seconds = time.perf_counter() - self.started
        self.phases.append((self.phase, seconds, mx.get_peak_memory()))
        self.bar = self.phase = None


def plan_line(plan: Plan) -> str:
    """What a run will take, in a line."""
    largest = plan.largest
    times = [phase.seconds for phase in plan.phases if phase.seconds]
    seconds = f", about {sum(times):.0f} s of sampling" if times else ""
    chosen = f", with the {plan.chosen}" if plan.chosen else ""
    return (
        f"plan: at most {largest.peak / GB:.2f} GB, for {largest.name}, of {plan.limit / GB:.2f} GB"
        f"{seconds}{chosen}"
    )


def plan_text(plan: Plan) -> str:
    """What a run will take, phase by phase."""
    head = f"{'phase':<20}{'weights GB':>11}{'peak GB':>9}{'seconds':>9}"
    return "\n".join([head, *map(_phase_line, plan.phases), plan_line(plan)])


def _phase_line(phase: Phase) -> str:
    seconds = "" if phase.seconds is None else f"{phase.seconds:>9.1f}"
    weights, peak = phase.weights / GB, phase.peak / GB
    return f"{phase.name:<20}{weights:>11.2f}{peak:>9.2f}{seconds}"


def describe_text(found: Description) -> str:
    """What a file or folder holds, for a person to read."""
    lines = [str(found.path), f"layout      {found.layout}"]
    if found.version:
        lines.append(f"version     LTX-{found.version}")
    if found.changes:
        lines.append(f"changes     {found.changes}")
    width = 2 + max(map(len, found.parts), default=0)
    lines += [_part_line(f"{k:<{width}}", part) for k, part in found.parts.items()]
    if found.defaults:
        stated = json.dumps(found.defaults, ensure_ascii=False)
        lines.append(f"defaults    {stated}")
    lines += [f"missing     {name}: {how}" for name, how in found.missing.items()]
    lines += [f"not usable  {why}" for why in found.refusals]
    return "\n".join(lines)


def _size(count: int) -> str:
    """Of so many bytes."""
    unit, name = (GB, "GB") if count >= GB / 100 else (1e6, "MB")
    return f"{count / unit:.2f} {name}"


def _part_line(name: str, part: PartSummary) -> str:
    quantized = part.quantization.get("bits")
    return (
        f"{name}{part.tensors:>6} tensors {_size(part.bytes):>11}  {', '.join(part.dtypes)}"
        + (f"  {quantized}-bit" if quantized else "")
    )
