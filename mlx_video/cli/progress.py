"""Shows the events of a run on stderr while the user waits."""

import os
import time

from mlx_video import events
from mlx_video.cli.terminal import harmless, say, watched
from mlx_video.cli.texts import plan_line
from mlx_video.disk import GB, duration
from mlx_video.events import Event
from mlx_video.hub import Download, DownloadPlan
from mlx_video.types import SILENT_SUFFIXES, Step

BAR = "{desc:<18} {bar:24} {n_fmt}/{total_fmt} {elapsed}{postfix}"
NARROW = "{desc} {n_fmt}/{total_fmt}{postfix}"  # on a terminal of under 64 columns
TENTHS = 10  # lines of a phase without a terminal ...
WORTH_A_LINE = 2.0  # ... after this many seconds


class Progress:
    """Shows the events of a run: a bar per phase on a terminal, else plain lines; only warnings if ``quiet``."""

    def __init__(self, quiet: bool = False, verbose: bool = False):
        self.quiet, self.verbose = quiet, verbose
        self.lively = not quiet and _redraws()
        self.phases: list[events.Took] = []
        self.bar = None
        self.start: Step | None = None  # of the current phase
        self.operations: dict[str, float] = {}

    def show(self, event: Event) -> None:
        """Print an event for the user."""
        match event:
            case events.Warned():
                say(f"warning: {event.text}")
            case _ if self.quiet:
                pass
            case str():
                say(event)
            case events.Planned():
                self.operations = event.operations
                say(making_line(event))
                say(plan_line(event.plan))
            case events.Saved() if event.step is not None and self.verbose:
                say(f"state after step {event.step} saved in {event.path}")
            case Step():
                self._step(event)
            case events.Took():
                self._end(event)
            case events.Written():
                if self.verbose:
                    say(f"\n{'phase':<20}{'seconds':>9}{'peak GB':>9}")
                    for name, seconds, peak in self.phases:
                        say(f"{name:<20}{seconds:>9.1f}{peak / GB:>9.2f}")
                say(f"total: {event.seconds:.1f} s, peak {event.peak / GB:.2f} GB")

    def close(self) -> None:
        """Remove the bar, however the run ended."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _step(self, step: Step) -> None:
        now = time.perf_counter()
        if self.start is None or step.phase != self.start.phase:
            self.start, self.began, self.tenth = step, now, 0
            self.pace = Pace(step, now)
            self._begin(step)
        seconds = now - self.began
        left = self._left(step, now)
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
        from tqdm import tqdm  # only for terminals

        self.close()
        self.bar = tqdm(
            total=step.total,
            desc=harmless(step.phase),
            bar_format=BAR if _columns() >= 64 else NARROW,
            initial=step.index,
        )

    def _left(self, step: Step, now: float) -> str:
        """The time left for the run at the pace of this phase; empty if unknown."""
        work = self.operations or {step.phase: 1.0}  # its own, without a plan
        own, pace = work.get(step.phase), self.pace.of(step, now)
        if not own or pace is None:
            return ""
        later = sum([*work.values()][[*work].index(step.phase) + 1 :])
        units = step.total - step.index + step.total * later / own
        left = pace * units
        return f"about {duration(left)} left" if left >= 1 else ""

    def _end(self, took: events.Took) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str("")  # its time is over
        self.close()
        self.start = None
        self.phases.append(took)
        if not self.lively:
            say(f"{took.phase}: {took.seconds:.1f} s, peak {took.peak / GB:.2f} GB")


class Downloads:
    """Shows downloads and, unless ``quiet``, their progress: a bar on a terminal, else plain lines."""

    def __init__(self, quiet: bool = False):
        self.quiet, self.bar = quiet, None

    def __call__(self, what: DownloadPlan | Download) -> None:
        if isinstance(what, DownloadPlan):
            say(what)
        elif _redraws() and not self.quiet:
            self._show(what)
        elif not self.quiet and (what.tenth or what.waits or what.ended):
            say(what)

    def _show(self, download: Download) -> None:
        from tqdm import tqdm

        if self.bar is None:
            self.bar = tqdm(total=download.total, bar_format="{desc} {bar:16}")
        self.bar.n = download.done
        self.bar.set_description_str(harmless(str(download)))
        if download.ended:
            self.bar.close()
            self.bar = None


class Pace:
    """Seconds per unit of a phase, measured between long waits: frames come in bursts, one piece of the clip at a time."""

    def __init__(self, start: Step, now: float):
        self.start, self.began, self.before = start, now, now
        self.waits: list[tuple[int, float]] = []  # where the first and the last ended

    def of(self, step: Step, now: float) -> float | None:
        """The pace when ``step`` is reached; ``None`` until it is known."""
        done, wait, self.before = step.index - self.start.index, now - self.before, now
        if not done:
            return None
        mean = (now - self.began) / done
        if wait >= mean / 2:
            self.waits = [*self.waits[:1], (step.index, now)]
        (first, then), (last, since) = self.waits[0], self.waits[-1]
        if last > first:
            return (since - then) / (last - first)
        return mean if step.index == first and 10 * done >= step.total else None


def _redraws() -> bool:
    """Whether stderr is a terminal that can draw a line again: one with a width, and not a dumb one."""
    return watched() and _columns() > 0 and os.environ.get("TERM") != "dumb"


def _columns() -> int:
    try:
        return os.get_terminal_size(2).columns
    except OSError:  # stderr has no width
        return 80


def making_line(planned: events.Planned) -> str:
    """One line on what is being made."""
    request = planned.job.request
    silent = not request.audio or planned.path.lower().endswith(SILENT_SUFFIXES)
    sound = "without sound" if silent else "with sound"
    return (
        f"making {planned.path}: {request.prompt!r}, {request.shape}, {request.shape.seconds:.1f} s {sound}, "
        f"seed {request.seed}"
    )
