"""A request: what the user asks for, the parts it needs, and checks that need no weights."""

import operator
from dataclasses import dataclass
from typing import Callable, Iterable, TypeVar

from mlx_video.disk import short
from mlx_video.errors import UserError, at, check_text
from mlx_video.inputs import Input, Keyframes, Model, as_input
from mlx_video.models.ltx.config import LTXModelType
from mlx_video.models.ltx.video_vae.tiling import TilingConfig
from mlx_video.recipes import DEFAULT_NEGATIVE_PROMPT, SEED, Recipe
from mlx_video.types import VideoPixelShape

X = TypeVar("X")


@dataclass(frozen=True)
class Request:
    """What the user asks for, in the user's units.

    seed     random seed, 0 to 2^64 - 1
    enhance  whether Gemma rewrites the prompt first
    timed    whether the model chooses the number of frames by the prompt, instead of ``shape``
    tiling   how the video is decoded: auto, none, default, aggressive or conservative
    """

    prompt: str
    shape: VideoPixelShape
    negative_prompt: str = DEFAULT_NEGATIVE_PROMPT
    seed: int = SEED
    audio: bool = False
    inputs: tuple[Input, ...] = ()
    enhance: bool = False
    tiling: str = "auto"
    timed: bool = False

    def __post_init__(self):
        """Convert plain tuples and lists, NumPy's numbers and paths of pictures."""
        shape = _as("shape", "frames, height, width and fps", _shape, self.shape)
        whole = _as("seed", "a whole number", operator.index, self.seed)
        audio = _as("audio", "True or False", (False, True).index, self.audio)
        for name in ("prompt", "negative_prompt"):
            _as(name, "text", str.strip, getattr(self, name))
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "seed", whole)
        object.__setattr__(self, "audio", bool(audio))
        object.__setattr__(self, "inputs", tuple(map(as_input, self.inputs)))

    def check(self, recipe: Recipe, model: Model = Model(), opens: bool = True) -> None:
        """Raise ``UserError`` for anything wrong that can be known of ``model``; ``opens`` = inputs may open their files."""
        if not self.prompt.strip():
            raise UserError(
                "The prompt is empty; describe the clip, for example 'a cat on a red sofa'."
            ).at("prompt")
        with at("prompt"):
            check_text(self.prompt, "The prompt")
        with at("negative_prompt"):
            check_text(self.negative_prompt, "The negative prompt")
        if not 0 <= self.seed < 2**64:
            raise UserError(
                f"seed must be from 0 to {2**64 - 1}; got {short(self.seed, 40)}. For example: {SEED}."
            ).at("seed")
        with at("shape"):
            self.shape.check()
            recipe.staged(self.shape)
            if model.geometry:
                model.geometry.check(self.shape, recipe.shrink, self.audio)
        with at("tiling"):
            TilingConfig.named(self.tiling)
        if self.timed and recipe.rounds is not None:
            raise UserError(
                "DFR cannot choose the clip's length; set --num-frames."
            ).at("timed")
        asked = any(isinstance(given, Keyframes) for given in self.inputs)
        if asked and recipe.rounds is not None:
            raise UserError(
                "DFR generates keyframes of its own; leave out --keyframes."
            ).at("inputs")
        with at("inputs"):
            self._check_inputs(model, opens)

    def _check_inputs(self, model: Model, opens: bool) -> None:
        taken: set[str] = set()
        for number, given in enumerate(self.inputs):
            with at(number):
                given.check(self.shape, model, opens)
                if given.place in taken:
                    raise UserError(
                        f"Two inputs are at the same place, {given.place}; move one of them."
                    )
                taken |= {given.place} - {None}

    @property
    def model_type(self) -> LTXModelType:
        """The streams of the transformer that it needs."""
        return LTXModelType.AudioVideo if self.audio else LTXModelType.VideoOnly

    def inputs_of(self, stage: int) -> list[Input]:
        """The inputs that stage ``stage``, counted from 0, uses."""
        return [given for given in self.inputs if stage == 0 or not given.first_stage]

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the networks that the inputs need."""
        return tuple(sorted({name for given in self.inputs for name in given.needs}))

    def needs(self, recipe: Recipe) -> tuple[str, ...]:
        """Names of the parts that this request uses under ``recipe``."""
        needed = {*self.encoders, *["duration_head"] * self.timed}
        unused = () if self.audio else ("audio_decoder", "vocoder")
        parts = [name for name in recipe.needs if name not in unused]
        return (*parts, *sorted(needed - set(parts)))


def _as(what: str, kind: str, convert: Callable[[object], X], value: object) -> X:
    """Convert ``value``; if that fails, the ``UserError`` names ``what`` and the expected ``kind``."""
    try:
        return convert(value)
    except UserError:
        raise
    except (TypeError, ValueError):
        got = short(ascii(value), 60)
        raise UserError(f"{what} must be {kind}; got {got}.") from None


def _shape(given: Iterable) -> VideoPixelShape:
    shape = VideoPixelShape(*given)
    names = shape._fields[:3]
    sizes = (_as(n, "a whole number", operator.index, x) for n, x in zip(names, shape))
    fps = _as("fps", "a number", lambda x: float(x + 0), shape.fps)
    return VideoPixelShape(*sizes, fps)
