"""Neighbourhood attention over video (Hassani et al., 2023): each cell attends to a window around it.

Knows windows, borders and tiles, not what queries and keys are made of.

MLX has no kernel for it. Queries are processed in tiles: all windows of a tile lie in one box of keys, so a tile is dense
attention with a mask. Keys are laid out columns first, so that each box is contiguous, and a strided view covers
overlapping boxes without copies. One call computes many tiles.
"""

from functools import lru_cache
from itertools import groupby
from typing import Iterator, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx.pacing import end_piece

NORM_EPS = 1e-6
SCORES = 3  # arrays of the scores' size that are alive at once: scores, softmax, keys
ROPE_THETA = 10_000.0
TILE = 8, 4, 4
"""Frames, rows and columns of queries. For windows of 11x11x11, a tile computes 2.7 times as many scores as needed. CUDA's
and Metal's kernels take 128 queries at once, or half of that. ``benchmarks/vae_decode.py --tile`` measures others."""


class Windows(NamedTuple):
    """Along one axis: the first key of each query's window, and how many keys a window has."""

    starts: tuple[int, ...]
    size: int

    def part(self, queries: slice) -> "Windows":
        """The windows of some ``queries``."""
        return Windows(self.starts[queries], self.size)

    @property
    def keys(self) -> slice:
        """All keys that queries see."""
        return slice(self.starts[0], self.starts[-1] + self.size)

    def after(self, key: int) -> "Windows":
        """The same windows, with keys counted from ``key``."""
        return Windows(tuple(start - key for start in self.starts), self.size)


@lru_cache
def shifted(length: int, size: int) -> Windows:
    """Windows around each of ``length`` cells; at both ends they shift inward, so all have ``size`` cells."""
    starts = (min(max(0, i - size // 2), length - size) for i in range(length))
    return Windows(tuple(starts), size)


@lru_cache
def centred(length: int, size: int) -> Windows:
    """Windows around each of ``length`` cells, over keys with ``size // 2`` more cells at both ends."""
    return Windows(tuple(range(length)), size)


def attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    windows: tuple[Windows, Windows, Windows],
    tile: tuple[int, int, int] | None = None,
) -> mx.array:
    """Softmax attention of queries (B, F, H, W, heads, D) to the keys in their windows, scaled by D ** -0.5.

    ``windows`` of frames, rows and columns index keys (B, F', H', W', heads, D). ``tile`` is the size of a tile of queries
    (``TILE`` by default) and does not change the result. Returns (B, F, H, W, heads * D).
    """
    tile = tile or TILE
    rows, columns = (runs_of(w, size) for w, size in zip(windows[1:], tile[1:]))
    frames = []
    for f in boxes(windows[0], tile[0]):
        near = q[:, f.queries], k[:, f.keys], v[:, f.keys]
        strips = [
            mx.concatenate([_tiles(*near, f, r, c) for c in columns], axis=3)
            for r in rows
        ]
        keys = (f.keys.stop - f.keys.start) * rows[0].width * columns[0].width
        # All scores queued at once took 18.8 GiB on a GPU; one tile's frames at a time take 4.3.
        takes = SCORES * near[0].nbytes // q.shape[-1] * keys
        frames.append(end_piece(mx.concatenate(strips, axis=2), takes=takes))
    return mx.concatenate(frames, axis=1)


class Box(NamedTuple):
    """A tile's queries along one axis, the keys that hold all their windows, and the windows relative to those keys."""

    queries: slice
    keys: slice
    windows: Windows

    @property
    def seen(self) -> mx.array:
        """Whether each query (rows) sees each key."""
        starts = mx.array(self.windows.starts)[:, None]
        keys = mx.arange(self.keys.stop - self.keys.start)
        return (keys >= starts) & (keys < starts + self.windows.size)

    @property
    def alike(self) -> tuple[Windows, int]:
        """What the boxes of a run have in common."""
        return self.windows, self.keys.start - self.queries.start


@lru_cache
def boxes(windows: Windows, size: int) -> list[Box]:
    """Tiles of ``size`` queries, all with equally many keys: CUDA prepares its attention once for each number."""
    first, last = windows.keys.start, windows.keys.stop
    most = min(size + windows.size - 1, last - first)
    found = []
    for i in range(0, len(windows.starts), size):
        queries = slice(i, min(i + size, len(windows.starts)))
        part = windows.part(queries)
        start = min(part.starts[0], last - most)
        found.append(Box(queries, slice(start, start + most), part.after(start)))
    return found


class Run(NamedTuple):
    """``count`` neighbouring boxes of ``step`` queries and ``width`` keys, ``step`` apart, and what all of them cover."""

    first: Box
    count: int
    queries: slice
    keys: slice

    @property
    def step(self) -> int:
        """How many queries a box has, and how far apart boxes are."""
        return self.first.queries.stop - self.first.queries.start

    @property
    def width(self) -> int:
        """How many keys a box has."""
        return self.first.keys.stop - self.first.keys.start


@lru_cache  # a decode needs a few results thousands of times
def runs_of(windows: Windows, size: int) -> list[Run]:
    """The tiles of one axis as runs: one tile at each border, and all others between."""
    runs = []
    for _, group in groupby(boxes(windows, size), lambda box: box.alike):
        group = list(group)
        first, last = group[0], group[-1]
        queries = slice(first.queries.start, last.queries.stop)
        keys = slice(first.keys.start, last.keys.stop)
        runs.append(Run(first, len(group), queries, keys))
    return runs


def _tiles(
    q: mx.array, k: mx.array, v: mx.array, f: Box, rows: Run, columns: Run
) -> mx.array:
    """Attention for one tile's frames and all tiles of a run of rows and of columns: (B, f, H, W, heads * D)."""
    B, F, _, _, heads, D = q.shape
    x = q[:, :, rows.queries, columns.queries]
    x = x.reshape(B, F, rows.count, rows.step, columns.count, columns.step, heads, D)
    x = x.transpose(4, 0, 2, 6, 5, 1, 3, 7)  # (columns, B, rows, heads, w, f, h, D)
    y = mx.fast.scaled_dot_product_attention(
        x.reshape(columns.count, B * rows.count * heads, -1, D),
        _keys(k, rows, columns),
        _keys(v, rows, columns),
        scale=D**-0.5,
        mask=_mask((f, rows.first, columns.first), q.dtype),
    )
    y = y.reshape(x.shape).transpose(1, 5, 2, 6, 0, 4, 3, 7)
    return y.reshape(B, F, rows.count * rows.step, -1, heads * D)


def _keys(x: mx.array, rows: Run, columns: Run) -> mx.array:
    """The keys (B, F, H, W, heads, D) of each tile for attention: (columns, B * rows * heads, w * F * h, D).

    Shared rows are copied; shared columns are views. Tiles of different rows count as different heads, because batches and
    heads must each have a single stride.
    """
    x = x[:, :, rows.keys, columns.keys].transpose(0, 4, 3, 1, 2, 5)
    B, heads, W, F, H, D = x.shape
    x = mx.as_strided(
        x,
        (B, rows.count, heads, W, F, rows.width, D),
        (x.size // B, rows.step * D, W * F * H * D, F * H * D, H * D, D, 1),
    )
    column = F * rows.width * D
    keys = columns.width * F * rows.width
    return mx.as_strided(
        x,
        (columns.count, B * rows.count * heads, keys, D),
        (columns.step * column, W * column, D, 1),
    )


def _mask(tile: tuple[Box, Box, Box], dtype: mx.Dtype) -> mx.array:
    """The additive mask (queries, keys) of a tile, 0 within a window; columns are slowest in both axes."""
    f, r, c = (box.seen for box in tile)
    inside = c[:, None, None, :, None, None]
    inside = inside & f[:, None, None, :, None] & r[:, None, None, :]
    inside = inside.reshape(len(c) * len(f) * len(r), -1)
    return mx.where(inside, 0.0, mx.finfo(dtype).min).astype(dtype)


def rotate(x: mx.array, first: tuple[int, int, int] = (0, 0, 0)) -> mx.array:
    """Rotary embedding of (B, F, H, W, heads, D) by frame, row and column, counted from ``first``.

    A quarter of the pairs (2i, 2i + 1) rotates with the frame, the rest equally with row and column. Only differences
    between positions matter, so the origin is arbitrary.
    """
    pairs = mx.unflatten(x, -1, (-1, 2))
    positions = [mx.arange(i, i + n) for i, n in zip(first, x.shape[1:4])]
    return _turned(pairs, positions, list(_frequencies(x.shape[-1]))).flatten(-2)


def _frequencies(dim: int) -> Iterator[mx.array]:
    """For each axis, the frequencies of a head's pairs: (dim / 2,), 0 where a pair rotates with another axis."""
    frames = dim // 4
    space = (dim - frames) // 2
    start = 0
    for size in (frames, space, space):
        frequencies = ROPE_THETA ** (-mx.arange(0, size, 2) / size)
        yield mx.pad(frequencies, (start // 2, (dim - start - size) // 2))
        start += size


@mx.compile
def _turned(
    pairs: mx.array, positions: list[mx.array], frequencies: list[mx.array]
) -> mx.array:
    """Pairs (B, F, H, W, heads, D / 2, 2), rotated by the sum of the axes' angles, in one fused kernel."""
    (frames, rows, columns), (by_frame, by_row, by_column) = positions, frequencies
    angle = (
        frames[:, None, None, None, None] * by_frame
        + rows[:, None, None, None] * by_row
        + columns[:, None, None] * by_column
    )[..., None]
    sign = mx.array([-1.0, 1.0])
    turned = pairs * mx.cos(angle) + pairs[..., ::-1] * (sign * mx.sin(angle))
    return turned.astype(pairs.dtype)


class NeighborhoodAttention(nn.Module):
    """Attention of cells to their windows, with queries and keys normed per head and rotated.

    ``repeat_columns`` repeats the outermost column beyond the left and right border, as in Lightricks' default mode;
    otherwise windows shift inward there, as along the other axes.
    """

    def __init__(
        self,
        dim: int,
        kernel: tuple[int, int, int],
        head_dim: int,
        repeat_columns: bool = False,
    ):
        super().__init__()
        self.kernel = tuple(kernel)
        self.head_dim = head_dim
        self.repeat_columns = repeat_columns
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.RMSNorm(head_dim, NORM_EPS)
        self.k_norm = nn.RMSNorm(head_dim, NORM_EPS)
        self.proj = nn.Linear(dim, dim)

    def __call__(
        self, x: mx.array, frames: slice, rows: slice, at: Windows
    ) -> mx.array:
        """``x[:, frames, rows]`` (B, f, h, W, C) attends to ``x`` -> (B, f, h, W, C); ``at`` are the windows of the rows."""
        reach = self.kernel[2] // 2 if self.repeat_columns else 0
        borders = centred if self.repeat_columns else shifted
        windows = (
            shifted(x.shape[1], self.kernel[0]).part(frames),
            at,
            borders(x.shape[3], self.kernel[2]),
        )
        q = self.q_norm(self._heads(x[:, frames, rows], 0))
        q = rotate(q, (frames.start, rows.start, 0))
        if reach:
            ends = [mx.repeat(x[:, :, :, i : i + 1 or None], reach, 3) for i in (0, -1)]
            x = mx.concatenate([ends[0], x, ends[1]], axis=3)
        k = rotate(self.k_norm(self._heads(x, 1)), (0, 0, -reach))
        return self.proj(attend(q, k, self._heads(x, 2), windows))

    def _heads(self, x: mx.array, part: int) -> mx.array:
        """Queries (part 0), keys (1) or values (2): (B, F, H, W, C) -> (B, F, H, W, heads, D)."""
        dim = x.shape[-1]
        rows = slice(part * dim, (part + 1) * dim)
        y = mx.addmm(self.qkv.bias[rows], x, self.qkv.weight[rows].T)
        return mx.unflatten(y, -1, (-1, self.head_dim))
