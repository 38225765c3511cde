"""Decode and encode a clip of any length in bounded memory, with the very pixels and latents of the whole.

Knows what one step of a stream needs, not how a network makes it.
"""

import math
from fractions import Fraction
from functools import partial
from typing import Iterator, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx.pacing import each_piece_by_piece
from mlx_video.models.ltx.video_vae.convolution import CausalConv3d
from mlx_video.models.ltx.video_vae.decoder import VideoDecoder
from mlx_video.models.ltx.video_vae.encoder import VideoEncoder
from mlx_video.models.ltx.video_vae.sampling import DepthToSpaceUpsample
from mlx_video.models.ltx.video_vae.stream import widest

PIECE = 80_000_000
"""Elements per convolution: 25 frames of 512 x 768 or 6 of 1024 x 1536, enough to keep a large GPU busy."""
LEAST_PIECE = PIECE // 16
LIVE_PIECES = 16
"""Arrays of a piece's size that are alive at once, those that a GPU's queue has not yet let go included."""


class StreamPlan(NamedTuple):
    """How a clip is cut for decoding: no seam can be seen, for there is none.

    elements  about how many one convolution may touch; a frame at least
    tiles     side by side along the longer side, each with all cells around it that matter to it
    """

    elements: int = PIECE
    tiles: int = 1


def decode_streaming(
    decoder: VideoDecoder, latents: mx.array, plan: StreamPlan = StreamPlan()
) -> Iterator[mx.array]:
    """Pixels of ``latents`` (B, 128, F, H, W) in order, (B, 3, f, 32*H, 32*W) at a time, each evaluated."""
    H, W = latents.shape[3:]
    axis, length, cell = (
        (3, H, decoder.scale.height) if H > W else (4, W, decoder.scale.width)
    )
    streams = []
    for start, stop, first, last in spans(length, plan.tiles, receptive_field(decoder)):
        tile = _part(latents, axis, start, stop)
        keep = (first - start) * cell, (last - start) * cell
        pieces = each_piece_by_piece(decoder.stream(tile, plan.elements))
        streams.append(map(partial(_kept, axis=axis, keep=keep), pieces))
    yield from map(partial(_joined, axis=axis), zip(*streams, strict=True))


def _part(x: mx.array, axis: int, start: int, stop: int) -> mx.array:
    return x[(slice(None),) * axis + (slice(start, stop),)]


def _kept(pixels: mx.array, axis: int, keep: tuple[int, int]) -> mx.array:
    """What a tile contributes, evaluated before the next tile's turn."""
    pixels = mx.contiguous(_part(pixels, axis, *keep))
    mx.eval(pixels)
    return pixels


def _joined(tiles: tuple[mx.array, ...], axis: int) -> mx.array:
    pixels = mx.concatenate(list(tiles), axis=axis)
    mx.eval(pixels)
    return pixels


def encode_streaming(
    encoder: VideoEncoder, pixels: mx.array, elements: int = PIECE
) -> Iterator[mx.array]:
    """Latents of ``pixels`` (B, 3, F, H, W) in order, (B, 128, f, H/32, W/32) at a time, each evaluated."""
    for latents in each_piece_by_piece(encoder.stream(pixels, elements)):
        mx.eval(latents)
        yield latents


def spans(length: int, count: int, halo: int) -> list[tuple[int, int, int, int]]:
    """``count`` tiles of equal length: (start, stop, first kept, last kept + 1), the kept ones ``halo`` from a cut."""
    size = min(length, -(-length // count) + 2 * halo)
    edges = [length * i // count for i in range(count + 1)]
    starts = [min(max(0, first - halo), length - size) for first in edges[:-1]]
    return [
        (start, start + size, first, last)
        for start, first, last in zip(starts, edges, edges[1:])
    ]


def fitting(
    decoder: VideoDecoder, latents: mx.array, budget: float | None = None
) -> StreamPlan | None:
    """The fastest plan for ``latents`` that takes at most ``budget`` bytes beside the weights; ``None``: there is none.

    Without a budget it is what the device has left, where MLX knows that.
    """
    if budget is None:
        info = mx.device_info()
        memory = info.get("memory_size") or info.get("total_memory") or math.inf
        budget = memory - mx.get_active_memory()
    plans = (
        StreamPlan(elements, tiles)
        for tiles in range(1, max(latents.shape[3:]) // 2)
        for elements in (PIECE, PIECE // 4, LEAST_PIECE)
    )
    fit = (
        plan for plan in plans if decode_bytes(decoder, latents.shape, plan) <= budget
    )
    return next(fit, None)


def decode_bytes(
    decoder: VideoDecoder, shape: tuple[int, ...], plan: StreamPlan
) -> int:
    """About how much memory it takes to decode latents of ``shape`` beside the weights, whatever their length.

    That is the piece at work, and the two frames or three that each convolution and its skip keep for the next.
    """
    B, _, _, *sides = shape
    halo = receptive_field(decoder) if plan.tiles > 1 else 0
    length = min(max(sides), -(-max(sides) // plan.tiles) + 2 * halo)
    cells = B * min(sides) * length
    kept = frame = 0
    for block, scale in _walk(decoder):
        inputs = sum(conv.weight.shape[-1] for conv in _convolutions(block))
        kept += 3 * inputs * cells * scale**2
        frame = max(frame, widest(block) * cells * scale**2)
    elements = plan.tiles * kept + LIVE_PIECES * max(plan.elements, frame)
    return elements * decoder.conv_in.weight.itemsize


def receptive_field(decoder: VideoDecoder) -> int:
    """How many latent rows or columns away a cell may be and still matter to a pixel."""
    return math.ceil(
        sum(
            Fraction(len(_convolutions(block)), scale)
            for block, scale in _walk(decoder)
        )
    )


def _walk(decoder: VideoDecoder) -> Iterator[tuple[nn.Module, int]]:
    """Every block, and how many rows and columns it has for each of the latents'."""
    scale = 1
    for block in [decoder.conv_in, *decoder.up_blocks, decoder.conv_out]:
        yield block, scale
        scale *= block.stride[1] if isinstance(block, DepthToSpaceUpsample) else 1


def _convolutions(block: nn.Module) -> list[CausalConv3d]:
    """Those that see their neighbours."""
    parts = (part for part in block.modules() if isinstance(part, CausalConv3d))
    return [part for part in parts if part.kernel_size > 1]
