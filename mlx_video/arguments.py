"""What can be typed: argument groups with their defaults, and the job that the typed arguments ask for."""

import argparse
import logging
import sys
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Callable, Sequence

from mlx_video import hub, recipes
from mlx_video.disk import is_there, typed_path
from mlx_video.errors import UserError
from mlx_video.job import Files, Job, settled
from mlx_video.models.ltx.find import DEMO
from mlx_video.pipeline import Image, Request

log = logging.getLogger(__name__)

OWN_DEFAULTS = "These are LTX-2's defaults; another checkpoint may bring its own, which the info command shows."


def add_generate_arguments(
    parser: argparse.ArgumentParser, *, variant: str | None, audio: bool | None
) -> None:
    """The arguments of a door, ``None`` where the user says nothing and the checkpoint may.

    ``variant`` fixes the model's kind; ``None`` lets the user choose with --variant. ``audio`` is the door's default;
    ``None`` leaves it to the checkpoint.
    """
    group = add_prompt(parser)
    _add_negative(group)
    _add_size(parser)
    _add_image(parser)
    if variant != "distilled":
        _add_guidance(parser)
    _add_model(parser, variant)
    _add_output(parser, audio)


def add_prompt(parser: argparse.ArgumentParser):
    """--prompt and --seed; returns their group."""
    group = parser.add_argument_group("prompt")
    group.add_argument("--prompt", "-p", help="what to show and to be heard")
    group.add_argument(
        "--seed",
        "-s",
        type=int,
        default=recipes.SEED,
        help="of all chance (default: %(default)s)",
    )
    return group


def _add_negative(group) -> None:
    group.add_argument(
        "--negative-prompt",
        help="what guidance goes away from; unused without guidance (default: a list of common faults)",
    )
    group.add_argument(
        "--enhance-prompt",
        action="store_true",
        help="let the text encoder rewrite the prompt first",
    )


def _add_size(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("size", OWN_DEFAULTS)
    for name, short, default in (
        ("height", "-H", recipes.HEIGHT),
        ("width", "-W", recipes.WIDTH),
    ):
        group.add_argument(
            f"--{name}",
            short,
            type=int,
            help=f"pixels, a multiple of 32, of 64 in two stages (default: {default})",
        )
    group.add_argument(
        "--num-frames",
        "--frames",
        "-n",
        type=int,
        help=f"1 + a multiple of 8 (default: {recipes.FRAMES})",
    )
    group.add_argument(
        "--fps",
        "--frame-rate",
        type=float,
        help=f"frames per second (default: {recipes.FPS:g})",
    )


def _add_image(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("image")
    group.add_argument(
        "--image",
        action="append",
        nargs="+",
        default=[],
        metavar=("PATH", "FRAME STRENGTH"),
        help="picture to show at FRAME (0 or a multiple of 8; default 0), kept by STRENGTH (0 to 1; default 1); "
        "repeatable",
    )


def _add_guidance(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("guidance (dev model)", OWN_DEFAULTS)
    video, audio = recipes.VIDEO_GUIDANCE, recipes.AUDIO_GUIDANCE
    group.add_argument(
        "--steps", type=int, help=f"denoising steps (default: {recipes.STEPS})"
    )
    group.add_argument(
        "--cfg-scale",
        type=float,
        help=f"away from the negative prompt, 1 = off (default: {video.cfg:g})",
    )
    group.add_argument(
        "--audio-cfg-scale",
        type=float,
        help=f"the same for the sound (default: {audio.cfg:g})",
    )
    group.add_argument(
        "--stg-scale",
        type=float,
        help=f"spatiotemporal guidance, 0 = off (default: {video.stg:g})",
    )
    group.add_argument(
        "--stg-blocks",
        type=int,
        nargs="+",
        metavar="BLOCK",
        help=f"transformer blocks it perturbs (default: {' '.join(map(str, video.stg_blocks))})",
    )
    group.add_argument(
        "--modality-scale",
        type=float,
        help=f"agreement of picture and sound, 1 = off (default: {video.modality:g})",
    )
    group.add_argument(
        "--rescale",
        type=float,
        help=f"pull the contrast back, 0 = off, 1 = fully (default: {video.rescale:g})",
    )
    group.add_argument(
        "--two-stage",
        action="store_true",
        default=None,
        help="half size first, then refine with the distilled LoRA",
    )
    group.add_argument(
        "--batch-guidance",
        action="store_true",
        help="run the guided passes at once: faster where memory allows it",
    )


def _add_model(parser: argparse.ArgumentParser, variant: str | None) -> None:
    group = add_model_files(parser)
    if variant is None:
        group.add_argument(
            "--variant",
            choices=("distilled", "dev"),
            default="distilled",
            help="distilled: few steps; dev: guided, many steps (default: %(default)s)",
        )
    group.add_argument(
        "--upsampler", metavar="PATH", help="latent upsampler .safetensors"
    )
    group.add_argument(
        "--lora",
        action="append",
        nargs="+",
        default=[],
        metavar=("PATH", "STRENGTH"),
        help="LoRA to fuse into the transformer by STRENGTH (default 1); repeatable",
    )
    group.add_argument(
        "--distilled-lora", metavar="PATH", help="LoRA of the two-stage refinement"
    )


def add_model_files(parser: argparse.ArgumentParser, default: str | None = None):
    """--model, --text-encoder and --dtype; returns their group. Without a ``default`` the cache decides."""
    group = parser.add_argument_group("model")
    usual = f"{hub.MODEL_REPO}; {DEMO} if that is not in the hub's cache and this in the package"
    group.add_argument(
        "--model",
        "--model-repo",
        default=default,
        help=f"official .safetensors, converted folder, or hub repository (default: {default or usual})",
    )
    group.add_argument(
        "--text-encoder", metavar="PATH", help="Gemma 3 folder or hub repository"
    )
    group.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="of the weights (default: bfloat16 on a GPU, float32 on a CPU)",
    )
    return group


def _add_output(parser: argparse.ArgumentParser, audio: bool | None) -> None:
    group = parser.add_argument_group("memory and output")
    add_tiling(group, default="auto")
    group.add_argument(
        "--quantize",
        type=int,
        choices=(8, 4),
        help="bits of the transformer's and the text encoder's weights in memory: 8 takes half of it, 4 a quarter at "
        "some cost in quality (default: as they are stored)",
    )
    group.add_argument(
        "--low-memory",
        action="store_true",
        help="read the transformer's weights from the file in each step, under 3 GiB at a time: slower",
    )
    group.add_argument(
        "--memory-limit",
        type=_gigabytes,
        metavar="GB",
        help="fit into so much, with weights quantized or the transformer read in each step if it must be, or refuse "
        "(default: what the machine has)",
    )
    group.add_argument(
        "--audio",
        action=argparse.BooleanOptionalAction,
        help=f"with or without sound (default: {'without' if audio is False else 'with'})",
    )
    parser.set_defaults(audio=audio)
    add_output_arguments(group, default=Path("output.mp4"))
    group.add_argument(
        "--from-record",
        metavar="FILE",
        help="make the clip of a .json record, or of an .mp4 made here, again",
    )


def _gigabytes(word: str) -> float:
    """Bytes."""
    size = float(word)
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, such as 24; got {word}")
    return size * 1e9


def add_tiling(group, default: str | None) -> None:
    group.add_argument(
        "--tiling",
        choices=("auto", "none", "default", "aggressive", "conservative"),
        default=default,
        help="decode in tiles: aggressive needs least memory"
        + (" (default: %(default)s)" if default else " (default: as the run had it)"),
    )


def add_output_arguments(group, default: Path | None) -> None:
    """Where and how files are written: for every command that ends in a clip."""
    group.add_argument(
        "--output-path",
        "--output",
        "-o",
        type=Path,
        default=default,
        help="mp4 to write"
        + (" (default: %(default)s)" if default else " (default: named after LATENTS)"),
    )
    group.add_argument(
        "--output-audio", type=Path, metavar="WAV", help="also write the sound here"
    )
    group.add_argument(
        "--save-frames", type=Path, metavar="FOLDER", help="also write PNG frames here"
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace files that exist"
    )
    group.add_argument(
        "--no-health-check",
        dest="health",
        action="store_false",
        help="write the clip even if it looks like garbage",
    )
    group.add_argument("--quiet", action="store_true", help="print the path only")


def say_on(quiet: bool) -> Callable[[object], None]:
    """Prints to stderr; if ``quiet``, logs a warning: which model is used is never kept from anybody."""
    return log.warning if quiet else lambda text: print(text, file=sys.stderr)


def job_from(args: argparse.Namespace, variant: str | None) -> Job:
    """The job that the arguments of a generating door ask for."""
    if args.from_record:
        return _job_again(args)
    if args.prompt is None:
        raise UserError("Say what to show: --prompt 'a cat on a red sofa'.")
    variant = variant or args.variant
    files, defaults = settled(files_from(args), variant, say_on(args.quiet))
    wanted = defaults.given(
        frames=args.num_frames,
        height=args.height,
        width=args.width,
        fps=args.fps,
        audio=args.audio,
        negative_prompt=args.negative_prompt,
    )
    request = Request(
        prompt=args.prompt,
        shape=wanted.shape,
        negative_prompt=wanted.negative_prompt,
        seed=args.seed,
        audio=wanted.audio,
        images=tuple(image_from(words) for words in args.image),
        enhance=args.enhance_prompt,
        tiling=args.tiling,
    )
    return Job(request, recipe_from(args, variant, wanted), files)


# Flags that may go with a record: where its files lie now, and what makes no other clip.
_WITH_RECORD = {
    "--model": "model",
    "--model-repo": "model",
    "--text-encoder": "text_encoder",
    "--upsampler": "upsampler",
    "--distilled-lora": "distilled_lora",
    "--lora": "loras",
}
_BESIDE_RECORD = frozenset(
    "--from-record --output-path --output -o --output-audio --save-frames --overwrite --no-health-check --quiet "
    "--memory-limit".split()
)


def _job_again(args: argparse.Namespace) -> Job:
    """The job of a record, with its files where they were typed to be."""
    if others := sorted(args.typed - _WITH_RECORD.keys() - _BESIDE_RECORD):
        raise UserError(
            f"--from-record makes a clip again as it was; leave out {', '.join(others)}."
        )
    job, typed = Job.from_record(args.from_record), files_from(args)
    moved = {
        name: getattr(typed, name)
        for f, name in _WITH_RECORD.items()
        if f in args.typed
    }
    return replace(job, files=replace(job.files, **moved))


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
    args: argparse.Namespace, variant: str, defaults: recipes.Defaults
) -> recipes.Recipe:
    """The recipe of ``variant`` with the strengths that were given, or else the ``defaults``."""
    given = {
        name: value
        for name in _GUIDANCE_FLAGS
        if (value := getattr(args, name, None)) is not None
    }
    if variant == "distilled":
        for name in ("distilled_lora", "batch_guidance"):
            given |= {name: True} if getattr(args, name, None) else {}
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UserError(
                f"The distilled model is sampled by its own fixed schedule, without guidance; leave out {flags}, "
                "or use the dev model (--variant dev, or python -m mlx_video.generate_dev)."
            )
    strengths = {_GUIDANCE_FLAGS[name]: value for name, value in given.items()}
    two_stage = strengths.pop("two_stage", False)
    return defaults.given(**strengths).recipe(variant, two_stage)


_GUIDANCE_FLAGS = {
    "steps": "steps",
    "two_stage": "two_stage",
    "cfg_scale": "cfg",
    "audio_cfg_scale": "audio_cfg",
    "stg_scale": "stg",
    "stg_blocks": "stg_blocks",
    "modality_scale": "modality",
    "rescale": "rescale",
}


def image_from(words: Sequence[str]) -> Image:
    """PATH [FRAME] [STRENGTH] as typed."""
    path, *rest = words
    try:
        frame, strength = (rest + ["0", "1"][len(rest) :])[:2]
        if len(rest) > 2:
            raise ValueError
        frame, strength = int(frame), float(strength)
    except ValueError:
        raise UserError(
            f"--image takes PATH [FRAME] [STRENGTH]; got '{' '.join(words)}'. For example: --image cat.png 0 0.9."
        ) from None
    return Image(_full(path), frame, strength)


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
