"""The conversion's options, the flags of mlx-lm's convert that apply here."""

import argparse

from mlx_video import hub
from mlx_video.cli.parser import flag, group
from mlx_video.cli.progress import Downloads
from mlx_video.cli.terminal import say, tell
from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint.files import DTYPES
from mlx_video.models.ltx.checkpoint.layouts import VARIANTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is converted, where to, and how."""
    add = group(parser)
    about = "official .safetensors, folder with one, or hub repository"
    add("--hf-path", about, hub.MODEL_REPO)
    add("--mlx-path", "folder to write, which must not exist yet", "mlx_model")
    about = "checkpoint to convert if there are several (default: the only one; distilled on the hub)"
    add("--variant", about, choices=VARIANTS)
    add("--dtype", "dtype of the weights (default: as stored)", choices=DTYPES)
    flag(
        add,
        "-q --quantize",
        "quantize the blocks of the transformer and the text encoder",
    )
    about = "bits per weight: 8 costs no visible quality, 4 some"
    add("--q-bits", about, 8, type=int)
    add("--q-group-size", "number of weights that share a scale", 64, type=int)


def convert(args: argparse.Namespace) -> None:
    """Convert a checkpoint to an MLX folder, quantized if wanted."""
    import mlx.core as mx

    from mlx_video.convert import convert

    if args.typed.keys() & {"q_bits", "q_group_size"} and not args.quantize:
        raise UserError(
            "--q-bits and --q-group-size have no effect without -q; add -q."
        )
    downloads = Downloads()

    def notify(what: object) -> None:
        say(f"converting {what}") if isinstance(what, str) else downloads(what)

    folder = convert(
        args.hf_path,
        args.mlx_path,
        None if args.dtype is None else getattr(mx, args.dtype),
        args.quantize,
        args.q_bits,
        args.q_group_size,
        variant=args.variant,
        notify=notify,
    )
    tell(folder)
