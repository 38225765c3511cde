"""What float16 and bfloat16 cost the transformer in accuracy, and how near it comes to 65,504, float16's largest number.

    python benchmarks/half.py            # two blocks as wide as LTX-2's take 8 GB, and minutes on a CPU
    python benchmarks/half.py --small    # without them

One forward with the same weights, which are exact in bfloat16, and the same noise: the demo model, the tests' miniatures
and random weights. Prints |a - b| / |b| of the velocities beside float32's, and the largest number that leaves a block or
enters a GELU. Whole clips of the demo model follow, compared in pixels. What every run computes in float32 is so here.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Callable

sys.path.insert(0, str(Path(__file__).parent.parent))
import mlx_video  # noqa: E402  isort: skip  first: it chooses MLX's backend

import mlx.core as mx
import numpy as np
from dit_forward import (
    TINY_CLIPS,
    distance,
    draw_mlx_weights,
    mlx_config,
    mlx_inputs,
)
from mlx.utils import tree_map, tree_map_with_path

from mlx_video.backend import suit_cpu
from mlx_video.models.ltx import attention
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.find import DEMO
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.ltx import LTXModel
from mlx_video.weights import KEPT_PRECISION
from tests.reference import FIXTURES

HALVES = "bfloat16", "float16"
PROMPTS = (
    "a red ball bounces on a blue floor",
    "a big green star spins at night",
    "a yellow heart rises slowly at sunset, in silence",
)


def stored(model: str) -> LTXModel:
    """The transformer of a checkpoint."""
    with Components.open(model, needs=["transformer"]).transformer() as predict:
        copy = LTXModel(predict.model.config)
        copy.update(tree_map(mx.array, predict.model.parameters()))
        return copy


def wide() -> LTXModel:
    """Two blocks of LTX-2's width, with random weights."""
    mx.random.seed(0)
    model = LTXModel(mlx_config(False, "2", num_layers=2))
    draw_mlx_weights(model)
    return model


def cast(model: LTXModel, dtype: mx.Dtype) -> None:
    def one(path: str, x: mx.array) -> mx.array:
        return x if KEPT_PRECISION in path else x.astype(dtype)

    model.update(tree_map_with_path(one, model.parameters()))
    mx.eval(model.parameters())


def forward(model: LTXModel, dtype: mx.Dtype) -> tuple[list[mx.array], float]:
    """The velocities with weights of ``dtype``, and the largest magnitude on the way."""
    cast(model, mx.bfloat16)
    cast(model, dtype)
    given = mlx_inputs(model, TINY_CLIPS[1])
    for stream in given.values:  # frozen, but of this script's making
        for name in ("latent", "context"):
            object.__setattr__(stream, name, getattr(stream, name).astype(dtype))
    seen, gelu = [], attention.gelu
    attention.gelu = lambda x: (seen.append(x), gelu(x))[1]
    x, conditioning = model.embed(given)
    for block in model.transformer_blocks:
        x = block(x, conditioning)
        seen += x.values
    attention.gelu = gelu
    velocities = list(model.project_out(x, conditioning).values)
    return velocities, max(mx.abs(x).max().item() for x in seen)


def compare(name: str, build: Callable[[], LTXModel]) -> None:
    """A row of the table."""
    model = build()
    exact, largest = forward(model, mx.float32)
    halves = [forward(model, getattr(mx, half))[0] for half in HALVES]
    errors = " | ".join(f"{distance(half, exact):.1e}" for half in halves)
    print(f"| {name} | {errors} | {largest:,.1f} |", flush=True)


def frames(prompt: str, dtype: str) -> np.ndarray:
    """A clip of the demo model."""
    clip = mlx_video.load(files=Files(DEMO, dtype=dtype))(prompt, seed=1)
    return np.stack(list(clip.frames)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="no full width")
    args = parser.parse_args()
    suit_cpu(0)
    print(f"| velocities | {' | '.join(HALVES)} | largest number |\n|---|---|---|---|")
    compare("demo model", partial(stored, DEMO))
    for release in ("2", "2.3"):
        folder = f"ltx{release.replace('.', '')}_tiny"
        file = FIXTURES / folder / f"ltx-{release}-tiny.safetensors"
        compare(f"miniature of LTX-{release}", partial(stored, str(file)))
    if not args.small:
        compare("two blocks of LTX-2, random weights", wide)
    for prompt in PROMPTS:
        exact = frames(prompt, "float32")
        off = (np.abs(frames(prompt, half) - exact).mean() for half in HALVES)
        print(f"{prompt}: levels of 255 off by", ", ".join(f"{x:.2f}" for x in off))


if __name__ == "__main__":
    main()
