"""Checkpoint files: find, read, name and load their tensors. Knows formats and names, not what a network computes."""

from typing import Mapping

import mlx.core as mx

Weights = dict[str, mx.array]


def strip_prefixes(weights: Weights, prefixes: Mapping[str, str]) -> Weights | None:
    """The tensors under any of ``prefixes``, renamed by them; ``None`` if there is none.

    ``None`` tells a ``sanitize`` that the weights already bear this package's names.
    """
    found = {
        new + key.removeprefix(old): value
        for key, value in weights.items()
        for old, new in prefixes.items()
        if key.startswith(old)
    }
    return found or None


def channels_last(weight: mx.array) -> mx.array:
    """A PyTorch convolution weight in MLX's order: (O, I, ...) -> (O, ..., I)."""
    return mx.moveaxis(weight, 1, -1)
