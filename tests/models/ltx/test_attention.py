"""Attention and feed-forward against Lightricks' numbers and closed forms."""

import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_video.models.ltx.attention import (
    Attention,
    FeedForward,
    Items,
    attention_bias,
    gelu,
)
from mlx_video.models.ltx.rope import apply_rotary, split_heads
from tests.models.ltx.dit import DIT, model
from tests.reference import MODULE_TOLERANCE, error

BLOCK = model().transformer_blocks[0].video
ROPE = tuple(DIT[f"int.video_rope_{name}"].swapaxes(1, 2) for name in ("cos", "sin"))


def test_self_attention():
    out = BLOCK.attn1(DIT["attn1.in"], rope=ROPE)
    assert error(out, DIT["attn1.out"]) < MODULE_TOLERANCE


def test_queries_are_normed_over_all_heads_then_turned():
    attention = BLOCK.attn1
    q = attention.q_norm(attention.to_q(DIT["attn1.in"]))
    assert error(q, DIT["attn1.q_normed"]) < MODULE_TOLERANCE
    heads = mx.unflatten(q, -1, (attention.heads, -1))
    turned = apply_rotary(heads, ROPE, attention.rope_type).flatten(-2)
    assert error(turned, DIT["attn1.q_roped"]) < MODULE_TOLERANCE


def test_feed_forward():
    assert error(BLOCK.ff(DIT["attn1.in"]), DIT["ff.out"]) < MODULE_TOLERANCE


def small_attention(context_dim=None):
    mx.random.seed(0)
    return Attention(16, heads=2, head_dim=8, context_dim=context_dim)


def noise(*shape, key=0):
    return mx.random.normal(shape, key=mx.random.key(key))


def test_attention_in_numpy():
    """softmax(q k / sqrt(d)) v, spelled out, from another stream's tokens."""
    attention, x, context = small_attention(12), noise(2, 5, 16), noise(2, 7, 12)
    q, k, v = (
        np.array(split_heads(a, 2))
        for a in (
            attention.q_norm(attention.to_q(x)),
            attention.k_norm(attention.to_k(context)),
            attention.to_v(context),
        )
    )
    scores = np.exp(q @ k.swapaxes(-1, -2) / math.sqrt(8))
    out = scores / scores.sum(-1, keepdims=True) @ v
    out = attention.to_out(mx.array(out.swapaxes(1, 2).reshape(2, 5, 16)))
    assert error(attention(x, context), out) < 1e-5


def test_without_attending_a_token_keeps_its_own_value():
    attention, x = small_attention(), noise(2, 5, 16)
    passed = attention.to_out(attention.to_v(x))
    assert mx.array_equal(attention(x, attending=Items.where([False])), passed)
    mixed = attention(x, attending=Items.where([True, False]))
    assert error(mixed[0], attention(x)[0]) < 1e-6
    assert error(mixed[1], passed[1]) < 1e-6


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_strengths_weigh_what_is_attended_to(dtype):
    """Half as strongly is half the weight before the sum is brought to 1; not at all is none."""
    attention, x = small_attention(), noise(1, 3, 16)
    strengths = mx.array([[[1, 1, 1], [1, 0.5, 1], [1, 1, 0]]])
    bias = attention_bias(strengths, dtype)
    assert bias.dtype == dtype and bias.shape == (1, 1, 3, 3)
    weights = mx.softmax(bias.astype(mx.float32), axis=-1)[0, 0]
    expected = strengths[0] / strengths[0].sum(axis=-1, keepdims=True)
    assert mx.allclose(weights, expected, atol=1e-2 if dtype == mx.bfloat16 else 1e-6)
    attention.set_dtype(dtype)
    short = attention(x.astype(dtype), bias=bias)[:, 2]
    alone = attention(x[:, 2:].astype(dtype), x[:, :2].astype(dtype))[:, 0]
    assert error(short, alone) < (2e-2 if dtype == mx.bfloat16 else 1e-5)


def test_keys_turn_with_their_own_table():
    """Turning queries and keys alike changes nothing; turning only one of them does."""
    attention, x = small_attention(), noise(1, 5, 16)
    angles = mx.full((1, 5, 2, 4), 0.7)
    turned = mx.cos(angles), mx.sin(angles)
    still = mx.ones_like(angles), mx.zeros_like(angles)
    assert error(attention(x, rope=turned), attention(x)) < 1e-5
    assert error(attention(x, rope=turned, context_rope=still), attention(x)) > 1e-3


def test_gelu_is_the_tanh_approximation():
    x = np.linspace(-8, 8, 1001, dtype=np.float32)
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x.astype(np.float64) ** 3)
    expected = 0.5 * x * (1 + np.tanh(u))
    np.testing.assert_allclose(np.array(gelu(mx.array(x))), expected, atol=2e-6)


def test_gelu_rounds_bfloat16_once():
    x = mx.linspace(-4, 4, 101).astype(mx.bfloat16)
    assert mx.array_equal(gelu(x), gelu(x.astype(mx.float32)).astype(mx.bfloat16))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_dtype_and_shape_are_kept(dtype):
    attention, feed_forward = small_attention(12), FeedForward(16)
    for module in (attention, feed_forward):
        module.set_dtype(dtype)
    x, context = noise(2, 5, 16).astype(dtype), noise(2, 7, 12).astype(dtype)
    for out in (attention(x, context), feed_forward(x)):
        assert (out.shape, out.dtype) == (x.shape, dtype)
