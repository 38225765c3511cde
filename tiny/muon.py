"""Muon: descent in which every kernel's step has equal singular values. Knows gradients, not what is trained.

Method: Keller Jordan, "Muon: An optimizer for hidden layers in neural networks" (2024), with the scale of "Muon is
Scalable for LLM Training" (arXiv 2502.16982), which lets AdamW's learning rates stand.
"""

import mlx.core as mx
import mlx.optimizers as optim

MOMENTUM = 0.95
SCALE = 0.2  # root mean square of an entry's step, over the learning rate; about what AdamW's is
QUINTIC = (
    3.4445,
    -4.7750,
    2.0315,
)  # brings every singular value in (0, 1] near 1 within five turns
TURNS = 5


class Muon(optim.AdamW):
    """Muon for stacks of matrices (count, rows, columns), AdamW for vectors; see ``tiny.training.Layout``."""

    MATRICES = True  # wants them stacked

    def init_single(self, parameter: mx.array, state: dict) -> None:
        if parameter.ndim < 3:
            super().init_single(parameter, state)
        else:
            state["v"] = mx.zeros_like(parameter)

    def apply_single(
        self, gradient: mx.array, parameter: mx.array, state: dict
    ) -> mx.array:
        if parameter.ndim < 3:
            return super().apply_single(gradient, parameter, state)
        state["v"] = MOMENTUM * state["v"] + (1 - MOMENTUM) * gradient
        ahead = MOMENTUM * state["v"] + (1 - MOMENTUM) * gradient
        step = SCALE * max(gradient.shape[1:]) ** 0.5 * orthogonal(ahead)
        kept = 1 - self.learning_rate * self.weight_decay
        return kept * parameter - self.learning_rate * step


def orthogonal(x: mx.array) -> mx.array:
    """About the nearest matrices to multiples of ``x`` (..., m, n) whose singular values are all 1.

    The iteration runs on the products of the shorter side with itself, since kernels are far wider than high.
    """
    if x.shape[-2] > x.shape[-1]:
        return orthogonal(x.swapaxes(-1, -2)).swapaxes(-1, -2)
    x = x.astype(mx.float32)
    x = x / (mx.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    a, b, c = QUINTIC
    one = mx.eye(x.shape[-2])
    product, turned = x @ x.swapaxes(-1, -2), one
    for _ in range(TURNS):
        turn = a * one + b * product + c * (product @ product)
        product, turned = turn @ product @ turn, turn @ turned
    return turned @ x
