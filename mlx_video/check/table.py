"""What is checked: every kernel and form in the package, with the shapes and dtypes of LTX-2.

Knows what to compute, not the expected results. Numbers come from NumPy's ``RandomState``, which never changes.
docs/metal.md says what each check shows about Metal.
"""

from dataclasses import replace
from functools import cache, partial
from itertools import product
from typing import Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from mlx_video.api import load
from mlx_video.check import Check
from mlx_video.formats import gguf, quantized
from mlx_video.linear import Linear, QuantizedLinear, dense_weight
from mlx_video.models.ltx import upsampler
from mlx_video.models.ltx.adaln import Modulation, Rows, add_gated, norm_modulate
from mlx_video.models.ltx.attention import Attention, Items, attention_bias, gelu
from mlx_video.models.ltx.audio_vae import autoencoder, bigvgan, signal
from mlx_video.models.ltx.audio_vae.vocoder import SameConv1d, TransposedConv1d
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.find import DEMO
from mlx_video.models.ltx.config import LTXRopeType, UpsamplerConfig
from mlx_video.models.ltx.loading.residency import default_dtype
from mlx_video.models.ltx.rope import norm_rotate, precompute_freqs_cis
from mlx_video.models.ltx.video_vae.convolution import (
    MAX_CONV_ELEMENTS,
    CausalConv3d,
    by_frames,
    by_product,
    by_volume,
    conv3d,
)
from mlx_video.models.ltx.video_vae.neighborhood import NeighborhoodAttention, shifted
from mlx_video.models.ltx.video_vae.stream import FrameCache
from mlx_video.plan import machine_bytes

# Pointwise results differ by rounding, products also by the order of sums. In 16 bits a CPU rounds after each operation
# and a GPU's kernel once, so only gross errors show there; small ones show in float32.
POINTWISE = {mx.float32: 1e-4, mx.float16: 5e-2, mx.bfloat16: 3e-1}
PRODUCTS = {mx.float32: 1e-2, mx.float16: 5e-2, mx.bfloat16: 3e-1}

STREAMS = {"video": (32, 128), "audio": (32, 64)}  # heads, and numbers of each
PAST_INT32 = 2**31 + 2**20
SMALL = 2**22  # elements on a CPU
PROMPT = "a red ball bounces on a blue floor"


def checks() -> Iterator[Check]:
    """All checks, the largest last."""
    for group in (kernels, attention, convolutions, sound, weights, clip, limits):
        yield from group()


def kernels() -> Iterator[Check]:
    """The passes between matrix products, which have their own CUDA kernels, and noise."""
    for (stream, heads), dtype in product(STREAMS.items(), POINTWISE):
        width = heads[0] * heads[1]
        x, update = drawn(2, 7, width, dtype=dtype), drawn(2, 7, width, dtype=dtype)
        rows, table = drawn(1, 3, 6, width, dtype=dtype), drawn(6, width)
        levels = mx.array([0, 2, 1, 1, 0, 2, 2])
        weight = drawn(width, dtype=dtype)
        forms = {
            "norm_rotate": partial(norm_rotate, x, weight, *rope(7, *heads), 1e-6),
            "gelu": partial(gelu, x),
        }
        at = Rows(shift=3, scale=4, gate=5)
        for told, index in (("", None), (", levels", levels)):
            modulation = Modulation(rows, index)
            norm = partial(norm_modulate, x, table, modulation, at, 1e-6)
            add = partial(add_gated, x, update, table, modulation, at)
            forms |= {f"norm_modulate{told}": norm, f"add_gated{told}": add}
        for form, compute in forms.items():
            yield Check(named(form, stream, dtype), POINTWISE[dtype], compute)
    yield Check("noise", 1e-4, lambda: mx.random.normal((1, 99, 128), key=mx.random.key(7)))  # fmt: skip


def attention() -> Iterator[Check]:
    """Heads of 64, 128 and 256 features, lengths that no tile divides, and every kind of mask."""
    for (stream, (heads, size)), dtype in product(STREAMS.items(), PRODUCTS):
        layer = with_drawn(Attention(64, heads=2, head_dim=size, gated=True), dtype)
        x, text = drawn(2, 133, 64, dtype=dtype), drawn(2, 77, 64, dtype=dtype)
        bias = attention_bias(mx.abs(drawn(2, 133, 133)), dtype)
        forms = {
            "attention": partial(layer, x, rope=rope(133, 2, size)),
            "attention, bias": partial(layer, x, rope=rope(133, 2, size), bias=bias),
            "attention to text": partial(layer, x, text),
            "attention skipped": partial(
                layer, x, attending=Items.where([True, False])
            ),
        }
        for form, compute in forms.items():
            yield Check(named(form, stream, dtype), PRODUCTS[dtype], compute)
    for dtype in PRODUCTS:
        yield Check(named("attention of Gemma", dtype), PRODUCTS[dtype], partial(gemma_attention, dtype))  # fmt: skip
        for repeat, name in ((False, "shifted"), (True, "repeated")):
            near = NeighborhoodAttention(64, (5, 7, 7), 64, repeat)
            compute = partial(neighborhood, with_drawn(near, dtype), dtype)
            yield Check(named("neighbourhood", name, dtype), PRODUCTS[dtype], compute)


def gemma_attention(dtype: mx.Dtype) -> mx.array:
    """Two query heads per key head, causal within a window, padding on the left."""
    q, k, v = (drawn(2, n, 37, 256, dtype=dtype) for n in (4, 2, 2))
    at = mx.arange(37)
    seen = (at[:, None] >= at) & (at[:, None] < at + 16) & (at >= 5) | mx.eye(37, dtype=mx.bool_)  # fmt: skip
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=1 / 16, mask=seen)


def neighborhood(layer: NeighborhoodAttention, dtype: mx.Dtype) -> mx.array:
    """The output of ``layer`` for random features (1, 9, 13, 18, 64)."""
    x = drawn(1, 9, 13, 18, 64, dtype=dtype)
    return layer(x, slice(0, 9), slice(0, 13), shifted(13, 7))


def convolutions() -> Iterator[Check]:
    """Each form of the 3-D convolution with common kernels, and the upsamplers' convolutions."""
    kernels = {
        "48 to 128": (128, 3, 3, 3, 48),
        "128 to 48": (48, 3, 3, 3, 128),
        "256 to 256": (256, 3, 3, 3, 256),
        "128 to 256, one cell": (256, 1, 1, 1, 128),
    }
    forms = {"by volume": by_volume, "by frames": by_frames, "by product": by_product}
    for (form, call), (name, shape), dtype in product(
        forms.items(), kernels.items(), (mx.float32, mx.bfloat16)
    ):
        x, reach = drawn(1, 5, 13, 10, shape[-1], dtype=dtype), shape[1] // 2
        compute = partial(call, x, scaled(shape, dtype), (reach, reach))
        yield Check(named("conv3d", form, name, dtype), PRODUCTS[dtype], compute)
    for dtype in (mx.float32, mx.bfloat16):
        x = drawn(1, 4, 9, 7, 64, dtype=dtype)
        reflected = with_drawn(CausalConv3d(64, 64, padding_mode="reflect"), dtype)
        doubled = upsampler.Resample(UpsamplerConfig(64, 64, 1, True, False))
        layers = {
            "conv3d, reflected": lambda x, layer=reflected: layer(x, FrameCache()),
            "residual block with group norm": with_drawn(upsampler.ResBlock(64), dtype),
            "upsample x2": with_drawn(doubled, dtype),
            "grouped convolution": upsampler.Blur(2),
        }
        for name, layer in layers.items():
            yield Check(named(name, dtype), PRODUCTS[dtype], partial(layer, x))


def sound() -> Iterator[Check]:
    """Convolutions, snakes and spectra of the audio decoders and vocoders, which compute in float32."""
    for kernel, dilation in ((3, 1), (7, 3), (11, 5)):
        layer = with_drawn(SameConv1d(32, 32, kernel, dilation))
        yield Check(f"conv1d of {kernel}, dilation {dilation}", PRODUCTS[mx.float32], partial(layer, drawn(2, 1001, 32)))  # fmt: skip
    layers: dict[str, tuple[nn.Module, mx.array]] = {
        "conv1d upsampling 6": (TransposedConv1d(32, 16, 16, 6), drawn(2, 301, 32)),
        "anti-aliased snake": (bigvgan.AMPBlock(32, 7, (1, 3, 5)), drawn(1, 501, 32)),
        "conv2d, causal": (autoencoder.ResnetBlock(32, 64), drawn(1, 25, 16, 32)),
        "conv2d, stride 2": (autoencoder.CausalConv2d(32, 32, 2), drawn(1, 25, 16, 32)),
    }
    for name, (layer, x) in layers.items():
        compute = partial(with_drawn(layer), x)
        yield Check(name, PRODUCTS[mx.float32], compute)
    wave = drawn(1, 2, 4001)
    yield Check("resampling", PRODUCTS[mx.float32], lambda: signal.resample(wave, 16000, 48000))  # fmt: skip
    yield Check("spectrum", PRODUCTS[mx.float32], lambda: mx.abs(mx.fft.rfft(signal.overlapping(wave, 1024, 160))))  # fmt: skip


def weights() -> Iterator[Check]:
    """Products with quantized weights, packed and made dense, and every supported packing."""
    for bits, rows, dtype in product((4, 8), (5, 133), PRODUCTS):
        compute = partial(packed(dtype, bits=bits), drawn(1, rows, 512, dtype=dtype))
        yield Check(named(f"{bits}-bit weights", f"{rows} rows", dtype), PRODUCTS[dtype], compute)  # fmt: skip
    for mode in ("mxfp4", "mxfp8", "nvfp4"):
        compute = partial(packed(mx.float32, mode=mode), drawn(1, 133, 512))
        yield Check(f"{mode} weights", PRODUCTS[mx.float32], compute)
    dense = with_drawn(Linear(512, 256))
    yield Check("8-bit quantizing", 0.05, lambda: dense_weight(dense.to_quantized(64, 8)))  # fmt: skip
    codes = mx.array(np.random.RandomState(5).randint(0, 100, (128, 256)), mx.uint8)
    one = mx.array(0.5)
    yield Check("fp8", POINTWISE[mx.float32], lambda: quantized.dense_fp8(codes, one))
    yield Check("int8, rotated", PRODUCTS[mx.float32], lambda: quantized.dense_int8(codes, one, 256))  # fmt: skip
    yield Check("nvfp4, tiled", POINTWISE[mx.float32], lambda: quantized.dense_nvfp4(codes, codes[:, :32], one))  # fmt: skip
    for kind in sorted(gguf.PACKED):
        _, _, size, unpack = gguf.PACKINGS[kind]
        # No byte above 59, so that all half-precision scales are finite.
        blocks = np.random.RandomState(6).randint(0, 60, (8, size))
        yield Check(f"GGUF {kind}", POINTWISE[mx.float32], partial(unpack, mx.array(blocks, mx.uint8)))  # fmt: skip


def packed(dtype: mx.Dtype, **how) -> QuantizedLinear:
    """A layer quantized on the CPU, since other devices round a few weights differently."""
    with mx.stream(mx.cpu):
        return with_drawn(Linear(512, 256), dtype).to_quantized(**how)


def clip() -> Iterator[Check]:
    """The demo model's clip with sound, phase by phase: in float32, with blocks read in each step, and by default.

    In bfloat16 the rounding of a whole run shifts motion, but not sound and colours.
    """
    tolerance = 0.05
    for low_memory, phase in product((False, True), ("video latents", "audio latents", "frames", "sound")):  # fmt: skip
        run = "blocks streamed" if low_memory else "float32"
        compute = partial(phase_of, phase, low_memory, "float32")
        yield Check(named("clip", run, phase), tolerance, compute)
    for phase in ("audio latents", "mean colour"):
        compute = partial(phase_of, phase, False, None)
        yield Check(named("clip", "as by default", phase), 10 * tolerance, compute)


def phase_of(phase: str, low_memory: bool, dtype: str | None) -> mx.array:
    """The output of one phase of the demo clip; ``dtype`` ``None`` is this device's default."""
    dtype = dtype or named(default_dtype())
    return demo_clip(low_memory, dtype, str(mx.default_device()))[phase]


@cache
def demo_clip(low_memory: bool, dtype: str, device: str) -> dict[str, mx.array]:
    """The output of each phase of the demo clip; ``device`` is MLX's and only a cache key."""
    pipeline = load(files=Files(DEMO, dtype=dtype, low_memory=low_memory))
    request = replace(pipeline.request(PROMPT, frames=25), seed=42)
    *_, sample, made = pipeline.stream(request)
    frames = mx.array(np.stack(list(made.frames)))
    return {
        "video latents": sample.latents.video,
        "audio latents": sample.latents.audio,
        "frames": frames.astype(mx.float32) - 127.5,
        "mean colour": frames.astype(mx.float32).mean(axis=(0, 1, 2)),
        "sound": mx.array(made.audio.samples),
    }


def limits() -> Iterator[Check]:
    """Calls with as many elements as ever occur, or as fit into memory, made of identical rows or frames."""
    tolerance = PRODUCTS[mx.bfloat16]
    yield Check("conv3d up to 1.5e9 elements, 128 to 8", tolerance, partial(large_conv, 8, MAX_CONV_ELEMENTS, 3))  # fmt: skip
    yield Check("conv3d up to 5e8 elements, 128 to 128", tolerance, partial(large_conv, 128, 5e8, 12))  # fmt: skip
    yield Check("norm and join past 2^31 elements", tolerance, large_norm)


def large_conv(channels: int, elements: float, arrays: float) -> mx.array:
    """The minimum and maximum over identical frames, which are equal; needs ``arrays`` of ``elements``."""
    dtype = default_dtype()
    frame = drawn(1, 1, 64, 96, 128, dtype=dtype)
    count = fitting(elements, arrays) // frame.size
    y = conv3d(mx.repeat(frame, count, axis=1), scaled((channels, 3, 3, 3, 128), dtype))
    return mx.stack([y.min(axis=1), y.max(axis=1)])


def large_norm() -> mx.array:
    """The same for identical rows, joined to one more and normed."""
    row = drawn(1, 4096, dtype=default_dtype())
    x = mx.repeat(row, fitting(PAST_INT32, 5) // row.size, axis=0)
    y = nn.silu(mx.fast.rms_norm(mx.concatenate([x, row]), None, 1e-6))
    return mx.stack([y.min(axis=0), y.max(axis=0)])


def fitting(elements: float, arrays: float) -> int:
    """``elements``, or as many as fit if ``arrays`` of them take half of the memory; few on a CPU."""
    if mx.default_device() == mx.cpu:
        return SMALL
    return int(min(elements, machine_bytes() / 2 / arrays / mx.bfloat16.size))


# Numbers


def drawn(*shape: int, seed: int = 0, dtype: mx.Dtype = mx.float32) -> mx.array:
    """Normally distributed numbers, the same on every machine."""
    numbers = np.random.RandomState(seed).standard_normal(shape)
    return mx.array(numbers.astype(np.float32)).astype(dtype)


def scaled(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """A random weight that keeps the scale of its input."""
    fan_in = np.prod(shape[1:])
    return (drawn(*shape, seed=1) * float(fan_in**-0.5)).astype(dtype)


def with_drawn(layer: nn.Module, dtype: mx.Dtype = mx.float32) -> nn.Module:
    """``layer`` with random weights."""

    def one(old: mx.array) -> mx.array:
        return scaled(old.shape, dtype) if old.ndim > 1 else drawn(*old.shape, seed=2, dtype=dtype)  # fmt: skip

    layer.update(tree_map(one, layer.parameters()))
    return layer


def rope(tokens: int, heads: int, size: int) -> tuple[mx.array, mx.array]:
    """Cosines and sines for a random grid of ``tokens`` and heads of ``size``."""
    grid = mx.abs(drawn(1, 3, tokens)) * 20
    return precompute_freqs_cis(
        indices_grid=grid,
        dim=heads * size,
        num_attention_heads=heads,
        rope_type=LTXRopeType.SPLIT,
        double_precision=True,
    )


def named(*words: object) -> str:
    """The name of a check: its words, separated by commas; types without their module."""
    return ", ".join(str(word).removeprefix("mlx.core.") for word in words)
