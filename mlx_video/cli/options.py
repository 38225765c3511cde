"""What can be typed: argument groups with their real defaults, and the job that typed arguments ask for."""

import argparse
import re
import secrets
from dataclasses import replace
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Callable, Iterator, Sequence

from mlx_video import hub, recipes
from mlx_video.checkpoint import BITS, DTYPES, Files, resolve_model
from mlx_video.cli.parser import option
from mlx_video.disk import is_there, typed_path
from mlx_video.errors import UserError
from mlx_video.inputs import Input
from mlx_video.models.ltx.duration import nearest_frames
from mlx_video.models.ltx.find import DEMO, find_geometry
from mlx_video.models.ltx.releases import LTX_2
from mlx_video.output import Output, named_after
from mlx_video.pipeline import Request
from mlx_video.record import Job
from mlx_video.run import Options, recalled
from mlx_video.types import Geometry

OWN_DEFAULTS = "These are LTX-2's defaults; another checkpoint may bring its own, which the info command shows."
TILINGS = ("auto", "none", "default", "aggressive", "conservative")
UNITS = {"": 1e9, "m": 1e6, "g": 1e9, "t": 1e12, "mi": 2**20, "gi": 2**30, "ti": 2**40}
AUTO = "auto"
LONGEST_CLIP = 600  # seconds
FAR = 1.25  # times the rate that a model learned


# Groups


def add_generate(
    parser: argparse.ArgumentParser, *, variant: str | None, audio: bool | None
) -> None:
    """The arguments of a door, ``None`` where the user says nothing and the checkpoint may.

    ``variant`` fixes the model's kind; ``None`` lets the user choose with --variant. ``audio`` is the door's default;
    ``None`` leaves it to the checkpoint.
    """
    _add_negative(add_prompt(parser))
    _add_size(parser)
    _add_inputs(parser)
    if variant != "distilled":
        _add_guidance(parser)
    _add_model(parser, variant)
    _add_memory(parser)
    group = add_output(parser, shown="named after the prompt and the seed")
    option(
        group,
        "--audio",
        action=argparse.BooleanOptionalAction,
        real=audio,
        shown="without" if audio is False else "with",
        help="with or without sound",
    )
    option(
        group,
        "--save-every",
        type=_seconds,
        metavar="SECONDS",
        real=Options.save_every,
        help="save the state of a long sampling this often, to go on from with --resume",
    )
    _add_again(parser)


def add_prompt(parser: argparse.ArgumentParser):
    """--prompt and --seed; returns their group."""
    group = parser.add_argument_group("prompt")
    option(group, "--prompt", "-p", help="what to show and what to be heard")
    option(
        group,
        "--seed",
        "-s",
        type=int,
        shown="random, and printed",
        help="random seed; the same seed makes the same clip",
    )
    return group


def _add_negative(group) -> None:
    option(
        group,
        "--negative-prompt",
        shown="a list of common faults",
        help="what to avoid; used by guidance only",
    )
    option(
        group,
        "--enhance-prompt",
        action="store_true",
        real=False,
        shown="",
        help="let the text encoder rewrite the prompt first",
    )


def _add_size(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("size", OWN_DEFAULTS)
    for name, short, default in (
        ("--height", "-H", recipes.HEIGHT),
        ("--width", "-W", recipes.WIDTH),
    ):
        option(
            group,
            name,
            short,
            type=int,
            shown=default,
            help="pixels, a multiple of 32, or of 64 in two stages",
        )
    option(
        group,
        "--num-frames",
        "--frames",
        "-n",
        type=int,
        shown=recipes.FRAMES,
        help="1 + a multiple of 8",
    )
    option(
        group,
        "--duration",
        "--seconds",
        type=_duration,
        metavar="auto|SECONDS",
        shown="what --num-frames says",
        help="how long the clip is, to the nearest frame that can be; auto lets LTX-2.5 tell by the prompt",
    )
    option(
        group,
        "--fps",
        "--frame-rate",
        type=float,
        shown=f"{recipes.FPS:g}",
        help="frames per second",
    )


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    """An option for each kind of input that can be typed."""
    group = parser.add_argument_group("inputs")
    for kind in Input.kinds.values():
        if kind.option:
            flag, metavar, about = kind.option
            option(
                group,
                flag,
                action=_Given,
                kind=kind,
                nargs=1 if len(metavar) == 1 else "+",
                real=(),
                shown="",
                metavar=metavar,
                help=about,
            )


class _Given(argparse.Action):
    """Appends an input of a kind."""

    def __init__(self, *names, kind: type[Input], **how):
        super().__init__(*names, **how)
        self.kind = kind

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        given = getattr(namespace, self.dest) or ()
        setattr(namespace, self.dest, (*given, self.kind.typed(values)))


def _add_guidance(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("guidance (dev model)", OWN_DEFAULTS)
    video, audio = recipes.VIDEO_GUIDANCE, recipes.AUDIO_GUIDANCE
    numbers = {
        "--cfg-scale": (video.cfg, "away from the negative prompt; 1 is off"),
        "--audio-cfg-scale": (audio.cfg, "the same for the audio"),
        "--stg-scale": (video.stg, "spatiotemporal guidance; 0 is off"),
        "--modality-scale": (
            video.modality,
            "agreement of picture and sound; 1 is off",
        ),
        "--rescale": (video.rescale, "reduces contrast; 0 is off, 1 the most"),
    }
    option(group, "--steps", type=int, shown=recipes.STEPS, help="denoising steps")
    for name, (usual, about) in numbers.items():
        option(group, name, type=float, shown=f"{usual:g}", help=about)
    option(
        group,
        "--stg-blocks",
        type=int,
        nargs="+",
        metavar="BLOCK",
        shown=" ".join(map(str, video.stg_blocks)),
        help="transformer blocks that spatiotemporal guidance perturbs",
    )
    option(
        group,
        "--two-stage",
        action="store_true",
        shown="",
        help="sample at half size first, then refine with the distilled LoRA",
    )
    option(
        group,
        "--hq",
        action="store_true",
        shown="",
        help=f"two stages by the res_2s sampler, {recipes.HQ_STEPS} steps of two predictions, with some of the distilled LoRA",
    )
    option(
        group,
        "--batch-guidance",
        action="store_true",
        real=False,
        shown="",
        help="run the guided passes at once: faster where memory allows it; rounding differs by about 0.05 %%",
    )


def _add_model(parser: argparse.ArgumentParser, variant: str | None) -> None:
    group = add_model_files(parser)
    if variant is None:
        option(
            group,
            "--variant",
            choices=("distilled", "dev"),
            real="distilled",
            help="distilled: few steps; dev: guided, many steps",
        )
    if variant != "dev":
        option(
            group,
            "--dfr",
            type=int,
            metavar="ROUNDS",
            shown="off",
            help="DFR, by the distilled LTX-2.5: generates pictures with the clip and doubles its frame rate ROUNDS times "
            "(0 to 2); frames and rate are those before",
        )
    option(
        group,
        "--upsampler",
        metavar="PATH",
        shown="beside the model, else from the hub",
        help="latent upsampler .safetensors",
    )
    option(
        group,
        "--lora",
        action="append",
        nargs="+",
        real=(),
        shown="",
        metavar=("PATH", "STRENGTH"),
        help="LoRA to fuse into the transformer by STRENGTH (1 if left out); repeatable",
    )
    option(
        group,
        "--distilled-lora",
        metavar="PATH",
        shown="beside the model, else from the hub",
        help="LoRA of the two-stage refinement",
    )


def add_model_files(parser: argparse.ArgumentParser, default: str | None = None):
    """--model, --text-encoder and --dtype; returns their group. Without a ``default`` the cache decides."""
    group = parser.add_argument_group("model")
    usual = f"{hub.MODEL_REPO} if it is in the hub's cache, else {DEMO}"
    option(
        group,
        "--model",
        "--model-repo",
        real=default,
        shown=default or usual,
        help="official .safetensors, converted folder, or hub repository",
    )
    option(
        group,
        "--text-encoder",
        metavar="PATH",
        shown="beside the model, else from the hub",
        help="folder, file or hub repository of the Gemma that the model was trained with",
    )
    option(
        group,
        "--dtype",
        choices=DTYPES,
        shown="bfloat16 on a GPU, float32 on a CPU",
        help="of the weights",
    )
    return group


def _add_memory(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory")
    add_tiling(group, real="auto")
    option(
        group,
        "--quantize",
        type=int,
        choices=BITS,
        shown="as they are stored",
        help="bits of the transformer's and the text encoder's weights in memory: 8 takes half of it, 4 a quarter at "
        "some cost in quality",
    )
    option(
        group,
        "--low-memory",
        action="store_true",
        real=False,
        shown="",
        help="read the transformer's weights from the file in each step, under 3 GiB at a time: slower; guided passes "
        "share a reading, as with --batch-guidance",
    )
    option(
        group,
        "--memory-limit",
        type=byte_size,
        metavar="GB",
        shown="what the machine has",
        help="memory budget, such as 24 or 24GB; quantizes or streams weights to stay within it, or refuses",
    )


def add_tiling(group, real: str | None) -> None:
    option(
        group,
        "--tiling",
        choices=TILINGS,
        real=real,
        shown=real or "as the run had it",
        help="decode in tiles: aggressive needs least memory",
    )


def add_output(parser: argparse.ArgumentParser, shown: str):
    """Where and how files are written, for every command that ends in a clip; returns the group."""
    group = parser.add_argument_group("output")
    option(
        group,
        "--output-path",
        "--output",
        "-o",
        metavar="PATH",
        shown=shown,
        help=".mp4, .mov, .webm, or without sound .gif or .webp to write, or a folder/ to write an mp4 into",
    )
    option(
        group,
        "--output-audio",
        type=_path,
        metavar="WAV",
        help="also write the sound here",
    )
    option(
        group,
        "--save-frames",
        type=_path,
        metavar="FOLDER",
        help="also write PNG frames here",
    )
    for names, about in {
        ("--overwrite",): "replace files that exist",
        ("--quiet",): "print the path only",
        (
            "--verbose",
            "-v",
        ): "say more: seconds and memory of each phase, and what is logged",
        (
            "--json",
        ): "print one JSON object with path, seed, seconds and peak memory in place of the path",
        ("--yes", "-y"): "open the files that a record names without asking",
    }.items():
        option(group, *names, action="store_true", real=False, shown="", help=about)
    option(
        group,
        "--no-health-check",
        dest="health",
        action="store_false",
        real=True,
        shown="",
        help="write the clip even if it looks like garbage",
    )
    return group


def _add_again(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("again")
    option(
        group,
        "--from-record",
        type=_path,
        metavar="FILE",
        help="make the clip of a .json record, or of an .mp4 made here, again",
    )
    option(
        group,
        "--resume",
        type=_path,
        metavar="FILE",
        help="go on from the .state.safetensors that a stopped run left",
    )


# Values


def byte_size(word: str) -> float:
    """24, 24GB, 24 GiB or 24000MB."""
    found = re.fullmatch(r"\s*([\d.]+)\s*((?:[mgt]i?)?)b?\s*", word.lower())
    try:
        size = float(found[1]) * UNITS[found[2]]
    except (TypeError, ValueError):
        size = 0
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, such as 24GB; got {word}")
    return size


def _path(word: str) -> Path:
    try:
        return typed_path(word)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(word: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = -1
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(
            f"must be seconds, 0 or more, such as 60; got {word}"
        )
    return seconds


def _duration(word: str) -> str | float:
    if word == AUTO:
        return word
    try:
        seconds = float(word)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= LONGEST_CLIP:
        raise argparse.ArgumentTypeError(
            f"must be auto, or seconds up to {LONGEST_CLIP}, such as 5; got {word}"
        )
    return seconds


def _frames(
    args: argparse.Namespace, files: Files, variant: str, usual: recipes.Defaults
) -> int | None:
    """As many as were asked for, by number or by how long they last; ``None`` where they were not."""
    if args.duration is None:
        return args.num_frames
    if args.num_frames is not None:
        raise UserError(
            "--duration and --num-frames both say how long the clip is; leave out one of them."
        )
    if args.duration == AUTO:
        return None
    scale = _geometry(files, variant).video
    return nearest_frames(args.duration, args.fps or usual.fps, scale.time)


def _geometry(files: Files, variant: str) -> Geometry:
    """The model's, as far as it is known before anything is fetched."""
    return find_geometry(files.model, variant) or LTX_2.geometry


def output_from(args: argparse.Namespace, job: Job, left: Path | None = None) -> Output:
    """The files that typed arguments ask for.

    Where nothing is said, as the run had it that ``left`` latents or a state; else a name after the prompt and the seed.
    """
    usual = Output(Path()) if left is None else recalled(left)
    audio, frames = args.output_audio or usual.audio, args.save_frames or usual.frames
    return Output(
        _clip(args.output_path, job, left, usual), audio, frames, args.overwrite
    )


def _clip(typed: str | None, job: Job, left: Path | None, usual: Output) -> Path:
    request = job.request
    if typed is None:
        return usual.path if left else named_after(Path(), request.prompt, request.seed)
    path = typed_path(typed)
    if typed.endswith("/") or path.is_dir() and not path.suffix:
        return named_after(path, request.prompt, request.seed)
    return path


def options_from(args: argparse.Namespace) -> Options:
    """How to carry out what the arguments ask for."""
    resume = getattr(args, "resume", None)
    return Options(
        health=args.health,
        memory_limit=getattr(args, "memory_limit", None),
        save_every=getattr(args, "save_every", Options.save_every),
        resume=resume,
    )


def job_from(
    args: argparse.Namespace,
    variant: str | None,
    hear: Callable[[object], None] = lambda what: None,
) -> Job:
    """The job that the arguments of a generating door ask for; ``hear`` gets notices, and downloads that begin."""
    if args.from_record or args.resume:
        return _job_again(args)
    if args.prompt is None:
        raise UserError("Say what to show: --prompt 'a cat on a red sofa'.")
    variant = variant or args.variant
    files, defaults = resolve_model(files_from(args), variant, hear)
    wanted = defaults.given(
        frames=_frames(args, files, variant, defaults),
        height=args.height,
        width=args.width,
        fps=args.fps,
        audio=args.audio,
        negative_prompt=args.negative_prompt,
    )
    request = Request(
        prompt=args.prompt,
        shape=recipes.finished(wanted.shape, getattr(args, "dfr", None)),
        negative_prompt=wanted.negative_prompt,
        seed=secrets.randbits(32) if args.seed is None else args.seed,
        audio=wanted.audio,
        inputs=inputs_from(args),
        enhance=args.enhance_prompt,
        tiling=args.tiling,
        timed=args.duration == AUTO,
    )
    recipe = recipe_from(args, variant, wanted, files)
    batched = getattr(args, "batch_guidance", False)
    for warning in _unused(args, recipe, defaults):
        hear(warning)
    return Job(request, recipe, files, batched)


def _unused(
    args: argparse.Namespace, recipe: recipes.Recipe, usual: recipes.Defaults
) -> Iterator[str]:
    """Warnings of what was typed and changes nothing, or is unlikely to be meant."""
    if args.negative_prompt is not None and not recipe.guided:
        yield "--negative-prompt is not used: this recipe samples without guidance."
    if "steps" in args.typed and recipe.variant == "distilled":
        steps = " and ".join(str(len(stage.sigmas) - 1) for stage in recipe.stages)
        yield f"--steps is not used: the distilled model takes {steps} steps."
    if "distilled_lora" in args.typed and "distilled_lora" not in recipe.needs:
        yield "--distilled-lora is not used without --two-stage."
    if args.fps is not None and not 1 / FAR <= args.fps / usual.fps <= FAR:
        yield f"{args.fps:g} fps is far from the {usual.fps:g} that the model learned; motion may look wrong."


# What may go with a record: where its files lie now, and what makes no other clip.
_WITH_RECORD = {
    "model": "model",
    "text_encoder": "text_encoder",
    "upsampler": "upsampler",
    "distilled_lora": "distilled_lora",
    "lora": "loras",
}
_BESIDE_RECORD = frozenset(
    "from_record resume output_path output_audio save_frames overwrite health quiet verbose json yes memory_limit "
    "save_every".split()
)


def _job_again(args: argparse.Namespace) -> Job:
    """The job of a record, with its files where they were typed to be."""
    if args.from_record and args.resume:
        raise UserError(
            "--resume goes on and --from-record starts anew; leave out one of them."
        )
    others = args.typed.keys() - _WITH_RECORD.keys() - _BESIDE_RECORD
    if others:
        names = ", ".join(flag for dest, flag in args.typed.items() if dest in others)
        which = "--resume" if args.resume else "--from-record"
        raise UserError(f"{which} makes a clip as it was asked for; leave out {names}.")
    return moved(Job.from_record(args.from_record or args.resume), args)


def moved(job: Job, args: argparse.Namespace) -> Job:
    """``job`` with its files where they were typed to be."""
    typed = files_from(args)
    names = [name for dest, name in _WITH_RECORD.items() if dest in args.typed]
    found = {name: getattr(typed, name) for name in names}
    return replace(job, files=replace(job.files, **found))


def files_from(args: argparse.Namespace) -> Files:
    """The files that the arguments of any command name; those that are here by their full path, for the record."""
    return Files(
        model=_full(args.model),
        text_encoder=_full(args.text_encoder),
        upsampler=_full(getattr(args, "upsampler", None)),
        loras=tuple(_lora_from(words) for words in getattr(args, "lora", ())),
        distilled_lora=_full(getattr(args, "distilled_lora", None)),
        dtype=args.dtype,
        quantize=getattr(args, "quantize", None),
        low_memory=getattr(args, "low_memory", False),
    )


def _full(path: str | None) -> str | None:
    here = path is not None and is_there(typed_path(path))
    return str(typed_path(path).resolve()) if here else path


def recipe_from(
    args: argparse.Namespace, variant: str, defaults: recipes.Defaults, files: Files
) -> recipes.Recipe:
    """The recipe of ``variant`` with the strengths that were given, or else the ``defaults``."""
    typed = args.typed.keys() & _GUIDANCE_FLAGS.keys()
    rounds = getattr(args, "dfr", None)
    if rounds is not None and variant != "distilled":
        raise UserError("--dfr is for the distilled model; leave out --variant dev.")
    if variant == "distilled":
        refused = typed | args.typed.keys() & {"distilled_lora", "batch_guidance"}
        if refused := refused - {"steps"}:
            flags = ", ".join(f for dest, f in args.typed.items() if dest in refused)
            raise UserError(
                f"The distilled model is sampled by its own fixed schedule, without guidance; leave out {flags}, "
                "or use the dev model (--variant dev, or python -m mlx_video.generate_dev)."
            )
        return defaults.recipe(variant) if rounds is None else recipes.fidelity(rounds)
    strengths = {_GUIDANCE_FLAGS[name]: getattr(args, name) for name in typed}
    two_stage = strengths.pop("two_stage", False)
    if strengths.pop("hq", False):
        half = _geometry(files, variant).latents(defaults.shape.scaled(0.5))
        return defaults.hq(half.tokens, **strengths)
    return defaults.given(**strengths).recipe(variant, two_stage)


_GUIDANCE_FLAGS = {
    "steps": "steps",
    "two_stage": "two_stage",
    "hq": "hq",
    "cfg_scale": "cfg",
    "audio_cfg_scale": "audio_cfg",
    "stg_scale": "stg",
    "stg_blocks": "stg_blocks",
    "modality_scale": "modality",
    "rescale": "rescale",
}


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
    return _full(path), strength
