"""An official checkpoint written as a folder of MLX parts, in another dtype or quantized if asked.

python -m mlx_video.convert --hf-path Lightricks/LTX-2 --mlx-path ltx-2-8bit -q
"""

import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Callable

import mlx.core as mx

from mlx_video import cli, hub
from mlx_video.disk import folder_aside, typed_path
from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint import find
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.parts import PARTS, part_of
from mlx_video.names import *  # noqa: F401,F403  since scripts import some of them from here
from mlx_video.weights import CONFIG, write_json

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
    notify: Callable[[hub.DownloadPlan | str], None] = lambda what: None,
) -> Path:
    """Write each part of ``hf_path`` into its own folder under ``mlx_path``, which must be new or empty.

    hf_path   official file, folder with one, converted folder, or hub repository; ``variant`` chooses among several
              files, while a converted folder keeps the transformers of both
    dtype     of floating tensors; ``None`` keeps the stored ones (bfloat16 for fp8)
    quantize  the linear layers of the transformer's and Gemma's blocks, to ``q_bits`` in groups of ``q_group_size``
    notify    is called before each download, and with the name of each part before it is written
    Includes the upscaler and Gemma beside the model and the checkpoint's defaults. Gemma keeps its dtype, and its
    quantization if it has one. Needs memory for about one shard (5 GB); a failed conversion leaves nothing behind. Raises
    ``UserError``.
    """
    quantization = _quantization(q_bits, q_group_size) if quantize else {}
    target = typed_path(mlx_path).absolute()
    with folder_aside(target) as folder:
        needs = [name for name, part in PARTS.items() if part.block is not None]
        opened = Components.open(hf_path, variant=variant, needs=needs, notify=notify)
        layout = opened.layout
        if layout.folders:
            find.find_folders(hf_path, layout, notify)
        stored = [(n, part_of(n), source) for n, source in layout.stored.items()]
        own = [(part, source) for _, part, source in stored if part.block is not None]
        if quantize and any(s.quantization and p.network(s).BLOCKS for p, s in own):
            raise UserError(
                f"{hf_path} is quantized already; convert the checkpoint it was made from, or leave out -q."
            )
        for name, part, source in stored:
            notify(name)
            part.network(source).write(source, folder / name, dtype, quantization)
        if beside := layout.beside:
            shutil.copy(beside, folder)
        if stated := layout.stated:
            write_json(folder / CONFIG, stated)
    return target


def _quantization(bits: int, group_size: int) -> dict[str, int | str]:
    if bits not in BITS or group_size not in GROUP_SIZES:
        raise UserError(
            f"Weights are quantized to {', '.join(map(str, BITS))} bits in groups of "
            f"{', '.join(map(str, GROUP_SIZES))}; got {bits} bits in groups of {group_size}. "
            "The usual choice is 8 bits in groups of 64."
        )
    return {"group_size": group_size, "bits": bits, "mode": "affine"}


main = partial(cli.main, before=["convert"])


if __name__ == "__main__":
    sys.exit(main())
