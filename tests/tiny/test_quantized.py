"""Number formats of the demo model's blocks: what stands for the packaged weights, and how far it is from them."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_video.linear import Linear, QuantizedLinear
from tiny.quantized import FORMATS, distance, in_format, make_dense, velocity

pytestmark = pytest.mark.slow

SENTENCE = "a red ball bounces on a blue floor"


def test_a_dense_layer_is_what_the_quantized_one_stands_for():
    layers = nn.Sequential(Linear(64, 32), Linear(64, 32, bias=False))
    x = mx.random.normal((100, 64))
    nn.quantize(layers, 64, 6)
    wanted = [layer(x) for layer in layers.layers]
    assert all(isinstance(layer, QuantizedLinear) for layer in layers.layers)
    make_dense(layers)
    assert all(type(layer) is Linear for layer in layers.layers)
    for layer, y in zip(layers.layers, wanted):
        assert mx.allclose(layer(x), y, atol=1e-5)


def test_fewer_bits_are_farther_from_the_dense_model():
    exact = velocity(in_format(None), SENTENCE)
    for name, least, most in (("8", 1e-4, 0.03), ("4", 0.03, 0.4)):
        off = velocity(in_format(FORMATS[name]), SENTENCE).map(distance, exact)
        assert least < off.video < most and least < off.audio < most, name
