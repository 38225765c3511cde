"""Each CUDA kernel against the plain MLX that defines it, and the gradient that both share."""

import mlx.core as mx
import pytest

from mlx_video.models.ltx import kernels
from mlx_video.models.ltx.adaln import Modulation, Rows, add_gated, norm_modulate
from mlx_video.models.ltx.kernels import ADD_GATED, NORM_MODULATE, Kernel, fused
from mlx_video.models.ltx.rope import norm_rotate
from mlx_video.models.ltx.video_vae import cell_kernels
from mlx_video.models.ltx.video_vae.cell_kernels import (
    PLUS_DELAYED,
    WINDOW,
    plus_delayed,
    window,
)
from mlx_video.models.ltx.video_vae.convolution import ResnetBlock3D
from mlx_video.models.ltx.video_vae.sampling import GROWN, SHRUNK, grown, shrunk
from mlx_video.models.ltx.video_vae.stream import DecoderStep, FrameCache, in_pieces
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
        for module in (kernels, cell_kernels):
            patch.setattr(module, "on_cuda", lambda: False)
        result = compute()
        mx.eval(result)
        return result


@cuda
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("table_dtype", TOLERANCE)
@pytest.mark.parametrize("width", [512, 2048, 4096])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("row_batch", [1, 2])
def test_modulation(monkeypatch, dtype, table_dtype, width, levels, row_batch):
    x, y = random(2, 7, width, dtype=dtype), random(2, 7, width, seed=1, dtype=dtype)
    table = random(6, width, seed=3, dtype=table_dtype)
    rows = random(row_batch, levels, 6, width, seed=2, dtype=dtype)
    index = None if levels == 1 else mx.array([0, 2, 1, 1, 0, 2, 2])
    each, same = Modulation(rows, index), Modulation(rows)
    at = Rows(shift=3, scale=4, gate=5)
    assert NORM_MODULATE.fits(x) and ADD_GATED.fits(x)
    for compute in (
        lambda: norm_modulate(x, table, each, at, 1e-6),
        lambda: add_gated(x, y, table, each, at),
        lambda: add_gated(x, y, table, same, at),
    ):
        assert error(compute(), plainly(monkeypatch, compute)) < TOLERANCE[dtype]


@cuda
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("heads, head_dim", [(32, 128), (32, 64)])
def test_norm_rotate(monkeypatch, dtype, heads, head_dim):
    x = random(2, 9, heads * head_dim, dtype=dtype)
    weight = random(heads * head_dim, seed=3, dtype=dtype)
    angles = random(1, 9, heads, head_dim // 2, seed=4)
    compute = lambda: norm_rotate(x, weight, mx.cos(angles), mx.sin(angles), 1e-6)
    assert compute().shape == x.shape
    assert error(compute(), plainly(monkeypatch, compute)) < TOLERANCE[dtype]


@cuda
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels", [128, 256, 1024])
@pytest.mark.parametrize("kept", [0, 2])
@pytest.mark.parametrize("border", [0, 1])
@pytest.mark.parametrize("activate", [0, 1])
def test_window_of_a_convolution(monkeypatch, dtype, channels, kept, border, activate):
    x = random(2, 3, 4, 5, channels, dtype=dtype)
    bias = random(channels, seed=1, dtype=dtype) if border else None
    old = (
        random(2, kept, 4 + 2 * border, 5 + 2 * border, channels, seed=2, dtype=dtype)
        if kept
        else None
    )
    numbers = int(old is not None), kept or 1, 1, border, activate
    compute = lambda: window(x, old, bias, *numbers)
    assert WINDOW.fits(x)
    assert error(compute(), plainly(monkeypatch, compute)) < TOLERANCE[dtype]


@cuda
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels", [128, 512])
@pytest.mark.parametrize("kept", [0, 2])
def test_plus_delayed(monkeypatch, dtype, channels, kept):
    x = random(2, 3 + kept - 2, 4, 5, channels, dtype=dtype)
    skip = random(2, 3, 4, 5, channels, seed=1, dtype=dtype)
    old = random(2, kept, 4, 5, channels, seed=2, dtype=dtype) if kept else None
    compute = lambda: plus_delayed(x, old, skip, skip[0, 0, 0, 0], kept)
    assert PLUS_DELAYED.fits(x)
    assert error(compute(), plainly(monkeypatch, compute)) < TOLERANCE[dtype]


@cuda
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 1, 1), (2, 2, 2)])
def test_shuffles(monkeypatch, dtype, stride):
    wide, skip = random(2, 4, 4, 6, 512, dtype=dtype), random(2, 4, 4, 6, 256, seed=1)
    skip, bias = skip.astype(dtype), random(512, seed=2, dtype=dtype)
    narrow = wide[..., :128]
    assert SHRUNK.fits(narrow) and GROWN.fits(wide)
    for compute in (
        lambda: shrunk(narrow, skip, bias[:128], *stride),
        lambda: grown(wide, skip, bias, *stride, 256),
        lambda: grown(wide, None, bias, *stride, 0),
    ):
        assert error(compute(), plainly(monkeypatch, compute)) < TOLERANCE[dtype]


@cuda
@pytest.mark.parametrize("causal", [False, True])
def test_a_block_in_pieces_is_as_without_kernels(monkeypatch, causal):
    block = ResnetBlock3D(128, "reflect")
    x = random(1, 9, 4, 6, 128)

    def compute():
        stages = [DecoderStep(block, 128)]
        pieces = in_pieces(stages, x, FrameCache(causal), 2 * 4 * 6 * 128)
        return mx.concatenate(list(pieces), axis=1)

    assert error(compute(), plainly(monkeypatch, compute)) < 1e-5


@cuda
def test_a_kernel_has_the_gradient_of_its_definition(monkeypatch):
    x, table, rows = random(1, 5, 512), random(6, 512), random(1, 2, 6, 512, seed=1)
    levels = mx.array([0, 1, 1, 0, 1])

    def gradients():
        def loss(x, table, rows):
            modulation = Modulation(rows, levels)
            run = norm_modulate(x, table, modulation, Rows(shift=0, scale=1), 1e-6)
            return mx.square(run).sum()

        return mx.grad(loss, (0, 1, 2))(x, table, rows)

    for ours, expected in zip(gradients(), plainly(monkeypatch, gradients)):
        assert error(ours, expected) < 1e-5


# Without a GPU: a kernel that is a constant


class Constant(Kernel):
    def fits(self, x):
        return True

    def __call__(self, x, *others):
        return mx.zeros_like(x)


@fused(Constant("constant", ("x", "y", "index"), ""))
def product(x, y, index, factor):
    return x * (y if index is None else mx.take(y, index)) * factor


def test_the_kernel_runs_in_place_of_its_definition():
    assert product(mx.array([3.0]), mx.array([2.0]), None, 5).item() == 0


@pytest.mark.parametrize("index, expected", [(None, [6, 12]), ([1, 1], [0, 18])])
def test_the_gradient_is_taken_of_the_definition(index, expected):
    x, y = mx.array([1.0, 2.0]), mx.array([4.0, 5.0])
    index = index and mx.array(index)
    loss = lambda x, y: product(x, y, index, 6).sum()
    by_x, by_y = mx.grad(loss, (0, 1))(x, y)
    assert by_y.tolist() == expected
    assert by_x.tolist() == ([24, 30] if index is None else [30, 30])


@pytest.mark.parametrize("width, fits", [(4096, True), (256, False), (32768, False)])
def test_only_whole_warps_fit(monkeypatch, width, fits):
    monkeypatch.setattr(kernels, "on_cuda", lambda: True)
    assert kernels.NORM_MODULATE.fits(mx.zeros((1, 2, width))) is fits


def test_a_kernel_is_launched_with_what_it_names(monkeypatch):
    """One block a token, every dtype in the template, numbers as one array."""
    calls = []

    def launch(**how):
        calls.append(how)
        return [how["inputs"][0]]

    monkeypatch.setattr(kernels, "_compiled", lambda kernel: launch)
    x, rows = mx.zeros((2, 5, 4096), mx.bfloat16), mx.zeros((1, 1, 6, 4096))
    kernels.NORM_MODULATE(x, rows[0, 0], rows, None, 3, 4, 0.5)
    (call,) = calls
    assert call["grid"] == (256 * 10, 1, 1) and call["threadgroup"] == (256, 1, 1)
    assert call["output_shapes"] == [x.shape] and call["output_dtypes"] == [x.dtype]
    assert [a.dtype for a in call["inputs"][:-1]] == [
        t for _, t in call["template"][1:]
    ]
    assert call["inputs"][-1].tolist() == [3, 4, 0.5]
