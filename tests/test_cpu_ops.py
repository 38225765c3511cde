"""What NumPy computes in MLX's place agrees with MLX, values and gradients."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_video import backend, cpu_ops
from tests.memory import Memory

pytestmark = pytest.mark.skipif(
    not backend.eager, reason="only an eager CPU leaves MLX's exponentials aside"
)


def draw(*shape) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(0))


@pytest.mark.parametrize(
    "x",
    [
        draw(7, 33),
        mx.array([-200.0, -88.8, 0.0, 88.8, 200.0, np.inf, -np.inf, np.nan]),
        mx.broadcast_to(mx.array(0.5), (3, 4)),
        mx.broadcast_to(draw(1, 50), (400, 50)),
        draw(8, 6).T[1:],
    ],
    ids=["drawn", "extreme", "broadcast", "rows broadcast", "strided"],
)
def test_sigmoids_are_those_of_mlx(x):
    before = np.array(x)
    for ours, theirs in (
        (cpu_ops.sigmoid(x), mx.sigmoid(x)),
        (cpu_ops.silu(x), x * mx.sigmoid(x)),
    ):
        np.testing.assert_allclose(np.array(ours), np.array(theirs), 3e-7, 1e-30)
    np.testing.assert_array_equal(np.array(x), before)


@pytest.mark.parametrize("scores", [9, 900])
def test_attention_is_that_of_mlx(scores):
    q, k, v = draw(2, 3, 5, 8), scores * draw(2, 3, 11, 8), draw(2, 3, 11, 16)
    ours = cpu_ops.attention(q, k, v, 0.3)
    theirs = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3)
    np.testing.assert_allclose(np.array(ours), np.array(theirs), 1e-5, 1e-6)


def test_scores_do_not_wait():
    q = draw(1, 4, 500, 8)
    one = 4 * 500 * 500 * 4  # bytes of the scores of an attention
    mx.eval(q)
    memory = Memory()
    mx.eval([cpu_ops.attention(q, q, q, 0.3) for _ in range(4)])
    assert one < memory.peak < 2 * one


def test_gradients_are_those_of_mlx():
    q, k, v = draw(1, 2, 4, 8), draw(1, 2, 6, 8), draw(1, 2, 6, 8)

    def ours(q, k, v):
        out = cpu_ops.attention(q, k, v, 0.3)
        return (cpu_ops.silu(out) * cpu_ops.sigmoid(out)).sum()

    def theirs(q, k, v):
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3)
        return (out * mx.sigmoid(out) ** 2).sum()

    both = (
        mx.grad(function, argnums=(0, 1, 2))(q, k, v) for function in (ours, theirs)
    )
    for a, b in zip(*both):
        np.testing.assert_allclose(np.array(a), np.array(b), 1e-4, 1e-6)


def test_other_types_are_left_to_mlx():
    x = draw(5).astype(mx.bfloat16)
    assert mx.array_equal(cpu_ops.sigmoid(x), mx.sigmoid(x))


def test_numpy_writes_into_the_memory_of_mlx():
    """If a release of MLX or NumPy ends this, clips stay right, but take longer."""
    assert cpu_ops._memory_is_shared()


def test_without_shared_memory_mlx_computes(monkeypatch):
    monkeypatch.setattr(cpu_ops, "_memory_is_shared", lambda: False)
    x, q = draw(7, 33), draw(1, 2, 4, 8)
    assert mx.array_equal(cpu_ops.sigmoid(x), mx.sigmoid(x))
    theirs = mx.fast.scaled_dot_product_attention(q, q, q, scale=0.3)
    assert mx.array_equal(cpu_ops.attention(q, q, q, 0.3), theirs)
