"""What a CPU does faster than MLX has it do: activations, and convolutions of few channels. ``install()`` puts them in.

Knows arithmetic; not what is trained with it. Results agree with MLX's to the last digits of float32.
"""

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx import attention, ltx
from mlx_video.models.ltx.video_vae import convolution

ROOT = 0.7978845608028654  # sqrt(2 / pi), of the GELU's tanh approximation
CUBE = 0.044715


def install() -> None:
    """Replace SiLU, GELU and the 3-D convolution, where the device is a CPU."""
    if mx.default_device() == mx.cpu:
        nn.silu = silu
        attention.gelu = ltx.gelu = gelu
        convolution.preferred_form = lambda *_: convolution.by_product


@mx.custom_function
def silu(x: mx.array) -> mx.array:
    """``x * sigmoid(x)``; the gradient computes the sigmoid again."""
    return _silu(x)


@silu.vjp
def _silu_gradient(x: mx.array, gradient: mx.array, _) -> mx.array:
    return _silu_slope(x, gradient)


@mx.compile
def _silu(x: mx.array) -> mx.array:
    return (x * _sigmoid(x)).astype(x.dtype)


@mx.compile
def _silu_slope(x: mx.array, gradient: mx.array) -> mx.array:
    s = _sigmoid(x)
    return (gradient * (s + x * s * (1 - s))).astype(x.dtype)


@mx.custom_function
def gelu(x: mx.array) -> mx.array:
    """GELU, tanh approximation, as ``attention.gelu``."""
    return _gelu(x)


@gelu.vjp
def _gelu_gradient(x: mx.array, gradient: mx.array, _) -> mx.array:
    return _gelu_slope(x, gradient)


@mx.compile
def _gelu(x: mx.array) -> mx.array:
    return (x * _sigmoid(2 * ROOT * (x + CUBE * x * x * x))).astype(x.dtype)


@mx.compile
def _gelu_slope(x: mx.array, gradient: mx.array) -> mx.array:
    s = _sigmoid(2 * ROOT * (x + CUBE * x * x * x))
    inner = 2 * ROOT * (1 + 3 * CUBE * x * x)
    return (gradient * (s + x * s * (1 - s) * inner)).astype(x.dtype)


def _sigmoid(x: mx.array) -> mx.array:
    return 0.5 + 0.5 * tanh(0.5 * x.astype(mx.float32))


def tanh(x: mx.array) -> mx.array:
    """Without a gradient, in nothing but sums, products and quotients; within 5e-7.

    Lambert's continued fraction, 7 levels deep, at a quarter of x, and twice the tangent of the double angle.
    """
    x = mx.clip(x, -9.0, 9.0) * 0.25
    s = x * x
    above = x * (135135 + s * (17325 + s * (378 + s)))
    t = above / (135135 + s * (62370 + s * (3150 + s * 28)))
    for _ in range(2):
        t = 2 * t / (1 + t * t)
    return t
