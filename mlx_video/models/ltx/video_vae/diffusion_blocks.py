"""Blocks of the diffusion decoder. Knows the inside of a block and how frames pass through it, not their order."""

import math
from collections import deque
from typing import Callable, Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx.pacing import end_piece
from mlx_video.models.ltx.video_vae.neighborhood import (
    NORM_EPS,
    TILE,
    NeighborhoodAttention,
    Windows,
    shifted,
)
from mlx_video.models.ltx.video_vae.sampling import depth_to_space
from mlx_video.models.ltx.video_vae.stream import FrameCache

MLP_RATIO = 4
MLP_MULTIPLE = 16  # of which the MLP's width is a multiple
MODULATION = 7  # rows: scale, shift and gate of attention and of the MLP, and one more gate; gates are unused
BAND = 48_000_000
"""Elements that a band of rows attends to: 20 rows of 8 frames at 1024 x 1536, enough to keep a large GPU busy."""


class SwiGLU(nn.Module):
    """w_down(silu(w_gate(x)) * w_up(x)), (..., dim) -> (..., dim), four times as wide inside."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = math.ceil(MLP_RATIO * dim / MLP_MULTIPLE) * MLP_MULTIPLE
        self.w_gate = nn.Linear(dim, hidden, bias=False)
        self.w_up = nn.Linear(dim, hidden, bias=False)
        self.w_down = nn.Linear(hidden, dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.w_down(_gated(self.w_gate(x), self.w_up(x)))


@mx.compile
def _gated(gate: mx.array, x: mx.array) -> mx.array:
    return nn.silu(gate) * x


@mx.compile
def _modulated(x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
    return x * (1 + scale) + shift


class NeighborhoodBlock(nn.Module):
    """Pre-norm neighbourhood attention, then a pre-norm MLP, each added to its input."""

    def __init__(
        self,
        dim: int,
        kernel: tuple[int, int, int],
        head_dim: int,
        repeat_columns: bool = False,
    ):
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, NORM_EPS)
        self.attn = NeighborhoodAttention(dim, kernel, head_dim, repeat_columns)
        self.norm2 = nn.RMSNorm(dim, NORM_EPS)
        self.mlp = SwiGLU(dim)

    def __call__(
        self, x: mx.array, cache: FrameCache, modulation: Sequence[mx.array] = ()
    ) -> mx.array:
        """(B, F, H, W, C) -> (B, F', H, W, C); ``modulation`` is scale and shift after each norm."""
        parts, ready = cache.neighbors(self, x, self.attn.kernel[0])
        del x
        bands = [  # one band's queries, keys and wide layer at a time
            end_piece(self._band(parts, ready, band, at, modulation))
            for band, at in self._bands(parts)
        ]
        return mx.concatenate(bands, axis=2)

    def _bands(self, parts: list[mx.array]) -> Iterator[tuple[slice, Windows]]:
        """Bands of rows that are computed together, in whole tiles, and their windows."""
        _, _, H, W, C = parts[0].shape
        frames = sum(part.shape[0] * part.shape[1] for part in parts)
        windows = shifted(H, self.attn.kernel[1])
        rows = BAND // (frames * W * C) - windows.size + 1
        size = max(1, rows // TILE[1]) * TILE[1]
        for start in range(0, H, size):
            band = slice(start, min(start + size, H))
            yield band, windows.part(band)

    def _band(
        self,
        parts: list[mx.array],
        ready: slice,
        band: slice,
        at: Windows,
        modulation: Sequence[mx.array],
    ) -> mx.array:
        """The finished frames of a band of rows."""
        x = mx.concatenate([part[:, :, at.keys] for part in parts], axis=1)
        rows = slice(band.start - at.keys.start, band.stop - at.keys.start)
        y = _normed(self.norm1, x, modulation[:2])
        y = x[:, ready, rows] + self.attn(y, ready, rows, at.after(at.keys.start))
        return y + self.mlp(_normed(self.norm2, y, modulation[2:]))


def _normed(norm: nn.Module, x: mx.array, rows: Sequence[mx.array]) -> mx.array:
    return _modulated(norm(x), *rows) if rows else norm(x)


class DiffusionBlock(NeighborhoodBlock):
    """A block that also adds the context and is modulated by the noise level."""

    def __init__(self, dim: int, *arguments):
        super().__init__(dim, *arguments)
        self.context_proj = nn.Linear(dim, dim)
        self.scale_shift_table = mx.zeros((MODULATION, dim))

    def rows(self, shared: mx.array) -> list[mx.array]:
        """Scale and shift after each norm, from this block's own rows and those that all blocks share, (B, 7, C)."""
        rows = (shared + self.scale_shift_table)[:, :, None, None, None]
        return [rows[:, i] for i in (0, 1, 3, 4)]

    def run(
        self,
        x: mx.array,
        cache: FrameCache,
        context: Callable[[int], mx.array],
        modulation: list[mx.array],
    ) -> mx.array:
        """Apply the block to a piece ``x``; ``context`` returns its next frames, and ``modulation`` comes from ``rows``."""
        # Frees the context's frames during the attention.
        x = end_piece(x + self.context_proj(context(x.shape[1])))
        return self(x, cache, modulation)


class LinearUpsample(nn.Module):
    """A linear layer whose channels are shuffled into more frames, rows and columns.

    If frames are doubled, the first is dropped: it precedes the clip.
    """

    def __init__(self, dim: int, out: int, stride: tuple[int, int, int]):
        super().__init__()
        self.stride = tuple(stride)
        self.proj = nn.Linear(dim, out * math.prod(stride))

    def __call__(self, x: mx.array, cache: FrameCache, begins: bool = True) -> mx.array:
        """(B, F, H, W, dim) -> finer cells; ``begins`` = the first piece begins the clip, not just a tile."""
        y = depth_to_space(self.proj(x), self.stride)
        return y[:, self.stride[0] - 1 :] if cache.begins(self) and begins else y


class Context:
    """Frames that several readers take in order, each at its own pace; freed once the last reader has taken them."""

    def __init__(self, readers: int):
        self._frames: deque[mx.array] = deque()
        self._first = 0
        self._taken = [0] * readers

    @property
    def count(self) -> int:
        """How many frames were added."""
        return self._first + len(self._frames)

    def put(self, x: mx.array) -> None:
        """Add frames (B, F, H, W, C)."""
        self._frames.extend(mx.contiguous(f) for f in mx.split(x, x.shape[1], axis=1))

    def take(self, count: int, reader: int) -> mx.array:
        """The next ``count`` frames for a ``reader``."""
        start = self._taken[reader] - self._first
        frames = [self._frames[i] for i in range(start, start + count)]
        self._taken[reader] += count
        while self._first < min(self._taken):
            self._frames.popleft()
            self._first += 1
        return mx.concatenate(frames, axis=1)
