"""Sigmoid, SiLU and attention with NumPy's exponentials on an eager CPU; elsewhere they are MLX's.

On x86 CPUs MLX does not vectorize exp: a sigmoid takes 26 ns instead of 4, and attention two to three times as long. As
each is evaluated at once, fewer arrays wait. Sigmoids differ from MLX's by at most 1e-7, attention by less than 1e-6.
NumPy writes into MLX's own memory, of arrays that nobody else has: copies would double the attention scores.
"""

from functools import cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_video import backend


def sigmoid(x: mx.array) -> mx.array:
    """1 / (1 + exp(-x)), elementwise."""
    return _sigmoid(x) if _by_numpy(x) else mx.sigmoid(x)


def silu(x: mx.array) -> mx.array:
    """``x`` times its sigmoid."""
    return x * _sigmoid(x) if _by_numpy(x) else nn.silu(x)


def attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, bias: mx.array | None = None
) -> mx.array:
    """Softmax of q kᵀ times ``scale`` plus ``bias``, times v; q (B, H, N, D), k and v (B, H, M, D) -> (B, H, N, D)."""
    if bias is None and _by_numpy(q):
        return _attention(q * scale, k, v)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=bias)


def _by_numpy(x: mx.array) -> bool:
    return backend.eager and x.dtype == mx.float32 and _memory_is_shared()


@cache
def _memory_is_shared() -> bool:
    """Whether what is written to a NumPy view of an array arrives in it, which MLX does not promise."""
    x = mx.zeros(1)
    np.array(x, copy=False)[0] = 1
    return x.item() == 1


@mx.custom_function
def _sigmoid(x: mx.array) -> mx.array:
    y = -x
    memory = np.array(y, copy=False)  # of y, which nobody else has
    with np.errstate(over="ignore"):  # 1 / inf is the right 0
        np.exp(memory, out=memory)
    memory += 1
    np.reciprocal(memory, out=memory)
    return y


@_sigmoid.vjp
def _sigmoid_vjp(_, cotangent: mx.array, y: mx.array) -> mx.array:
    return cotangent * y * (1 - y)


@mx.custom_function
def _attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    scores = q @ k.swapaxes(-1, -2)
    weights = np.array(scores, copy=False)  # their memory
    weights -= weights.max(-1, keepdims=True)
    np.exp(weights, out=weights)
    out = (scores @ v) / mx.array(weights.sum(-1, keepdims=True))
    mx.eval(out)  # else the scores would wait
    return out


@_attention.vjp
def _attention_vjp(inputs, cotangent: mx.array, _) -> list[mx.array]:
    def plain(q, k, v):
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0)

    return mx.vjp(plain, inputs, [cotangent])[1]
