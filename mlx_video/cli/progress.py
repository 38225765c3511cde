"""What a person sees while waiting: the terminal listens to the events of a run. All of it goes to stderr."""

import time

from mlx_video.cli.terminal import harmless, say, watched
from mlx_video.cli.texts import plan_line
from mlx_video.disk import GB, duration
from mlx_video.events import (
    Event,
    Fused,
    Planned,
    Saved,
    Took,
    Warned,
    Written,
)
from mlx_video.hub import Download, Plan
from mlx_video.plan import describe
from mlx_video.types import Step

BAR = "{desc} {bar:24} {n_fmt}/{total_fmt} {elapsed}{postfix}"
TENTHS = 10  # lines of a phase where there is no terminal ...
WORTH_A_LINE = 2.0  # ... once it has taken so many seconds


class Progress:
    """Shows the events of a run: a bar a phase on a terminal, else plain lines; nothing but warnings if ``quiet``."""

    def __init__(self, quiet: bool = False, verbose: bool = False):
        self.quiet, self.verbose = quiet, verbose
        self.lively = not quiet and watched()
        self.phases: list[Took] = []
        self.bar = None
        self.start: Step | None = None  # of the phase that is under way
        self.work: dict[str, float] = {}

    def show(self, event: Event | str) -> None:
        """Say on stderr what ``event`` means for the person who waits, or a notice as it is."""
        if isinstance(event, Warned):
            say(f"warning: {event.text}")
        elif not self.quiet:
            self._show(event)

    def close(self) -> None:
        """Remove the bar, however the run ended."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _show(self, event: Event) -> None:
        match event:
            case str():
                say(event)
            case Planned():
                self.work = {p.name: p.operations for p in event.phases if p.operations}
                say(making_line(event))
                say(plan_line(event))
            case Fused():
                say(event.text)
            case Saved() if event.step is not None and self.verbose:
                say(f"state after step {event.step} saved in {event.path}")
            case Step():
                self._step(event)
            case Took():
                self._end(event)
            case Written():
                self._total(event)

    def _step(self, step: Step) -> None:
        now = time.perf_counter()
        if self.start is None or step.phase != self.start.phase:
            self.start, self.began, self.tenth = step, now, 0
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
        own, done = work.get(step.phase), step.index - self.start.index
        if not (own and done):
            return ""
        later = sum([*work.values()][[*work].index(step.phase) + 1 :])
        units = step.total - step.index + step.total * later / own
        return f"about {duration(seconds / done * units)} left"

    def _end(self, took: Took) -> None:
        self.close()
        self.start = None
        self.phases.append(took)
        if not self.lively:
            say(f"{took.phase}: {took.seconds:.1f} s, peak {took.peak / GB:.2f} GB")

    def _total(self, written: Written) -> None:
        if self.verbose:
            say(f"\n{'phase':<20}{'seconds':>9}{'peak GB':>9}")
            for name, seconds, peak in self.phases:
                say(f"{name:<20}{seconds:>9.1f}{peak / GB:>9.2f}")
        say(f"total: {written.seconds:.1f} s, peak {written.peak / GB:.2f} GB")


class Downloads:
    """Shows what is about to be downloaded, and how far that is: a bar on a terminal, else plain lines.

    Only the first if ``quiet``.
    """

    def __init__(self, quiet: bool = False):
        self.quiet, self.bar = quiet, None

    def __call__(self, what: Plan | Download) -> None:
        if isinstance(what, Plan):
            say(what)
        elif not self.quiet:
            self._show(what) if watched() else self._tell(what)

    def _tell(self, download: Download) -> None:
        if download.tenth or download.ended:
            say(download)

    def _show(self, download: Download) -> None:
        from tqdm import tqdm

        if self.bar is None:
            self.bar = tqdm(total=download.total, bar_format="{desc} {bar:16}")
        self.bar.n = download.done
        self.bar.set_description_str(harmless(str(download)))
        if download.ended:
            self.bar.close()
            self.bar = None


def making_line(planned: Planned) -> str:
    """What is being made, in a line."""
    request = planned.job.request
    sound = "with sound" if request.audio else "without sound"
    return (
        f"making {planned.path}: {request.prompt!r}, {describe(request.shape)}, {request.shape.seconds:.1f} s {sound}, "
        f"seed {request.seed}"
    )
