"""Linear layers that stay fast when quantized. Knows how to multiply, not which layers are quantized."""

from functools import cache
from typing import Callable

import mlx.core as mx
import mlx.nn as nn

from mlx_video.backend import on_cuda

# From this many rows on, on every backend, it is faster to make the weight dense for the product: at a thousand rows, 5
# times faster on an H200 and 20 times on a CPU.
DENSE_ROWS = 64


class Linear(nn.Linear):
    """``nn.Linear`` whose quantized form is ours."""

    def to_quantized(self, *args, **options) -> "QuantizedLinear":
        """The layer with packed weights; arguments as for ``nn.QuantizedLinear.from_linear``."""
        return QuantizedLinear.from_linear(self, *args, **options)


class QuantizedLinear(nn.QuantizedLinear):
    """``nn.QuantizedLinear`` that is fast for long sequences; a dense weight exists only during the product."""

    def __call__(self, x: mx.array) -> mx.array:
        if x.size // x.shape[-1] < DENSE_ROWS:
            return super().__call__(x)
        weight = dense_weight(self).T
        return mx.addmm(self.bias, x, weight) if "bias" in self else x @ weight


def dense_weight(layer: nn.QuantizedLinear) -> mx.array:
    """The dequantized weight (out, in) of a layer.

    On CUDA each value is computed in float32 and rounded once, 2 to 3 times as fast as MLX's function, which rounds twice.
    """
    if on_cuda() and layer.mode == "affine" and layer.bits in (4, 8):
        return _unpack(layer.weight, layer.scales, layer.biases, layer.bits)
    return mx.dequantize(
        layer.weight,
        layer.scales,
        layer.get("biases"),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )


@mx.compile
def _unpack(
    weight: mx.array, scales: mx.array, biases: mx.array, bits: int
) -> mx.array:
    """``q * scale + bias`` of packed rows (out, in * bits / 32), as (out, in)."""
    rows, columns = weight.shape[0], weight.shape[1] * 32 // bits
    return _unpacking()(
        inputs=[weight, scales, biases],
        template=[("T", scales.dtype), ("BITS", bits)],
        grid=(rows * columns // 16, 1, 1),
        threadgroup=(256, 1, 1),
        output_shapes=[(rows, columns)],
        output_dtypes=[scales.dtype],
    )[0]


@cache
def _unpacking() -> Callable:
    return mx.fast.cuda_kernel(
        name="unpack",
        input_names=["weight", "scales", "biases"],
        output_names=["out"],
        source=UNPACK,
    )


# One thread per 16 values, all of one group.
UNPACK = """
  struct alignas(2 * BITS) Words { uint32_t at[BITS / 2]; };
  struct alignas(16) Values { T at[8]; };
  const size_t at = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) * 16;
  const size_t size = size_t(weight_shape[0]) * weight_shape[1] * (32 / BITS);
  if (at >= size) return;
  const size_t group = at / (size / (size_t(scales_shape[0]) * scales_shape[1]));
  const float scale = float(scales[group]), bias = float(biases[group]);
  const auto words = *reinterpret_cast<const Words*>(weight + at * BITS / 32);
  for (int half = 0; half < 2; ++half) {
    Values values;
    for (int i = 0; i < 8; ++i) {
      const int bit = (8 * half + i) * BITS;
      const uint32_t q = words.at[bit / 32] >> (bit % 32) & ((1u << BITS) - 1);
      values.at[i] = T(float(q) * scale + bias);
    }
    *reinterpret_cast<Values*>(out + at + 8 * half) = values;
  }
"""
