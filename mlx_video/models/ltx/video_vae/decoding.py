"""Decode a clip of any length in bounded memory, exactly or in blended tiles. Knows cuts, not what a network computes."""

from functools import cache, partial
from typing import Iterator, NamedTuple

import mlx.core as mx

from mlx_video.models.ltx.loading.parts import Network
from mlx_video.models.ltx.pacing import each_piece_by_piece
from mlx_video.models.ltx.video_vae.tiling import TilingConfig, together

PIECE = 80_000_000
"""Elements per convolution: 25 frames of 512 x 768 or 6 of 1024 x 1536, enough to keep a large GPU busy."""
PIECES = PIECE, PIECE // 4, PIECE // 16


class StreamPlan(NamedTuple):
    """How a clip is cut for decoding, without any seam.

    elements  about how many one convolution may touch; at least those of a frame
    tiles     how many along the longer side; each includes all surrounding cells that affect it
    """

    elements: int = PIECE
    tiles: int = 1


WHOLE = StreamPlan(2**62)
"""Everything at once, as decoders do when they are called."""

Tiling = TilingConfig | StreamPlan


def choose_tiling(
    mode: str, decoder: Network, shape: tuple[int, ...], budget: float
) -> Tiling:
    """How to decode latents of ``shape`` (B, C, F, H, W) in ``mode``, one of ``tiling.MODES``.

    "none" decodes exactly. "auto" is the fastest exact plan within ``budget`` bytes besides the weights, else the tiles
    with the fewest seams, or what needs least if nothing fits.
    """
    if mode != "auto":
        return TilingConfig.named(mode) or StreamPlan()
    needs = cache(partial(decoder.activation_bytes, shape))
    tiles = TilingConfig.conservative, TilingConfig.default, TilingConfig.aggressive
    ways = [*decoder.plans(shape), *(tiling() for tiling in tiles)]
    fit = (way for way in ways if needs(way) <= budget)
    return next(fit, None) or min(ways, key=needs)


def decode_stream(
    decoder: Network,
    latents: mx.array,
    tiling: Tiling = StreamPlan(),
    *,
    key: mx.array | None = None,
) -> Iterator[mx.array]:
    """Pixels of ``latents`` (B, C, F, H, W) in order, (B, 3, f, height, width) at a time, each evaluated.

    A ``StreamPlan`` decodes exactly; a ``TilingConfig`` yields one chunk per tile of time. Holds at most a chunk and a
    tile. ``key`` is for a decoder that draws noise.
    """
    if isinstance(tiling, TilingConfig):
        yield from decoder.tiled(latents, tiling, key)
        return
    H, W = latents.shape[3:]
    axis = 3 if H > W else 4
    cell, streams = decoder.scale[axis - 2], []
    cuts = spans(latents.shape[axis], tiling.tiles, decoder.receptive_field)
    for start, stop, first, last in cuts:
        tile = mx.split(latents, [start, stop], axis=axis)[1]
        keep = [(first - start) * cell, (last - start) * cell]
        pieces = each_piece_by_piece(decoder.stream(tile, tiling.elements, key=key))
        streams.append(map(partial(_kept, axis=axis, keep=keep), pieces))
    yield from map(partial(together, axis=axis), zip(*streams, strict=True))


def _kept(pixels: mx.array, axis: int, keep: list[int]) -> mx.array:
    """A tile's contribution, evaluated before the next tile."""
    pixels = mx.contiguous(mx.split(pixels, keep, axis=axis)[1])
    mx.eval(pixels)
    return pixels


def spans(length: int, count: int, halo: int) -> list[tuple[int, int, int, int]]:
    """``count`` tiles of equal length: (start, stop, first kept, last kept + 1); kept cells are ``halo`` away from a cut."""
    size = min(length, -(-length // count) + 2 * halo)
    edges = [length * i // count for i in range(count + 1)]
    starts = [min(max(0, first - halo), length - size) for first in edges[:-1]]
    bounds = zip(starts, edges, edges[1:])
    return [(start, start + size, first, last) for start, first, last in bounds]
