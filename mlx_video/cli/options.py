"""The options that commands share, in groups, and how their words become values."""

import argparse
import math
import re
from pathlib import Path

from mlx_video import hub, recipes
from mlx_video.cli.parser import Add, flag, group
from mlx_video.clip_settings import AUTO
from mlx_video.disk import typed_path
from mlx_video.errors import UserError
from mlx_video.inputs import Input
from mlx_video.models.ltx.checkpoint.files import BITS, DTYPES
from mlx_video.models.ltx.checkpoint.find import DEMO
from mlx_video.models.ltx.checkpoint.layouts import VARIANTS
from mlx_video.models.ltx.video_vae.tiling import MODES
from mlx_video.run import Options

OWN_DEFAULTS = (
    "Defaults of LTX-2; other checkpoints may have their own, which `info` shows."
)
BESIDE = "(default: beside the model, else from the hub)"
SIDE = "in pixels; LTX-2 needs a multiple of 32, or of 64 with two stages (default: {})"
UNITS = {"": 1e9, "m": 1e6, "g": 1e9, "t": 1e12, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def add_generate(
    parser: argparse.ArgumentParser,
    variant: str = "distilled",
    audio: bool | None = None,
) -> None:
    """Add every option of a clip; ``None`` = the checkpoint's default. ``variant`` and ``audio`` have the door's."""
    add = add_prompt(parser)
    about = "what to avoid; used only with guidance (default: a list of common faults)"
    add("--negative-prompt", about)
    about = "let the text encoder rewrite the prompt first"
    flag(add, "--enhance-prompt", about, dest="enhance")
    _add_size(group(parser, "size", OWN_DEFAULTS))
    _add_inputs(group(parser, "inputs"))
    _add_guidance(group(parser, "guidance (dev model)", OWN_DEFAULTS))
    _add_model(add_model_files(parser), variant)
    _add_memory(group(parser, "memory"))
    _add_output(add_output(parser, "named after the prompt and the seed"), audio)
    add = group(parser, "again")
    about = "reproduce the clip of a .json record, or of an .mp4 made by mlx-video"
    add("--from-record", about, type=path, metavar="FILE")
    about = "continue from the .state.safetensors of an interrupted run"
    add("--resume", about, type=path, metavar="FILE")


def add_prompt(parser: argparse.ArgumentParser, seed: int | None = None) -> Add:
    """Add --prompt and --seed (by default ``seed``; ``None`` = random); returns the function that adds to their group."""
    add = group(parser, "prompt")
    about = "what to show and to be heard; a quoted prompt needs no --prompt"
    add("--prompt -p", about)
    about = "random seed; the same seed makes the same result"
    usual = "" if seed else " (default: random, and printed)"
    add("--seed -s", about + usual, seed, type=int)
    return add


def _add_size(add: Add) -> None:
    add("--height -H", SIDE.format(recipes.Defaults.height), type=int)
    add("--width -W", SIDE.format(recipes.Defaults.width), type=int)
    about = f"number of frames, rounded to 1 + a multiple of 8 for LTX-2 (default: {recipes.Defaults.frames})"
    add("--num-frames --frames -n", about, type=int, dest="frames")
    about = (
        "length of the clip, rounded to the nearest possible number of frames; auto lets LTX-2.5 choose from the prompt "
        "(default: set by --num-frames)"
    )
    add("--duration --seconds", about, type=duration, metavar="auto|SECONDS")
    about = f"frames per second (default: {recipes.Defaults.fps:g})"
    add("--fps --frame-rate", about, type=float)


def _add_inputs(add: Add) -> None:
    for name, kind in Input.kinds.items():
        if kind.option:
            flags, metavar, about = kind.option
            how = {"nargs": 1 if len(metavar) == 1 else "+", "metavar": metavar}
            add(flags, about, (), action="append", dest=name, **how)


# Numeric options, named after the strengths in ``Defaults``.
STRENGTHS = {
    "--cfg-scale": "guidance strength, away from the negative prompt; 1 turns it off",
    "--audio-cfg-scale": "the same for sound",
    "--stg-scale": "strength of spatiotemporal guidance; 0 turns it off",
    "--modality-scale": "how strongly picture and sound guide each other; 1 turns it off",
    "--rescale": "how much to correct the contrast after guidance, from 0 (off) to 1",
}


def _add_guidance(add: Add) -> None:
    usual = recipes.Defaults
    add("--steps", f"denoising steps (default: {usual.steps})", type=int)
    for name, about in STRENGTHS.items():
        dest = name.strip("-").removesuffix("-scale").replace("-", "_")
        about += f" (default: {getattr(usual, dest):g})"
        add(name, about, type=float, dest=dest)
    blocks = " ".join(map(str, usual.stg_blocks))
    about = (
        f"transformer blocks that spatiotemporal guidance perturbs (default: {blocks})"
    )
    add("--stg-blocks", about, type=int, nargs="+", metavar="BLOCK")
    about = "sample at half size, then refine at full size with the distilled LoRA"
    flag(add, "--two-stage", about)
    about = f"two stages with the res_2s sampler ({recipes.HQ_STEPS} steps of two predictions each) and a weaker distilled LoRA"
    flag(add, "--hq", about)
    about = "run the guided passes as one batch: faster, but needs more memory; results differ by about 0.05 %%"
    flag(add, "--batch-guidance", about)


def _add_model(add: Add, variant: str) -> None:
    about = "distilled: few steps; dev: guided, many steps"
    add("--variant", about, variant, choices=VARIANTS)
    about = (
        "DFR, with the distilled LTX-2.5: generates keyframes, then doubles the frame rate ROUNDS times (0 to 2); --num-frames "
        "and --fps describe the clip before that (default: off)"
    )
    add("--dfr", about, type=int, metavar="ROUNDS")
    about = "IC-LoRA for the second stage of --dfr, which then takes the first stage's clip as a reference (default: none)"
    add("--detailing-lora", about, metavar="PATH")
    add_video_vae(add)
    add("--upsampler", f"latent upsampler .safetensors {BESIDE}", metavar="PATH")
    about = "LoRA to fuse into the transformer at STRENGTH (1 if not given); repeatable"
    pair = {"nargs": "+", "metavar": ("PATH", "STRENGTH")}
    add("--lora", about, (), action="append", dest="loras", **pair)
    about = f"LoRA of the two-stage refinement {BESIDE}"
    add("--distilled-lora", about, metavar="PATH")


def add_video_vae(add: Add) -> None:
    """Add --video-vae."""
    about = "conv for LTX-2.5's convolutional autoencoder, or a file (default: the model's own, in LTX-2.5 the diffusion one)"
    add("--video-vae", about, metavar="conv|PATH")


def add_model_files(parser: argparse.ArgumentParser, default: str | None = None) -> Add:
    """Add --model (without a ``default`` the cache decides), --text-encoder and --dtype; returns as ``add_prompt`` does."""
    add = group(parser, "model")
    about = "official .safetensors, converted folder, or hub repository"
    cached = f" (default: {hub.MODEL_REPO} if it is in the hub's cache, else {DEMO})"
    add("--model --model-repo", about + ("" if default else cached), default)
    about = "folder, file or hub repository of the Gemma the model was trained with"
    flags = "--text-encoder --text-encoder-repo"
    add(flags, f"{about} {BESIDE}", metavar="PATH")
    about = "dtype of the weights; with float16 the text encoder stays bfloat16 (default: bfloat16 on a GPU, float32 on a CPU)"
    add("--dtype", about, choices=DTYPES)
    return add


def _add_memory(add: Add) -> None:
    add_decoding(add, "auto")
    about = (
        "bits per weight of the transformer and the text encoder in memory: 8 halves it, 4 quarters it at some cost in "
        "quality (default: as stored)"
    )
    add("--quantize", about, type=int, choices=BITS)
    about = (
        "read the transformer from the disk at every step, under 3 GiB at a time: slower, and guided passes run as one batch, "
        "as with --batch-guidance"
    )
    flag(add, "--low-memory", about)


def add_decoding(add: Add, tiling: str | None = None) -> None:
    """Add --memory-limit and --tiling, whose default is ``tiling``; ``None`` = that of the run to finish."""
    about = "decode in tiles; aggressive needs the least memory"
    usual = "" if tiling else " (default: as the run had it)"
    add("--tiling", about + usual, tiling, choices=MODES)
    about = (
        "memory budget, such as 24 or 24GB: weights are quantized or streamed to stay within it (default: what the machine "
        "has)"
    )
    add("--memory-limit", about, type=byte_size, metavar="GB")


def add_output(parser: argparse.ArgumentParser, usual: str) -> Add:
    """Add where and how files are written, for commands that make a clip; returns as ``add_prompt`` does."""
    add = group(parser, "output")
    about = (
        "file to write: .mp4, .mov or .webm; .gif or .webp without sound; or a folder/"
    )
    add("--output-path --output -o", f"{about} (default: {usual})", metavar="PATH")
    add("--output-audio", "also write the sound to this file", type=path, metavar="WAV")
    about = "also write the frames as PNG, into NAME_frames or this folder"
    folder = {"type": path, "metavar": "FOLDER"}
    add("--save-frames", about, nargs="?", const=True, **folder)
    for names, about in {
        "--overwrite": "replace existing files",
        "--quiet": "print only warnings and the path",
        "--verbose -v": "also print the log, and seconds and memory of each phase",
        "--json": "print a JSON object with path, seed, seconds and peak memory instead of the path",
        "--yes -y": "open the files that a record names, without asking",
    }.items():
        flag(add, names, about)
    about = "write the clip even if it looks broken"
    flag(add, "--no-health-check", about, True, dest="health")
    return add


def _add_output(add: Add, audio: bool | None) -> None:
    about = f"make sound (default: {'no' if audio is False else 'yes'})"
    add("--audio", about, audio, action=argparse.BooleanOptionalAction)
    about = (
        "how often to save the state of a long run, so that --resume can continue it"
    )
    add("--save-every", about, Options.save_every, type=seconds, metavar="SECONDS")
    about = "write a JPEG of the clip so far into this folder while it is sampled"
    add("--preview", about, type=path, metavar="FOLDER")


# Values; errors are one sentence


def byte_size(word: str) -> float:
    """24, 24GB, 24 GiB or 24000MB."""
    found = re.fullmatch(r"\s*([\d.]+)\s*((?:[mgt]i?)?)b?\s*", word.lower())
    try:
        size = float(found[1]) * UNITS[found[2]]
    except (TypeError, ValueError):
        size = 0
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(
            f"must be an amount of memory above 0, such as 24GB; got {word}"
        )
    return size


def path(word: str) -> Path:
    """A path with ~ expanded."""
    try:
        return typed_path(word)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seconds(word: str) -> float:
    """Seconds, 0 or more."""
    if not (found := _number(word)) >= 0:
        raise argparse.ArgumentTypeError(
            f"must be seconds, 0 or more, such as 60; got {word}"
        )
    return found


def duration(word: str) -> str | float:
    """``AUTO``, or a number of seconds."""
    if word != AUTO and math.isnan(_number(word)):
        raise argparse.ArgumentTypeError(
            f"must be auto, or seconds, such as 5; got {word}"
        )
    return word if word == AUTO else float(word)


def _number(word: str) -> float:
    """``word`` as a number, or NaN."""
    try:
        return float(word)
    except ValueError:
        return math.nan
