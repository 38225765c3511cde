"""A user's settings for a clip, which a checkpoint's defaults complete to a job. Knows no options and no HTTP."""

import logging
import secrets
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Callable, Iterator, Mapping

from mlx_video import clip_limits, recipes
from mlx_video.errors import UserError
from mlx_video.inputs import Input
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.find import find_defaults, known_parts, model_of
from mlx_video.models.ltx.checkpoint.releases import LTX_2
from mlx_video.models.ltx.loading.geometry import read_geometry
from mlx_video.recipes import Defaults, Recipe
from mlx_video.record import Job
from mlx_video.request import Request
from mlx_video.types import Geometry

log = logging.getLogger(__name__)

Notice = Callable[[object], None]
AUTO = "auto"
FAR = 1.25  # times the frame rate that a model was trained on
DEV_MODEL = "the dev model (--variant dev, or python -m mlx_video.generate_dev)"
STRENGTHS = "cfg", "audio_cfg", "stg", "stg_blocks", "modality", "rescale"
GUIDED = *STRENGTHS, "two_stage", "hq", "batch_guidance"  # only for the dev model


@dataclass(frozen=True)
class ClipSettings:
    """Every setting of a clip. ``None`` is the checkpoint's default, or for ``seed`` a random one.

    variant         "distilled" or "dev"
    duration        seconds, instead of ``frames``; ``AUTO`` lets the model choose by the prompt
    two_stage, hq   ways to sample the dev model
    dfr             rounds of DFR, for the distilled model; ``frames`` and ``fps`` are those before them
    """

    prompt: str
    variant: str = "distilled"
    negative_prompt: str | None = None
    frames: int | None = None
    duration: float | str | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    audio: bool | None = None
    seed: int | None = None
    inputs: tuple[Input, ...] = ()
    enhance: bool = False
    tiling: str = "auto"
    steps: int | None = None
    cfg: float | None = None
    audio_cfg: float | None = None
    stg: float | None = None
    stg_blocks: tuple[int, ...] | None = None
    modality: float | None = None
    rescale: float | None = None
    two_stage: bool = False
    hq: bool = False
    dfr: int | None = None
    batch_guidance: bool = False

    def job(
        self,
        files: Files,
        notify: Notice = log.warning,
        warn: Notice = log.warning,
        called: Mapping[str, str] = {},
    ) -> Job:
        """The job that makes the clip with ``files``; ``notify`` as in ``resolve_model``.

        ``warn`` is called with a sentence for each setting that looks like a mistake. Raises ``UserError`` if there is no
        such model or settings exclude each other; ``called`` maps settings to the names for that message.
        """
        for conflict in self._check(files, called):
            raise UserError(conflict)
        files, usual = resolve_model(files, self.variant, notify)
        settings = self.rounded(files, usual, warn)
        recipe, request = settings.recipe(usual, files), settings.request(usual)
        if self.fps is not None and not 1 / FAR <= self.fps / usual.fps <= FAR:
            warn(
                f"{self.fps:g} fps is far from the {usual.fps:g} that the model learned; motion may look wrong."
            )
        for unused in settings._unused(recipe, files):
            warn(unused)
        return Job(request, recipe, files, self.batch_guidance)

    def rounded(
        self, files: Files, usual: Defaults, warn: Notice = log.warning
    ) -> "ClipSettings":
        """These settings with ``frames``, those of ``duration`` or their own, rounded to what the model can make."""
        grid, frames = _geometry(files, self.variant).grid(), self.frames
        fps = self.fps or usual.fps
        if self.duration not in (None, AUTO):
            if clip_limits.SLOWEST <= fps <= clip_limits.FASTEST:
                frames = grid.frames_of(self.duration, fps)
        elif isinstance(frames, Integral) and 1 <= frames <= clip_limits.MOST_FRAMES:
            frames = grid.rounded(frames, warn)
        return replace(self, frames=frames)  # others are refused by the request

    def request(self, usual: Defaults) -> Request:
        """The request, completed by ``usual``, the checkpoint's defaults."""
        wanted = self._over(usual)
        return Request(
            self.prompt,
            recipes.finished(wanted.shape, self.dfr) if self.dfr else wanted.shape,
            negative_prompt=wanted.negative_prompt,
            seed=secrets.randbits(32) if self.seed is None else self.seed,
            audio=wanted.audio,
            inputs=self.inputs,
            enhance=self.enhance,
            tiling=self.tiling,
            timed=self.duration == AUTO,
        )

    def recipe(self, usual: Defaults, files: Files) -> Recipe:
        """The recipe, completed by ``usual``, the checkpoint's defaults."""
        wanted = self._over(usual)
        if self.dfr is not None:
            detailing = recipes.DETAILING * bool(files.detailing_lora)
            return recipes.dfr_recipe(self.dfr, detailing)
        if self.hq:
            half = _geometry(files, "dev").latents(wanted.shape.scaled(0.5))
            return wanted.hq(half.tokens, **self._said("steps", *STRENGTHS))
        return wanted.recipe(self.variant, self.two_stage)

    def _check(self, files: Files, called: Mapping[str, str]) -> Iterator[str]:
        """A sentence for each setting that is impossible or excludes another."""
        if self.duration is not None and self.frames is not None:
            yield "--duration and --num-frames both say how long the clip is; leave out one of them."
        longest, timed = clip_limits.LONGEST_CLIP, self.duration not in (None, AUTO)
        if timed and not 0 < self.duration <= longest:
            yield f"--duration must be above 0 and at most {longest} seconds, such as 5; got {self.duration:g}."
        if files.detailing_lora and self.dfr is None:
            yield "Only DFR uses --detailing-lora; add --dfr 0, or leave it out."
        if self.variant == "dev" and self.dfr is not None:
            yield "--dfr is for the distilled model; leave out --variant dev."
        said = [k for k, value in self._said(*GUIDED).items() if value is not False]
        said += ["distilled_lora"] * bool(files.distilled_lora)
        if self.variant == "distilled" and said:
            names = ", ".join(called.get(name, name) for name in said)
            yield f"The distilled model is sampled by its own fixed schedule, without guidance; leave out {names}, or use {DEV_MODEL}."

    def _unused(self, recipe: Recipe, files: Files) -> Iterator[str]:
        """A sentence for each setting that has no effect."""
        remedy = "" if recipe.variant == "dev" else f" Use {DEV_MODEL}."
        if self.negative_prompt is not None and not recipe.guided:
            yield f"The negative prompt is not used: this recipe samples without guidance.{remedy}"
        if self.steps is not None and recipe.variant == "distilled":
            steps = " and ".join(str(len(stage.sigmas) - 1) for stage in recipe.stages)
            yield f"The number of steps is not used: the distilled model takes {steps}.{remedy}"
        strengths = (each for stage in recipe.stages for each in stage.guidance.values)
        if self.stg_blocks is not None and not any(each.stg for each in strengths):
            yield "The STG blocks are not used: spatiotemporal guidance is off. Add --stg-scale 1."
        if files.distilled_lora and "distilled_lora" not in recipe.needs:
            yield "The distilled LoRA is not used in one stage. Add --two-stage."

    def _over(self, usual: Defaults) -> Defaults:
        """``usual``, overridden by these settings."""
        return replace(usual, **self._said(*vars(usual)))

    def _said(self, *names: str) -> dict[str, object]:
        """The settings among ``names`` that were given."""
        said = {name: getattr(self, name, None) for name in names}
        return {name: value for name, value in said.items() if value is not None}


def resolve_model(
    files: Files, variant: str, notify: Notice = log.warning
) -> tuple[Files, Defaults]:
    """``files`` by full paths, with a model, and its defaults; ``notify`` is called if none was named, and for downloads."""
    model = model_of(files := files.resolved(), notify)
    stated = find_defaults(model, variant, notify)
    try:
        defaults = Defaults.from_dict(stated)
    except UserError as error:
        raise UserError(f"{model}: {error}") from None
    return replace(files, model=model), defaults


def _geometry(files: Files, variant: str) -> Geometry:
    """The model's geometry if it is known before anything is fetched, else LTX-2's."""
    return read_geometry(known_parts(files.model, variant)) or LTX_2.geometry
