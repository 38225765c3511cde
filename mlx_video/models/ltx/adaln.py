"""Adaptive layer norm (AdaLN-single, Chen et al., 2023): noise levels become shifts, scales and gates. Knows no blocks."""

import math
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx.kernels import ADD_GATED, NORM_MODULATE, fused

EMBEDDING_WIDTH = 256


class Modulation(NamedTuple):
    """What the noise levels of a stream's tokens add to a table (R, D).

    rows    (B, K, R, D) of K levels; B may be 1 for a whole batch
    levels  (N,) which of the K levels each token has; ``None`` = all have the first
    """

    rows: mx.array
    levels: mx.array | None = None


class Rows(NamedTuple):
    """The row numbers of one sublayer's shift, scale and gate."""

    shift: int
    scale: int
    gate: int | None = None


class TimestepEmbedder(nn.Module):
    """Scaled noise levels as sinusoids through two linear layers: (...,) -> (..., dim), in ``dtype``."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(EMBEDDING_WIDTH, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def __call__(self, timesteps: mx.array, dtype: mx.Dtype) -> mx.array:
        x = timestep_embedding(timesteps, EMBEDDING_WIDTH).astype(dtype)
        return self.linear_2(nn.silu(self.linear_1(x)))


class AdaLNSingle(TimestepEmbedder):
    """An MLP from a noise level to ``rows`` vectors of ``dim`` features, shared by all blocks."""

    def __init__(self, dim: int, rows: int):
        super().__init__(dim)
        self.rows = rows
        self.linear = nn.Linear(dim, rows * dim)

    def __call__(
        self, timesteps: mx.array, dtype: mx.Dtype
    ) -> tuple[mx.array, mx.array]:
        """Scaled noise levels (B, K) -> rows (B, K, rows, dim) and the embedded levels (B, K, dim), in ``dtype``."""
        embedded = super().__call__(timesteps, dtype)
        rows = self.linear(nn.silu(embedded))
        return mx.unflatten(rows, -1, (self.rows, -1)), embedded


def timestep_embedding(timesteps: mx.array, dim: int) -> mx.array:
    """Sinusoids (Vaswani et al., 2017): (...,) -> (..., dim), dim / 2 cosines then as many sines, float32."""
    exponents = mx.arange(dim // 2, dtype=mx.float32) / (dim // 2)
    frequencies = mx.exp(-math.log(10000.0) * exponents)
    angles = timesteps.astype(mx.float32)[..., None] * frequencies
    return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


def modulate(
    x: mx.array, table: mx.array, modulation: Modulation, at: Rows
) -> mx.array:
    """Tokens (B, N, D) ``* (1 + scale) + shift``."""
    rows, levels = modulation
    return _scale_and_shift(x, *chosen_rows(table, rows, levels, at.shift, at.scale))


def norm_modulate(
    x: mx.array, table: mx.array, modulation: Modulation, at: Rows, eps: float
) -> mx.array:
    """RMS-normed tokens (B, N, D) ``* (1 + scale) + shift``."""
    rows, levels = modulation
    return _norm_modulate(x, table, rows, levels, at.shift, at.scale, eps)


def add_gated(
    x: mx.array, update: mx.array, table: mx.array, modulation: Modulation, at: Rows
) -> mx.array:
    """Tokens ``x`` (B, N, D) plus ``update`` times their gate."""
    rows, levels = modulation
    return _add_gated(x, update, table, rows, levels, at.gate)


@fused(NORM_MODULATE)
def _norm_modulate(
    x: mx.array,
    table: mx.array,
    rows: mx.array,
    levels: mx.array | None,
    shift: int,
    scale: int,
    eps: float,
) -> mx.array:
    normed = mx.fast.rms_norm(x, None, eps)
    return _scale_and_shift(normed, *chosen_rows(table, rows, levels, shift, scale))


@fused(ADD_GATED)
def _add_gated(
    x: mx.array,
    update: mx.array,
    table: mx.array,
    rows: mx.array,
    levels: mx.array | None,
    gate: int,
) -> mx.array:
    return _add_product(x, update, *chosen_rows(table, rows, levels, gate))


@mx.compile
def chosen_rows(
    table: mx.array, rows: mx.array, levels: mx.array | None, *numbers: int
) -> list[mx.array]:
    """The rows ``numbers`` of every token, (B, N, D) each, or (B, 1, D) if all share one level; summed in float32."""
    first, last = min(numbers), max(numbers)
    own, shared = table[first : last + 1], rows[:, :, first : last + 1]
    sums = (own.astype(mx.float32) + shared.astype(mx.float32)).astype(rows.dtype)
    found = [sums[:, :, number - first] for number in numbers]
    if levels is None:
        return [row[:, :1] for row in found]
    return [mx.take(row, levels, axis=1) for row in found]


@mx.compile
def _scale_and_shift(x: mx.array, shift: mx.array, scale: mx.array) -> mx.array:
    """``x * (1 + scale) + shift``, computed in float32 inside one fused kernel."""
    x32, shift, scale = (a.astype(mx.float32) for a in (x, shift, scale))
    return (x32 * (1 + scale) + shift).astype(x.dtype)


@mx.compile
def _add_product(x: mx.array, update: mx.array, gate: mx.array) -> mx.array:
    """``x + update * gate``, computed in float32 inside one fused kernel."""
    x32, update, gate = (a.astype(mx.float32) for a in (x, update, gate))
    return (x32 + update * gate).astype(x.dtype)
