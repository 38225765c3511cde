"""The layout of DFR against the official tables."""

import json

import mlx.core as mx
import pytest

from mlx_video.models.ltx.dfr_layout import (
    Canvas,
    Tile,
    carried,
    doubled,
    join,
    layouts,
    nearest,
    tiles,
)
from mlx_video.recipes import finished
from mlx_video.types import VideoPixelShape
from tests.reference import FIXTURES

LAYOUT = json.loads((FIXTURES / "ltx2_modes" / "dfr_layout.json").read_text())
TIME = 8


@pytest.mark.parametrize("row", LAYOUT["canvas"], ids=lambda row: row["num_frames"])
def test_a_canvas_is_the_official_one(row):
    canvas = Canvas.of(row["num_frames"])
    assert canvas == (row["canvas"], row["segment"])
    assert list(canvas.keyframes) == row["positions"]


@pytest.mark.parametrize("row", LAYOUT["tiles"], ids=lambda row: row["canvas"])
def test_tiles_are_the_official_ones(row):
    seams = doubled(Canvas.of(row["canvas"]).keyframes)
    assert list(seams) == row["seams"]
    canvas = VideoPixelShape(row["canvas"], 0, 0, 24.0)
    assert finished(canvas, row["round"]).frames == row["num_frames"]
    ours = tiles(seams, row["num_tiles"], TIME)
    assert len(ours) == len(row["tiles"])
    for tile, official in zip(ours, row["tiles"]):
        latents = slice(official["latent_start"], official["latent_end_exclusive"])
        assert (tile.start, tile.end) == (official["pixel_start"], official["pixel_end"])  # fmt: skip
        assert tile.latents(TIME) == latents
        assert list(tile.anchors) == official["anchor_kf_global"]
        assert list(tile.slots) == official["slot_kf_global"]
        assert tile.drop == official["drop_latent_prefix"]


@pytest.mark.parametrize("frames", [9, 41, 97, 121, 161])
@pytest.mark.parametrize("rounds", [1, 2])
def test_rounds_cover_the_canvas_once_and_carry_their_pictures(frames, rounds):
    canvas = Canvas.of(frames)
    planned = layouts(canvas, rounds, TIME)
    frames, keyframes = canvas.frames, canvas.keyframes
    for number in range(1, rounds + 1):
        frames, seams = 2 * frames - 1, doubled(keyframes)
        layout = tiles(seams, 2**number, TIME)
        assert layout == planned[number - 1]
        whole = mx.arange((frames - 1) // TIME + 1).reshape(1, 1, -1, 1, 1)
        parts = [whole[:, :, tile.latents(TIME)] for tile in layout]
        assert mx.array_equal(join(parts, layout), whole)
        pictures = [dict.fromkeys(tile.anchors + tile.slots) for tile in layout]
        keyframes = tuple(carried(pictures))
        assert keyframes == tuple(range(canvas.segment, frames, canvas.segment))


def test_longer_tiles_come_first():
    layout = tiles(tuple(range(48, 289, 48)), 4, TIME)  # six segments
    assert [len(tile.slots) - (index > 0) for index, tile in enumerate(layout)] == [2, 2, 1, 1]  # fmt: skip


def test_frames_are_counted_within_a_tile():
    tile = Tile(96, 240, (96, 144, 192, 240), (120, 168, 216), 7)
    assert tile.frames == 145
    assert tile.cells(8) == 19 + 4 + 3
    assert [frame - tile.start for frame in tile.anchors] == [0, 48, 96, 144]


def test_the_earlier_tile_keeps_its_pictures():
    first, second = {48: "a", 24: "b"}, {48: "c", 96: "d"}
    assert list(carried([first, second]).items()) == [(24, "b"), (48, "a"), (96, "d")]


def test_pictures_start_from_the_nearest_latent():
    video = mx.arange(7).reshape(1, 1, 7, 1, 1)
    assert nearest(video, (0, 12, 20, 48, 90), TIME).flatten().tolist() == [0, 2, 2, 6, 6]  # fmt: skip
