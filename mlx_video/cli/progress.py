"""What a person sees while waiting: the terminal listens to the events of a run. All of it goes to stderr."""

import json
import time
from typing import Sequence

from mlx_video.cli.terminal import harmless, say, watched
from mlx_video.events import (
    Downloading,
    Event,
    Fused,
    Planned,
    Saved,
    Took,
    Warned,
    Written,
)
from mlx_video.models.ltx.catalog import Entry
from mlx_video.models.ltx.describe import Description, PartSummary
from mlx_video.models.ltx.find import DEMO_KNOWS, PACKAGED
from mlx_video.plan import Phase, Plan, beside, largest
from mlx_video.types import Step

GB = 1e9
BAR = "{desc} {bar:24} {n_fmt}/{total_fmt} {elapsed}{postfix}"
TENTHS = 10  # lines of a phase where there is no terminal ...
WORTH_A_LINE = 2.0  # ... once it has taken so many seconds


class Progress:
    """Shows the events of a run: a bar a phase on a terminal, else plain lines; nothing but warnings if ``quiet``."""

    def __init__(self, quiet: bool = False, verbose: bool = False):
        self.quiet, self.verbose = quiet, verbose
        self.lively = not quiet and watched()
        self.phases: list[Took] = []
        self.told: set[str] = set()
        self.bar = None
        self.phase: str | None = None
        self.work: dict[str, float] = {}

    def show(self, event: Event) -> None:
        """Tell a person of ``event``."""
        match event:
            case Step():
                self._step(event)
            case Took():
                self._end(event)
            case Written():
                self._total(event)
            case Warned():
                say(f"warning: {event.text}")
            case _ if not self.quiet:
                self._line(event)

    def close(self) -> None:
        """Leave the terminal in order, whatever ended the run."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def once(self, line: str) -> None:
        """Print a line that was not printed yet."""
        if line not in self.told and not self.quiet:
            say(line)
        self.told.add(line)

    def _line(self, event: Event) -> None:
        match event:
            case Downloading():
                files, terms = (
                    ", ".join(event.files),
                    event.terms and f"; {event.terms}",
                )
                size = f"{event.bytes / GB:.2f} GB to download"
                say(f"{event.repo}: {size} ({files}){terms}")
            case Planned():
                self.work = {p.name: p.operations for p in event.phases if p.operations}
                self.once(making_line(event))
                self.once(plan_line(event))
            case Fused():
                self.once(event.text)
            case Saved() if event.step is not None and self.verbose:
                say(f"state after step {event.step} saved in {event.path}")

    def _step(self, step: Step) -> None:
        if self.quiet:
            return
        now = time.perf_counter()
        if step.phase != self.phase:
            self.phase, self.tenth, self.first, self.began = (
                step.phase,
                0,
                step.index,
                now,
            )
            self._begin(step)
        seconds = now - self.began
        left = self._left(step, seconds)
        if self.lively:
            self.bar.n = step.index
            self.bar.set_postfix_str(left)
        elif (tenth := TENTHS * step.index // step.total) > self.tenth:
            self.tenth = tenth
            if step.index < step.total and seconds >= WORTH_A_LINE:
                share = 100 * step.index // step.total
                say(f"{step.phase}: {share} %" + (left and f", {left}"))

    def _begin(self, step: Step) -> None:
        if not self.lively:
            return
        from tqdm import tqdm  # which a run without a terminal does not need

        self.close()
        desc = f"{harmless(step.phase):<18}"
        self.bar = tqdm(total=step.total, desc=desc, bar_format=BAR, initial=step.index)

    def _left(self, step: Step, seconds: float) -> str:
        """How long the run will still take, at the pace of this phase; empty where that cannot be told."""
        work = self.work or {step.phase: 1.0}  # its own, where nothing was planned
        own, done = work.get(step.phase), step.index - self.first
        if not (own and done):
            return ""
        later = sum([*work.values()][[*work].index(step.phase) + 1 :])
        units = step.total - step.index + step.total * later / own
        return f"about {_time(seconds / done * units)} left"

    def _end(self, took: Took) -> None:
        self.close()
        self.phase = None
        self.phases.append(took)
        if not (self.quiet or self.lively):
            say(f"{took.phase}: {took.seconds:.1f} s, peak {took.peak / GB:.2f} GB")

    def _total(self, written: Written) -> None:
        if self.quiet:
            return
        if self.verbose:
            say(f"\n{'phase':<20}{'seconds':>9}{'peak GB':>9}")
            for name, seconds, peak in self.phases:
                say(f"{name:<20}{seconds:>9.1f}{peak / GB:>9.2f}")
        say(f"total: {written.seconds:.1f} s, peak {written.peak / GB:.2f} GB")


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def making_line(planned: Planned) -> str:
    """What is being made, in a line."""
    request = planned.job.request
    frames, height, width, _ = shape = request.shape
    sound = "with sound" if request.audio else "without sound"
    return (
        f"making {planned.path}: {request.prompt!r}, {frames} frames of {width}x{height}, {shape.seconds:.1f} s "
        f"{sound}, seed {request.seed}"
    )


def plan_line(plan: Plan | Planned) -> str:
    """What a run will take, in a line."""
    most, more = largest(plan.phases), beside(plan.phases) / GB
    libraries = f", beside {more:.2f} GB of libraries" if more else ""
    times = [phase.seconds for phase in plan.phases if phase.seconds]
    seconds = f", about {sum(times):.0f} s of sampling" if times else ""
    chosen = f", with the {plan.chosen}" if plan.chosen else ""
    return (
        f"plan: at most {most.peak / GB:.2f} GB, for {most.name}{libraries}, of {plan.limit / GB:.2f} GB"
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
    if found.path == PACKAGED:
        lines.append(f"knows       {DEMO_KNOWS}")
    if found.version:
        lines.append(f"version     LTX-{found.version}")
    if found.changes:
        lines.append(f"changes     {found.changes}")
    if found.changes and not found.changes.version:
        fits = " and ".join(found.fits) or "no release of Lightricks"
        lines.append(f"fits        {fits}, by the names and shapes of its layers")
    width = 2 + max(map(len, found.parts), default=0)
    lines += [_part_line(f"{k:<{width}}", part) for k, part in found.parts.items()]
    if found.defaults:
        stated = json.dumps(found.defaults, ensure_ascii=False)
        lines.append(f"defaults    {stated}")
    lines += [f"missing     {name}: {how}" for name, how in found.missing.items()]
    lines += [f"not usable  {why}" for why in found.refusals]
    return "\n".join(lines)


def catalog_text(entries: Sequence[Entry]) -> str:
    """Every model that has a name, for a person to read."""
    lines = []
    for entry in entries:
        place = f"{entry.repository}: " if entry.repository else ""
        lines.append(f"{entry.name:<12}{place}{entry.size}; {entry.terms}")
        held = [
            f"{name} {_size(c.bytes)}{'' if c.complete else ' of it'}"
            for name, c in entry.cached.items()
            if c.bytes
        ]
        if entry.unfinished:
            held.append(f"{_size(entry.unfinished)} of interrupted downloads")
        if entry.repository:
            lines.append(f"{'':<12}in the cache: {', '.join(held) or 'nothing'}")
    return "\n".join(lines)


def _size(count: int) -> str:
    """Of so many bytes."""
    unit, name = (GB, "GB") if count >= GB / 100 else (1e6, "MB")
    return f"{count / unit:.2f} {name}"


def _part_line(name: str, part: PartSummary) -> str:
    quantized = part.quantization.get("bits")
    raw = ("float8", "int8") if part.formats else ()  # the formats say more
    kinds = ", ".join([*part.formats, *(d for d in part.dtypes if d not in raw)])
    return f"{name}{part.tensors:>6} tensors {_size(part.bytes):>11}  {kinds}" + (
        f"  {quantized}-bit" if quantized else ""
    )
