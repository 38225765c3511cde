"""What encoder and decoder share: the statistics of the latents, the list of blocks and the names of the weights."""

import math
import re
from typing import ClassVar, Iterator

import mlx.core as mx
import mlx.nn as nn

from mlx_video.errors import UserError
from mlx_video.types import VideoScale
from mlx_video.weights import Weights, channels_last, strip_prefixes

# By name without "_res" (with a skip connection) or "_x_y" (with a change of width): frames, rows, columns.
STRIDES = {
    "compress_time": (2, 1, 1),
    "compress_space": (1, 2, 2),
    "compress_all": (2, 2, 2),
}
_BLOCK_PARAMETERS = {"num_layers", "multiplier", "residual", "inject_noise"}

Block = tuple[str, dict[str, int | bool]]


def read_blocks(blocks: tuple) -> Iterator[Block]:
    """(name, parameters) of the config's block list, where a bare number is ``num_layers``."""
    for name, parameters in blocks:
        if isinstance(parameters, int):
            parameters = {"num_layers": parameters}
        if unknown := sorted(parameters.keys() - _BLOCK_PARAMETERS):
            raise UserError(
                f"Video VAE block {name!r}: unknown parameters {', '.join(unknown)}. "
                "The checkpoint may need a newer mlx-video."
            )
        yield name, parameters


def stride_of(name: str) -> tuple[int, int, int]:
    """By how much a block shrinks (encoder) or grows (decoder) frames, rows and columns."""
    return STRIDES.get(name.removesuffix("_res").removesuffix("_x_y"), (1, 1, 1))


def compression(blocks: tuple, patch_size: int) -> VideoScale:
    """Pixels per latent cell of an encoder or decoder with these blocks."""
    strides = [stride_of(name) for name, _ in blocks]
    time, height, width = (math.prod(axis) for axis in zip(*strides))
    return VideoScale(time, height * patch_size, width * patch_size)


class PerChannelStatistics(nn.Module):
    """Mean and standard deviation of each latent channel over the training set."""

    def __init__(self, channels: int):
        super().__init__()
        self.mean = mx.zeros(channels)
        self.std = mx.ones(channels)

    def normalize(self, latent: mx.array) -> mx.array:
        """To mean 0 and deviation 1: (B, C, F, H, W), what the transformer works on."""
        return (latent - _per_channel(self.mean)) / _per_channel(self.std)

    def un_normalize(self, latent: mx.array) -> mx.array:
        """The inverse of ``normalize``: what the decoder and the upsampler work on."""
        return latent * _per_channel(self.std) + _per_channel(self.mean)


def _per_channel(x: mx.array) -> mx.array:
    return x[:, None, None, None]


class VideoVAEPart(nn.Module):
    """Base of ``VideoEncoder`` and ``VideoDecoder``: the official names of their weights."""

    OFFICIAL: ClassVar[dict[str, str]]
    UNUSED: ClassVar[frozenset[str]] = frozenset(
        {
            "per_channel_statistics.channel",
            "per_channel_statistics.mean-of-stds",
            "per_channel_statistics.mean-of-stds_over_std-of-means",
        }
    )

    @property
    def streams(self) -> bool:
        """Whether a clip may pass in pieces: a group norm's statistics are over all of its frames."""
        return not any(isinstance(part, nn.GroupNorm) for part in self.modules())

    @staticmethod
    def rename(key: str) -> str:
        """Our name of an official ``key`` without its prefix."""
        key = re.sub(r"\.conv\.(weight|bias)$", r".\1", key)
        key = key.replace(".timestep_embedder.", ".")
        return re.sub(r"(mean|std)-of-means$", r"\1", key)

    @classmethod
    def sanitize(cls, weights: Weights) -> Weights:
        """The part's own tensors out of any official file's, renamed and channels last; ours come back unchanged."""
        official = strip_prefixes(weights, cls.OFFICIAL)
        if official is None:
            return weights
        return {
            cls.rename(key): _channels_last(value)
            for key, value in official.items()
            if key not in cls.UNUSED
        }


def _channels_last(value: mx.array) -> mx.array:
    if value.ndim == 5:
        return channels_last(value)
    if value.ndim == 3:  # noise strengths (C, 1, 1)
        return mx.moveaxis(value, 0, -1)
    return value
