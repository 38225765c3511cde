"""Saves the work of an unfinished run, so that it can resume: finished latents, or the state of sampling."""

import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Iterator

import mlx.core as mx

from mlx_video import weights
from mlx_video.disk import short, written_aside
from mlx_video.errors import UserError
from mlx_video.events import Event, Saved, Warned
from mlx_video.health import HealthError
from mlx_video.output import Output
from mlx_video.pipeline import Reached
from mlx_video.record import RECORD_KEY, Job
from mlx_video.types import AV, Sample

WORTH_SAVING = 10.0  # seconds of sampling, when a run is stopped
STAGE, STEP = "stage", "step"  # of a state, in its file's metadata
SOUND = "sound"  # of an earlier stage, in a state's file


class Keeper(AbstractContextManager):
    """Keeps the work of a run on disk until its clip is written. An exception that ends the run gets a note on how to resume.

    every    seconds between saved states
    resumed  the state that this run continues
    """

    def __init__(self, job: Job, output: Output, every: float, resumed: Path | None):
        self.job, self.output, self.every, self.resumed = job, output, every, resumed
        self.unsaved: Reached | None = None
        self.saved = time.monotonic()

    def __exit__(self, kind, error: BaseException | None, _) -> None:
        if error is None:
            return
        if self.unsaved and time.monotonic() - self.saved > WORTH_SAVING:
            with suppress(UserError):
                save_work(self.output, self.unsaved, self.job)
        if left := self.output.left:
            garbage = isinstance(error, HealthError)
            as_it_is = "; add --no-health-check to accept it as it is" * garbage
            error.add_note(
                f"What was sampled is kept. Continue with `{left[1]}`{as_it_is}."
            )

    def reached(self, state: Reached) -> Iterator[Event]:
        """Save the state, if it is time."""
        self.unsaved = state
        if time.monotonic() - self.saved >= self.every:
            yield from self._save(state)
            self.unsaved, self.saved = None, time.monotonic()

    def sampled(self, sample: Sample) -> Iterator[Event]:
        """Save the latents; if that fails, the run continues without."""
        self.unsaved = None
        self.job = self.job.with_prompt(sample.prompt)
        yield from self._save(sample)
        if self.output.latents.exists():
            self._remove_states()

    def done(self) -> None:
        """Remove saved work once the clip is written."""
        self.output.latents.unlink(missing_ok=True)
        self._remove_states()

    def _save(self, work: Sample | Reached) -> Iterator[Event]:
        try:
            path = save_work(self.output, work, self.job)
        except UserError as error:
            yield Warned(str(error))
        else:
            yield Saved(str(path), getattr(work, "step", None))

    def _remove_states(self) -> None:
        for state in (self.output.state, self.resumed):
            if state is not None:
                state.unlink(missing_ok=True)


def save_work(output: Output, work: Sample | Reached, job: Job) -> Path:
    """Write the sample or the state of ``job`` to its file of ``output``, completely or not at all; returns the path.

    Its metadata are the record and ``output``. Raises ``UserError``.
    """
    path, words = output.latents, {RECORD_KEY: job.record()} | output.remembered()
    tensors = {m.value: work.latents[m] for m in work.latents.present}
    if isinstance(work, Reached):
        path = output.state
        words |= {STAGE: str(work.stage), STEP: str(work.step)}
        if work.sound is not None:
            tensors[SOUND] = work.sound
    with written_aside(path, overwrite=True) as aside:
        weights.write_tensors(aside, tensors, words)
    return path


def load_state(path: Path, job: Job) -> Reached:
    """The state that ``save_work`` wrote, for the ``job`` in its record."""
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
            f"{short(path)} is not the saved state of a run; give the .state.safetensors of an interrupted one."
        )
    return Reached(stage, step, latents, sound)


def check_shapes(path: Path, latents: AV[mx.array], shapes: AV[tuple]) -> None:
    """Raise ``UserError`` if ``latents`` do not have the ``shapes`` that their record needs."""
    given = latents.map(lambda x: tuple(x.shape))
    if given != shapes:
        raise UserError(
            f"{short(path)} does not match its record: it holds {_listed(given)}, but the record needs {_listed(shapes)}."
        )


def _listed(shapes: AV[tuple]) -> str:
    sizes = (f"{m.value} {'x'.join(map(str, shapes[m]))}" for m in shapes.present)
    return " and ".join(sizes)


def load_tensors(path: Path) -> tuple[AV[mx.array], dict[str, str]]:
    """Lazy latents, video (B, C, F, H, W) and audio (B, C, T, M), and metadata of a file of latents or of a state.

    Raises ``UserError`` if there are no video latents or they are not floating-point.
    """
    tensors, metadata = weights.read(path)
    if "video" not in tensors:
        raise UserError(
            f"{short(path)} holds no video latents; give the .latents.safetensors that a run left."
        )
    found = AV(tensors["video"], tensors.get("audio"))
    kinds = [x.dtype for x in found.values]
    if others := [kind for kind in kinds if not mx.issubdtype(kind, mx.floating)]:
        raise UserError(
            f"{short(path)} holds {others[0]} latents, but latents are floating-point. It is damaged, or not a latents file."
        )
    return found, metadata
