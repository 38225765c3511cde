"""Each CUDA kernel against the plain MLX that defines it, and the gradient that both share."""

import mlx.core as mx
import pytest

from mlx_video.models.ltx import kernels
from mlx_video.models.ltx.adaln import Modulation
from mlx_video.models.ltx.attention import Attention
from tests.reference import error

cuda = pytest.mark.skipif(
    not mx.cuda.is_available(), reason="CUDA kernels need an NVIDIA GPU"
)
TOLERANCE = {mx.float32: 1e-6, mx.bfloat16: 1e-2}  # one rounding of bfloat16


def random(*shape: int, seed: int = 0, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def plainly(monkeypatch, compute):
    """What ``compute`` gives without kernels."""
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "_fits", lambda x, features: False)
        result = compute()
        mx.eval(result)
        return result


@cuda
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [256, 2048, 4096])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("row_batch", [1, 2])
def test_modulation(monkeypatch, dtype, width, levels, row_batch):
    x, y = random(2, 7, width, dtype=dtype), random(2, 7, width, seed=1, dtype=dtype)
    rows = random(row_batch, levels, 6, width, seed=2, dtype=dtype)
    index = None if levels == 1 else mx.array([0, 2, 1, 1, 0, 2, 2])
    at = Modulation(rows, index)
    for compute in (
        lambda: at.norm(x, 1e-6, shift=3, scale=4),
        lambda: at.gated(x, y, gate=5),
    ):
        assert error(compute(), plainly(monkeypatch, compute)) < TOLERANCE[dtype]


@cuda
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("heads, head_dim", [(32, 128), (32, 64)])
def test_norm_rotate(monkeypatch, dtype, heads, head_dim):
    attention = Attention(64, heads=heads, head_dim=head_dim)
    attention.set_dtype(dtype)
    attention.q_norm.weight = random(heads * head_dim, seed=3, dtype=dtype)
    x = random(2, 9, 64, dtype=dtype)
    angles = random(1, heads, 9, head_dim // 2, seed=4)
    rope = mx.cos(angles), mx.sin(angles)
    compute = lambda: attention._project(attention.to_q, attention.q_norm, x, rope)
    assert compute().shape == (2, heads, 9, head_dim)
    assert error(compute(), plainly(monkeypatch, compute)) < TOLERANCE[dtype]


@cuda
def test_a_kernel_has_the_gradient_of_its_definition(monkeypatch):
    x, rows = random(1, 5, 512), random(1, 1, 6, 512, seed=1)

    def gradients():
        loss = lambda x, rows: Modulation(rows, None).norm(x, 1e-6, shift=0, scale=1)
        return mx.grad(lambda x, rows: mx.square(loss(x, rows)).sum(), (0, 1))(x, rows)

    for ours, expected in zip(gradients(), plainly(monkeypatch, gradients)):
        assert error(ours, expected) < 1e-5


def test_the_gradient_is_taken_of_the_definition():
    """The kernel itself has none: here it is a constant."""
    run = kernels._with_gradient(lambda x: mx.zeros_like(x), lambda x: x * x)
    assert mx.grad(lambda x: run(x).sum())(mx.array([3.0])).item() == 6.0


@pytest.mark.parametrize("width, fits", [(4096, True), (100, False), (16384, False)])
def test_only_whole_warps_fit(monkeypatch, width, fits):
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    assert kernels._fits(mx.zeros((1, 2, width)), kernels.WIDTH) is fits
