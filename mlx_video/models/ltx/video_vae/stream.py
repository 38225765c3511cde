"""Runs a clip through a network whole or in pieces, with the same result. Knows frames, not what is done to them.

A convolution over time that sees later frames lags behind its input: frames that it cannot finish yet wait for the next
piece, and the clip's last piece releases them. So pieces shift as they pass, and nothing is computed twice.
"""

from contextlib import suppress
from typing import Callable, Iterator, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx.pacing import end_piece


class Incomplete(Exception):
    """The pieces so far finish no frame; another piece is needed."""


class FrameCache:
    """Frames (B, F, H, W, C) of one clip that the modules of a network keep between its pieces.

    causal  whether no frame sees a later one
    last    whether the current piece is the clip's last; set before each piece

    Call a module once per piece, in order. Results depend on the kept frames, which are evaluated with them, so that no
    piece stays alive.
    """

    def __init__(self, causal: bool = True):
        self.causal = causal
        self.last = True
        self._kept: dict[int, mx.array] = {}
        self._begun: set[int] = set()

    def begins(self, module: nn.Module) -> bool:
        """Whether this is the first call for ``module``, with the clip's first frames."""
        first = id(module) not in self._begun
        self._begun.add(id(module))
        return first

    def around(
        self, module: nn.Module, kernel: int
    ) -> tuple[mx.array | None, int, int]:
        """The kept frames before this piece, and how many frames a convolution's ``kernel`` needs before and after it.

        If none are kept, the clip begins: repeat its first frame instead. The last frame is repeated after the clip, so that
        the convolution keeps the number of frames.
        """
        before, after = (kernel - 1, 0) if self.causal else (kernel // 2, kernel // 2)
        kept = self._kept.pop(id(module), None)
        before = before if kept is None else kept.shape[1]
        return kept, before, after if self.last else 0

    def keep(self, module: nn.Module, x: mx.array, kernel: int) -> mx.array:
        """Return ``x``, a piece with the frames around it, and keep the frames that the next piece needs.

        Raises ``Incomplete`` if there are fewer than ``kernel``.
        """
        finished = max(0, x.shape[1] - kernel + 1)
        x = self._keep(module, x, x[:, finished:])
        if not finished:
            raise Incomplete
        return x

    def neighbors(
        self, module: nn.Module, x: mx.array, kernel: int
    ) -> tuple[list[mx.array], slice]:
        """The frames that windows of ``kernel`` frames need, in parts that end with ``x``; and which frames are ready.

        A window is centred but shifts inward at the clip's ends; a frame is ready once its whole window is there. Raises
        ``Incomplete`` if none is.
        """
        kept = self._kept.pop(id(module), None)
        parts = [x] if kept is None else [kept, x]
        frames = sum(part.shape[1] for part in parts)
        before = kernel // 2
        if frames < kernel:
            self._kept[id(module)] = mx.contiguous(mx.concatenate(parts, axis=1))
            raise Incomplete
        first = 0 if self.begins(module) else before
        stop = frames if self.last else frames - (kernel - 1 - before)
        late = x if x.shape[1] >= kernel - 1 else joined(kept, x)
        parts[-1] = self._keep(module, x, late[:, late.shape[1] - kernel + 1 :])
        return parts, slice(first, stop)

    def delay(
        self, module: nn.Module, x: mx.array, frames: int
    ) -> tuple[mx.array | None, mx.array]:
        """The kept frames and ``x``, whose last ``frames`` are kept: a skip as late as the convolutions beside it."""
        if self.causal:
            return None, x
        kept = self._kept.pop(id(module), None)
        if self.last:
            return kept, x
        late = x if x.shape[1] >= frames else joined(kept, x)
        return kept, self._keep(module, x, late[:, -frames:])

    def _keep(self, module: nn.Module, x: mx.array, frames: mx.array) -> mx.array:
        """Keep a copy of ``frames``, made when ``x`` is evaluated."""
        if self.last:
            return x
        self._kept[id(module)] = mx.contiguous(frames)
        return mx.depends(x, self._kept[id(module)])


Piece = tuple[mx.array, bool]
"""Frames (B, F, H, W, C) of a clip, and whether they are its last."""


class DecoderStep(NamedTuple):
    """A step of a network, and the most channels that one of its convolutions reads or writes."""

    run: Callable[[mx.array, FrameCache], mx.array]
    width: int


def joined(kept: mx.array | None, x: mx.array) -> mx.array:
    """The kept frames followed by ``x``: (B, F, H, W, C)."""
    return x if kept is None else mx.concatenate([kept, x], axis=1)


def in_pieces(
    steps: list[DecoderStep], x: mx.array, cache: FrameCache, elements: int
) -> Iterator[mx.array]:
    """Run a clip ``x`` through ``steps``, in consecutive pieces.

    Before each step the frames are cut so that its convolutions touch about ``elements``, but at least a frame. So early
    steps process many small frames at once, and late ones few large frames.
    """
    if not steps:
        yield x
        return
    (step, *later), last = steps, cache.last
    pieces = cut(x, elements // step.width)
    del x  # here and below, no variable keeps a piece alive after its use
    while pieces:
        cache.last = last and len(pieces) == 1
        with suppress(Incomplete):
            # One step's arrays for one piece at a time, of about ``elements`` each.
            y = end_piece(step.run(pieces.pop(0), cache))
            rest = in_pieces(later, y, cache, elements)
            del y
            yield from rest


def gathered(pieces: Iterator[Piece], elements: int) -> Iterator[Piece]:
    """Consecutive pieces, joined while they have at most ``elements``: small ones do not keep a large GPU busy."""
    waiting: list[mx.array] = []
    for x, last in pieces:
        waiting.append(x)
        del x  # so that no variable here keeps an array alive while the caller uses it; neither does ``waiting``
        if last or 2 * sum(array.size for array in waiting) > elements:
            waiting = [mx.concatenate(waiting, axis=1)]
            yield waiting.pop(), last


def cut(x: mx.array, cells: int) -> list[mx.array]:
    """Split (B, F, H, W, C) along time into about equal pieces of at most ``cells`` cells, or one frame."""
    B, F, H, W, _ = x.shape
    count = -(-F // max(1, cells // (B * H * W)))
    return mx.split(x, [F * i // count for i in range(1, count)], axis=1)
