"""Decoded arrays as 8-bit frames and PCM."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_video.postprocess import frames, to_pcm16, to_uint8
from mlx_video.types import Waveform
from tests.reference import vectors


def test_pixels_are_the_official_bytes():
    v = vectors("video_vae")
    assert mx.array_equal(to_uint8(v["dec.out"][0]), v["dec.uint8"])


def test_frames_of_all_pieces_in_order():
    v = vectors("video_vae")
    pieces = [v["dec.out"][:, :, :1], v["dec.out"][:, :, 1:]]
    actual = list(frames(pieces))
    assert len(actual) == 9 and actual[0].dtype == np.uint8
    np.testing.assert_array_equal(actual, v["dec.uint8"])


def test_frames_are_made_when_taken():
    def pieces():
        yield mx.zeros((1, 3, 1, 2, 2))
        pytest.fail("the second piece was decoded before its time")

    next(frames(pieces()))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize(
    "value, byte", [(-1, 0), (-1.5, 0), (1, 255), (2, 255), (0, 127), (0.9921875, 254)]
)
def test_range(value, byte, dtype):
    assert to_uint8(mx.full((3, 1, 1, 1), value, dtype)).tolist() == [[[[byte] * 3]]]


def test_bfloat16_pixels_lose_nothing_more():
    pixels = mx.linspace(-1, 1, 3000).astype(mx.bfloat16).reshape(3, 1000, 1, 1)
    assert mx.array_equal(to_uint8(pixels), to_uint8(pixels.astype(mx.float32)))


def test_pcm():
    samples = mx.array([[0.0, 1.0, -1.0, 0.5], [2.0, -2.0, 1e-6, -0.5]])
    expected = [[0, 32767], [32767, -32767], [-32767, 0], [16384, -16384]]
    pcm = to_pcm16(Waveform(samples, 24000))
    assert pcm.dtype == np.int16 and pcm.tolist() == expected
