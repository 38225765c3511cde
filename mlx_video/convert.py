"""An official checkpoint written as a folder of MLX parts, in another dtype or quantized if asked.

python -m mlx_video.convert --hf-path Lightricks/LTX-2 --mlx-path ltx-2-8bit -q
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Callable, Sequence

import mlx.core as mx

from mlx_video import hub
from mlx_video.disk import typed_path
from mlx_video.errors import UserError
from mlx_video.models.ltx import find
from mlx_video.models.ltx.components import (
    Announce,
    Components,
)
from mlx_video.models.ltx.layouts import (
    DEFAULTS,
    DISTILLED_LORA_FILES,
    VARIANTS,
    newest,
)
from mlx_video.models.ltx.parts import PARTS, part_of
from mlx_video.parser import Parser
from mlx_video.weights import CONFIG, aside, write_json

DTYPES = ("bfloat16", "float16", "float32")
BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)


def convert(
    hf_path: str | Path,
    mlx_path: str | Path,
    dtype: mx.Dtype | None = None,
    quantize: bool = False,
    q_bits: int = 8,
    q_group_size: int = 64,
    *,
    variant: str | None = None,
    announce: Announce = lambda plan: None,
    on_part: Callable[[str], None] = lambda name: None,
) -> Path:
    """Write each part of ``hf_path`` into a folder of its own under ``mlx_path``, which must not hold anything yet.

    hf_path   official file, folder with one, converted folder, or hub repository; ``variant`` chooses among several
              files, while a converted folder keeps the transformers of both
    dtype     of floating tensors; ``None`` keeps the stored ones (bfloat16 for fp8)
    quantize  the Linears of the transformer's and Gemma's blocks, to ``q_bits`` bits in groups of ``q_group_size``
    on_part   hears the name of each part before it is written
    The upscaler and Gemma beside the model go along, Gemma in its own dtype and, if it is quantized already, as it is,
    and so do the checkpoint's defaults. Memory stays near one shard (5 GB); a conversion that fails leaves nothing
    behind. Raises ``ValueError`` or ``FileNotFoundError`` in one sentence.
    """
    quantization = _quantization(q_bits, q_group_size) if quantize else {}
    target = typed_path(mlx_path).absolute()
    with aside(target) as folder:
        needs = [name for name, part in PARTS.items() if part.block is not None]
        layout = Components.open(
            hf_path, variant=variant, needs=needs, announce=announce
        ).layout
        if layout.folders:
            find.find_folders(hf_path, layout.folders, announce)
        stored = layout.stored.items()
        transformers = [s for n, s in stored if part_of(n).name == "transformer"]
        if quantize and any(source.quantization for source in transformers):
            raise UserError(
                f"{hf_path} is quantized already; convert the checkpoint it was made from, or leave out -q."
            )
        for name, source in stored:
            on_part(name)
            network = part_of(name).network(source)
            network.write(source, folder / name, dtype, quantization)
        if layout.folders and (lora := newest(layout.path, DISTILLED_LORA_FILES)):
            shutil.copy(lora, folder)
        if layout.defaults:
            write_json(folder / CONFIG, {DEFAULTS: layout.defaults})
    return target


def _quantization(bits: int, group_size: int) -> dict[str, int | str]:
    if bits not in BITS or group_size not in GROUP_SIZES:
        raise UserError(
            f"Weights are quantized to {', '.join(map(str, BITS))} bits in groups of "
            f"{', '.join(map(str, GROUP_SIZES))}; got {bits} bits in groups of {group_size}. "
            "The usual choice is 8 bits in groups of 64."
        )
    return {"group_size": group_size, "bits": bits, "mode": "affine"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of mlx-lm's convert that apply here."""
    parser.add_argument(
        "--hf-path",
        default=hub.MODEL_REPO,
        help="official .safetensors, folder with one, or hub repository (default: %(default)s)",
    )
    parser.add_argument(
        "--mlx-path",
        default="mlx_model",
        help="new folder to write (default: %(default)s)",
    )
    parser.add_argument(
        "--variant",
        choices=VARIANTS,
        help="which checkpoint, where there are several (hub default: distilled)",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of the weights (default: as stored)"
    )
    parser.add_argument(
        "-q",
        "--quantize",
        action="store_true",
        help="quantize the transformer's blocks and the text encoder's",
    )
    parser.add_argument(
        "--q-bits",
        type=int,
        help="bits per weight: 8 costs no visible quality, 4 costs some (default: 8)",
    )
    parser.add_argument(
        "--q-group-size",
        type=int,
        help="weights that share a scale (default: 64)",
    )


def run(args: argparse.Namespace) -> Path:
    """Convert as parsed arguments say; progress goes to stderr."""
    if (args.q_bits or args.q_group_size) and not args.quantize:
        raise UserError("--q-bits and --q-group-size say how to quantize; add -q.")
    return convert(
        args.hf_path,
        args.mlx_path,
        None if args.dtype is None else getattr(mx, args.dtype),
        args.quantize,
        args.q_bits or 8,
        args.q_group_size or 64,
        variant=args.variant,
        announce=lambda plan: print(plan, file=sys.stderr),
        on_part=lambda name: print(f"converting {name}", file=sys.stderr),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 for bad input with one sentence on stderr."""
    parser = Parser(
        prog="python -m mlx_video.convert", description=__doc__.splitlines()[0]
    )
    add_arguments(parser)
    args = parser.read(argv)
    from mlx_video.cli import guarded  # which knows this module as a command

    return guarded(lambda: print(run(args)))


if __name__ == "__main__":
    sys.exit(main())
