"""The job, the files and the options of a run that typed arguments ask for."""

import argparse
import secrets
from dataclasses import replace
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Callable, Iterator, Sequence

from mlx_video import recipes
from mlx_video.checkpoint import (
    Files,
    fitting_frames,
    geometry_of,
    resolve_model,
)
from mlx_video.cli.terminal import say
from mlx_video.cli.values import AUTO
from mlx_video.errors import UserError
from mlx_video.inputs import Input
from mlx_video.kept import recalled
from mlx_video.models.ltx.components import announce_to_log
from mlx_video.models.ltx.duration import nearest_frames
from mlx_video.models.ltx.files import BESIDE
from mlx_video.output import Output, clip_path
from mlx_video.record import Job
from mlx_video.request import Request
from mlx_video.run import Options

DEV_MODEL = "the dev model (--variant dev, or python -m mlx_video.generate_dev)"
FAR = 1.25  # times the rate that a model learned


def job_from(
    args: argparse.Namespace, hear: Callable[[object], None] = lambda what: None
) -> Job:
    """The job that the arguments of ``generate`` ask for; ``hear`` gets notices, and downloads that begin."""

    def warn(text: str) -> None:
        hear(f"warning: {text}")

    if args.from_record or args.resume:
        return _job_again(args)
    if args.prompt is None:
        raise UserError("Say what to show: --prompt 'a cat on a red sofa'.")
    files, defaults = resolve_model(files_from(args), args.variant, hear)
    wanted = defaults.given(
        frames=_frames(args, files, defaults, warn),
        height=args.height,
        width=args.width,
        fps=args.fps,
        audio=args.audio,
        negative_prompt=args.negative_prompt,
    )
    request = Request(
        prompt=args.prompt,
        shape=recipes.finished(wanted.shape, args.dfr),
        negative_prompt=wanted.negative_prompt,
        seed=secrets.randbits(32) if args.seed is None else args.seed,
        audio=wanted.audio,
        inputs=inputs_from(args),
        enhance=args.enhance_prompt,
        tiling=args.tiling,
        timed=args.duration == AUTO,
    )
    recipe = recipe_from(args, wanted, files)
    for warning in _unused(args, recipe, defaults):
        warn(warning)
    return Job(request, recipe, files, args.batch_guidance)


def _unused(
    args: argparse.Namespace, recipe: recipes.Recipe, usual: recipes.Defaults
) -> Iterator[str]:
    """Warnings about options that change nothing, or are unlikely to be meant."""
    remedy = "" if recipe.variant == "dev" else f"; use {DEV_MODEL}"
    if args.negative_prompt is not None and not recipe.guided:
        yield f"--negative-prompt is not used: this recipe samples without guidance{remedy}."
    if "steps" in args.typed and recipe.variant == "distilled":
        steps = " and ".join(str(len(stage.sigmas) - 1) for stage in recipe.stages)
        yield f"--steps is not used: the distilled model takes {steps} steps{remedy}."
    if "distilled_lora" in args.typed and "distilled_lora" not in recipe.needs:
        yield "--distilled-lora is not used without --two-stage."
    if args.fps is not None and not 1 / FAR <= args.fps / usual.fps <= FAR:
        yield f"{args.fps:g} fps is far from the {usual.fps:g} that the model learned; motion may look wrong."


# What may go with a record: where its files lie now, and what makes no other clip.
_WITH_RECORD = frozenset(("model", *BESIDE, "loras"))
_BESIDE_RECORD = frozenset(
    "from_record resume output_path output_audio save_frames overwrite health quiet verbose json yes memory_limit "
    "save_every preview".split()
)


def _job_again(args: argparse.Namespace) -> Job:
    """The job of a record, with the files that were typed in place of its own."""
    if args.from_record and args.resume:
        raise UserError(
            "--resume goes on and --from-record starts anew; leave out one of them."
        )
    others = args.typed.keys() - _WITH_RECORD - _BESIDE_RECORD
    if others:
        names = ", ".join(flag for dest, flag in args.typed.items() if dest in others)
        which = "--resume" if args.resume else "--from-record"
        raise UserError(f"{which} makes a clip as it was asked for; leave out {names}.")
    return moved(Job.from_record(args.from_record or args.resume), args)


def moved(job: Job, args: argparse.Namespace) -> Job:
    """``job`` with the files that were typed in place of its own."""
    typed = files_from(args)
    found = {name: getattr(typed, name) for name in args.typed.keys() & _WITH_RECORD}
    return replace(job, files=replace(job.files, **found))


def files_from(args: argparse.Namespace) -> Files:
    """The files that the arguments of any command name; those that are here by their full path, for the record."""
    others = {name: getattr(args, name, None) for name in (*BESIDE, "quantize")}
    return Files(
        model=args.model,
        loras=tuple(_lora_from(words) for words in getattr(args, "loras", ())),
        dtype=args.dtype,
        low_memory=getattr(args, "low_memory", False),
        **others,
    ).resolved()


def _frames(
    args: argparse.Namespace,
    files: Files,
    usual: recipes.Defaults,
    warn: Callable[[str], None],
) -> int | None:
    """As many as were asked for, by number or by how long they last; ``None`` where they were not.

    The dev model's are rounded, as its scripts expect, and ``warn`` hears of it.
    """
    if args.duration is None and args.num_frames is not None and args.variant == "dev":
        return fitting_frames(args.num_frames, files, args.variant, warn)
    if args.duration is None:
        return args.num_frames
    if args.num_frames is not None:
        raise UserError(
            "--duration and --num-frames both say how long the clip is; leave out one of them."
        )
    if args.duration == AUTO:
        return None
    scale = geometry_of(files, args.variant).video
    return nearest_frames(args.duration, args.fps or usual.fps, scale.time)


def recipe_from(
    args: argparse.Namespace, defaults: recipes.Defaults, files: Files
) -> recipes.Recipe:
    """The recipe of --variant with the strengths that were given, or else the ``defaults``."""
    if args.dfr is not None and args.variant != "distilled":
        raise UserError("--dfr is for the distilled model; leave out --variant dev.")
    if files.detailing_lora and args.dfr is None:
        raise UserError("--detailing-lora is of DFR; add --dfr 0, or leave it out.")
    given = {name: getattr(args, name) for name in args.typed.keys() & _GUIDANCE}
    if args.variant == "dev":
        two_stage, hq = given.pop("two_stage", False), given.pop("hq", False)
        if not hq:
            return defaults.given(**given).recipe("dev", two_stage)
        half = geometry_of(files, "dev").latents(defaults.shape.scaled(0.5))
        return defaults.hq(half.tokens, **given)
    unused = {*given, "distilled_lora", "batch_guidance"} - {"steps"}
    if refused := [flag for dest, flag in args.typed.items() if dest in unused]:
        raise UserError(
            f"The distilled model is sampled by its own fixed schedule, without guidance; leave out {', '.join(refused)}, "
            f"or use {DEV_MODEL}."
        )
    if args.dfr is None:
        return defaults.recipe("distilled")
    return recipes.fidelity(args.dfr, recipes.DETAILING * bool(files.detailing_lora))


_GUIDANCE = frozenset(
    "steps two_stage hq cfg audio_cfg stg stg_blocks modality rescale".split()
)


def inputs_from(args: argparse.Namespace) -> tuple[Input, ...]:
    """Every input that was typed."""
    flags = (kind.option.flag for kind in Input.kinds.values() if kind.option)
    given = (getattr(args, flag.strip("-").replace("-", "_")) for flag in flags)
    return tuple(chain.from_iterable(given))


def _lora_from(words: Sequence[str]) -> tuple[str, float]:
    path, strength = (list(words) + ["1"])[:2]
    try:
        if len(words) > 2:
            raise ValueError
        strength = float(strength)
        if not isfinite(strength):
            raise ValueError
    except ValueError:
        raise UserError(
            f"--lora takes PATH [STRENGTH]; got '{' '.join(words)}'. For example: --lora style.safetensors 0.8."
        ) from None
    return path, strength


def output_from(args: argparse.Namespace, job: Job, left: Path | None = None) -> Output:
    """The files that typed arguments ask for.

    Where nothing is said, as the run had it that ``left`` latents or a state; else a name after the prompt and the seed.
    """
    usual = Output(Path()) if left is None else recalled(left)
    audio, frames = args.output_audio or usual.audio, args.save_frames or usual.frames
    path = usual.path
    if left is None or args.output_path is not None:
        typed = "." if args.output_path is None else args.output_path
        path = clip_path(typed, job.request.prompt, job.request.seed)
    if frames is True:
        frames = path.with_name(f"{path.stem}_frames")
    return Output(path, audio, frames, args.overwrite)


def options_from(args: argparse.Namespace) -> Options:
    """How to carry out what the arguments ask for."""
    resume = getattr(args, "resume", None)
    return Options(
        health=args.health,
        memory_limit=getattr(args, "memory_limit", None),
        save_every=getattr(args, "save_every", Options.save_every),
        resume=resume,
        previews=getattr(args, "preview", None) is not None,
        announce=announce_to_log if args.quiet else say,
    )
