"""Attention to a neighbourhood against one query at a time; its windows, runs of tiles and rotary positions."""

import math
from itertools import product

import mlx.core as mx
import numpy as np
import pytest

from mlx_video.models.ltx.video_vae import neighborhood
from mlx_video.models.ltx.video_vae.neighborhood import (
    NeighborhoodAttention,
    attend,
    boxes,
    centred,
    rotate,
    runs_of,
    shifted,
)
from tests.reference import error

HEADS, DIM = 2, 8


def one_by_one(q, k, v, windows) -> mx.array:
    """Softmax over the keys of each query's window, in NumPy."""
    q, k, v = (np.array(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for cell in product(*map(range, q.shape[1:4])):
        box = tuple(
            slice(w.starts[i], w.starts[i] + w.size) for w, i in zip(windows, cell)
        )
        keys, values = (x[(slice(None), *box)] for x in (k, v))
        query = q[(slice(None), *cell)]
        scores = np.einsum("bhd,bfrchd->bhfrc", query, keys) / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max((2, 3, 4), keepdims=True))
        weights /= weights.sum((2, 3, 4), keepdims=True)
        out[(slice(None), *cell)] = np.einsum("bhfrc,bfrchd->bhd", weights, values)
    return mx.array(out.reshape(*q.shape[:4], -1).astype(np.float32))


def drawn(*shapes) -> list[mx.array]:
    return [mx.random.normal((2, *shape, HEADS, DIM)) for shape in shapes]


def test_each_tile_of_frames_says_what_its_scores_take(monkeypatch):
    said = []

    def note(y, takes):
        said.append(takes)
        return y

    monkeypatch.setattr(neighborhood, "end_piece", note)
    q, k, v = drawn((4, 4, 4), (4, 4, 4), (4, 4, 4))
    attend(q, k, v, (shifted(4, 3),) * 3, (2, 4, 4))
    queries, keys = 2 * 2 * 4 * 4, 4 * 4 * 4  # of two clips, and of a tile's box
    scores = 4 * HEADS * queries * keys  # bytes in float32
    assert said == [neighborhood.SCORES * scores] * 2


@pytest.mark.parametrize(
    "size, kernel",
    [((5, 6, 13), (3, 5, 5)), ((3, 4, 7), (3, 3, 7)), ((4, 5, 12), (1, 3, 3))],
)
def test_shifted_windows(size, kernel):
    q, k, v = drawn(size, size, size)
    windows = tuple(map(shifted, size, kernel))
    expected = one_by_one(q, k, v, windows)
    for tile in ((1, 1, 1), (2, 3, 4), (8, 8, 8), (3, 2, 5)):
        assert error(attend(q, k, v, windows, tile), expected) < 1e-5, tile


@pytest.mark.parametrize("tile", [(2, 3, 4), (2, 2, 3), (4, 4, 16)])
def test_centred_windows_and_a_part_of_the_queries(tile):
    keys = 6, 5, 11 + 4
    q, k, v = drawn((2, 3, 11), keys, keys)
    windows = (
        shifted(6, 3).part(slice(3, 5)),
        shifted(5, 5).part(slice(1, 4)),
        centred(11, 5),
    )
    assert error(attend(q, k, v, windows, tile), one_by_one(q, k, v, windows)) < 1e-5


def test_windows_shift_inward_at_the_ends():
    assert shifted(6, 3).starts == (0, 0, 1, 2, 3, 3)
    assert shifted(4, 4).starts == (0, 0, 0, 0)
    assert centred(3, 5).starts == (0, 1, 2)
    assert shifted(9, 5).part(slice(4, 7)).keys == slice(2, 9)


def test_tiles_that_are_alike_run_together():
    """Between a tile at each border there is one run, whatever the length: few calls, and nothing is copied."""
    assert [run.count for run in runs_of(shifted(64, 5), 4)] == [1, 14, 1]
    assert [run.count for run in runs_of(centred(64, 5), 4)] == [16]
    assert [run.count for run in runs_of(centred(66, 5), 4)] == [16, 1]


def test_all_tiles_have_as_many_keys():
    """A graph of CUDA's attention is built for each shape, which takes longer than to run it."""
    for windows in (shifted(64, 11), centred(64, 11), shifted(30, 7)):
        sizes = {box.keys.stop - box.keys.start for box in boxes(windows, 4)}
        assert sizes == {4 + windows.size - 1}
    assert all(box.keys == slice(0, 9) for box in boxes(shifted(9, 7), 4))


def test_rotation_is_by_axis_and_pair():
    """Head of 16: 2 pairs turn with the frame, 3 with the row, 3 with the column, the first of each by 1 radian a step."""
    x = mx.zeros((1, 3, 4, 5, 1, 16))
    x[..., 0::2] = 1.0  # every pair points along its first axis
    y = np.array(rotate(x))[0, ..., 0, :]
    pair = lambda i: y[..., 2 * i] + 1j * y[..., 2 * i + 1]
    steps = np.indices((3, 4, 5))
    for axis, first, count in ((0, 0, 2), (1, 2, 3), (2, 5, 3)):
        for i in range(count):
            angle = steps[axis] * 10_000.0 ** (-i / count)
            assert np.allclose(pair(first + i), np.exp(1j * angle), atol=1e-5)


def test_only_differences_of_positions_matter():
    q, k = drawn((2, 3, 4), (2, 3, 4))
    near = (rotate(q) * rotate(k)).sum(-1)
    far = (rotate(q, (7, -2, 30)) * rotate(k, (7, -2, 30))).sum(-1)
    assert error(far, near) < 1e-5


@pytest.mark.parametrize("repeat_columns", [False, True])
def test_bands_and_frames_equal_the_whole(repeat_columns):
    mx.random.seed(2)
    model = NeighborhoodAttention(16, (3, 5, 3), 8, repeat_columns)
    x = mx.random.normal((1, 6, 9, 7, 16))
    rows = shifted(9, 5)
    whole = model(x, slice(0, 6), slice(0, 9), rows)
    for frames, band in product([(0, 2), (2, 6)], [(0, 4), (4, 9)]):
        frames, band = slice(*frames), slice(*band)
        at = rows.part(band)
        near = slice(band.start - at.keys.start, band.stop - at.keys.start)
        part = model(x[:, :, at.keys], frames, near, at.after(at.keys.start))
        assert error(part, whole[:, frames, band]) < 1e-5


def test_bfloat16():
    q, k, v = (x.astype(mx.bfloat16) for x in drawn((3, 5, 6), (3, 5, 6), (3, 5, 6)))
    windows = tuple(map(shifted, (3, 5, 6), (3, 3, 3)))
    y = attend(q, k, v, windows)
    assert y.dtype == rotate(q).dtype == mx.bfloat16
    assert (
        error(
            y,
            one_by_one(
                q.astype(mx.float32),
                k.astype(mx.float32),
                v.astype(mx.float32),
                windows,
            ),
        )
        < 0.02
    )
