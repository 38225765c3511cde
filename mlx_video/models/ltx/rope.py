"""Rotary position embeddings (Su et al., 2021) of continuous positions, a frequency band per axis, whatever the axes mean."""

import warnings
from typing import Sequence

import mlx.core as mx
import numpy as np

from mlx_video.models.ltx.config import LTXRopeType
from mlx_video.models.ltx.kernels import NORM_ROTATE, fused

Rope = tuple[mx.array, mx.array]  # (cos, sin)


def precompute_freqs_cis(
    indices_grid: mx.array,
    dim: int,
    theta: float = 10000.0,
    max_pos: Sequence[float] = (20, 2048, 2048),
    use_middle_indices_grid: bool = False,
    num_attention_heads: int = 32,
    rope_type: LTXRopeType = LTXRopeType.INTERLEAVED,
    double_precision: bool = False,
) -> Rope:
    """(cos, sin) of each token's rotation angles, always float32.

    indices_grid             (B, axes, N, 2) [start, end) of each token on each axis, or (B, axes, N) points
    dim                      width of all heads together
    max_pos                  extent of each axis, in the grid's units: positions 0..max_pos map to -1..1
    use_middle_indices_grid  a token's position is the middle of its bounds; otherwise their start
    double_precision         compute the powers of ``theta`` in float64

    Split tables are (B, N, heads, dim / heads / 2), one angle per pair; interleaved ones are (B, N, dim), each angle twice.
    Raises ``ValueError`` unless ``max_pos`` has one extent per axis.
    """
    if indices_grid.dtype == mx.bfloat16:
        warnings.warn(
            "Positions in bfloat16 are rounded by up to 0.4 %, which shows in the picture; give them in float32.",
            stacklevel=2,
        )
    axes = indices_grid.shape[1]
    if len(max_pos) != axes:
        raise ValueError(
            f"max_pos must hold one extent for each of the {axes} axes of the positions; got {tuple(max_pos)}."
        )
    points = indices_grid.astype(mx.float32)
    if points.ndim == 4:
        points = points.mean(-1) if use_middle_indices_grid else points[..., 0]
    frequencies = _frequencies(theta, dim // (2 * axes), double_precision)
    extents = mx.array(max_pos, dtype=mx.float32)[:, None]
    signed = (points / extents * 2 - 1).swapaxes(1, 2)  # (B, N, axes)
    angles = (signed[:, :, None] * frequencies[:, None]).flatten(-2)  # axes fastest
    # If the axes do not divide the width, the first pairs are not rotated.
    angles = mx.pad(angles, ((0, 0), (0, 0), (dim // 2 - angles.shape[-1], 0)))
    if rope_type is LTXRopeType.INTERLEAVED:
        angles = mx.repeat(angles, 2, axis=-1)  # (B, N, dim)
    else:
        angles = mx.unflatten(angles, -1, (num_attention_heads, -1))
    return mx.cos(angles), mx.sin(angles)


def apply_rotary(x: mx.array, rope: Rope, rope_type: LTXRopeType) -> mx.array:
    """Rotate the feature pairs of every head: (B, N, H, head_dim) -> the same shape and dtype, computed in float32.

    A pair is features i and i + head_dim / 2 (split), or 2i and 2i + 1 (interleaved).
    """
    if rope_type is LTXRopeType.SPLIT:
        return mx.concatenate(_rotated(*mx.split(x, 2, axis=-1), *rope), axis=-1)
    cos, sin = (mx.unflatten(t[..., ::2], -1, (x.shape[2], -1)) for t in rope)
    return mx.stack(_rotated(x[..., ::2], x[..., 1::2], cos, sin), axis=-1).flatten(-2)


@fused(NORM_ROTATE)
def norm_rotate(
    x: mx.array, weight: mx.array, cos: mx.array, sin: mx.array, eps: float
) -> mx.array:
    """Tokens (B, N, H * head_dim), RMS-normed over all heads at once, then rotated by split tables."""
    normed = mx.unflatten(mx.fast.rms_norm(x, weight, eps), -1, (cos.shape[2], -1))
    return apply_rotary(normed, (cos, sin), LTXRopeType.SPLIT).flatten(-2)


def split_heads(x: mx.array, heads: int) -> mx.array:
    """(B, N, heads * D) -> (B, heads, N, D)."""
    return mx.unflatten(x, -1, (heads, -1)).swapaxes(1, 2)


@mx.compile
def _rotated(
    a: mx.array, b: mx.array, cos: mx.array, sin: mx.array
) -> tuple[mx.array, ...]:
    """The pairs (a, b), rotated; computed in float32 inside one fused kernel."""
    a32, b32 = a.astype(mx.float32), b.astype(mx.float32)
    turned = a32 * cos - b32 * sin, b32 * cos + a32 * sin
    return tuple(t.astype(a.dtype) for t in turned)


def _frequencies(theta: float, count: int, double_precision: bool) -> mx.array:
    """``theta ** linspace(0, 1, count) * pi / 2``, (count,) float32."""
    dtype = np.float64 if double_precision else np.float32
    powers = np.power(dtype(theta), np.linspace(0, 1, count, dtype=dtype))
    return mx.array((powers * dtype(np.pi / 2)).astype(np.float32))
