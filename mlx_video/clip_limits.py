"""How large and long a clip may be, and which of those a model can make. Imports no MLX: the server uses it."""

import math
from fractions import Fraction
from typing import Callable, Iterator, NamedTuple

from mlx_video.errors import UserError

LARGEST_SIDE = 16_384  # pixels, H.264's limit
SLOWEST, FASTEST = 1, 240  # frames per second
LONGEST_CLIP = 600  # seconds
MOST_FRAMES = LONGEST_CLIP * FASTEST + 1
MOST_STEPS = 10_000  # of a stage; more must be a mistake
STRONGEST = 100  # a LoRA or guidance; more must be a mistake
Warn = Callable[[str], object]


class VideoPixelShape(NamedTuple):
    """A clip in pixel space: ``frames`` at ``fps`` Hz, ``height`` x ``width`` pixels."""

    frames: int
    height: int
    width: int
    fps: float

    def __str__(self) -> str:
        return f"{self.frames} frame{'s' * (self.frames != 1)} of {self.size}"

    @property
    def size(self) -> str:
        """Width x height."""
        return f"{self.width}x{self.height}"

    @property
    def seconds(self) -> float:
        """Its duration."""
        return self.frames / self.fps

    @property
    def rate(self) -> Fraction:
        """``fps`` exactly; 23.976, 29.97 and 59.94 stand for NTSC's 24000/1001, 30000/1001 and 60000/1001."""
        ntsc = Fraction(round(self.fps * 1.001) * 1000, 1001)
        if math.isclose(self.fps, ntsc, rel_tol=1e-5):
            return ntsc
        return Fraction(self.fps).limit_denominator(1001)

    def scaled(self, scale: float) -> "VideoPixelShape":
        """The same clip with height and width multiplied by ``scale``."""
        height, width = round(self.height * scale), round(self.width * scale)
        return self._replace(height=height, width=width)

    def check(self) -> None:
        """Raise ``UserError`` for a size, length or rate that no model can make."""
        if max(self[1:3]) > LARGEST_SIDE or self.frames > MOST_FRAMES:
            raise UserError(
                f"A clip has at most {LARGEST_SIDE:,} pixels a side and {MOST_FRAMES:,} frames; got {self.frames:,} "
                f"frames of {self.width:,}x{self.height:,}. For example: 121 frames of 768x512."
            )
        if min(self[:3]) < 1:
            raise UserError(
                f"A clip has at least 1 frame and 1 pixel a side; got {self}. For example: 121 frames of 768x512."
            )
        if not SLOWEST <= self.fps <= FASTEST:
            raise UserError(
                f"fps must be from {SLOWEST} to {FASTEST} frames per second; got {self.fps}. The usual value is 24."
            )


def check_strength(what: str, strength: float, usual: float) -> None:
    """Raise ``UserError`` if the ``strength`` of a LoRA or of guidance is absurd."""
    if not abs(strength) <= STRONGEST:
        raise UserError(
            f"{what} must be from {-STRONGEST} to {STRONGEST}, such as {usual:g}; got {strength}."
        )


class Grid(NamedTuple):
    """The clips that a model can make: frames are 1 + a multiple of ``time``, and sides are multiples of ``height`` and
    ``width`` pixels, from ``least_height`` and ``least_width`` on.
    """

    time: int
    height: int
    width: int
    least_height: int = 1
    least_width: int = 1

    def nearest(self, clip: VideoPixelShape) -> VideoPixelShape:
        """The possible clip nearest to ``clip``."""
        height, width = (
            max(round(side / step), -(-least // step)) * step
            for side, step, least in zip(clip[1:3], self[1:3], self[3:])
        )
        frames = self.nearest_frames(clip.frames)
        return clip._replace(frames=frames, height=height, width=width)

    def nearest_frames(self, frames: float) -> int:
        """The possible number of frames nearest to ``frames``."""
        return max(0, round((frames - 1) / self.time)) * self.time + 1

    def frames_of(self, seconds: float, fps: float) -> int:
        """The possible number of frames whose last begins nearest to ``seconds``: 121 for 5 seconds at 24 Hz."""
        return self.nearest_frames(seconds * fps + 1)

    def shorter(self, clip: VideoPixelShape) -> Iterator[VideoPixelShape]:
        """Clips with fewer and fewer frames, at least two, than ``clip``, which is possible."""
        for frames in range(clip.frames - self.time, self.time, -self.time):
            yield clip._replace(frames=frames)

    def smaller(self, clip: VideoPixelShape) -> Iterator[VideoPixelShape]:
        """Smaller and smaller clips than ``clip``, which is possible, with about the same proportions."""
        for height in range(clip.height - self.height, 0, -self.height):
            width = clip.width / clip.height * height
            smaller = self.nearest(clip._replace(height=height, width=width))
            if smaller.height != height:  # the least
                return
            yield smaller

    def rounded(self, frames: int, warn: Warn) -> int:
        """The nearest possible number of frames; ``warn`` is called with a sentence if that is another."""
        if (nearest := self.nearest_frames(frames)) != frames:
            warn(f"{frames} frames became {nearest}: {self._frames_rule}.")
        return nearest

    def snapped(self, clip: VideoPixelShape, warn: Warn) -> VideoPixelShape:
        """The nearest possible clip; ``warn`` is called with a sentence on a changed size, and on a changed length."""
        nearest = self.nearest(clip)
        if rules := [*self._broken_by_sides(clip, nearest)]:
            warn(f"{clip.size} became {nearest.size}: {' and '.join(rules)}.")
        self.rounded(clip.frames, warn)
        return nearest

    def check(self, clip: VideoPixelShape) -> None:
        """Raise ``UserError``, naming the nearest possible clip, if ``clip`` is not one."""
        if (nearest := self.nearest(clip)) == clip:
            return
        rules = [self._frames_rule] * (nearest.frames != clip.frames)
        rules += self._broken_by_sides(clip, nearest)
        raise UserError(
            f"A clip of {clip} does not fit the model's grid: {' and '.join(rules)}. Nearest: {nearest}."
        )

    @property
    def _frames_rule(self) -> str:
        return f"frames must be 1 + a multiple of {self.time}"

    def _broken_by_sides(
        self, clip: VideoPixelShape, nearest: VideoPixelShape
    ) -> Iterator[str]:
        """The rules that the sides of ``clip`` break."""
        broken: dict[str, list[str]] = {}
        sides = zip(("height", "width"), clip[1:3], nearest[1:3], self[1:3], self[3:])
        for name, side, other, step, least in sides:
            if side != other:
                more = f", at least {least}" if side < least else ""
                broken.setdefault(f"be a multiple of {step}{more}", []).append(name)
        for rule, names in broken.items():
            yield f"{' and '.join(names)} must {'each ' * (len(names) > 1)}{rule}"
