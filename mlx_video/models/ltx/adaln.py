"""Adaptive layer norm: noise levels become the shifts, scales and gates of a stream (AdaLN-single, Chen et al., 2023).

Knows levels and rows; not tokens, blocks or what a row is used for.
"""

import math
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx.kernels import gated, norm_modulate

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


class Modulation(NamedTuple):
    """Shifts, scales and gates of a stream's tokens.

    rows   (B, K, R, D), R rows for each distinct noise level, in the dtype of the tokens; B may be 1 for a whole batch
    index  (N,) which of the K levels each token has; ``None`` where there is only one
    """

    rows: mx.array
    index: mx.array | None

    @classmethod
    def of(cls, table: mx.array, rows: mx.array, index: mx.array | None, dtype):
        """A block's own rows (R, D) plus the shared ones (B, K, R, D)."""
        return cls(_sum(table, rows).astype(dtype), index)

    def norm(self, x: mx.array, eps: float, *, shift: int, scale: int) -> mx.array:
        """RMS-normed tokens (B, N, D), scaled and shifted by the rows of these numbers."""

        def plain(x: mx.array, rows: mx.array) -> mx.array:
            at = self._replace(rows=rows)
            normed = mx.fast.rms_norm(x, None, eps)
            return modulate(normed, at.row(shift), at.row(scale))

        return norm_modulate(plain, x, self.rows, self.index, eps, shift, scale)

    def gated(self, x: mx.array, update: mx.array, *, gate: int) -> mx.array:
        """Tokens (B, N, D) plus ``update`` times the row of this number."""

        def plain(x: mx.array, update: mx.array, rows: mx.array) -> mx.array:
            return add_gated(x, update, self._replace(rows=rows).row(gate))

        return gated(plain, x, update, self.rows, self.index, gate)

    def row(self, number: int) -> mx.array:
        """One row of every token, (B, N, D); (B, 1, D) where all tokens have one level."""
        row = self.rows[:, :, number]
        return row if self.index is None else mx.take(row, self.index, axis=1)


@mx.compile
def _sum(table: mx.array, rows: mx.array) -> mx.array:
    return table.astype(mx.float32) + rows.astype(mx.float32)


@mx.compile
def modulate(x: mx.array, shift: mx.array, scale: mx.array) -> mx.array:
    """``x * (1 + scale) + shift``, float32 inside the one fused kernel."""
    x32, shift, scale = (a.astype(mx.float32) for a in (x, shift, scale))
    return (x32 * (1 + scale) + shift).astype(x.dtype)


@mx.compile
def add_gated(x: mx.array, update: mx.array, gate: mx.array) -> mx.array:
    """``x + update * gate``, float32 inside the one fused kernel."""
    x32, update, gate = (a.astype(mx.float32) for a in (x, update, gate))
    return (x32 + update * gate).astype(x.dtype)
