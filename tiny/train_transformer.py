"""Train the dev transformer and its text connectors by flow matching on latents: ``python -m tiny.train_transformer``.

Knows noise levels, batches and the loss; not how latents were made (``tiny.latents``), nor how clips are sampled.
"""

import argparse
from typing import Callable, Mapping, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from mlx_video.models.ltx.gemma import hidden_states
from mlx_video.models.ltx.ltx import Stream
from mlx_video.models.ltx.text_encoder import GemmaTextEncoder
from mlx_video.sampling.schedules import STAGE_2_SIGMAS
from mlx_video.types import (
    AV,
    Modality,
    TextFeatures,
    VideoPixelShape,
)
from tiny import quick
from tiny.denoiser import Denoiser, Lesson, Slope, free
from tiny.latents import UNSEEN, Latents, read
from tiny.model import GEOMETRY, TEXT_TOKENS, WORK, fresh, load, store
from tiny.muon import Muon
from tiny.text import BOS, PAD, load_encoder
from tiny.training import Plan, together, train
from tiny.world import FPS

GPU = mx.default_device() == mx.gpu
SMALL, LARGE = 128, 256  # pixels, of the first stage and of the second
AT_LARGE = 0.35 if GPU else 0.2  # of the steps
REFINING = 0.7  # of those begin where the second stage does, the others at pure noise
USUAL, SHORTEST = 49, 25  # frames
STRIDE = 24 if GPU else 8  # frames, between the lengths trained on
USUALLY = 0.75  # of the steps
PINNED = 0.2  # of the steps have a first frame that is given
MUTE = 0.05  # of the steps have no sound
UNTOLD = 0.1  # of the clips come with the negative prompt, which is the empty text
CENTRE, SPREAD = 1.8, 1.5  # of the noise levels' logits: the schedules dwell near 1
EVEN = 0.15  # of the noise levels are uniform instead
OPTIMIZERS = {"muon": Muon, "adamw": optim.AdamW}
ENDS = [
    f"transformer.{m.value}.{part}.weight"
    for m in Modality
    for part in ("patchify_proj", "proj_out")
]
MEASURED = (0.4, 0.7, 0.9, 0.975, 1.0)  # noise levels


class Batch(NamedTuple):
    """What a step learns from.

    x0        clean tokens (B, N, 128) and, unless the clips are mute, (B, T, 128)
    features  the language model's hidden states of the sentences
    sigma     (B,) noise level of both modalities
    pinned    whether the first latent frame is given
    """

    x0: AV[mx.array]
    features: TextFeatures
    sigma: mx.array
    shape: VideoPixelShape
    pinned: bool = False


# ---- where training begins


def begin() -> Denoiser:
    """The denoiser as training left it, or else a new one."""
    if all((WORK / name).is_dir() for name in ("transformer-dev", "connectors")):
        return Denoiser(load("transformer-dev"), load("connectors"))
    denoiser = new_denoiser()
    if (WORK / "connectors").is_dir():
        denoiser.connectors = load("connectors")
    return denoiser


def new_denoiser() -> Denoiser:
    """A denoiser that predicts its noisy input as the velocity, which is nearly right where noise prevails.

    The blocks add nothing at first, but through open gates: few steps suffice to make them matter.
    """
    denoiser = Denoiser(fresh("transformer"), fresh("connectors"))
    transformer, connectors = denoiser.transformer, denoiser.connectors
    for modality in Modality:
        _pass_through(transformer.streams[modality])
        connector = connectors[modality.value]
        shape = connector.learnable_registers.shape
        connector.learnable_registers = 0.5 * mx.random.normal(shape)
    for block in transformer.transformer_blocks:
        for stream in block.streams.values:
            _silence(stream.attn1.to_out, stream.attn2.to_out)
            _silence(stream.cross_attn.to_out, stream.ff.proj_out)
            stream.scale_shift_table = _open_gates(stream.scale_shift_table)
            table = stream.cross_scale_shift_table
            stream.cross_scale_shift_table = _open_gates(table)
    return denoiser


def _pass_through(stream: Stream) -> None:
    """Lay the latents' channels along orthogonal directions of the stream, and read them from there."""
    first, last = stream.patchify_proj, stream.proj_out
    width, channels = first.weight.shape
    directions, _ = np.linalg.qr(np.array(mx.random.normal((width, channels))))
    first.weight = mx.array(directions)
    # The layer norm before it brings the mean square over all of the width to 1.
    last.weight = mx.array(directions.T) * (channels / width) ** 0.5
    first.bias, last.bias = mx.zeros_like(first.bias), mx.zeros_like(last.bias)


def _silence(*layers: nn.Module) -> None:
    for layer in layers:
        layer.weight = mx.zeros_like(layer.weight)
        layer.bias = mx.zeros_like(layer.bias)


def _open_gates(table: mx.array) -> mx.array:
    """A block's table with 1 in its gates: rows 2 and 5 of six, or 4 of the five of an exchange."""
    rows = mx.arange(len(table))[:, None]
    gates = (rows % 3 == 2) if len(table) == 6 else rows == 4
    return mx.where(gates, 1.0, table)


def features(encoder: GemmaTextEncoder, ids: np.ndarray) -> TextFeatures:
    """Hidden states of sentences (B, TEXT_TOKENS), lazily what ``encoder.features`` has, of all tokens."""
    ids = mx.array(ids.astype(np.int32))
    mask = (ids != PAD).astype(mx.int32)
    return TextFeatures(_states_of(encoder)(ids, mask), mask)


# Compiled functions by the identity of their encoder, which each entry keeps: modules have no hash.
_STATES: dict[int, tuple[GemmaTextEncoder, Callable]] = {}


def _states_of(encoder: GemmaTextEncoder) -> Callable[[mx.array, mx.array], mx.array]:
    if id(encoder) not in _STATES:
        states = lambda *given: mx.stack(list(hidden_states(encoder.model, *given)))
        compiled = mx.compile(states, inputs=[encoder.model.state])
        _STATES[id(encoder)] = encoder, compiled
    return _STATES[id(encoder)][1]


# ---- lessons


def lesson(batch: Batch, key: mx.array) -> Lesson:
    """The velocity from noise to x0 everywhere between them."""
    x0, texts, sigma, shape, pinned = batch
    noise = normal(x0, key)
    x = x0.map(lambda x0, noise: mixed(x0, noise, sigma), noise)
    if pinned:
        x = AV(mx.where(free(shape)[:, None], x.video, x0.video), x.audio)
    velocity = x0.map(lambda x0, noise: noise - x0, noise)
    return Lesson(x, velocity, texts, sigma, shape, pinned)


def mixed(x0: mx.array, noise: mx.array, sigma: mx.array) -> mx.array:
    """``x0`` (B, N, C) with noise mixed in to levels (B,)."""
    sigma = sigma[:, None, None]
    return (1 - sigma) * x0 + sigma * noise


def normal(like: AV[mx.array], key: mx.array) -> AV[mx.array]:
    """Gaussian noise of the shapes of ``like``, another for each modality."""
    keys = AV(*mx.random.split(key))
    return like.map(lambda x, key: mx.random.normal(x.shape, key=key), keys)


# ---- batches


def draw_batch(
    step: int,
    sets: Mapping[int, Latents],
    encoder: GemmaTextEncoder,
    count: int,
    share: tuple[int, int] = (0, 1),
) -> Batch:
    """Clips, noise levels and sentences: ``count`` of the usual length and 128 pixels, or others of as many tokens.

    share  (i, n): the ith of n batches that together are the step's, all of one shape
    """
    rng = np.random.default_rng([1, step])
    shape = draw_shape(rng, sets, AT_LARGE)
    refining = shape.height == LARGE and rng.random() < REFINING
    mute, pinned = rng.random() < MUTE, bool(rng.random() < PINNED)
    rng = np.random.default_rng([1, step, *share])
    count = even_count(shape, count)
    sigma = draw_sigmas(rng, count) * (STAGE_2_SIGMAS[0] if refining else 1)
    x0, ids = draw_clips(rng, sets[shape.height], shape, count)
    if mute:
        x0 = AV(x0.video)
    return Batch(x0, features(encoder, ids), mx.array(sigma), shape, pinned)


def draw_shape(
    rng: np.random.Generator, sets: Mapping[int, Latents], at_large: float
) -> VideoPixelShape:
    """Any shape that there are latents of, mostly of the usual length."""
    size = LARGE if LARGE in sets and rng.random() < at_large else SMALL
    longest = longest_clip(sets[size], size)
    frames = int(rng.choice(np.arange(min(SHORTEST, longest), longest + 1, STRIDE)))
    if rng.random() < USUALLY:
        frames = min(USUAL, longest)
    return VideoPixelShape(frames, size, size, FPS)


def longest_clip(latents: Latents, size: int) -> int:
    """Frames of the clips that were encoded ``size`` pixels high."""
    cells = GEOMETRY.latents(VideoPixelShape(1, size, size, FPS)).tokens
    return (latents.video.shape[1] // cells - 1) * GEOMETRY.video.time + 1


def even_count(shape: VideoPixelShape, count: int) -> int:
    """Clips of ``shape`` with as many tokens as ``count`` of the usual length in the first stage."""
    usual = VideoPixelShape(USUAL, SMALL, SMALL, FPS)
    tokens = [GEOMETRY.latents(s).tokens for s in (usual, shape)]
    return max(1, count * tokens[0] // tokens[1])


def draw_clips(
    rng: np.random.Generator,
    latents: Latents,
    shape: VideoPixelShape,
    count: int,
    untold: float = UNTOLD,
) -> tuple[AV[mx.array], np.ndarray]:
    """Any clips, and the ids of a sentence about each, of which a part says nothing."""
    rows = rng.integers(len(latents.ids), size=count)
    ids = latents.ids[rows, rng.integers(latents.ids.shape[1], size=count)]
    ids[rng.random(count) < untold] = empty()
    return latents.batch(rows, shape), ids


def empty() -> np.ndarray:
    """The ids of the empty text, (TEXT_TOKENS,)."""
    return np.array([PAD] * (TEXT_TOKENS - 1) + [BOS], np.int16)


def draw_sigmas(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count,) float32 in (0, 1]."""
    even = rng.random(count) < EVEN
    logits = CENTRE + SPREAD * rng.standard_normal(count)
    sigmas = np.where(even, 1 - rng.random(count), 1 / (1 + np.exp(-logits)))
    return sigmas.astype(np.float32)


# ---- the training


def measure(
    denoiser: Denoiser, encoder: GemmaTextEncoder, latents: Latents, size: int
) -> dict[float, AV[float]]:
    """Mean squared error of x0 by noise level, on scenes never seen: 1 is what knowing nothing has."""
    frames = min(USUAL, longest_clip(latents, size))
    shape = VideoPixelShape(frames, size, size, FPS)
    x0 = latents.batch(np.arange(len(latents.ids)), shape)
    context = denoiser.context(features(encoder, latents.ids[:, 0]), x0.present)
    noise = normal(x0, mx.random.key(0))

    def error(level: float) -> AV[float]:
        sigma = mx.full((len(latents.ids),), level)
        x = x0.map(lambda x0, noise: mixed(x0, noise, sigma), noise)
        v = denoiser.velocity(x, context, sigma, shape, False)
        off = v.map(lambda v, x0, n: mx.mean(mx.square(v - (n - x0))), x0, noise)
        return off.map(lambda e: e.item() * level**2)

    return {level: error(level) for level in MEASURED}


def say(errors: dict[float, AV[float]]) -> None:
    for level, both in errors.items():
        print(f"x0 at {level:5.3f}: video {both.video:.4f}, audio {both.audio:.4f}")


def read_sets(which: str = "[0-9]*") -> dict[int, Latents]:
    """The latents there are, by size."""
    sizes = [
        s for s in (SMALL, LARGE) if any(WORK.glob(f"latents-{s}-{which}.safetensors"))
    ]
    return {size: read(size, which) for size in sizes or [SMALL]}


def main() -> None:
    options = _options()
    mx.random.seed(0)
    quick.install()
    encoder, sets = load_encoder(), read_sets()
    denoiser = begin()
    share = together().rank(), together().size()
    plan = Plan(
        "transformer",
        options.steps,
        options.minutes,
        options.learning_rate,
        warmup=100,
        optimizer=OPTIMIZERS[options.optimizer],
        ends=ENDS,
        average=0.999 if GPU else 0.995,
        dtype=mx.bfloat16 if GPU else mx.float32,
    )

    def draw(step: int) -> tuple[Lesson]:
        batch = draw_batch(step, sets, encoder, options.batch, share)
        return (lesson(batch, mx.random.key(step * share[1] + share[0])),)

    def keep() -> None:
        store("transformer-dev", denoiser.transformer)
        store("connectors", denoiser.connectors)
        if not GPU and share == (0, 1):  # while latents are made; they fit twice
            sets.update(read_sets())

    train(denoiser, Slope(denoiser), plan, keep, draw)
    denoiser.set_dtype(plan.dtype)
    for size, unseen in read_sets(UNSEEN).items() if share[0] == 0 else ():
        print(f"{size} pixels, sentences about combinations never seen")
        say(measure(denoiser, encoder, unseen, size))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0 if GPU else 50.0)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=512 if GPU else 16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="muon")
    return parser.parse_args()


if __name__ == "__main__":
    main()
