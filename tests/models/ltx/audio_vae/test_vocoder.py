"""The vocoder against the official numbers, MLX's own convolutions, and the real checkpoint's names."""

from dataclasses import replace

import mlx.core as mx
import pytest

from mlx_video.models.ltx.audio_vae import AudioDecoder, Vocoder
from mlx_video.models.ltx.audio_vae.vocoder import SameConv1d, TransposedConv1d
from tests.models.ltx.audio_vae.audio import (
    real_shapes,
    tiny,
    tiny_config,
    tiny_weights,
)
from tests.reference import MODULE_TOLERANCE, checkpoint, error, vectors


@pytest.fixture(scope="module")
def vocoder() -> Vocoder:
    return tiny(Vocoder)


def noise(*shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(sum(shape)))


# Official numbers


def test_vocoder(vocoder):
    v = vectors("audio")
    assert error(vocoder(v["dec.mel"]), v["voc.wave"]) < MODULE_TOLERANCE


def test_left_bins_before_right_bins(vocoder):
    v = vectors("audio")
    left, right = v["dec.mel"][:, 0], v["dec.mel"][:, 1]
    x = vocoder.conv_pre(mx.concatenate([left, right], axis=-1))
    assert error(x.transpose(0, 2, 1), v["voc.conv_pre"]) < MODULE_TOLERANCE


def test_latent_to_sound(vocoder):
    v = vectors("audio")
    waveform = vocoder(tiny(AudioDecoder)(v["dec.in"]))[0]
    assert error(waveform, v["decode_audio"]) < MODULE_TOLERANCE
    assert (vocoder.sample_rate, vocoder.hop) == (24000, 240)


# The real checkpoint


def test_full_size_consumes_the_real_checkpoint():
    expected, found = real_shapes(Vocoder)
    assert found == expected


def test_sanitize_twice_is_once():
    once = Vocoder.sanitize(checkpoint()[0])
    assert Vocoder.sanitize(once) is once


def test_names_read_both_ways():
    official = tiny_weights(Vocoder)
    ours = Vocoder.sanitize(official)
    assert {Vocoder.NAMES.official(key) for key in ours} == set(official)


# Shapes, dtypes, equivalences


def test_bfloat16_weights_compute_in_float32(vocoder):
    """The tiny weights are exact in bfloat16, so that only the arithmetic could differ."""
    log_mel = vectors("audio")["dec.mel"][:, :, :8]
    half = tiny(Vocoder, mx.bfloat16)
    assert half(log_mel).dtype == mx.float32
    assert error(half(log_mel), vocoder(log_mel)) < 1e-6
    assert half(log_mel.astype(mx.bfloat16)).dtype == mx.float32


def test_batch(vocoder):
    log_mel = noise(2, 2, 5, 64)
    waveform = vocoder(log_mel)
    assert waveform.shape == (2, 2, 1200)
    assert error(vocoder(log_mel[1:]), waveform[1:]) < MODULE_TOLERANCE


def test_mono():
    vocoder = Vocoder(replace(tiny_config(Vocoder), stereo=False))
    assert vocoder(noise(1, 1, 2, 64)).shape == (1, 1, 480)


@pytest.mark.parametrize("kernel, dilation", [(3, 1), (3, 3), (7, 5), (11, 2)])
@pytest.mark.parametrize("length", [4, 15, 31])
def test_phased_convolution_is_dilated_convolution(kernel, dilation, length):
    conv, x = SameConv1d(6, 4, kernel, dilation), noise(2, length, 6)
    padding = dilation * (kernel // 2)
    expected = mx.conv1d(x, conv.weight, padding=padding, dilation=dilation)
    assert error(conv(x), expected + conv.bias) < 1e-6


@pytest.mark.parametrize(
    "kernel, stride", [(16, 6), (15, 5), (8, 2), (4, 2), (3, 3), (7, 1)]
)
def test_upsample_is_transposed_convolution(kernel, stride):
    conv, x = TransposedConv1d(6, 4, kernel, stride), noise(2, 9, 6)
    expected = mx.conv_transpose1d(x, conv.weight, stride, (kernel - stride) // 2)
    assert error(conv(x), expected + conv.bias) < 1e-6


@pytest.mark.parametrize("kernel, stride", [(7, 2), (2, 4)])
def test_upsample_needs_an_even_margin(kernel, stride):
    with pytest.raises(ValueError, match=f"got {kernel} for a rate of {stride}"):
        TransposedConv1d(6, 4, kernel, stride)
