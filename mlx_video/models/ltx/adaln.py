"""Adaptive layer norm: noise levels become the shifts, scales and gates of a stream (AdaLN-single, Chen et al., 2023).

Knows levels and rows; not tokens, blocks or what a row is used for.
"""

import math

import mlx.core as mx
import mlx.nn as nn

EMBEDDING_WIDTH = 256


class AdaLNSingle(nn.Module):
    """An MLP from a noise level to ``rows`` vectors of ``dim`` features, shared by all blocks."""

    def __init__(self, dim: int, rows: int):
        super().__init__()
        self.rows = rows
        self.linear_1 = nn.Linear(EMBEDDING_WIDTH, dim)
        self.linear_2 = nn.Linear(dim, dim)
        self.linear = nn.Linear(dim, rows * dim)

    def __call__(
        self, timesteps: mx.array, dtype: mx.Dtype
    ) -> tuple[mx.array, mx.array]:
        """Scaled noise levels (B, K) -> rows (B, K, rows, dim) and the embedded levels (B, K, dim), in ``dtype``."""
        x = timestep_embedding(timesteps, EMBEDDING_WIDTH).astype(dtype)
        embedded = self.linear_2(nn.silu(self.linear_1(x)))
        rows = self.linear(nn.silu(embedded))
        return mx.unflatten(rows, -1, (self.rows, -1)), embedded


def timestep_embedding(timesteps: mx.array, dim: int) -> mx.array:
    """Sinusoids (Vaswani et al., 2017): (...,) -> (..., dim), dim / 2 cosines then as many sines, float32."""
    exponents = mx.arange(dim // 2, dtype=mx.float32) / (dim // 2)
    frequencies = mx.exp(-math.log(10000.0) * exponents)
    angles = timesteps.astype(mx.float32)[..., None] * frequencies
    return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


def add_table(table: mx.array, rows: mx.array, dtype: mx.Dtype) -> list[mx.array]:
    """A block's own rows (R, D) plus the shared ones (B, K, R, D): R arrays (B, K, D) in ``dtype``."""
    total = _sum(table, rows).astype(dtype)
    return [total[:, :, row] for row in range(table.shape[0])]


@mx.compile
def _sum(table: mx.array, rows: mx.array) -> mx.array:
    return table.astype(mx.float32) + rows.astype(mx.float32)


@mx.compile
def modulate(x: mx.array, shift: mx.array, scale: mx.array) -> mx.array:
    """``x * (1 + scale) + shift``, float32 inside the one fused kernel."""
    x32, shift, scale = (a.astype(mx.float32) for a in (x, shift, scale))
    return (x32 * (1 + scale) + shift).astype(x.dtype)


@mx.compile
def gated(x: mx.array, update: mx.array, gate: mx.array) -> mx.array:
    """``x + update * gate``, float32 inside the one fused kernel."""
    x32, update, gate = (a.astype(mx.float32) for a in (x, update, gate))
    return (x32 + update * gate).astype(x.dtype)
