"""Plans, files and models as text for people."""

import json
from typing import Sequence

from mlx_video.disk import GB, amount
from mlx_video.models.ltx.checkpoint.describe import Description, Entry, PartSummary
from mlx_video.models.ltx.checkpoint.find import DEMO_KNOWS, PACKAGED
from mlx_video.plan import Plan


def plan_line(plan: Plan) -> str:
    """One line on what a run needs."""
    most, more = plan.largest, plan.libraries / GB
    libraries = f", beside {more:.2f} GB of libraries" if more else ""
    times = [phase.seconds for phase in plan.phases if phase.seconds]
    seconds = f", about {sum(times):.0f} s of sampling" if times else ""
    chosen = f", with the {plan.chosen}" if plan.chosen else ""
    return (
        f"plan: at most {most.peak / GB:.2f} GB of {plan.limit / GB:.2f} GB, for {most.name}{libraries}"
        f"{seconds}{chosen}"
    )


def plan_text(plan: Plan) -> str:
    """What a run needs, phase by phase."""
    lines = [f"{'phase':<20}{'weights GB':>11}{'peak GB':>9}{'seconds':>9}"]
    for phase in plan.phases:
        weights, peak = phase.weights / GB, phase.peak / GB
        seconds = "" if phase.seconds is None else f"{phase.seconds:>9.1f}"
        lines.append(f"{phase.name:<20}{weights:>11.2f}{peak:>9.2f}{seconds}")
    return "\n".join([*lines, plan_line(plan)])


def plan_json(plan: Plan) -> str:
    """A plan as JSON, in bytes."""
    phases = [{"name": p.name, "weights": p.weights, "peak": round(p.peak)} for p in plan.phases]  # fmt: skip
    limit, peak = round(plan.limit), round(plan.largest.peak)
    return json.dumps({"peak": peak, "limit": limit, "phases": phases})


def describe_text(found: Description) -> str:
    """What a file or folder holds."""
    layout = found.layout
    lines = [str(layout.path), f"layout      {layout.name}"]
    if layout.path == PACKAGED:
        lines.append(f"knows       {DEMO_KNOWS}")
    if layout.version:
        lines.append(f"version     LTX-{layout.version}")
    if found.changes:
        lines.append(f"changes     {found.changes}")
    if found.changes and not found.changes.version:
        *others, last = found.fits or ["no release of Lightricks"]
        fits = f"{', '.join(others)} and {last}" if others else last
        lines.append(f"fits        {fits}, by the names and shapes of its layers")
    width = 2 + max(map(len, found.parts), default=0)
    lines += [_part_line(f"{k:<{width}}", part) for k, part in found.parts.items()]
    if layout.defaults:
        stated = json.dumps(layout.defaults, ensure_ascii=False)
        lines.append(f"defaults    {stated}")
    lines += [f"missing     {name}: {how}" for name, how in found.missing.items()]
    lines += [f"not usable  {why}" for why in found.refusals]
    return "\n".join(lines)


def catalog_text(entries: Sequence[Entry]) -> str:
    """All models that have a name."""
    lines = []
    for entry in entries:
        place = f"{entry.repository}: " if entry.repository else ""
        lines.append(f"{entry.name:<12}{place}{entry.size}; {entry.terms}")
        held = [
            f"{name} {amount(c.bytes)}{'' if c.complete else ' of it'}"
            for name, c in entry.cached.items()
            if c.bytes
        ]
        if entry.unfinished:
            held.append(f"{amount(entry.unfinished)} of interrupted downloads")
        if entry.repository:
            lines.append(f"{'':<12}in the cache: {', '.join(held) or 'nothing'}")
    return "\n".join(lines)


def _part_line(name: str, part: PartSummary) -> str:
    quantized = part.quantization.get("bits")
    raw = ("float8", "int8") if part.formats else ()  # the formats say more
    kinds = ", ".join([*part.formats, *(d for d in part.dtypes if d not in raw)])
    return f"{name}{part.tensors:>6} tensors {amount(part.bytes):>11}  {kinds}" + (
        f"  {quantized}-bit" if quantized else ""
    )
