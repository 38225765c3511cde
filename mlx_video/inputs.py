"""What a clip is made from besides the prompt. Each kind is a class; the pipeline, plan, record and terminal know its base."""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import (
    TYPE_CHECKING,
    Annotated,
    ClassVar,
    Literal,
    Mapping,
    NamedTuple,
    Sequence,
    Union,
    get_args,
)

import mlx.core as mx
import mlx.nn as nn

from mlx_video.conditioning.latent import Condition, VideoConditionByLatentIndex
from mlx_video.disk import full_path, is_there, short, typed_path
from mlx_video.errors import UserError, at, check_name
from mlx_video.models.ltx import condition_tokens, pacing
from mlx_video.models.ltx.config import LTXModelConfig
from mlx_video.types import AV, Geometry, VideoLatentShape, VideoPixelShape

if TYPE_CHECKING:
    from mlx_video.pictures import Picture

# Bytes needed to compress a picture with H.264, relative to its own; measured.
COMPRESSED = 7.2


class Parts(NamedTuple):
    """What inputs are encoded with: the networks that they need, by name; ``image_crf`` as in ``Defaults``."""

    networks: Mapping[str, nn.Module]
    geometry: Geometry
    image_crf: int


class Model(NamedTuple):
    """What is known of a checkpoint before its weights are read; ``None`` = not yet."""

    geometry: Geometry | None = None
    transformer: LTXModelConfig | None = None


class Option(NamedTuple):
    """The option for an input: ``flags``, and one or two groups of words that ``metavar`` names; repeatable."""

    flags: str
    metavar: tuple[str, ...]
    help: str


class Input(ABC):
    """An input of the user. A subclass is a frozen dataclass whose field ``kind`` is a literal with its name.

    needs        names of the networks that encode it
    first_stage  whether only a recipe's first stage uses it
    option       its command-line option, if any; ``typed`` reads the words
    files        those it is read from
    place        in the clip, which no other input may share
    read_bytes   outside of MLX's arrays, to prepare it
    """

    kinds: ClassVar[dict[str, type["Input"]]] = {}
    needs: ClassVar[tuple[str, ...]] = ()
    first_stage: ClassVar[bool] = False
    option: ClassVar[Option | None] = None
    files: ClassVar[tuple[str, ...]] = ()
    place: ClassVar[str | None] = None
    read_bytes: ClassVar[int] = 0

    def __init_subclass__(cls, **options) -> None:
        super().__init_subclass__(**options)
        (name,) = get_args(cls.__annotations__["kind"])
        Input.kinds[name] = cls

    @classmethod
    def __get_pydantic_core_schema__(cls, source, handler):
        """For records: an ``Input`` is of any kind, which its field ``kind`` tells."""
        if cls is not Input:
            return handler(source)
        from pydantic import Field

        kinds = Union[tuple(Input.kinds.values())]
        return handler.generate_schema(Annotated[kinds, Field(discriminator="kind")])

    @classmethod
    def typed(cls, words: Sequence[str]) -> "Input":
        """The input from the ``words`` after ``option.flags``."""
        raise NotImplementedError

    def check(self, shape: VideoPixelShape, model: Model, opens: bool) -> None:
        """Raise ``UserError`` if ``model`` cannot use it for a clip of ``shape``, or, if ``opens``, its files are unusable."""

    def notices(self, shape: VideoPixelShape) -> tuple[str, ...]:
        """Sentences on what the user should know about it."""
        return ()

    @abstractmethod
    def moved(self, factor: int, start: int, end: int) -> "Input | None":
        """The input for frames ``start`` to ``end`` of the clip at ``factor`` times its frame rate; ``None`` = outside."""

    def tokens(self, grid: VideoLatentShape) -> AV[int]:
        """How many tokens it adds to each stream of a clip whose latents are ``grid``; ``None`` = none."""
        return AV()

    @abstractmethod
    def encode(self, parts: Parts, shape: VideoPixelShape) -> AV[list[Condition]]:
        """Its conditions on each stream of a clip of ``shape``."""


@dataclass(frozen=True)
class Image(Input):
    """A picture that the clip shows at ``frame`` (0 or a multiple of a latent's frames); ``strength`` 1 keeps it."""

    path: str
    frame: int = 0
    strength: float = 1.0
    kind: Literal["image"] = field(default="image", kw_only=True, repr=False)

    needs = ("video_encoder",)
    option = Option(
        "--image -i",
        ("PATH", "FRAME STRENGTH"),
        "picture (PNG, JPEG, WebP, BMP, GIF or TIFF; HEIC with pillow-heif) to show at FRAME (0, "
        "or with LTX-2 a multiple of 8; 0 if left out), kept by STRENGTH (0 to 1; 1 if left out); repeatable",
    )

    def __post_init__(self):
        object.__setattr__(self, "path", os.fspath(self.path))

    @classmethod
    def typed(cls, words: Sequence[str]) -> "Image":
        """PATH [FRAME] [STRENGTH]; the path of a local picture becomes absolute."""
        path, *rest = words
        try:
            frame, strength = *rest, *("0", "1")[len(rest) :]
            frame, strength = int(frame), float(strength)
        except ValueError:
            raise UserError(
                f"--image needs PATH [FRAME] [STRENGTH]; got '{short(' '.join(words))}'. "
                "For example: --image cat.png 0 0.9."
            ) from None
        return cls(full_path(path), frame, strength)

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path,)

    @property
    def place(self) -> str:
        return f"frame {self.frame}"

    def check(self, shape: VideoPixelShape, model: Model, opens: bool) -> None:
        with at("path"):
            check_name(self.path, "The picture's path")
        every = model.geometry.video.time if model.geometry else 1
        if self.frame % every or not 0 <= self.frame < shape.frames:
            nearest = min(max(0, round(self.frame / every) * every), shape.frames - 1)
            raise UserError(
                f"An image can be at frame 0, {every}, {2 * every}, ... below {shape.frames}; got {short(self.frame, 40)} for "
                f"{short(self.path)}. Nearest: {nearest}."
            ).at("frame")
        if not 0 <= self.strength <= 1:
            raise UserError(
                f"An image's strength must be from 0 to 1; got {self.strength} for {short(self.path)}."
            ).at("strength")
        if opens:
            with at("path"):
                _picture(self.path)

    def notices(self, shape: VideoPixelShape) -> tuple[str, ...]:
        picture = _picture(self.path)
        return (*picture.notices, *picture.crop(shape.height, shape.width))

    def moved(self, factor: int, start: int, end: int) -> "Image | None":
        frame = factor * self.frame
        return replace(self, frame=frame - start) if start <= frame <= end else None

    def tokens(self, grid: VideoLatentShape) -> AV[int]:
        return AV(grid.tokens_per_frame if self.frame else 0)

    @property
    def read_bytes(self) -> int:
        """For the pixels of a local picture and the copies that H.264 coding makes."""
        here = is_there(typed_path(self.path))
        return round(COMPRESSED * _picture(self.path).pixels.nbytes) if here else 0

    def encode(self, parts: Parts, shape: VideoPixelShape) -> AV[list[Condition]]:
        """At frame 0 it replaces the first latent; elsewhere it appends keyframe tokens to the clip's own."""
        encoder = parts.networks["video_encoder"]
        picture = _picture(self.path)
        pixels = picture.fitted(shape.height, shape.width, parts.image_crf)
        with pacing.piece_by_piece():
            latent = encoder(pixels).astype(mx.float32)
            mx.eval(latent)
        if self.frame == 0:
            return AV([VideoConditionByLatentIndex(latent, 0, self.strength)])
        place = condition_tokens.Place(parts.geometry.video, shape.fps)
        return AV([condition_tokens.keyframe(latent, self.frame, place, self.strength)])


@dataclass(frozen=True)
class Keyframes(Input):
    """``count`` pictures, evenly spaced, that the model makes together with the clip to keep it sharp."""

    count: int
    kind: Literal["keyframes"] = field(default="keyframes", kw_only=True, repr=False)

    first_stage, place = True, "all generated keyframes"
    option = Option(
        "--keyframes",
        ("N",),
        "generate N keyframes, evenly spaced, which keep the clip sharp; LTX-2.5",
    )

    @classmethod
    def typed(cls, words: Sequence[str]) -> "Keyframes":
        """N."""
        try:
            (count,) = map(int, words)
        except ValueError:
            raise UserError(
                f"--keyframes needs a whole number; got '{short(' '.join(words))}'. For example: --keyframes 3."
            ) from None
        return cls(count)

    def check(self, shape: VideoPixelShape, model: Model, opens: bool) -> None:
        with at("count"):
            condition_tokens.evenly_spaced(self.count, shape.frames)
        if model.transformer and not model.transformer.use_keyframes_abs_pos_embedding:
            raise UserError(
                "This model cannot generate keyframes; LTX-2.5 can. Leave out --keyframes."
            )

    def moved(self, factor: int, start: int, end: int) -> None:
        """Only the first stage uses it."""

    def tokens(self, grid: VideoLatentShape) -> AV[int]:
        return AV(self.count * grid.tokens_per_frame)

    def encode(self, parts: Parts, shape: VideoPixelShape) -> AV[list[Condition]]:
        size = parts.geometry.latents(shape)[3:]
        frames = condition_tokens.evenly_spaced(self.count, shape.frames)
        place = condition_tokens.Place(parts.geometry.video, shape.fps)
        return AV([condition_tokens.generated_keyframes(frames, size, place)])


def as_input(given: "Input | str | os.PathLike") -> Input:
    """``given`` if it is an input, else the picture at that path, at frame 0."""
    return given if isinstance(given, Input) else Image.typed([os.fspath(given)])


def forget_pictures() -> None:
    """Free the pictures that were read: a run reads each once, and needs it until it is encoded."""
    _read_picture.cache_clear()


def _picture(path: str) -> "Picture":
    """The picture at ``path``, read again only if the file changes."""
    file = typed_path(path)
    stamp = file.stat() if is_there(file) else None
    return _read_picture(path, stamp and (stamp.st_mtime_ns, stamp.st_size))


@lru_cache(maxsize=None)
def _read_picture(path: str, stamp: tuple[int, int] | None) -> "Picture":
    from mlx_video.pictures import read_picture  # imports codecs, rarely needed

    return read_picture(path)
