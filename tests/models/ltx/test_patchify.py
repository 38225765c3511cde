"""Tokens and their places against the official numbers."""

import ast
import json

import mlx.core as mx
import pytest

from mlx_video.models.ltx.checkpoint.releases import LTX_2
from mlx_video.models.ltx.patchify import (
    audio_positions,
    patchify_audio,
    patchify_video,
    position_grid,
    unpatchify_audio,
    unpatchify_video,
    video_positions,
)
from mlx_video.types import VideoLatentShape, VideoPixelShape
from tests.reference import TINY, error, vectors

OFFICIAL = vectors("sampling")
GEOMETRY = LTX_2.geometry
COUNTS = json.loads((TINY / "audio_latent_frames.json").read_text())


@pytest.mark.parametrize(
    "name, frames, height, width, fps",
    [
        ("pos.video_3x4x4_fps24", 3, 4, 4, 24.0),
        ("pos.video_2x2x3_fps25", 2, 2, 3, 25.0),
        ("pos.video_3x2x2_fps30", 3, 2, 2, 30.0),
    ],
)
def test_video_positions_are_the_official_ones(name, frames, height, width, fps):
    grid = position_grid((frames, height, width), GEOMETRY.video, fps)
    assert error(grid, OFFICIAL[name]) < 1e-6


def test_positions_of_a_clip_are_those_of_its_latent_grid():
    positions = video_positions(VideoPixelShape(17, 128, 128, 24.0), GEOMETRY)
    assert error(positions, OFFICIAL["pos.video_3x4x4_fps24"]) < 1e-6


def test_audio_positions_are_the_official_ones():
    positions = audio_positions(26, GEOMETRY.audio)
    assert error(positions, OFFICIAL["pos.audio_26"]) < 1e-6


def test_a_clip_as_keyframe_stands_where_the_official_code_puts_it():
    """The first 12 tokens are the clip's own; the four appended ones have no causal fix away from frame 0."""
    grid = (1, 2, 2)
    appended = position_grid(
        grid, GEOMETRY.video, 24.0, causal_fix=False, first_frame=9
    )
    assert error(appended, OFFICIAL["pos.keyframe_frame9"][:, :, 12:]) < 1e-6
    first = position_grid(grid, GEOMETRY.video, 24.0)
    assert error(first, OFFICIAL["pos.keyframe_frame0"][:, :, 12:]) < 1e-6


def test_reference_tokens_of_a_smaller_clip_cover_the_same_picture():
    scale = GEOMETRY.video._replace(height=64, width=64)
    grid = position_grid((3, 1, 1), scale, 24.0)
    assert error(grid, OFFICIAL["pos.reference_ds2"][:, :, 12:]) < 1e-6


def test_audio_frame_counts_are_the_official_ones():
    def count(case: str) -> int:
        frames, fps = ast.literal_eval(case)
        return GEOMETRY.audio_frames(VideoPixelShape(frames, 64, 64, fps))

    assert {case: count(case) for case in COUNTS} == COUNTS


def test_video_tokens_are_the_official_ones_and_come_back():
    latent = OFFICIAL["patch.video_in"]
    tokens = patchify_video(latent)
    assert mx.array_equal(tokens, OFFICIAL["patch.video_out"])
    shape = VideoLatentShape(*latent.shape)
    assert mx.array_equal(unpatchify_video(tokens, shape), latent)


def test_audio_tokens_are_the_official_ones_and_come_back():
    latent = OFFICIAL["patch.audio_in"]
    tokens = patchify_audio(latent)
    assert mx.array_equal(tokens, OFFICIAL["patch.audio_out"])
    assert mx.array_equal(unpatchify_audio(tokens, GEOMETRY.audio), latent)


def test_appended_tokens_are_dropped():
    latent = mx.random.normal((1, 4, 2, 2, 2), key=mx.random.key(0))
    tokens = mx.concatenate([patchify_video(latent), mx.ones((1, 3, 4))], axis=1)
    shape = VideoLatentShape(*latent.shape)
    assert mx.array_equal(unpatchify_video(tokens, shape), latent)
