"""Convolution over video: what surrounds the clip, its two forms, and that no call is too large."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_video.models.ltx.video_vae import convolution
from mlx_video.models.ltx.video_vae.convolution import (
    CausalConv3d,
    by_frames,
    by_product,
    by_volume,
    conv3d,
    preferred_form,
)
from mlx_video.models.ltx.video_vae.stream import FrameCache
from tests.models.ltx.video_vae.tiny import VECTORS, convolved_sizes, decoder, encoder
from tests.reference import error


def by_hand(x, weight, bias, causal, mode):
    """Sum over taps of a clip padded by NumPy."""
    time = (2, 0) if causal else (1, 1)
    x = np.pad(np.array(x), [(0, 0), time, (0, 0), (0, 0), (0, 0)], mode="edge")
    space = [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)]
    x = np.pad(x, space, mode="reflect" if mode == "reflect" else "constant")
    w = np.array(weight)
    F, H, W = (n - 2 for n in x.shape[1:4])
    y = sum(
        x[:, f : f + F, h : h + H, c : c + W] @ w[:, f, h, c].T
        for f, h, c in np.ndindex(3, 3, 3)
    )
    return mx.array(y) + bias


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_padding(causal, mode):
    conv = CausalConv3d(4, 6, mode)
    conv.bias = mx.arange(6.0)
    x = mx.random.normal((2, 5, 4, 6, 4))
    expected = by_hand(x, conv.weight, conv.bias, causal, mode)
    assert error(conv(x, FrameCache(causal)), expected) < 1e-5


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (2, 1, 3)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1)])
@pytest.mark.parametrize("form", [by_frames, by_product])
def test_every_form_equals_the_volume(kernel, padding, form):
    x, weight = mx.random.normal((2, 6, 5, 6, 4)), mx.random.normal((3, *kernel, 4))
    volume = by_volume(x, weight, padding)
    assert error(form(x, weight, padding), volume) < 1e-5


@pytest.fixture
def on(monkeypatch):
    """Pretend to be on a device."""

    def pretend(device, metal):
        monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device, 0))
        monkeypatch.setattr(mx.metal, "is_available", lambda: metal)

    return pretend


def test_each_device_has_its_form(on):
    narrow, wide, pointwise = (16, 3, 3, 3, 48), (512, 3, 3, 3, 128), (16, 1, 1, 1, 48)
    on(mx.cpu, metal=False)
    assert preferred_form(narrow, mx.float32) is by_product
    others = [(wide, mx.float32), (narrow, mx.bfloat16), (pointwise, mx.float32)]
    assert {preferred_form(*other) for other in others} == {by_volume}
    on(mx.gpu, metal=False)
    assert preferred_form(narrow, mx.float32) is by_volume
    on(mx.gpu, metal=True)
    assert preferred_form(wide, mx.bfloat16) is by_frames


def test_a_product_that_would_be_too_large_is_a_volume(on, monkeypatch):
    on(mx.cpu, metal=False)
    x, weight = mx.random.normal((1, 3, 6, 6, 4)), mx.random.normal((4, 3, 3, 3, 4))
    whole = conv3d(x, weight, padding=(1, 1))
    monkeypatch.setattr(convolution, "MAX_CONV_ELEMENTS", 6 * 6 * 4 * 3)
    assert error(conv3d(x, weight, padding=(1, 1)), whole) < 1e-5
    monkeypatch.setattr(convolution, "MAX_CONV_ELEMENTS", 6 * 6 * 4 - 1)
    with pytest.raises(ValueError, match="6x6 cells with 4 -> 4 channels exceeds 143"):
        conv3d(x, weight, padding=(1, 1))


@pytest.mark.parametrize("frames", [3, 8, 9])
@pytest.mark.parametrize("limit", [400, 700, 2000])
@pytest.mark.parametrize("form", [by_frames, by_volume])
def test_pieces_equal_the_whole(monkeypatch, frames, limit, form):
    x = mx.random.normal((1, frames, 4, 5, 6))
    weight = mx.random.normal((8, 3, 3, 3, 6))
    monkeypatch.setattr(convolution, "preferred_form", lambda *_: form)
    whole = conv3d(x, weight, padding=(1, 1))
    sizes = spy(monkeypatch, limit)
    pieces = conv3d(x, weight, padding=(1, 1))
    assert error(pieces, whole) < 1e-5
    assert max(sizes) <= limit
    assert len(sizes) > 2 or x.size < limit  # (input, output) of more than one call


def spy(monkeypatch, limit: int) -> list[int]:
    """Set the limit; the list receives the size of every convolution's input and output."""
    monkeypatch.setattr(convolution, "MAX_CONV_ELEMENTS", limit)
    return convolved_sizes(monkeypatch)


def test_the_autoencoder_in_pieces(monkeypatch):
    pixels, latent = VECTORS["enc.in"], VECTORS["dec.in"]
    expected = encoder()(pixels), decoder()(latent)
    sizes = spy(monkeypatch, 90_000)
    assert error(encoder()(pixels), expected[0]) < 1e-5
    assert error(decoder()(latent), expected[1]) < 1e-5
    assert max(sizes) <= 90_000


def test_a_frame_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(convolution, "MAX_CONV_ELEMENTS", 300)
    with pytest.raises(ValueError, match="5x4 cells .* 6 -> 8 .* smaller spatial til"):
        conv3d(mx.zeros((1, 9, 4, 5, 6)), mx.zeros((8, 3, 3, 3, 6)), padding=(1, 1))


def test_a_bias_of_another_type_is_read_as_the_clip_is():
    """Some files keep vectors in float32; a kernel would read their bytes as bfloat16."""
    conv = CausalConv3d(8, 8)
    conv.set_dtype(mx.bfloat16)
    x = mx.random.normal((1, 3, 4, 4, 8), key=mx.random.key(0)).astype(mx.bfloat16)
    bias = mx.arange(8, dtype=mx.float32)
    y = conv.linear(x, FrameCache(), bias=bias)
    assert y.dtype == mx.bfloat16
    assert mx.array_equal(
        y, conv.linear(x, FrameCache(), bias=bias.astype(mx.bfloat16))
    )
