"""Decode a clip in overlapping, blended tiles, as the official code does. Knows cells, ramps and masks only.

A tile is one ``Cut`` of time, one of rows and one of columns. Neighbours overlap, one fading in as the other fades out. On
this regular grid, blending columns into strips, strips into frames and frames into the clip equals summing all weighted
tiles and dividing by the sum of weights.
"""

from dataclasses import astuple, dataclass
from typing import Callable, ClassVar, Iterable, Iterator, NamedTuple

import mlx.core as mx

from mlx_video.errors import UserError, clip
from mlx_video.types import VideoScale

BLENDED, BLENDED_IN_TIME = 2.4, 1.2
"""Arrays of a tile of time that are alive while tiles are blended, and how many more for blending in time; on a CPU."""
MODES = "auto", "none", "default", "aggressive", "conservative", "spatial", "temporal"
FRAMES, PIXELS = 8, 32
"""Official tiles and their overlaps are multiples of these, whatever a latent cell is; tiles are cut to whole cells."""


class AxisTiling:
    """A tile's size and overlap along an axis, in multiples of ``STEP``. Raises ``UserError`` for others."""

    UNIT: ClassVar[str]
    STEP: ClassVar[int]

    def __post_init__(self):
        (size, overlap), unit, step = astuple(self), self.UNIT, self.STEP
        if size % step or size < 2 * step:
            raise UserError(
                f"A tile's {unit} must be a multiple of {step}, at least {2 * step}; got {size}. "
                f"Nearest: {max(2, round(size / step)) * step}."
            )
        if overlap % step or not 0 <= overlap < size:
            nearest = min(max(0, round(overlap / step)) * step, size - step)
            raise UserError(
                f"A tile's overlap must be a multiple of {step} {unit} below the tile's {size}; got {overlap}. "
                f"Nearest: {nearest}."
            )


@dataclass(frozen=True)
class SpatialTilingConfig(AxisTiling):
    """Tiles along the longer side of a frame, in pixels; the shorter side is cut in proportion."""

    UNIT, STEP = "pixels", PIXELS
    tile_size_in_pixels: int
    tile_overlap_in_pixels: int = 0


@dataclass(frozen=True)
class TemporalTilingConfig(AxisTiling):
    """Tiles along time, in pixel frames."""

    UNIT, STEP = "frames", FRAMES
    tile_size_in_frames: int
    tile_overlap_in_frames: int = 0


@dataclass(frozen=True)
class TilingConfig:
    """Tile sizes in space and time; ``None`` = the whole frame, or all frames."""

    spatial_config: SpatialTilingConfig | None = None
    temporal_config: TemporalTilingConfig | None = None

    @classmethod
    def spatial_only(cls, tile_size: int = 512, overlap: int = 64) -> "TilingConfig":
        """Tiles in space only, in pixels; each has all frames."""
        return cls(spatial_config=SpatialTilingConfig(tile_size, overlap))

    @classmethod
    def temporal_only(cls, tile_size: int = 64, overlap: int = 24) -> "TilingConfig":
        """Tiles in time only, in frames; each has the whole frame."""
        return cls(temporal_config=TemporalTilingConfig(tile_size, overlap))

    @classmethod
    def default(cls) -> "TilingConfig":
        """512 pixels and 64 frames, the official sizes."""
        return cls(SpatialTilingConfig(512, 64), TemporalTilingConfig(64, 24))

    @classmethod
    def aggressive(cls) -> "TilingConfig":
        """256 pixels and 32 frames: the least memory, the most time."""
        return cls(SpatialTilingConfig(256, 64), TemporalTilingConfig(32, 8))

    @classmethod
    def conservative(cls) -> "TilingConfig":
        """768 pixels and 96 frames: more memory, fewer seams."""
        return cls(SpatialTilingConfig(768, 64), TemporalTilingConfig(96, 24))

    @classmethod
    def auto(cls, height: int, width: int, num_frames: int) -> "TilingConfig | None":
        """No tiles for a clip within one conservative tile, else the default."""
        whole = height * width * num_frames <= 768 * 768 * 96
        return None if whole else cls.default()

    @classmethod
    def named(cls, mode: str) -> "TilingConfig | None":
        """The tiles of ``mode``, one of ``MODES``; ``None`` for "none" and "auto", see ``decoding.choose_tiling``.

        Raises ``UserError`` for another mode.
        """
        if mode not in MODES:
            raise UserError(
                f"tiling must be one of {', '.join(MODES)}; got {ascii(clip(str(mode), 40))}."
            )
        if mode in ("none", "auto"):
            return None
        name = f"{mode}_only" if mode in ("spatial", "temporal") else mode
        return getattr(cls, name)()

    def grid(self, cells: tuple[int, int, int], scale: VideoScale) -> "TileGrid":
        """Cuts from latent frames, rows and columns to pixels; tiles have the proportions of the frame."""
        frames, *sides = cells
        late = scale.time - 1
        times = cuts_of(frames, scale.time, self.temporal_config, late=late, lead=1)
        return times, *(
            cuts_of(side, cell, self.spatial_config, longest=max(sides))
            for side, cell in zip(sides, scale[1:])
        )


class Cut(NamedTuple):
    """One tile along one axis: the cells it reads, the cells it writes, and the weights of those."""

    source: slice
    target: slice
    mask: mx.array

    @property
    def cells(self) -> int:
        """How many it reads."""
        return self.source.stop - self.source.start


TileGrid = tuple[list[Cut], list[Cut], list[Cut]]
"""The cuts of a clip along time, rows and columns."""


def cuts_of(
    cells: int,
    cell: int,
    config: AxisTiling | None,
    *,
    longest: int | None = None,
    least_overlap: int = 0,
    late: int = 0,
    lead: int = 0,
) -> list[Cut]:
    """Tiles along an axis of ``cells``, each of ``cell`` frames or pixels; a single one without ``config``.

    longest        cells of the longer side, for which the tile's size is; by default ``cells``
    least_overlap  in frames or pixels; with one, each tile is at least twice the overlap
    late           how many frames the first cell lacks; in time it makes only one
    lead           1 if the first cell of any tile makes a single frame: later tiles then read one more cell in front, whose
                   frame has weight 0; else 0
    """
    longest = longest or cells
    size, overlap = astuple(config) if config else (longest * cell, 0)
    overlap = max(least_overlap, overlap) // cell
    least = 2 * overlap if least_overlap else max(2, overlap + 1)
    size = max(least, round(size // cell * cells / longest))
    cuts = []
    for start in range(0, max(1, cells - overlap), size - overlap):
        stop = min(start + size, cells)
        before = lead if start else 0
        first, end = (max(0, edge * cell - late) for edge in (start, stop))
        ramps = (overlap * cell if inside else 0 for inside in (start, stop < cells))
        weights = mx.pad(trapezoid(end - first, *ramps), (before, 0))
        source, target = slice(start - before, stop), slice(first - before, end)
        cuts.append(Cut(source, target, weights))
    return cuts


def held_pixels(grid: TileGrid) -> tuple[int, int, int]:
    """How many pixels exist besides the largest tile being computed, in a tile of time, and while tiles are blended.

    Of several largest tiles the last counts, when most others are done.
    """
    times, rows, columns = grid
    frame = rows[-1].target.stop * (width := columns[-1].target.stop)
    time, row, column = (
        max(cuts, key=lambda cut: (cut.cells, cut.source.start)) for cuts in grid
    )
    above, left = _end_before(rows, row), _end_before(columns, column)
    rest = max(0, _end_before(times, time) - time.target.start)
    done = len(time.mask) * (above * width + len(row.mask) * left)
    blended = BLENDED + BLENDED_IN_TIME * min(2, len(times) - 1)
    whole = max(len(cut.mask) for cut in times) * frame
    return done + rest * frame, whole, round(blended * whole)


def _end_before(cuts: list[Cut], cut: Cut) -> int:
    """Where the tile before ``cut`` ends; 0 if there is none."""
    before = [each.target for each in cuts if each.target.start < cut.target.start]
    return before[-1].stop if before else 0


def trapezoid(length: int, rising: int, falling: int) -> mx.array:
    """Weights (length,): linear over the first ``rising`` and last ``falling`` cells, 1 between, never 0."""
    index = mx.arange(length, dtype=mx.float32)
    left = mx.minimum(1, (index + 1) / (rising + 1))
    return left * mx.minimum(1, (length - index) / (falling + 1))


def run_tiles(
    tile: Callable[[Cut, Cut, Cut], mx.array], grid: TileGrid
) -> Iterator[mx.array]:
    """Blended pixels (B, 3, F, H, W) of ``tile`` over cuts of time, rows and columns; one piece per cut of time."""
    times, rows, columns = grid

    def strip(time: Cut, row: Cut) -> mx.array:
        tiles = (tile(time, row, column) for column in columns)
        return together(_blend(tiles, columns, axis=4), axis=4)

    def frames(time: Cut) -> mx.array:
        strips = (strip(time, row) for row in rows)
        return together(_blend(strips, rows, axis=3), axis=3)

    return _blend((frames(time) for time in times), times, axis=2)


def together(tiles: Iterable[mx.array], axis: int) -> mx.array:
    """All ``tiles`` as one array, evaluated."""
    y = mx.concatenate(list(tiles), axis=axis)
    mx.eval(y)
    return y


def _blend(tiles: Iterable[mx.array], cuts: list[Cut], axis: int) -> Iterator[mx.array]:
    """Weighted sum of overlapping ``tiles``: yields the part that the next tile does not reach, and keeps the rest.

    Sums in float32 and returns the tiles' dtype. A single tile is returned unchanged.
    """
    if len(cuts) == 1:
        yield from tiles
        return
    tiles, rest = iter(tiles), None
    ends = [cut.target.start for cut in cuts[1:]] + [cuts[-1].target.stop]
    for cut, weight, end in zip(cuts, _weights(cuts), ends):
        # No variable keeps a tile or yielded cells alive while the next tile is computed.
        done, rest = _add(next(tiles), weight, rest, end - cut.target.start, axis)
        yield done
        del done


def _add(
    tile: mx.array, weight: mx.array, rest: mx.array | None, count: int, axis: int
) -> tuple[mx.array, mx.array]:
    """The weighted ``tile`` plus the previous ``rest``: its first ``count`` cells, and the new rest."""
    total = tile * mx.expand_dims(weight, list(range(1, tile.ndim - axis)))
    if rest is not None:
        front, back = mx.split(total, [rest.shape[axis]], axis=axis)
        total = mx.concatenate([front + rest, back], axis=axis)
    done, rest = mx.split(total, [count], axis=axis)
    # Copies: a slice would keep the whole sum alive.
    done, rest = mx.contiguous(done.astype(tile.dtype)), mx.contiguous(rest)
    mx.eval(done, rest)
    return done, rest


def _weights(cuts: list[Cut]) -> list[mx.array]:
    """The masks of all cuts of an axis, normalised to a sum of 1 at each cell."""
    total = mx.zeros(cuts[-1].target.stop)
    for cut in cuts:
        total[cut.target] = total[cut.target] + cut.mask
    return [cut.mask / total[cut.target] for cut in cuts]
