"""Distil the guided dev transformer into one for the official 8 + 3 noise levels without guidance: ``python -m tiny.distil``.

Knows trajectories, and one step in place of several; not how the teacher was trained.
"""

import argparse
from typing import Iterator, Mapping, NamedTuple, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_video.models.ltx.text_encoder import GemmaTextEncoder
from mlx_video.sampling.schedules import STAGE_1_SIGMAS, STAGE_2_SIGMAS
from mlx_video.types import AV, VideoPixelShape
from tiny import quick
from tiny.denoiser import Denoiser, Lesson, Slope, free
from tiny.latents import Latents
from tiny.model import DEFAULTS, load, store
from tiny.pack import LORA_RANK
from tiny.text import load_encoder
from tiny.train_transformer import (
    LARGE,
    MUTE,
    PINNED,
    SMALL,
    draw_clips,
    draw_shape,
    empty,
    even_count,
    features,
    mixed,
    normal,
    read_sets,
)
from tiny.training import Plan, together, train

GPU = mx.default_device() == mx.gpu
GUIDANCE = DEFAULTS["cfg"]  # of the teacher, away from the empty text
# The teacher's steps between two of the student's levels; the last three are those of both stages.
SUBSTEPS = (1, 1, 1, 1, 2, 2, 2, 3) if GPU else (1, 1, 1, 1, 1, 2, 2, 2)
AT_LARGE = 0.35  # of the steps
OWN = 0.5  # of the steps go the student's own way


class Change(nn.Module):
    """What the student has beyond the teacher: a low-rank change of every linear layer's weight, at first none.

    That is all that the package carries of it, so nothing else is trained. The text is the teacher's.
    """

    def __init__(self, teacher: nn.Module, rank: int):
        super().__init__()
        shapes = {path: weight.shape for path, weight in linear_weights(teacher)}
        self.up = {path: mx.zeros((out, rank)) for path, (out, _) in shapes.items()}
        self.down = {
            path: mx.random.normal((rank, size)) * size**-0.5
            for path, (_, size) in shapes.items()
        }

    def apply_to(self, student: nn.Module, teacher: nn.Module) -> None:
        """Give the student the teacher's weights and the change."""
        weights = dict(linear_weights(teacher))
        changed = changed_weights(self.trainable_parameters(), weights)
        dtype = student.dtype
        student.update(
            tree_unflatten(
                [(dotted(path), w.astype(dtype)) for path, w in changed.items()]
            )
        )


def changed_weights(change: dict, weights: Mapping[str, mx.array]) -> dict:
    """Weights by their paths, with the parameters of a ``Change`` added."""
    up, down = change["up"], change["down"]
    return {path: w + up[path] @ down[path] for path, w in weights.items()}


def linear_weights(module: nn.Module) -> Iterator[tuple[str, mx.array]]:
    """Every linear layer's weight and its path, with a slash for a dot, which would part it in a tree."""
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and "caption_projection" not in path:
            yield f"{path}.weight".replace(".", "/"), layer.weight


def dotted(path: str) -> str:
    return path.replace("/", ".")


class Start(NamedTuple):
    """Where trajectories begin: tokens ``x``, what is said of them, and the levels the student stops at."""

    x: AV[mx.array]
    ids: np.ndarray
    sigmas: tuple[float, ...]
    shape: VideoPixelShape
    pinned: bool = False


class Guide:
    """The teacher, guided away from the empty text."""

    def __init__(self, teacher: Denoiser, guidance: float):
        self.teacher, self.guidance = teacher, guidance
        self.weights = dict(tree_flatten(teacher.transformer.parameters()))

    def advance(
        self,
        x: AV[mx.array],
        contexts: AV[mx.array],
        sigma: mx.array,
        below: mx.array,
        start: Start,
    ) -> AV[mx.array]:
        """Euler's step of tokens (B, N, 128) and (B, T, 128) from level ``sigma`` to ``below``; those given stay.

        contexts  (2B, L, D) each: of the clips' sentences, then of the empty text
        """
        twice = x.map(lambda x: mx.concatenate([x, x]))
        levels = mx.broadcast_to(sigma, (len(twice.video),))
        v = self.teacher.compiled_velocity(
            self.weights, twice, contexts, levels, start.shape, start.pinned
        )
        return stepped(x, unpinned(v.map(self._away), start), below - sigma)

    def _away(self, v: mx.array) -> mx.array:
        told, untold = mx.split(v.astype(mx.float32), 2)
        return untold + self.guidance * (told - untold)


class Student:
    """The teacher's weights with a ``Change``: the gradient of the loss by this, and steps by the weights last asked about.

    Before anything was asked they are the teacher's.
    """

    def __init__(self, teacher: Denoiser):
        self.teacher, self.gradient = teacher, Slope(teacher)
        self.linear = dict(linear_weights(teacher.transformer))
        self.change, self.pull = mx.compile(self._changed), mx.compile(self._pulled)
        self.kept = dict(tree_flatten(teacher.transformer.parameters()))
        self.weights = self.kept

    def slope(self, change: dict, lesson: Lesson) -> tuple[mx.array, dict]:
        """The loss and its gradients by the parameters of a ``Change``, through all of the weights."""
        self.weights = self.kept | self.change(change)
        tree = {"transformer": tree_unflatten(list(self.weights.items()))}
        loss, slopes = self.gradient(tree, lesson)
        return loss, self.pull(change, dict(tree_flatten(slopes["transformer"])))

    def advance(
        self,
        x: AV[mx.array],
        told: AV[mx.array],
        sigma: float,
        below: float,
        start: Start,
    ) -> AV[mx.array]:
        """Euler's step, unguided; tokens that are given stay."""
        levels = mx.full((len(x.video),), sigma)
        v = self.teacher.compiled_velocity(
            self.weights, x, told, levels, start.shape, start.pinned
        )
        return stepped(x, unpinned(v, start), below - sigma)

    def _changed(self, change: dict) -> dict[str, mx.array]:
        changed = changed_weights(change, self.linear)
        return {dotted(p): w.astype(self.linear[p].dtype) for p, w in changed.items()}

    def _pulled(self, change: dict, slopes: dict[str, mx.array]) -> dict:
        names, values = zip(*tree_flatten(change))

        def run(*values: mx.array) -> list[mx.array]:
            return list(
                self._changed(tree_unflatten(list(zip(names, values)))).values()
            )

        wanted = [slopes[dotted(path)] for path in self.linear]
        _, pulled = mx.vjp(run, list(values), wanted)
        return tree_unflatten(list(zip(names, pulled)))


def draw_start(
    step: int,
    sets: Mapping[int, Latents],
    count: int,
    share: tuple[int, int] = (0, 1),
) -> Start:
    """Noise of the first stage, or clips of 256 pixels noised as the second stage begins; ``share`` as for batches."""
    rng = np.random.default_rng([2, step])
    shape = draw_shape(rng, sets, AT_LARGE)
    mute, pinned = rng.random() < MUTE, bool(rng.random() < PINNED)
    rng = np.random.default_rng([2, step, *share])
    size, count = shape.height, even_count(shape, count)
    sigmas = STAGE_2_SIGMAS if size == LARGE else STAGE_1_SIGMAS
    x0, ids = draw_clips(rng, sets[size], shape, count, untold=0)
    if mute:
        x0 = AV(x0.video)
    noise = normal(x0, mx.random.key(step * share[1] + share[0]))
    sigma = mx.full((count,), sigmas[0])
    x = x0.map(lambda x0, noise: mixed(x0, noise, sigma), noise)
    if pinned:
        x = AV(mx.where(free(shape)[:, None], x.video, x0.video), x.audio)
    return Start(x, ids, sigmas, shape, pinned)


def teach(
    guide: Guide,
    encoder: GemmaTextEncoder,
    start: Start,
    student: Student | None = None,
) -> Lesson:
    """The guided teacher's way from each level to the next, for all trajectories and levels in one batch.

    The levels are reached by the teacher; or by the ``student``, so that it learns to come back from where it errs.
    """
    told, untold = contexts(guide.teacher, encoder, start)
    both = told.map(lambda *pair: mx.concatenate(pair), untold)
    x, points, slopes = start.x, [], []
    pairs = list(zip(start.sigmas, start.sigmas[1:]))
    for (high, low), substeps in zip(pairs, SUBSTEPS[-len(pairs) :]):
        after, fine = x, mx.linspace(high, low, substeps + 1)
        for sigma, below in zip(fine, fine[1:]):
            after = guide.advance(after, both, sigma, below, start)
        points.append(x)
        slopes.append(after.map(lambda after, x: (after - x) / (low - high), x))
        x = student.advance(x, told, high, low, start) if student else after
    sigma = mx.repeat(mx.array(start.sigmas[:-1]), len(start.ids))
    x, slopes, context = (
        join(parts) for parts in (points, slopes, [told] * len(pairs))
    )
    return Lesson(x, slopes, context, sigma, start.shape, start.pinned)


def contexts(
    denoiser: Denoiser, encoder: GemmaTextEncoder, start: Start
) -> tuple[AV[mx.array], AV[mx.array]]:
    """The projected text of every clip, and of as many that nothing is said of."""
    present = start.x.present
    nothing = np.broadcast_to(empty(), start.ids.shape)
    told = denoiser.context(features(encoder, start.ids), present)
    return told, denoiser.context(features(encoder, nothing), present)


def unpinned(v: AV[mx.array], start: Start) -> AV[mx.array]:
    """Velocities, 0 where the first frame is given."""
    if not start.pinned:
        return v
    return AV(v.video * free(start.shape)[:, None], v.audio)


def stepped(x: AV[mx.array], v: AV[mx.array], change: mx.array | float) -> AV[mx.array]:
    """Euler's step over a ``change`` of the noise level."""
    return x.map(lambda x, v: x + change * v, v)


def join(parts: Sequence[AV[mx.array]]) -> AV[mx.array]:
    first, *others = parts
    return first.map(lambda *each: mx.concatenate(each), *others)


def walk(denoiser: Denoiser, encoder: GemmaTextEncoder, start: Start) -> AV[mx.array]:
    """Where a model gets by one unguided step from each level to the next."""
    told, _ = contexts(denoiser, encoder, start)
    x = start.x
    for sigma, below in zip(start.sigmas, start.sigmas[1:]):
        levels = mx.full((len(start.ids),), sigma)
        v = denoiser.velocity(x, told, levels, start.shape, start.pinned)
        x = stepped(x, v, below - sigma)
    return x


def measure(
    models: Mapping[str, Denoiser],
    guide: Guide,
    encoder: GemmaTextEncoder,
    start: Start,
) -> None:
    """Print how far from the teacher's each model's clips are: mean squared error of latents."""
    lesson = teach(guide, encoder, start)
    count, last = len(start.ids), start.sigmas[-2]
    ends = lesson.x.map(lambda x, v: x[-count:] - last * v[-count:], lesson.velocity)
    for name, model in models.items():
        x = walk(model, encoder, start)
        off = x.map(lambda x, end: mx.mean(mx.square(x - end)).item(), ends)
        print(
            f"{name}: video {off.video:.4f}, audio {off.audio or 0:.4f} away",
            flush=True,
        )


def main() -> None:
    options = _options()
    mx.random.seed(0)
    quick.install()
    encoder, sets = load_encoder(), read_sets()
    teacher = Denoiser(load("transformer-dev"), load("connectors"))
    if GPU:
        teacher.set_dtype(mx.bfloat16)
    student = Student(teacher)
    change = Change(teacher.transformer, LORA_RANK)
    plan = Plan(
        "distil",
        options.steps,
        options.minutes,
        options.learning_rate,
        average=0.99,
        say_every=10,
    )
    guide = Guide(teacher, options.guidance)
    share = together().rank(), together().size()

    def draw(step: int) -> tuple:
        start = draw_start(step, sets, options.batch, share)
        own = np.random.default_rng([3, step]).random() < OWN
        return (teach(guide, encoder, start, student if own else None),)

    train(change, student.slope, plan, lambda: keep(change), draw)
    if share[0]:
        return
    distilled = Denoiser(load("transformer-dev"), teacher.connectors)
    change.apply_to(distilled.transformer, load("transformer-dev"))
    start = draw_start(10**9, {SMALL: sets[SMALL]}, 32)
    models = {"dev, unguided": teacher, "distilled": distilled}
    measure(models, guide, encoder, start)


def keep(change: Change) -> None:
    """Store the student, in float32."""
    student = load("transformer-dev")
    change.apply_to(student, load("transformer-dev"))
    store("transformer-distilled", student)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0 if GPU else 15.0)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument(
        "--batch", type=int, default=64 if GPU else 4, help="trajectories"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    return parser.parse_args()


if __name__ == "__main__":
    main()
