"""Carries out a job as a stream of events and writes its files safely. Prints nothing: terminal and server listen."""

import time
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Generator, Iterable, Iterator, NamedTuple

import mlx.core as mx

from mlx_video import plan as plans
from mlx_video.disk import folder_made, owned, reserved, short, written_aside
from mlx_video.errors import UserError
from mlx_video.events import Event, Planned, Took, Warned, Written
from mlx_video.health import check_latents
from mlx_video.hub import Notify
from mlx_video.models.ltx.loading.components import notify_log
from mlx_video.models.ltx.loading.residency import Shelf
from mlx_video.output import Output
from mlx_video.pipeline import Pipeline, Reached
from mlx_video.previews import Preview
from mlx_video.record import RECORD_KEY, Job
from mlx_video.resume import Keeper, check_shapes, load_state, load_tensors
from mlx_video.types import AV, Doing, Sample, Step

CACHE_LIMIT = 2 * 2**30  # bytes of freed memory that MLX may keep for reuse ...
CPU_CACHE_LIMIT = 2**25  # ... and for a CPU, where more saves no time
SPARE = 2**20  # bytes for the metadata in a file of latents


@dataclass(frozen=True)
class Options:
    """How a run is carried out. Only ``memory_limit`` can change the clip: it may quantize weights, or blend tiles.

    health        whether to check the output of each phase and stop if it is garbage
    memory_limit  bytes to stay within; ``None`` = what the machine has
    save_every    seconds between saved states of a long sampling, from which an interrupted run can continue
    resume        the state file to continue from
    previews      whether to show the clip while it is sampled, if memory allows
    shelf         where parts stay loaded for the next run, if memory allows; ``None`` frees them
    notify        is called before and during each download
    """

    health: bool = True
    memory_limit: float | None = None
    save_every: float = 60.0
    resume: Path | None = None
    previews: bool = False
    shelf: Shelf | None = None
    notify: Notify = notify_log

    def __post_init__(self):
        limit = self.memory_limit
        if not (limit is None or isinstance(limit, int | float) and limit > 0):
            raise UserError(
                f"memory_limit must be a number of bytes above 0, such as 24e9; got {limit!r}."
            )


def run(job: Job, output: Output, options: Options = Options()) -> Iterator[Event]:
    """Carry out ``job`` and write its files; events are those of ``events``.

    Raises ``UserError`` for bad input, before any weights are read if possible, and ``HealthError`` later.
    """
    job.check()
    output.check(job.request)
    start = None if options.resume is None else load_state(options.resume, job)
    if start is None:
        output.check_unfinished()
    with folder_made(output.path.parent), owned(output.path):
        job, plan, pipeline = yield from _prepared(job, options)
        output.check_space(job.request.shape, pipeline.latent_bytes(job.request))
        yield Planned(job, str(output.path), plan)
        if options.previews and not plan.previews:
            yield Warned(
                "There is no memory for previews; the clip is made without them."
            )
        yield from map(Warned, pipeline.cautions(job.request))
        yield from map(Warned, output.notices(job.request.audio))
        keeper = Keeper(job, output, options.save_every, options.resume)
        yield from _timed(_carried_out(pipeline, keeper, start), output)


class Sampled(NamedTuple):
    """A job, its latents, and the pipeline that decodes them."""

    job: Job
    latents: AV[mx.array]
    pipeline: Pipeline


def sample(job: Job, options: Options = Options()) -> Generator[Event, None, Sampled]:
    """Carry out ``job`` up to its latents, without writing files (see ``write``). Raises as ``run`` does."""
    job.check()
    job, _, pipeline = yield from _prepared(job, options)
    yield from map(Warned, pipeline.cautions(job.request))
    for event in pipeline.events(job.request):
        if isinstance(event, Step | Preview):
            yield event
    return Sampled(job.with_prompt(event.prompt), event.latents, pipeline)


def write(sampled: Sampled, output: Output) -> Iterator[Event]:
    """Decode sampled latents and write the files."""
    request = sampled.job.request
    yield from map(Warned, output.notices(request.audio))
    with folder_made(output.path.parent), owned(output.path):
        output.check_space(request.shape, 0)
        yield from _timed(_written(sampled, output), output)


def _prepared(
    job: Job, options: Options, sampled: bool = False
) -> Generator[Step | Warned, None, tuple[Job, plans.Plan, Pipeline]]:
    """``job`` as it will be recorded, its memory plan, and its pipeline; all checked."""
    work = plans.Work(job.request, job.recipe, job.batch_guidance, sampled=sampled)
    if not sampled:
        work = work._replace(previews=options.previews, keep=options.shelf is not None)
    components = job.components(options.notify, sampled)
    plan = plans.plan(components, work, options.memory_limit).check()
    pipeline = job.pipeline(plan, health=options.health)
    if not sampled:
        pipeline.check(job.request)
    if options.shelf is not None:
        plan.components.keep_on(options.shelf)
    # This plan was for the phases that choose the length.
    if job.request.timed and not sampled:
        request = yield from pipeline.timed(job.request)
        return (yield from _prepared(replace(job, request=request), options))
    if plan.chosen and plan.components.residency.quantize == 4:
        yield Warned(f"This fits only with the {plan.chosen}; some quality is lost.")
    most = CACHE_LIMIT if mx.default_device() == mx.gpu else CPU_CACHE_LIMIT
    pipeline.components.cache_limit = min(most, plan.spare)
    return job.planned(plan), plan, pipeline


def finish(
    job: Job, latents: Path, output: Output, options: Options = Options()
) -> Iterator[Event]:
    """Decode the ``latents`` that a run of ``job`` left, and remove them.

    Raises ``UserError`` if they do not fit the job, before any weights are read.
    """
    job.check()
    output.check(job.request)
    tensors, _ = load_tensors(latents)
    job, plan, pipeline = yield from _prepared(job, options, sampled=True)
    check_shapes(latents, tensors, pipeline.latent_shapes(job.request))
    if options.health:
        check_latents(tensors, f"reading {short(latents)}", "Sample the clip again")
    yield Planned(job, str(output.path), plan)
    yield from write(Sampled(job, tensors, pipeline), output)
    latents.unlink(missing_ok=True)


def _carried_out(
    pipeline: Pipeline, keeper: Keeper, start: Reached | None
) -> Iterator[Event]:
    """Sample, save the latents, and decode them. Disk space for the latents is reserved before."""
    job, output = keeper.job, keeper.output
    size = pipeline.latent_bytes(job.request) + SPARE
    with reserved(output.latents, size) as room, keeper:
        fused = 0
        for event in pipeline.events(job.request, start):
            fusions = pipeline.components.fusions
            yield from map(str, fusions[fused:])
            fused = len(fusions)
            match event:
                case Step() | Preview():
                    yield event
                case Reached():
                    yield from keeper.reached(event)
                case Sample():
                    room.unlink()
                    yield from keeper.sampled(event)
        yield from _written(Sampled(keeper.job, event.latents, pipeline), output)
        keeper.done()


def _written(sampled: Sampled, output: Output) -> Iterator[Step]:
    """Decode and write the clip, then its record."""
    from mlx_video import media  # imports codecs, which only a finished clip needs

    job, latents, pipeline = sampled
    record, overwrite = job.record(), output.overwrite
    for event in pipeline.decoding(latents, job.request):
        if isinstance(event, Step):
            yield event
    clip = event
    if output.frames:
        frames = media.save_frames(clip.frames, output.frames, overwrite=overwrite)
        clip = replace(clip, frames=frames)
    words = {RECORD_KEY: record}
    writing = media.saving(clip, output.path, metadata=words, overwrite=overwrite)
    with closing(writing):
        for count in writing:
            yield Step(Doing.DECODE_VIDEO, count, clip.shape.frames)
    if output.audio:
        with folder_made(output.audio.parent):
            media.save_wav(clip.audio, output.audio, overwrite=overwrite)
    with written_aside(output.record, overwrite) as aside:
        aside.write_text(record + "\n", encoding="utf-8")


def _timed(events: Iterable[Event], output: Output) -> Iterator[Event]:
    """``events``, with a ``Took`` after each phase, and ``Written`` at the end."""
    phases: list[Took] = []
    phase = None
    for event in chain(events, [None]):  # None is the end
        if event is None or isinstance(event, Step) and event.phase != phase:
            if phase is not None:
                seconds = time.perf_counter() - began
                phases.append(Took(phase, seconds, mx.get_peak_memory()))
                yield phases[-1]
            if event is None:
                break
            phase, began = event.phase, time.perf_counter()
            mx.reset_peak_memory()
        yield event
    seconds = sum(phase.seconds for phase in phases)
    peak = max((phase.peak for phase in phases), default=0)
    yield Written(str(output.path), str(output.record), seconds, peak)
