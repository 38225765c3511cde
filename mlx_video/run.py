"""A job carried out to files that are safe, as a stream of events. It prints nothing: terminal and server listen.

Every event is a tuple of plain values (a ``Preview`` has pixels). Whatever ends a run carries a note of where its work is kept.
"""

import math
import shlex
import time
from collections import deque
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Generator, Iterable, Iterator, NamedTuple, TypeVar

import mlx.core as mx
import numpy as np

from mlx_video import hub
from mlx_video import plan as plans
from mlx_video import weights
from mlx_video.disk import file_errors, reserved, short, written_aside
from mlx_video.errors import UserError
from mlx_video.health import HealthError, check_latents
from mlx_video.models.ltx.components import Announce
from mlx_video.models.ltx.shelf import Shelf
from mlx_video.output import Output
from mlx_video.pipeline import Pipeline, Reached
from mlx_video.plan import Phase
from mlx_video.previews import Preview
from mlx_video.record import RECORD_KEY, Job, load_tensors, save_tensors
from mlx_video.types import AV, Clip, Sample, Step, Waveform

X = TypeVar("X")
CACHE_LIMIT = 2 * 2**30  # bytes of freed memory that MLX may keep for reuse ...
CPU_CACHE_LIMIT = 2**25  # ... and for a CPU, where more was seen to gain no time
WORTH_SAVING = 10.0  # seconds of sampling, when a run is stopped
STAGE, STEP = "stage", "step"  # of a state, in its file's metadata
SPARE = 2**20  # bytes of what stands beside latents in their file
SOUND = "sound"  # that the clip has from a stage before, in a state's file


@dataclass(frozen=True)
class Options:
    """How a run is carried out; nothing here changes the clip.

    health        look at what each phase made and stop when it is garbage
    memory_limit  bytes to stay within; ``None`` is what the machine has
    save_every    seconds after which the state of a long sampling is saved again, to go on from if the run is stopped
    resume        the state file to go on from
    previews      show what the clip looks like while it is sampled, where memory allows it
    shelf         where parts stay loaded for the next run, where memory allows it; ``None`` frees them
    """

    health: bool = True
    memory_limit: float | None = None
    save_every: float = 60.0
    resume: Path | None = None
    previews: bool = False
    shelf: Shelf | None = None


class Downloading(NamedTuple):
    """Files are about to be fetched from the hub; ``terms`` is the licence, in a line, where it is known."""

    repo: str
    bytes: int
    files: tuple[str, ...]
    terms: str = ""


class Planned(NamedTuple):
    """What the run will make, where, and what it will take; ``job`` is as its record will tell it."""

    job: Job
    path: str
    phases: tuple[Phase, ...]
    limit: float
    chosen: str


class Fused(NamedTuple):
    """A LoRA was fused into the model."""

    text: str


class Saved(NamedTuple):
    """Work was saved that an interrupted run can go on from: ``step`` of a stage, or ``None`` for finished latents."""

    path: str
    step: int | None
    prompt: str


class Warned(NamedTuple):
    """The run goes on, without something."""

    text: str


class Took(NamedTuple):
    """A phase has ended, after so many seconds and with such a peak of bytes."""

    phase: str
    seconds: float
    peak: int


class Written(NamedTuple):
    """The clip and what goes with it are complete; always the last event."""

    path: str
    record: str
    seconds: float
    peak: int


Event = Downloading | Planned | Fused | Step | Preview | Saved | Warned | Took | Written


def run(job: Job, output: Output, options: Options = Options()) -> Iterator[Event]:
    """Carry out ``job`` and write its files; what is to happen is yielded before it happens.

    Raises ``UserError`` before any weights are read for what can be known to be wrong, ``HealthError`` later.
    """
    job.check()
    reads = [Path(file) for given in job.request.inputs for file in given.files]
    output.check(job.request.audio, reads)
    start = None if options.resume is None else load_state(options.resume, job)
    if start is None:
        output.check_unfinished()
    with _made(output.path.parent), output.owned():
        job, plan, pipeline = yield from _prepared(job, options)
        output.check_space(job.request.shape, _bytes(pipeline, job))
        yield Planned(job, str(output.path), plan.phases, plan.limit, plan.chosen)
        if options.previews and not plan.previews:
            yield Warned("There is no memory for previews; the clip is made without.")
        yield from map(Warned, pipeline.cautions(job.request))
        yield from map(Warned, output.notices(job.request.audio))
        yield from _timed(_carried_out(pipeline, job, output, options, start), output)


class Sampled(NamedTuple):
    """A job whose latents are there, in memory, and what decodes them."""

    job: Job
    latents: AV[mx.array]
    pipeline: Pipeline


def sample(job: Job, options: Options = Options()) -> Generator[Event, None, Sampled]:
    """Carry out ``job`` up to its latents, and write nothing; ``write`` does. Raises as ``run`` does."""
    job.check()
    job, _, pipeline = yield from _prepared(job, options)
    yield from map(Warned, pipeline.cautions(job.request))
    for event in pipeline.events(job.request):
        if isinstance(event, Step | Preview):
            yield event
    return Sampled(job.with_prompt(event.prompt), event.latents, pipeline)


def write(sampled: Sampled, output: Output) -> Iterator[Event]:
    """Decode what was sampled and write its files."""
    job, latents, pipeline = sampled
    with _made(output.path.parent), output.owned():
        output.check_space(job.request.shape, 0)
        yield from _timed(_written(pipeline, latents, job, output), output)


def _prepared(
    job: Job, options: Options, sampled: bool = False
) -> Generator[Downloading | Step, None, tuple[Job, plans.Plan, Pipeline]]:
    """``job`` as its record will tell it, what it will take, and what will carry it out."""
    if job.request.timed:
        job = yield from _timed_by_prompt(job, options)
    plan, pipeline = yield from _planned(job, options, sampled)
    most = CACHE_LIMIT if mx.default_device() == mx.gpu else CPU_CACHE_LIMIT
    mx.set_cache_limit(min(most, plan.spare))
    return job.planned(plan), plan, pipeline


def _planned(
    job: Job, options: Options, sampled: bool = False
) -> Generator[Downloading, None, tuple[plans.Plan, Pipeline]]:
    """What ``job`` will take, within the limit, and what will carry it out; checked."""
    plan = yield from _announced(
        lambda announce: job.plan(
            limit=options.memory_limit,
            announce=announce,
            previews=options.previews and not sampled,
            keep=options.shelf is not None and not sampled,
            sampled=sampled,
        )
    )
    pipeline = job.planned(plan.check()).pipeline(health=options.health, plan=plan)
    if not sampled:
        pipeline.check(job.request)
    if options.shelf is not None:
        plan.components.keep_on(options.shelf, job.request.model_type)
    return plan, pipeline


def _timed_by_prompt(
    job: Job, options: Options
) -> Generator[Downloading | Step, None, Job]:
    """``job`` with as many frames as suit its prompt; planned as it is, so that the memory holds what finds that out."""
    _, pipeline = yield from _planned(job, options)
    request = yield from pipeline.timed(job.request)
    job = replace(job, request=request)
    job.check()
    return job


def finish(
    job: Job, latents: Path, output: Output, options: Options = Options()
) -> Iterator[Event]:
    """Decode the ``latents`` that a run of ``job`` left, as it would have done, and remove them.

    Raises ``UserError`` where they do not fit the job, before any weights are read.
    """
    job.check()
    output.check(job.request.audio)
    tensors, _ = load_tensors(latents)
    job, plan, pipeline = yield from _prepared(job, options, sampled=True)
    _check_latents(latents, tensors, pipeline.latent_shapes(job.request))
    if options.health:
        check_latents(tensors, f"reading {short(latents)}", "Sample the clip again")
    yield Planned(job, str(output.path), plan.phases, plan.limit, plan.chosen)
    yield from write(Sampled(job, tensors, pipeline), output)
    latents.unlink(missing_ok=True)


def _carried_out(
    pipeline: Pipeline, job: Job, output: Output, options: Options, start
) -> Iterator[Event]:
    """Sample, keep what was sampled, and decode it. The latents' room on the disk is taken before."""
    keeper = _Keeper(job, output, options)
    with reserved(output.latents, _bytes(pipeline, job) + SPARE) as room, keeper:
        fused = 0
        for event in pipeline.events(job.request, start):
            fusions = pipeline.components.fusions
            yield from (Fused(str(fusion)) for fusion in fusions[fused:])
            fused = len(fusions)
            match event:
                case Step() | Preview():
                    yield event
                case Reached():
                    yield from keeper.reached(event)
                case Sample():
                    room.unlink()
                    yield from keeper.sampled(event)
        yield from _written(pipeline, event.latents, keeper.job, output)
        keeper.done()


class _Keeper:
    """Keeps the work of a run on disk until its clip is written; notes on whatever ends the run where it is."""

    def __init__(self, job: Job, output: Output, options: Options):
        self.job, self.output, self.options = job, output, options
        self.unsaved: Reached | None = None
        self.saved = time.monotonic()

    def __enter__(self) -> "_Keeper":
        return self

    def __exit__(self, kind, error: BaseException | None, _) -> None:
        if error is None:
            return
        if self.unsaved and time.monotonic() - self.saved > WORTH_SAVING:
            with suppress(UserError):
                save_state(self.output, self.unsaved, self.job)
        if where := where_kept(self.output):
            as_it_is = " Add --no-health-check to have it as it is."
            error.add_note(where + as_it_is * isinstance(error, HealthError))

    def reached(self, state: Reached) -> Iterator[Event]:
        """Save the state, if it is time."""
        self.unsaved = state
        if time.monotonic() - self.saved >= self.options.save_every:
            yield from self._tried(save_state, state)
            self.unsaved, self.saved = None, time.monotonic()

    def sampled(self, sample: Sample) -> Iterator[Event]:
        """Save the latents; the clip may still be made where they cannot be saved."""
        self.unsaved = None
        self.job = self.job.with_prompt(sample.prompt)
        yield from self._tried(save_latents, sample)
        if self.output.latents.exists():
            self._remove_states()

    def done(self) -> None:
        """The clip is written: nothing needs to be kept."""
        self.output.latents.unlink(missing_ok=True)
        self._remove_states()

    def _tried(self, save: Callable, what: Sample | Reached) -> Iterator[Event]:
        try:
            path = save(self.output, what, self.job)
        except UserError as error:
            yield Warned(str(error))
        else:
            step = getattr(what, "step", None)
            yield Saved(str(path), step, self.job.request.prompt)

    def _remove_states(self) -> None:
        for state in (self.output.state, self.options.resume):
            if state is not None:
                state.unlink(missing_ok=True)


def _written(
    pipeline: Pipeline, latents: AV[mx.array], job: Job, output: Output
) -> Iterator[Step]:
    """Decode and write the clip, and then its record."""
    from mlx_video import media  # with codecs, which only a finished clip needs

    request, record = job.request, job.record()
    decoding = pipeline.decoding(latents, request.shape, request.tiling, request.seed)
    steps: deque[Step] = deque()

    def frames() -> Iterator[np.ndarray]:
        for event in decoding:
            if isinstance(event, Step):
                steps.append(event)
            else:
                yield event

    sound, made = (yield from _with_sound(decoding)), frames()
    if output.frames:
        made = media.save_frames(made, output.frames, overwrite=output.overwrite)
    writing = media.saving(
        Clip(made, request.shape, sound),
        output.path,
        metadata={RECORD_KEY: record},
        overwrite=output.overwrite,
    )
    with closing(writing):
        for _ in writing:
            while steps:
                yield steps.popleft()
    if output.audio:
        with _made(output.audio.parent):
            media.save_wav(sound, output.audio, overwrite=output.overwrite)
    with written_aside(output.record, output.overwrite) as aside:
        aside.write_text(record + "\n", encoding="utf-8")
    yield from steps


def _with_sound(
    decoding: Iterator[Step | Waveform | np.ndarray],
) -> Generator[Step, None, Waveform | None]:
    """Pass the steps on until the first frame is about to be decoded; returns the sound, if there is any."""
    sound = None
    for event in decoding:
        if not isinstance(event, Step):
            sound = event
            continue
        yield event
        if event.phase == "decode video":
            return sound


# What is kept


def where_kept(output: Output) -> str | None:
    """A sentence on what an unfinished run to ``output`` has left, and how to go on with it."""
    ways = {
        output.latents: "The latents are kept: finish with `mlx-video decode {}`.",
        output.state: "What was sampled is kept: go on with `mlx-video generate --resume {}`.",
    }
    notes = (n.format(shlex.quote(str(p))) for p, n in ways.items() if p.exists())
    return next(notes, None)


def save_latents(output: Output, sample: Sample, job: Job) -> Path:
    """Write a sample beside its record, for ``finish``; returns where. Raises ``UserError`` where that cannot be."""
    record = {RECORD_KEY: job.with_prompt(sample.prompt).record()}
    save_tensors(output.latents, sample.latents, record | output.remembered())
    return output.latents


def save_state(output: Output, state: Reached, job: Job) -> Path:
    """Write where sampling has got to, beside the record; returns where. Raises ``UserError`` where that cannot be."""
    words = {RECORD_KEY: job.record(), STAGE: str(state.stage), STEP: str(state.step)}
    sound = {} if state.sound is None else {SOUND: state.sound}
    save_tensors(output.state, state.latents, words | output.remembered(), sound)
    return output.state


def recalled(left: Path) -> Output:
    """The files that a run meant to write which left latents or a state."""
    return Output.recalled(left, load_tensors(left)[1])


def load_state(path: Path, job: Job) -> Reached:
    """What ``save_state`` wrote, for the ``job`` of its record."""
    latents, metadata = load_tensors(path)
    stages = [len(stage.sigmas) - 1 for stage in job.recipe.stages]
    try:
        stage, step = int(metadata[STAGE]), int(metadata[STEP])
        fits = stage >= 0 and 0 < step < stages[stage]
        sound = weights.read(path)[0].get(SOUND)
        if job.request.audio and stage > job.recipe.sound_stage:
            fits = fits and sound is not None
    except (KeyError, ValueError, IndexError):
        fits = False
    if not fits or latents.present != AV(True, job.request.audio or None).present:
        raise UserError(
            f"{short(path)} is no state to go on from; give the .state.safetensors that a stopped run left."
        )
    return Reached(stage, step, latents, sound)


def _check_latents(path: Path, latents: AV[mx.array], shapes: AV[tuple]) -> None:
    """Raise where ``latents`` are not those that their record asks for."""
    given = latents.map(lambda x: tuple(x.shape))
    if given != shapes:
        raise UserError(
            f"{short(path)} does not fit its record: it holds {_shapes(given)}, and the record asks for {_shapes(shapes)}."
        )


def _shapes(shapes: AV[tuple]) -> str:
    sizes = (f"{m.value} {'x'.join(map(str, shapes[m]))}" for m in shapes.present)
    return " and ".join(sizes)


def _bytes(pipeline: Pipeline, job: Job) -> int:
    """Of the latents that sampling will make."""
    shapes = pipeline.latent_shapes(job.request).values
    return sum(4 * math.prod(shape) for shape in shapes)


# Around a run


class _Heard(Exception):
    """Carries a download out of the search that is about to begin it."""


def _announced(
    find: Callable[[Announce], X],
) -> Generator[Downloading, None, X]:
    """What ``find`` finds. A download is yielded before it begins: the search stops there and starts over."""
    heard = []

    def announce(plan: hub.Plan) -> None:
        if plan not in heard:
            heard.append(plan)
            raise _Heard

    while True:
        try:
            return find(announce)
        except _Heard:
            plan = heard[-1]
        yield Downloading(plan.repo, plan.bytes, tuple(plan.missing), plan.terms)


def _timed(events: Iterable[Event], output: Output) -> Iterator[Event]:
    """``events``, with what each phase took, and ``Written`` at the end."""
    clock = _Clock()
    for event in events:
        if isinstance(event, Step) and event.phase != clock.phase:
            yield from clock.end()
            clock.begin(event.phase)
        yield event
    yield from clock.end()
    yield Written(str(output.path), str(output.record), clock.seconds, clock.peak)


class _Clock:
    """Seconds and peak memory of the phase that is under way, and of all."""

    def __init__(self):
        self.phase: str | None = None
        self.seconds, self.peak = 0.0, 0

    def begin(self, phase: str) -> None:
        self.phase, self.started = phase, time.perf_counter()
        mx.reset_peak_memory()

    def end(self) -> Iterator[Took]:
        if self.phase is not None:
            seconds, peak = time.perf_counter() - self.started, mx.get_peak_memory()
            self.seconds, self.peak = self.seconds + seconds, max(self.peak, peak)
            yield Took(self.phase, seconds, peak)
        self.phase = None


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and those above it where they are missing; if the block fails, remove those that are empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with file_errors(folder, "made"):
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise
