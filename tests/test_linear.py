"""Quantized Linears: one result, however it is computed, under the names that MLX gives them."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_video.linear import DENSE_ROWS, Linear, QuantizedLinear, dense_weight
from tests.reference import error

FORMATS = {
    "affine": [(64, 8), (64, 4), (32, 8)],
    "mxfp8": [(32, 8)],
    "mxfp4": [(32, 4)],
    "nvfp4": [(16, 4)],
}


def quantized(cls: type[nn.Linear], group_size=64, bits=8, mode="affine", bias=True):
    """A model of one layer, the same whatever the class, quantized as models are."""
    layer = cls(128, 96, bias)
    for name, value in layer.items():
        layer[name] = mx.random.normal(value.shape, key=mx.random.key(len(name)))
    model = nn.Sequential(layer)
    nn.quantize(model, group_size, bits, mode=mode)
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "mode, group_size, bits", [(m, *f) for m, each in FORMATS.items() for f in each]
)
def test_computes_what_mlx_does(mode, group_size, bits, bias):
    ours, theirs = (
        quantized(cls, group_size, bits, mode, bias) for cls in (Linear, nn.Linear)
    )
    for rows in (1, DENSE_ROWS - 1, DENSE_ROWS, 200):
        x = mx.random.normal((2, rows, 128), key=mx.random.key(0))
        assert error(ours(x), theirs(x)) < 1e-5, rows


@pytest.mark.parametrize("bits", [4, 8])
def test_bfloat16_stays_bfloat16_and_loses_no_more_than_mlx_does(bits):
    ours, theirs = (quantized(cls, bits=bits) for cls in (Linear, nn.Linear))
    for model in (ours, theirs):
        model.set_dtype(mx.bfloat16)
    x = mx.random.normal((1, 200, 128), mx.bfloat16, key=mx.random.key(0))
    y, packed = ours(x), theirs(x)
    theirs.set_dtype(mx.float32)
    exact = theirs(x.astype(mx.float32))
    assert y.dtype == mx.bfloat16
    assert error(y, exact) < min(1e-2, 1.1 * error(packed, exact))


def test_names_are_those_of_mlx():
    ours, theirs = (dict(tree_flatten(quantized(c))) for c in (Linear, nn.Linear))
    assert ours.keys() == theirs.keys() and len(ours) == 4


@pytest.mark.slow
def test_many_rows_meet_a_dense_weight_and_few_a_packed_one():
    layer = quantized(Linear).layers[0]
    assert isinstance(layer, QuantizedLinear)
    for batch, rows, packed in ((1, DENSE_ROWS - 1, True), (2, DENSE_ROWS // 2, False)):
        x = mx.random.normal((batch, rows, 128))
        expected = (
            nn.QuantizedLinear.__call__(layer, x)
            if packed
            else mx.addmm(layer.bias, x, dense_weight(layer).T)
        )
        assert mx.array_equal(layer(x), expected)


@pytest.mark.skipif(not mx.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_cuda_unpacks_weights_as_mlx_does_and_rounds_once(bits, group_size, dtype):
    dense = nn.Linear(384, 40, bias=False)
    dense.set_dtype(dtype)
    layer = QuantizedLinear.from_linear(dense, group_size, bits)
    packed = layer.weight, layer.scales, layer.biases
    wide = [p if p.dtype == mx.uint32 else p.astype(mx.float32) for p in packed]
    exact = mx.dequantize(*wide, group_size, bits)
    ours, theirs = dense_weight(layer), mx.dequantize(*packed, group_size, bits)
    assert ours.dtype == dtype
    assert error(ours, exact) < (1e-6 if dtype == mx.float32 else 4e-3)
    assert error(ours, exact) <= error(theirs, exact)
