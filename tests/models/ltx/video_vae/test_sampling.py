"""Shuffles between resolution and channels, against the official orders written out."""

import mlx.core as mx
import pytest

from mlx_video.models.ltx.video_vae.sampling import (
    DepthToSpaceUpsample,
    SpaceToDepthDownsample,
    depth_to_space,
    patchify,
    space_to_depth,
    unpatchify,
)
from mlx_video.models.ltx.video_vae.stream import FrameCache
from tests.reference import error


def test_patches():
    pixels = mx.random.normal((2, 3, 5, 8, 12))
    x = patchify(pixels, 4)
    assert x.shape == (2, 5, 2, 3, 48)
    c, column, row = 2, 3, 1
    assert (
        x[1, 4, 1, 2, c * 16 + column * 4 + row] == pixels[1, c, 4, 4 + row, 8 + column]
    )
    assert mx.array_equal(unpatchify(x, 4), pixels)


@pytest.mark.parametrize("stride", [(2, 1, 1), (1, 2, 2), (2, 2, 2), (1, 3, 3)])
def test_shuffles_undo_each_other(stride):
    x = mx.random.normal((2, 4, 6, 12, 5))
    assert mx.array_equal(depth_to_space(space_to_depth(x, stride), stride), x)


def test_order_of_channels():
    x = mx.random.normal((1, 2, 4, 6, 3))
    y = space_to_depth(x, (2, 2, 2))
    c, frame, row, column = 2, 1, 0, 1
    channel = c * 8 + frame * 4 + row * 2 + column
    assert y[0, 0, 1, 2, channel] == x[0, frame, 2 + row, 4 + column, c]


def test_downsample_adds_the_mean_of_neighbouring_channels():
    block = SpaceToDepthDownsample(4, 8, (2, 2, 2), "zeros")
    block.conv.weight *= 0
    x = mx.random.normal((1, 3, 2, 2, 4))
    clip = mx.concatenate([x[:, :1], x], axis=1)
    expected = space_to_depth(clip, (2, 2, 2)).reshape(1, 2, 1, 1, 8, 4).mean(axis=-1)
    assert error(block(x, FrameCache()), expected) < 1e-6


@pytest.mark.parametrize("multiplier, repeats", [(1, 8), (2, 4)])
def test_upsample_tiles_its_residual(multiplier, repeats):
    block = DepthToSpaceUpsample(
        16, 16 // multiplier, (2, 2, 2), "zeros", residual=True
    )
    block.conv.weight *= 0
    x = mx.random.normal((1, 2, 2, 2, 16))
    once = depth_to_space(x, (2, 2, 2))[:, 1:]
    assert mx.array_equal(
        block(x, FrameCache()), mx.concatenate([once] * repeats, axis=-1)
    )
    assert block(x, FrameCache()).shape == (1, 3, 4, 4, 16 // multiplier)


def test_a_single_frame_survives_in_time():
    x = mx.random.normal((1, 1, 4, 4, 8))
    down = SpaceToDepthDownsample(8, 8, (2, 1, 1), "zeros")
    assert down(x, FrameCache()).shape == (1, 1, 4, 4, 8)
    up = DepthToSpaceUpsample(8, 8, (2, 1, 1), "zeros")
    assert up(x, FrameCache()).shape == (1, 1, 4, 4, 8)
