"""What the demo model's clips lose in other number formats: ``python -m tiny.quantized``. It prints a Markdown table.

Knows formats, an error and verdicts; how clips are made and judged is in ``tiny.evaluate``.
"""

import argparse
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_video import Pipeline, VideoPixelShape
from mlx_video.linear import Linear, dense_weight
from mlx_video.models.ltx.checkpoint.find import DEMO
from mlx_video.models.ltx.loading.components import Components, quantize_blocks
from mlx_video.types import AV
from tiny.denoiser import Denoiser
from tiny.evaluate import Scores, added, examine, maker, opened, unseen
from tiny.model import GEOMETRY, TEXT_TOKENS
from tiny.train_transformer import SMALL, USUAL
from tiny.world import FPS

ROWS = ("colour", "background", "motion", "thing", "sound", "knocks")
SIGMA = 0.9  # of the tokens whose velocities are compared


class Format(NamedTuple):
    group_size: int
    bits: int
    mode: str = "affine"


FORMATS = {
    "dense": None,
    "8": Format(64, 8),
    "4": Format(64, 4),
    "mxfp8": Format(32, 8, "mxfp8"),
    "mxfp4": Format(32, 4, "mxfp4"),
    "nvfp4": Format(16, 4, "nvfp4"),
}


def requantize(components: Components, format: Format | None) -> None:
    """Have the transformer's blocks hold what they hold in ``format``, from the dense weights that the packaged ones mean.

    The numbers are dense again afterwards, once instead of for each product.
    """
    network = components._network

    def requantized(name: str, *options) -> tuple[nn.Module, list]:
        module, fusions = network(name, *options)
        if name == "transformer":
            make_dense(module)
            if format:
                quantize_blocks(module, *format)
                make_dense(module)
                mx.eval(module.parameters())
        return module, fusions

    components._network = requantized


def make_dense(module: nn.Module) -> None:
    """Put a Linear in the place of every quantized one."""
    dense = []
    for path, layer in module.named_modules():
        if isinstance(layer, nn.QuantizedLinear):
            weight = dense_weight(layer)
            linear = Linear(weight.shape[1], weight.shape[0], bias="bias" in layer)
            linear.update(
                {"weight": weight} | ({"bias": layer.bias} if "bias" in layer else {})
            )
            dense.append((path, linear))
    module.update_modules(tree_unflatten(dense))


def velocity(pipeline: Pipeline, sentence: str) -> AV[mx.array]:
    """Of noise in place of a clip's tokens."""
    shape = VideoPixelShape(USUAL, SMALL, SMALL, FPS)
    tokens = GEOMETRY.latents(shape).tokens
    sounds = GEOMETRY.audio_frames(shape)
    keys = mx.random.split(mx.random.key(0))
    x = AV(
        *(mx.random.normal((1, n, 128), key=k) for n, k in zip((tokens, sounds), keys))
    )
    components = pipeline.components
    with components.lend("text_encoder") as encoder:
        told = encoder.features([sentence], TEXT_TOKENS)
    with (
        components.lend("connectors") as connectors,
        components.transformer() as transformer,
    ):
        denoiser = Denoiser(transformer.model, connectors)
        context = denoiser.context(told, x.present)
        v = denoiser.velocity(x, context, mx.array([SIGMA]), shape, False)
        mx.eval(v.values)
    return v


def distance(a: mx.array, b: mx.array) -> float:
    """|a - b| / |b|."""
    return (mx.linalg.norm(a - b) / mx.linalg.norm(b)).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=[*FORMATS])
    parser.add_argument("--sentences", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1000, help="of the first clip")
    options = parser.parse_args()
    print("| blocks | velocity, picture and sound |", " | ".join(ROWS), "|")
    print("|" + "---|" * (2 + len(ROWS)))
    exact = velocity(in_format(None), "a red ball bounces on a blue floor")
    for name in options.formats:
        pipeline = in_format(FORMATS[name])
        off = velocity(pipeline, "a red ball bounces on a blue floor").map(
            distance, exact
        )
        scores = read(pipeline, options.sentences, options.seed)
        shares = (f"{scores[row].right} of {scores[row].asked}" for row in ROWS)
        print(
            f"| {name} | {off.video:.1%}, {off.audio:.1%} |",
            " | ".join(shares),
            "|",
            flush=True,
        )


def in_format(format: Format | None) -> Pipeline:
    pipeline = opened(DEMO)
    requantize(pipeline.components, format)
    return pipeline


def read(pipeline: Pipeline, count: int, seed: int) -> Scores:
    """Scores of clips of sentences that training never saw."""
    make = maker(pipeline, VideoPixelShape(USUAL, 256, 256, FPS))
    total: Scores = {}
    for number, scene, sentence in unseen(count, seed):
        total = added(total, examine(scene, *make(sentence, seed + number), sentence))
    return total


if __name__ == "__main__":
    main()
