"""The layout of DFR (diffusion fidelity rendering): its canvas, its keyframes, and the tiles of its temporal rounds.

Pictures are generated at every ``segment``-th frame of the canvas, together with the clip. A temporal round doubles the
frame rate: it upsamples the clip in time, cuts it at those pictures into tiles of whole segments, refines each tile
between them, and generates a picture in the middle of each segment for the next round.

Frames are pixel frames of the round's canvas, counted from 0. Knows numbers, and how latents are joined.
"""

from itertools import accumulate, pairwise
from typing import Mapping, NamedTuple, Sequence

import mlx.core as mx

from mlx_video.conditioning.latent import Condition, LatentState
from mlx_video.models.ltx.condition_tokens import Place, generated_keyframes, keyframe

SEGMENTS = (24, 32)  # frames; the first round doubles them, and so on
ANCHOR_STRENGTH = 0.95  # of the pictures between which a tile is refined
ROUND_ETA = 0.5  # of a tile's ancestral steps
MAX_FPS = 60.0  # for the transformer; the clip may play faster


class Canvas(NamedTuple):
    """What stage 1 renders: ``frames``, with a picture at every ``segment``-th."""

    frames: int
    segment: int

    @classmethod
    def of(cls, frames: int) -> "Canvas":
        """The shortest canvas for a clip of ``frames``; of two equal ones, the one with longer segments."""
        segment = min(SEGMENTS, key=lambda s: (-(frames - 1) % s, -s))
        return cls(frames + -(frames - 1) % segment, segment)

    @property
    def keyframes(self) -> tuple[int, ...]:
        """Frames where pictures are generated: the end of each segment, so also the last frame."""
        return tuple(range(self.segment, self.frames, self.segment))


class Tile(NamedTuple):
    """A part of the canvas that a temporal round refines by itself.

    start, end  its first and last frame
    anchors     frames of the carried pictures in it
    slots       frames where it generates pictures: the middle of each segment
    drop        how many of its first latents belong to the previous tile: its lead-in
    """

    start: int
    end: int
    anchors: tuple[int, ...]
    slots: tuple[int, ...]
    drop: int

    @property
    def frames(self) -> int:
        """How many frames it has, both ends included."""
        return self.end - self.start + 1

    def latents(self, time_scale: int) -> slice:
        """Its latents among those of the canvas, one for each ``time_scale`` frames."""
        return slice(self.start // time_scale, self.end // time_scale + 1)

    def cells(self, time_scale: int) -> int:
        """How many latent frames are sampled for it, including its pictures."""
        own = self.end // time_scale - self.start // time_scale + 1
        return own + len(self.anchors) + len(self.slots)


def doubled(keyframes: Sequence[int]) -> tuple[int, ...]:
    """Frames of pictures after the clip is upsampled in time, from ``n`` frames to ``2 * (n - 1) + 1``."""
    return tuple(2 * frame for frame in keyframes)


def tiles(seams: Sequence[int], count: int, time_scale: int) -> list[Tile]:
    """At most ``count`` tiles of whole segments, the longest first, that together cover the canvas.

    seams  frames of the carried pictures in order, including the canvas's last
    Every tile but the first also has the segment before its own as a lead-in.
    """
    edges = [0, *seams]
    segments = len(seams)
    count = min(count, segments)
    owned = [segments // count + (i < segments % count) for i in range(count)]
    bounds = pairwise(accumulate(owned, initial=0))
    return [_tile(edges, first, last, time_scale) for first, last in bounds]


def layouts(canvas: Canvas, rounds: int, time_scale: int) -> list[list[Tile]]:
    """The tiles of each temporal round: up to two in the first, four in the second, and so on."""
    found, keyframes = [], canvas.keyframes
    for number in range(1, rounds + 1):
        layout = tiles(doubled(keyframes), 2**number, time_scale)
        keyframes = sorted({f for tile in layout for f in tile.anchors + tile.slots})
        found.append(layout)
    return found


def _tile(edges: Sequence[int], first: int, last: int, time_scale: int) -> Tile:
    """The tile that owns the segments from edge ``first`` to edge ``last``."""
    inside = edges[max(0, first - 1) : last + 1]
    start = inside[0]
    # The picture at the seam, and the latent that ends there, belong to the previous tile.
    drop = (edges[first] - start) // time_scale + 1 if first else 0
    return Tile(
        start,
        inside[-1],
        anchors=tuple(frame for frame in inside if frame),
        slots=tuple((a + b) // 2 for a, b in zip(inside, inside[1:])),
        drop=drop,
    )


def nearest(video: mx.array, frames: Sequence[int], time_scale: int) -> mx.array:
    """The latents of ``video`` (B, C, F, H, W) nearest to ``frames``: (B, C, len(frames), H, W)."""
    last = video.shape[2] - 1
    chosen = [min(round(frame / time_scale), last) for frame in frames]
    return video[:, :, mx.array(chosen)]


def tile_conditions(
    tile: Tile, pictures: Mapping[int, mx.array], video: mx.array, place: Place
) -> list[Condition]:
    """The pictures that a tile is refined between, and those that it generates.

    pictures  the carried ones by frame of the canvas, (B, C, 1, H, W) each
    video     the tile's own latents (B, C, F, H, W), from which new pictures start
    """
    anchors = [
        keyframe(pictures[frame], frame - tile.start, place, ANCHOR_STRENGTH)
        for frame in tile.anchors
    ]
    slots = [frame - tile.start for frame in tile.slots]
    seeds = nearest(video, slots, place.scale.time)
    return [*anchors, generated_keyframes(slots, video.shape[3:], place, seeds)]


def generated_pictures(
    state: LatentState, frames: Sequence[int], size: tuple[int, int]
) -> dict[int, mx.array]:
    """The pictures generated with ``state``, (B, C, 1, H, W) each, by their ``frames``."""
    tokens = state.generated_keyframes()
    B, _, C = tokens.shape
    stack = tokens.swapaxes(1, 2).reshape(B, C, len(frames), *size)
    return dict(zip(frames, mx.split(stack, len(frames), axis=2)))


def join(latents: Sequence[mx.array], layout: Sequence[Tile]) -> mx.array:
    """The canvas (B, C, F, H, W) from its tiles' latents, each without its lead-in."""
    own = [latent[:, :, tile.drop :] for latent, tile in zip(latents, layout)]
    return mx.concatenate(own, axis=2)


def carried(pictures: Sequence[Mapping[int, mx.array]]) -> dict[int, mx.array]:
    """Pictures of all tiles by frame, in order; where two tiles have one, the earlier tile's is used."""
    merged = {frame: picture for each in reversed(pictures) for frame, picture in each.items()}  # fmt: skip
    return dict(sorted(merged.items()))
