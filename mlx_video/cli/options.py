"""The options, in groups, with their real defaults."""

import argparse
from functools import partial

from mlx_video import hub, recipes
from mlx_video.cli.parser import flag, option
from mlx_video.cli.values import byte_size, duration, path, seconds
from mlx_video.inputs import Input
from mlx_video.models.ltx.files import BITS, DTYPES
from mlx_video.models.ltx.find import DEMO
from mlx_video.models.ltx.video_vae.tiling import MODES
from mlx_video.run import Options

OWN_DEFAULTS = "These are LTX-2's defaults; another checkpoint may bring its own, which the info command shows."
BESIDE = "beside the model, else from the hub"


def add_generate(parser: argparse.ArgumentParser) -> None:
    """Every option of a clip; those that are not typed are ``None``, and the checkpoint's defaults apply."""
    prompt = add_prompt(parser)
    option(
        prompt,
        "--negative-prompt",
        "what to avoid; used by guidance only",
        shown="a list of common faults",
    )
    flag(
        prompt,
        "--enhance-prompt",
        "let the text encoder rewrite the prompt first",
        dest="enhance",
    )
    _add_size(parser)
    _add_inputs(parser)
    _add_guidance(parser)
    _add_model(parser)
    _add_memory(parser)
    output = add_output(parser, shown="named after the prompt and the seed")
    add = partial(option, output)
    add(
        "--audio",
        "with or without sound",
        action=argparse.BooleanOptionalAction,
        shown="with, but for python -m mlx_video.generate and generate_dev",
    )
    add(
        "--save-every",
        "save the state of a long sampling this often, so that --resume can continue it",
        type=seconds,
        metavar="SECONDS",
        real=Options.save_every,
    )
    add(
        "--preview",
        "show the clip while it is sampled: write PNGs of a frame of it here",
        type=path,
        metavar="FOLDER",
    )
    _add_again(parser)


def add_prompt(parser: argparse.ArgumentParser):
    """--prompt and --seed; returns their group."""
    group = parser.add_argument_group("prompt")
    add = partial(option, group)
    add(
        "--prompt -p",
        "what to show and what to be heard; in quotes it may stand without --prompt",
    )
    add(
        "--seed -s",
        "random seed; the same seed makes the same clip",
        type=int,
        shown="random, and printed",
    )
    return group


def _add_size(parser: argparse.ArgumentParser) -> None:
    add = partial(option, parser.add_argument_group("size", OWN_DEFAULTS))
    for names, default in {
        "--height -H": recipes.HEIGHT,
        "--width -W": recipes.WIDTH,
    }.items():
        add(
            names,
            "pixels; LTX-2 takes multiples of 32, or of 64 in two stages",
            type=int,
            shown=default,
        )
    add(
        "--num-frames --frames -n",
        "how many frames; LTX-2 takes 1 + a multiple of 8",
        type=int,
        dest="frames",
        shown=recipes.FRAMES,
    )
    add(
        "--duration --seconds",
        "length of the clip, rounded to a number of frames that the model can make; auto lets LTX-2.5 judge by the prompt",
        type=duration,
        metavar="auto|SECONDS",
        shown="what --num-frames says",
    )
    add("--fps --frame-rate", "frames per second", type=float, shown=f"{recipes.FPS:g}")


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    """An option for each kind of input that can be typed."""
    group = parser.add_argument_group("inputs")
    for kind in Input.kinds.values():
        if kind.option:
            option(
                group,
                kind.option.flag,
                kind.option.help,
                action=_Given,
                kind=kind,
                nargs=1 if len(kind.option.metavar) == 1 else "+",
                real=(),
                shown="",
                metavar=kind.option.metavar,
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
    add = partial(option, group)
    video, audio = recipes.VIDEO_GUIDANCE, recipes.AUDIO_GUIDANCE
    add("--steps", "denoising steps", type=int, shown=recipes.STEPS)
    for name, usual, about in (
        ("--cfg-scale", video.cfg, "away from the negative prompt; 1 is off"),
        ("--audio-cfg-scale", audio.cfg, "the same for the audio"),
        ("--stg-scale", video.stg, "spatiotemporal guidance; 0 is off"),
        (
            "--modality-scale",
            video.modality,
            "agreement of picture and sound; 1 is off",
        ),
        ("--rescale", video.rescale, "reduces contrast; 0 is off, 1 the most"),
    ):
        dest = name.strip("-").removesuffix("-scale").replace("-", "_")
        add(name, about, type=float, dest=dest, shown=f"{usual:g}")
    add(
        "--stg-blocks",
        "transformer blocks that spatiotemporal guidance perturbs",
        type=int,
        nargs="+",
        metavar="BLOCK",
        shown=" ".join(map(str, video.stg_blocks)),
    )
    for name, about in {
        "--two-stage": "sample at half size first, then refine with the distilled LoRA",
        "--hq": f"two stages by the res_2s sampler, {recipes.HQ_STEPS} steps of two predictions, with some of the "
        "distilled LoRA",
        "--batch-guidance": "run the guided passes at once: faster where memory allows it; rounding differs by about "
        "0.05 %%",
    }.items():
        flag(group, name, about)


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = add_model_files(parser)
    add = partial(option, group)
    add(
        "--variant",
        "distilled: few steps; dev: guided, many steps",
        choices=("distilled", "dev"),
        real="distilled",
    )
    add(
        "--dfr",
        "DFR, by the distilled LTX-2.5: generates pictures with the clip and doubles its frame rate ROUNDS times "
        "(0 to 2); frames and rate are those before",
        type=int,
        metavar="ROUNDS",
        shown="off",
    )
    add(
        "--detailing-lora",
        "IC-LoRA for the second stage of --dfr, which then looks at the clip of the first",
        metavar="PATH",
        shown="none",
    )
    add_video_vae(group)
    add("--upsampler", "latent upsampler .safetensors", metavar="PATH", shown=BESIDE)
    add(
        "--lora",
        "LoRA to fuse into the transformer by STRENGTH (1 if left out); repeatable",
        action="append",
        nargs="+",
        dest="loras",
        real=(),
        shown="",
        metavar=("PATH", "STRENGTH"),
    )
    add(
        "--distilled-lora",
        "LoRA of the two-stage refinement",
        metavar="PATH",
        shown=BESIDE,
    )


def add_video_vae(group) -> None:
    option(
        group,
        "--video-vae",
        "video autoencoder: of LTX-2.5 conv, the convolutional one; or a file",
        metavar="conv|PATH",
        shown="the diffusion one of LTX-2.5",
    )


def add_model_files(parser: argparse.ArgumentParser, default: str | None = None):
    """--model, --text-encoder and --dtype; returns their group. Without a ``default`` the cache decides."""
    group = parser.add_argument_group("model")
    add = partial(option, group)
    usual = f"{hub.MODEL_REPO} if it is in the hub's cache, else {DEMO}"
    add(
        "--model --model-repo",
        "official .safetensors, converted folder, or hub repository",
        real=default,
        shown=default or usual,
    )
    add(
        "--text-encoder",
        "folder, file or hub repository of the Gemma that the model was trained with",
        metavar="PATH",
        shown=BESIDE,
    )
    add(
        "--dtype",
        "of the weights; what reads the prompt takes bfloat16 in place of float16",
        choices=DTYPES,
        shown="bfloat16 on a GPU, float32 on a CPU",
    )
    return group


def _add_memory(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory")
    add_decoding(group, real="auto")
    option(
        group,
        "--quantize",
        "bits of the transformer's and the text encoder's weights in memory: 8 takes half of it, 4 a quarter at some "
        "cost in quality",
        type=int,
        choices=BITS,
        shown="as they are stored",
    )
    flag(
        group,
        "--low-memory",
        "read the transformer's weights from the file in each step, under 3 GiB at a time: slower; guided passes share "
        "a reading, as with --batch-guidance",
    )


def add_decoding(group, real: str | None) -> None:
    """--tiling and --memory-limit."""
    option(
        group,
        "--tiling",
        "decode in tiles: aggressive needs least memory",
        choices=MODES,
        real=real,
        shown=real or "as the run had it",
    )
    option(
        group,
        "--memory-limit",
        "memory budget, such as 24 or 24GB; quantizes or streams weights to stay within it, or refuses",
        type=byte_size,
        metavar="GB",
        shown="what the machine has",
    )


def add_output(parser: argparse.ArgumentParser, shown: str):
    """Where and how files are written, for every command that ends in a clip; returns the group."""
    group = parser.add_argument_group("output")
    add = partial(option, group)
    add(
        "--output-path --output -o",
        ".mp4, .mov, .webm, or without sound .gif or .webp to write, or a folder/ to write an mp4 into",
        metavar="PATH",
        shown=shown,
    )
    add("--output-audio", "also write the sound here", type=path, metavar="WAV")
    add(
        "--save-frames",
        "also write PNG frames, into NAME_frames or the folder that is named",
        type=path,
        metavar="FOLDER",
        nargs="?",
        const=True,
    )
    for names, about in {
        "--overwrite": "replace files that exist",
        "--quiet": "print the path and warnings only",
        "--verbose -v": "say more: seconds and memory of each phase, and what is logged",
        "--json": "print one JSON object with path, seed, seconds and peak memory in place of the path",
        "--yes -y": "open the files that a record names without asking",
    }.items():
        flag(group, names, about)
    flag(
        group,
        "--no-health-check",
        "write the clip even if it looks like garbage",
        dest="health",
        real=True,
    )
    return group


def _add_again(parser: argparse.ArgumentParser) -> None:
    add = partial(option, parser.add_argument_group("again"), type=path, metavar="FILE")
    add(
        "--from-record",
        "make the clip of a .json record, or of an .mp4 made here, again",
    )
    add("--resume", "go on from the .state.safetensors that a stopped run left")
