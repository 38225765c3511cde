"""The loop that trains every part: AdamW or Muon on float32 weights, their running average, and a stop by steps or by minutes.

Knows steps, seconds and files; not what is trained, nor on what. Weights lie in one vector, or in few stacks, to the
optimizer: a small model's step is bound by how many operations it has, not by their size.
"""

import json
import math
import os
import time
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from tiny.model import WORK

Tree = dict
VECTOR = "vector"  # the group of all weights that are no matrices to the optimizer
Draw = Callable[[int], Sequence]
AGREE = 10  # steps, after which processes agree on the time
CACHE = 2**35  # bytes of freed memory to keep, so that something else fits beside
Slope = Callable[
    ..., tuple[mx.array, Tree]
]  # of weights and what was drawn, the loss and its gradients


@dataclass(frozen=True)
class Plan:
    """How long and how fast a part is trained.

    steps          at most; the learning rate falls to a hundredth over them, as half a cosine
    minutes        or until then, and the learning rate falls accordingly faster
    learning_rate  the highest, after ``warmup`` steps
    optimizer      ``optim.AdamW`` or what is made with the same arguments, as ``tiny.muon.Muon``
    ends           names of matrices that ``Muon`` is not meant for: where data enter and leave
    average        how much of the running average of the weights each step keeps, at most
    dtype          to compute in; weights and optimizer stay float32
    """

    name: str
    steps: int
    minutes: float = float("inf")
    learning_rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.0
    clip: float = 1.0
    optimizer: type[optim.Optimizer] = optim.AdamW
    ends: Sequence[str] = ()
    average: float = 0.999
    dtype: mx.Dtype = mx.float32
    say_every: int = 50
    save_seconds: float = 120.0

    def progress(self, step: int, seconds: float) -> float:
        """From 0 to 1, by whichever limit is nearer."""
        return min(1.0, max(step / self.steps, seconds / 60 / self.minutes))

    def rate(self, step: int, progress: float) -> float:
        falling = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * falling


class Layout:
    """Weights in few arrays: one vector, the largest first, so that where each begins is well aligned.

    An optimizer of matrices finds those of one shape in one stack (count, rows, columns), kernels among them: their
    first axis against all others.
    """

    def __init__(self, tree: Tree, plan: Plan):
        flat = sorted(tree_flatten(tree), key=lambda entry: -entry[1].size)
        self.shapes = {name: value.shape for name, value in flat}
        self.groups: dict[str, list[str]] = {}
        for name, value in flat:
            self.groups.setdefault(self._group(name, value, plan), []).append(name)

    def _group(self, name: str, value: mx.array, plan: Plan) -> str:
        matrix = value.ndim > 1 and name.endswith("weight") and name not in plan.ends
        if not (matrix and hasattr(plan.optimizer, "MATRICES")):
            return VECTOR
        return f"{len(value)} x {value[0].size}"

    def pack(self, tree: Tree) -> Tree:
        arrays = dict(tree_flatten(tree))

        def packed(group: str, names: list[str]) -> mx.array:
            if group == VECTOR:
                return mx.concatenate([arrays[name].flatten() for name in names])
            rows = self.shapes[names[0]][0]
            return mx.stack([arrays[name].reshape(rows, -1) for name in names])

        return {group: packed(group, names) for group, names in self.groups.items()}

    def unpack(self, packed: Tree) -> Tree:
        """Views, which copy nothing."""
        flat = []
        for group, names in self.groups.items():
            sizes = [math.prod(self.shapes[name]) for name in names]
            ends = (
                np.cumsum(sizes).tolist()
                if group == VECTOR
                else range(1, len(names) + 1)
            )
            parts = mx.split(packed[group], list(ends)[:-1])
            flat += [(n, x.reshape(self.shapes[n])) for n, x in zip(names, parts)]
        return tree_unflatten(flat)


def slope_of(module: nn.Module, loss: Callable[..., mx.array]) -> Slope:
    """The gradient of ``loss(*drawn)``, a scalar that reads ``module``'s weights."""

    def of(weights: Tree, *drawn) -> mx.array:
        module.update(weights)
        return loss(*drawn)

    return mx.value_and_grad(of)


class State:
    """What a training is at: weights, their average, the optimizer's moments, steps and seconds spent.

    descend  (weights, average, moments, gradients, how much of the average to keep) -> the first three, a step on
    """

    def __init__(self, module: nn.Module, slope: Slope, plan: Plan):
        weights = tree_map(_float32, module.trainable_parameters())
        self.layout = Layout(weights, plan)
        self.weights = self.layout.pack(weights)
        self.average = tree_map(mx.array, self.weights)
        self.optimizer = plan.optimizer(
            plan.learning_rate, betas=[0.9, 0.99], weight_decay=plan.weight_decay
        )
        self.optimizer.init(self.weights)
        self.loss_and_gradients = slope
        self.descend = mx.compile(partial(_descended, self.optimizer, plan.clip))
        self.step, self.seconds = 0, 0.0

    def slope(self, weights: Tree, *drawn) -> tuple[mx.array, Tree]:
        """The loss and its gradients, of weights that are laid out as ``self.weights`` are."""
        value, gradients = self.loss_and_gradients(self.tree(weights), *drawn)
        return value, nn.average_gradients(self.layout.pack(gradients), together())

    def tree(self, weights: Tree) -> Tree:
        """Weights by name."""
        return self.layout.unpack(weights)

    def save(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        parts = (self.weights, self.average, self.optimizer.state)
        arrays = dict(tree_flatten(list(parts)))
        aside = file.with_suffix(".part.safetensors")
        spent = json.dumps([self.step, self.seconds])
        mx.save_safetensors(str(aside), arrays, {"spent": spent})
        aside.rename(file)

    def resume(self, file: Path) -> None:
        arrays, metadata = mx.load(str(file), return_metadata=True)
        kept = dict(tree_flatten([self.weights, self.average, self.optimizer.state]))
        if {k: v.shape for k, v in arrays.items()} != {
            k: v.shape for k, v in kept.items()
        }:
            raise ValueError(
                f"{file} is of another training: its weights or its optimizer are not these. Go on as it began, or "
                "delete it."
            )
        self.weights, self.average, moments = tree_unflatten(list(arrays.items()))
        self.optimizer.state = moments
        self.step, self.seconds = json.loads(metadata["spent"])


def train(
    module: nn.Module,
    slope: Slope,
    plan: Plan,
    on_pause: Callable[[], None] = lambda: None,
    draw: Draw | None = None,
) -> nn.Module:
    """Descend along ``slope(weights, *draw(step))`` from ``module``'s weights, and leave their running average in it.

    A batch is drawn by the number of the step, so a training that was interrupted goes on as it would have: its state
    lies in ``WORK`` every two minutes. ``on_pause`` is called whenever the averaged weights were written. Processes
    that were started together train one model, each on what it draws; the first one writes. Without ``draw``, which
    gives the number of the step alone, they would all do the same, so that raises ``ValueError``.
    """
    if draw is None and together().size() > 1:
        raise ValueError(
            f"{plan.name} is trained by one process; {together().size()} were started."
        )
    draw = draw or (lambda step: (step,))
    mx.set_cache_limit(CACHE)
    file = WORK / f"{plan.name}.training.safetensors"
    state = State(module, slope, plan)
    if file.exists():
        state.resume(file)
        print(f"{plan.name}: goes on at step {state.step}", flush=True)
    losses, saved = [], time.perf_counter()
    began = time.perf_counter() - state.seconds
    while (progress := plan.progress(state.step, state.seconds)) < 1:
        losses.append(advance(state, plan, draw, progress))
        mx.eval(losses[-2:-1])  # so that two steps are under way, and never more
        if together().size() == 1 or state.step % AGREE == 0:
            state.seconds = _agreed(time.perf_counter() - began)
        if state.step % plan.say_every == 0:
            _say(plan, state, losses)
            losses = []
        if time.perf_counter() - saved > plan.save_seconds:
            saved = _pause(module, state, file, on_pause)
    _pause(module, state, file, on_pause)
    return module


def advance(state: State, plan: Plan, draw: Draw, progress: float) -> mx.array:
    """Begin one step of descent; returns the loss."""
    weights = tree_map(lambda x: x.astype(plan.dtype), state.weights)
    value, gradients = state.slope(weights, *draw(state.step))
    state.optimizer.learning_rate = plan.rate(state.step, progress)
    kept = mx.array(min(plan.average, (1 + state.step) / (10 + state.step)))
    state.weights, state.average, state.optimizer.state = state.descend(
        state.weights, state.average, state.optimizer.state, gradients, kept
    )
    mx.async_eval(value, state.weights, state.average, state.optimizer.state)
    state.step += 1
    return value


def _descended(
    optimizer: optim.Optimizer,
    clip: float,
    weights: Tree,
    average: Tree,
    moments: dict,
    gradients: Tree,
    kept: mx.array,
) -> tuple[Tree, Tree, dict]:
    """Weights, their average and the optimizer's state after one step; pure, so that it can be compiled."""
    flat = [g.flatten() for _, g in tree_flatten(gradients)]
    norm = mx.linalg.norm(mx.concatenate(flat).astype(mx.float32))
    scale = mx.minimum(clip / (norm + 1e-6), 1.0)
    gradients = tree_map(lambda g: g.astype(mx.float32) * scale, gradients)
    optimizer.state = moments
    weights = optimizer.apply_gradients(gradients, weights)
    return weights, tree_map(partial(_mix, kept), average, weights), optimizer.state


def _say(plan: Plan, state: State, losses: list[mx.array]) -> None:
    mean = mx.mean(mx.stack(losses)).item()
    if not math.isfinite(mean):
        raise FloatingPointError(
            f"{plan.name}: the loss is {mean} before step {state.step}; lower the learning rate and start again."
        )
    print(f"{plan.name} {state.step} {state.seconds:.0f}s {mean:.5f}", flush=True)


def _pause(module: nn.Module, state: State, file: Path, on_pause) -> float:
    """Leave the averaged weights in the module and everything in the file."""
    module.update(state.tree(state.average))
    if together().rank() == 0:
        state.save(file)
        on_pause()
    return time.perf_counter()


@cache
def together() -> mx.distributed.Group:
    """The processes that train one model; this one alone unless ``mlx.launch`` started more."""
    on_gpus = "NCCL_PORT" in os.environ
    return mx.distributed.init(backend="nccl" if on_gpus else "ring")


def _agreed(seconds: float) -> float:
    """The first process's, so that all have one learning rate and stop at one step."""
    group = together()
    if group.size() == 1:
        return seconds
    firsts = mx.array(seconds if group.rank() == 0 else 0.0)
    return mx.distributed.all_sum(firsts, group=group).item()


def _mix(kept: float, average: mx.array, x: mx.array) -> mx.array:
    return kept * average + (1 - kept) * x


def _float32(x: mx.array) -> mx.array:
    return x.astype(mx.float32)
