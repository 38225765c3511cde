"""What a run reports while it works: tuples of plain values, except that a ``Preview`` has pixels."""

from typing import NamedTuple

from mlx_video.plan import Plan
from mlx_video.previews import Preview
from mlx_video.record import Job
from mlx_video.types import Step


class Planned(NamedTuple):
    """What the run will make, where, and what it needs; ``job`` is the one in the record."""

    job: Job
    path: str
    plan: Plan

    @property
    def operations(self) -> dict[str, float]:
        """The floating-point operations of each phase that needs many, in order."""
        return {p.name: p.operations for p in self.plan.phases if p.operations}

    def done(self, step: Step) -> float | None:
        """The share of all ``operations`` that is done at ``step``; ``None`` in a phase that needs little."""
        work = self.operations
        if step.phase not in work:
            return None
        before = sum([*work.values()][: [*work].index(step.phase)])
        now = work[step.phase] * step.index / step.total
        return (before + now) / sum(work.values())


class Saved(NamedTuple):
    """Work was saved to continue from if the run is interrupted; ``step`` = of a stage, ``None`` = finished latents."""

    path: str
    step: int | None


class Warned(NamedTuple):
    """Something failed or looks wrong, but the run continues."""

    text: str


class Took(NamedTuple):
    """A phase ended: its seconds and its peak in bytes."""

    phase: str
    seconds: float
    peak: int


class Written(NamedTuple):
    """The clip and its other files are complete; always the last event."""

    path: str
    record: str
    seconds: float
    peak: int


# A text is a notice, such as that a LoRA was fused.
Event = Planned | Step | Preview | Saved | Warned | Took | Written | str
