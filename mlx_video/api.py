"""Clips in a few lines of Python: ``mlx_video.load()("a red ball").save("ball.mp4")``.

Runs, records and files are those of the terminal; this module only offers them to Python.
"""

import base64
import html
import inspect
import logging
import os
import shutil
import tempfile
import warnings
from contextlib import closing
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache, cached_property
from itertools import repeat
from pathlib import Path
from typing import Callable, Generator, Iterable, Iterator, TypeVar

import numpy as np

from mlx_video.clip_settings import ClipSettings, resolve_model
from mlx_video.disk import check_free
from mlx_video.errors import UserError
from mlx_video.events import Event, Warned
from mlx_video.inputs import Image, Input, as_input
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.loading.residency import Shelf
from mlx_video.output import Output, clip_path
from mlx_video.recipes import Defaults, Recipe
from mlx_video.record import Job
from mlx_video.request import Request
from mlx_video.run import Options, Sampled, sample, write
from mlx_video.types import Clip, Sample, Step, Waveform

log = logging.getLogger(__name__)

X = TypeVar("X")
OnStep = Callable[[Step], object]


def load(
    model: str | Path | None = None,
    recipe: Recipe | None = None,
    *,
    variant: str = "distilled",
    files: Files | None = None,
    options: Options = Options(),
) -> "LTXPipeline":
    """A pipeline that makes clips with ``model``: a file, a folder, a hub repository, or "ltx-2-tiny", the demo model.

    model    by default a release that is in the hub's cache, else the demo model
    recipe   how to sample; by default the checkpoint's recipe for ``variant``, "distilled" or "dev"
    files    the model and its other files, such as LoRAs; replaces ``model``
    options  of runs, such as a memory limit
    Raises ``UserError`` for a path that does not exist. The first clip fetches what is missing.
    """
    for value, kind in ((recipe, Recipe), (files, Files), (options, Options)):
        if not isinstance(value, kind | None):
            name = kind.__name__
            raise UserError(f"{name.lower()} must be of type {name}; got {value!r}.")
    chosen = recipe.variant if recipe else variant
    files, defaults = resolve_model(files or Files(model), chosen)
    return LTXPipeline(files, recipe or defaults.recipe(variant), defaults, options)


@dataclass(eq=False)
class LTXPipeline:
    """Makes clips with one model. Each call reads the weights, once for all its clips if memory allows, and frees them.

    files, recipe, options  as in ``load``
    defaults                of a clip, from the checkpoint
    """

    files: Files
    recipe: Recipe
    defaults: Defaults
    options: Options = Options()

    def __call__(
        self,
        prompt: str | Request | Iterable[str],
        *,
        seed: int | Iterable[int] | None = None,
        on_step: OnStep | None = None,
        **wanted,
    ) -> "GeneratedClip | list[GeneratedClip]":
        """A clip of ``prompt``; for several prompts or seeds, a list of clips: each prompt with each seed.

        seed     of all noise, 0 to 2^64 - 1; by default random, see ``clip.seed``
        on_step  is called with each ``Step``: ``index`` of ``total`` of a ``phase`` is done; also when the clip is saved
        wanted   as in ``request``: image, frames, height, width, fps, audio, negative_prompt
        Raises ``UserError`` for bad input, before weights are read if possible, and ``HealthError`` for garbage.
        """
        one = _is_one(prompt, str, bytes, Request), _is_one(seed, str)
        prompts, seeds = [prompt] if one[0] else prompt, [seed] if one[1] else [*seed]
        requests = [self._request(p, s, wanted) for p in prompts for s in seeds]
        jobs = [Job(request, self.recipe, self.files) for request in requests]
        for job in jobs:
            job.check()
        # A list comprehension is a frame of its own in Python 3.11, and a warning would name it.
        clips = [*map(GeneratedClip, self._sampled(jobs, on_step), repeat(on_step))]
        return clips[0] if all(one) else clips

    def request(
        self,
        prompt: str,
        *,
        image: object = None,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: float | None = None,
        audio: bool | None = None,
        negative_prompt: str | None = None,
    ) -> Request:
        """The request for a call, with a random seed and the checkpoint's defaults.

        image          the clip begins with this path, PIL image, or array (H, W, 3) of uint8 or from 0 to 1; or an
                       ``Image``, which also says where and how strongly it is shown; or a list of these
        frames         at ``fps`` per second; rounded to 1 + a multiple of 8 for LTX-2, with a warning
        height, width  pixels; LTX-2 takes multiples of 32, or of 64 in two stages
        audio          whether the clip has sound
        """
        given = [] if image is None else image
        given = given if isinstance(given, (list, tuple)) else [given]
        settings = ClipSettings(
            prompt,
            self.recipe.variant,
            negative_prompt=negative_prompt,
            frames=frames,
            height=height,
            width=width,
            fps=fps,
            audio=audio,
            inputs=tuple(map(_input, given)),
        )
        return settings.rounded(self.files, self.defaults).request(self.defaults)

    def stream(self, request: Request) -> Iterator[Step | Sample | Clip]:
        """``Step``s of progress, then the ``Sample``, and finally the ``Clip``; raises as a call does."""
        job = Job(request, self.recipe, self.files)
        job, latents, pipeline = yield from _steps(sample(job, self.options))
        yield Sample(latents, job.request.prompt)
        yield pipeline.decode(latents, job.request)

    def _sampled(self, jobs: list[Job], on_step: OnStep | None) -> Iterator[Sampled]:
        """Sample each of ``jobs``; if there are several, parts stay loaded for the next."""
        shelf = self.options.shelf or Shelf()
        shared = replace(self.options, shelf=shelf) if len(jobs) > 1 else self.options
        try:
            for job in jobs:
                yield _followed(sample(job, shared), on_step, level=5)
        finally:
            if self.options.shelf is None:
                shelf.clear()

    def _request(
        self, prompt: str | Request, seed: int | None, wanted: dict[str, object]
    ) -> Request:
        known = inspect.signature(self.request).parameters
        for name in wanted.keys() - known:
            near = get_close_matches(name, known, 1)
            raise TypeError(
                f"A clip has no {name}{f'; did you mean {near[0]}?' if near else '.'} Valid arguments: "
                f"{', '.join(known)}. The model and how it samples are arguments of load()."
            )
        if not isinstance(prompt, Request):
            prompt = self.request(prompt, **wanted)
        elif wanted:
            raise UserError(
                f"A Request already holds every setting; leave out {', '.join(wanted)}, or give a prompt instead of the Request."
            )
        return prompt if seed is None else replace(prompt, seed=seed)


class GeneratedClip:
    """A sampled clip. It is decoded each time it is saved or shown; ``frames`` can be read once.

    job         what reproduces it: request, recipe and files
    prompt      the prompt that was encoded: the given one or its enhanced form
    seed        of all noise, 0 to 2^64 - 1; reproduces the clip
    shape, fps  frames, height, width and fps; and fps alone
    path        where it was last saved
    """

    def __init__(self, sampled: Sampled, on_step: OnStep | None = None):
        self.job, request = sampled.job, sampled.job.request
        self.prompt, self.seed = request.prompt, request.seed
        self.shape, self.fps = request.shape, request.shape.fps
        self.path: Path | None = None
        self._sampled, self._on_step = sampled, on_step

    @property
    def frames(self) -> Iterator[np.ndarray]:
        """RGB frames, uint8 (H, W, 3), decoded as they are taken, and only once."""
        return self._decoded.frames

    @property
    def audio(self) -> Waveform | None:
        """Samples in [-1, 1], (channels, n), and their rate; ``None`` for a clip without sound."""
        return self._decoded.audio

    def save(self, path: str | Path = ".", *, overwrite: bool = False) -> Path:
        """Write the clip in the format of its suffix, with a record that reproduces it; returns the path.

        path  .mp4, .mov, .webm, .gif or .webp; or a folder, where the clip is named after its prompt and seed
        Raises ``UserError`` if the file exists, unless ``overwrite``, and ``HealthError`` for garbage.
        """
        path = clip_path(path, self.prompt, self.seed)
        output = Output(path, overwrite=overwrite)
        output.check(self.job.request)
        job, copies = _with_pictures(self.job, path)
        for file in copies.values():
            check_free(file, overwrite)
        _followed(write(self._sampled._replace(job=job), output), self._on_step)
        for picture, file in copies.items():
            shutil.copyfile(picture, file)
        self.path = path
        return path

    @cached_property
    def _decoded(self) -> Clip:
        return self._sampled.pipeline.decode(self._sampled.latents, self.job.request)

    def __repr__(self) -> str:
        sound = "with sound" if self.job.request.audio else "without sound"
        return f"<clip of {self.prompt!r}: {self.shape}, {sound}, seed {self.seed}>"

    def _repr_html_(self) -> str:
        """A player, for a notebook."""
        with tempfile.TemporaryDirectory() as folder:
            file = self.path
            if file is None or file.suffix != ".mp4" or not file.is_file():
                file = Path(folder, "clip.mp4")
                _followed(write(self._sampled, Output(file)), self._on_step)
            data = base64.b64encode(file.read_bytes()).decode()
        return (
            f'<video controls loop width="{self.shape.width}" title="{html.escape(self.prompt)}" '
            f'src="data:video/mp4;base64,{data}"></video>'
        )


def _is_one(given: object, *kinds: type) -> bool:
    """Whether ``given`` is of ``kinds``, or not iterable."""
    return isinstance(given, kinds) or not isinstance(given, Iterable)


def _followed(
    events: Generator[Event, None, X], on_step: OnStep | None, level: int = 4
) -> X:
    """Run ``events`` to their end and return their value; ``on_step`` is called with each step, ``level`` is as in ``_steps``."""
    with closing(_steps(events, level)) as steps:
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
            if on_step is not None:
                on_step(step)


def _steps(
    events: Generator[Event, None, X], level: int = 3
) -> Generator[Step, None, X]:
    """The steps among ``events``. Warnings become Python's, with ``level`` as their ``stacklevel``; the rest is logged."""
    with closing(events):
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                return end.value
            if isinstance(event, Warned):
                warnings.warn(event.text, stacklevel=level)
            elif isinstance(event, Step):
                yield event
            else:
                log.info("%s", event)


# Pictures


def _input(given: object) -> Input:
    """The input for a path, a PIL image or an array."""
    if isinstance(given, (Input, str, os.PathLike)):
        return as_input(given)
    file = Path(tempfile.mkdtemp(dir=_folder().name), "frame_0000.png")
    if hasattr(given, "save"):  # a PIL image
        given.save(file)
    else:
        from mlx_video import media  # imports codecs, which only such pictures need

        for _ in media.save_frames([_pixels(given)], file.parent):
            pass
    return Image(str(file))


@cache
def _folder() -> tempfile.TemporaryDirectory:
    """A folder for pictures given without a file; removed when Python exits."""
    return tempfile.TemporaryDirectory(prefix="mlx-video-")


def _pixels(given: object) -> np.ndarray:
    """An array as 8-bit pixels."""
    array = np.asarray(given)
    numbers = np.issubdtype(array.dtype, np.floating) and array.size
    if numbers and 0 <= array.min() and array.max() <= 1:
        array = np.rint(255 * array).astype(np.uint8)
    flat = array.ndim == 3 and array.size and array.shape[2] in (3, 4)
    if array.dtype != np.uint8 or not flat:
        got = f"{array.dtype} {array.shape}" if array.ndim else repr(given)
        raise UserError(
            f"A picture is a path, a PIL image, or an array (H, W, 3) of uint8, or of numbers from 0 to 1; got {got}."
        )
    return array


def _with_pictures(job: Job, clip: Path) -> tuple[Job, dict[str, Path]]:
    """``job`` with pictures given without a file as files beside the ``clip``, and where to copy each."""
    copies: dict[str, Path] = {}
    inputs = []
    for given in job.request.inputs:
        if given.files and Path(_folder().name) in Path(given.files[0]).parents:
            copy = clip.with_suffix(f".{len(copies)}.png")
            copy = copies.setdefault(given.path, copy)
            given = replace(given, path=str(copy.resolve()))
        inputs.append(given)
    return replace(job, request=replace(job.request, inputs=tuple(inputs))), copies
