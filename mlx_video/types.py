"""The values that the package passes around, and the geometry that relates them.

Axis letters: B batch, C channels, F latent frames, H W latent rows and columns,
N tokens, D width, L prompt tokens, T audio latent frames, M mel bins.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Callable, Generic, Iterable, Iterator, NamedTuple, TypeVar

import mlx.core as mx
import numpy as np

from mlx_video.clip_limits import Grid, VideoPixelShape
from mlx_video.errors import UserError

X = TypeVar("X")

CLIP_SUFFIXES = (".mp4", ".mov", ".webm", ".gif", ".webp")
SILENT_SUFFIXES = (".gif", ".webp")  # of files without sound
FRAME_FILES = "frame_*.png"  # of a clip that is written as pictures


class Modality(Enum):
    """The two streams of an audio-video model."""

    VIDEO = "video"
    AUDIO = "audio"


@dataclass(frozen=True)
class AV(Generic[X]):
    """One value for video and one for audio; ``None`` where a modality is absent."""

    video: X | None = None
    audio: X | None = None

    def __getitem__(self, modality: Modality) -> X | None:
        return self.audio if modality is Modality.AUDIO else self.video

    @property
    def present(self) -> tuple[Modality, ...]:
        """The modalities that have a value, video first."""
        return tuple(m for m in Modality if self[m] is not None)

    @property
    def values(self) -> tuple[X, ...]:
        """The values that are not ``None``, video first."""
        return tuple(x for x in (self.video, self.audio) if x is not None)

    @property
    def swapped(self) -> "AV[X]":
        """Each modality's value in the other's place."""
        return AV(self.audio, self.video)

    def map(self, fn: Callable, *others: "AV") -> "AV":
        """Apply ``fn`` to each present modality, with the matching value of each ``other``."""
        # Written out for speed: every block of the transformer calls it.
        video = audio = None
        if self.video is not None:
            video = fn(self.video, *[other.video for other in others])
        if self.audio is not None:
            audio = fn(self.audio, *[other.audio for other in others])
        return AV(video, audio)


class VideoScale(NamedTuple):
    """Pixels per latent cell along each axis: frames, rows, columns."""

    time: int
    height: int
    width: int


class AudioScale(NamedTuple):
    """How latent sound relates to seconds.

    sample_rate     Hz, of the waveform behind the mel frames
    hop             samples of that waveform per mel frame
    mel_frames      per latent frame
    channels, bins  of a latent frame, which is one token
    output_rate     Hz, of the vocoder's waveform
    """

    sample_rate: int
    hop: int
    mel_frames: int
    channels: int
    bins: int
    output_rate: int

    @property
    def latents_per_second(self) -> float:
        """Latent frames per second of sound; 25 for LTX-2."""
        return self.sample_rate / self.hop / self.mel_frames

    @property
    def token_width(self) -> int:
        """Channels of a token."""
        return self.channels * self.bins


class VideoLatentShape(NamedTuple):
    """Video latents, (B, C, F, H, W)."""

    batch: int
    channels: int
    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Cells of the clip; each is one token."""
        return self.frames * self.height * self.width

    @property
    def tokens_per_frame(self) -> int:
        """Cells of a latent frame."""
        return self.height * self.width


@dataclass(frozen=True)
class Geometry:
    """How a checkpoint's latents relate to pixels and seconds; read from its config, never assumed.

    video     pixels per latent cell
    channels  of a video latent
    audio     ``None`` if the checkpoint makes no sound
    least     fewest cells on each side of a frame that the decoder can work on
    """

    video: VideoScale
    channels: int
    audio: AudioScale | None = None
    least: int = 1

    def grid(self, shrink: int = 1) -> Grid:
        """The clips that it can make; ``shrink`` is how many times smaller the smallest stage is."""
        time, height, width = self.video
        least = self.least * height, self.least * width
        return Grid(time, height * shrink, width * shrink, *least)

    def check(
        self, shape: VideoPixelShape, shrink: int = 1, audio: bool = False
    ) -> None:
        """Raise ``UserError`` if ``shape`` is not on the ``grid``, or too short for sound."""
        self.grid(shrink).check(shape)
        if audio and self.audio is None:
            raise UserError("This model makes no sound; leave out the audio.")
        if audio and self.audio_frames(shape) < 1:
            raise UserError(
                f"A clip of {shape.seconds:.2g} s is too short for sound. Try "
                f"{1 + self.video.time} frames at 24 fps."
            )

    def latents(self, shape: VideoPixelShape) -> VideoLatentShape:
        """The latent grid of a clip: the causal VAE encodes the first frame alone, then ``video.time`` frames at a time."""
        time, height, width = self.video
        frames = (shape.frames - 1) // time + 1
        rows, columns = shape.height // height, shape.width // width
        return VideoLatentShape(1, self.channels, frames, rows, columns)

    def audio_frames(self, shape: VideoPixelShape) -> int:
        """Latent frames of sound that last as long as a clip, to the nearest (ties to even)."""
        return round(shape.frames / shape.fps * self.audio.latents_per_second)


class TextFeatures(NamedTuple):
    """The language model's output for a batch of prompts, before the connectors.

    hidden_states  (layers + 1, B, T, D): the embeddings, then every layer's output
    mask           (B, L), 1 = token, 0 = padding on the left; L >= T, and positions not in ``hidden_states`` are padding
    """

    hidden_states: mx.array
    mask: mx.array


@dataclass(frozen=True)
class PromptEmbeddings:
    """Text context for the transformer: (B, L, D) per modality."""

    positive: AV[mx.array]
    negative: AV[mx.array] | None = None


@dataclass(frozen=True)
class Waveform:
    """Samples in [-1, 1], (channels, n), float32, at ``sample_rate`` Hz."""

    samples: mx.array
    sample_rate: int

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.samples.shape[1] / self.sample_rate


@dataclass(frozen=True)
class Clip:
    """The result of a generation: uint8 RGB frames (H, W, 3), in order, and their sound.

    ``frames`` is an iterator: each frame is decoded once, when it is taken; a second iteration raises ``UserError``.
    """

    frames: Iterator[np.ndarray]
    shape: VideoPixelShape
    audio: Waveform | None = None

    def __post_init__(self):
        object.__setattr__(self, "frames", _Once(self.frames))

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.shape.fps


class _Once(Iterator[np.ndarray]):
    """Frames that can be read only once."""

    def __init__(self, frames: Iterable[np.ndarray]):
        self.frames, self.ended = iter(frames), False

    def __iter__(self) -> "_Once":
        if self.ended:
            raise UserError(
                "The frames of this clip were already read; they are decoded only once. Keep them in a list, or make the clip "
                "again."
            )
        return self

    def __next__(self) -> np.ndarray:
        for frame in self.frames:
            return frame
        self.ended = True
        raise StopIteration


@dataclass(frozen=True)
class Sample:
    """The result of sampling, before it is decoded.

    latents  video (B, C, F, H, W) and audio (B, C, T, M), normalised
    prompt   the prompt that was encoded: the request's, or its enhanced form
    """

    latents: AV[mx.array]
    prompt: str


class Doing:
    """Names of phases, in the order of a run and of its plan; ``Recipe.phase`` names those that sample."""

    LIBRARIES = "libraries"  # only in a plan: stays during all other phases
    LOAD_TEXT_ENCODER = "load text encoder"
    ENCODE_PROMPT = "encode prompt"
    PREDICT_DURATION = "predict duration"
    ENCODE_INPUTS = "encode inputs"
    LOAD_TRANSFORMER = "load transformer"
    UPSAMPLE = "upsample"
    DECODE_SOUND = "decode sound"
    DECODE_VIDEO = "decode video"


class Step(NamedTuple):
    """Progress: ``index`` of ``total`` units of ``phase`` (see ``Doing``) are done; index 0 announces the phase.

    ``sigma`` is the noise level reached, in phases that sample.
    """

    phase: str
    index: int
    total: int
    sigma: float | None = None


@dataclass(frozen=True)
class Perturbation:
    """What a guided pass skips in the transformer; by default nothing.

    skip_self_attention  per modality, blocks whose self-attention only passes its values through (STG)
    isolate              whether to skip audio-video cross-attention in all blocks (modality guidance)
    """

    skip_self_attention: AV[frozenset[int]] = AV(frozenset(), frozenset())
    isolate: bool = False
