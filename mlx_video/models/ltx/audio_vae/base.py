"""What encoder and decoder share: the statistics of the latents and the names of the weights."""

import re
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from mlx_video.weights import Weights, channels_last, strip_prefixes


class PerChannelStatistics(nn.Module):
    """Mean and standard deviation over the training set of each (channel, mel bin) of a latent frame.

    The transformer takes such a pair for one channel of its token, hence the name; the channel index is slowest.
    """

    def __init__(self, channels: int, bins: int):
        super().__init__()
        self.mean = mx.zeros(channels * bins)
        self.std = mx.ones(channels * bins)

    def normalize(self, latent: mx.array) -> mx.array:
        """To mean 0 and deviation 1: (B, C, T, M), what the transformer works on."""
        return (latent - _per_frame(self.mean, latent)) / _per_frame(self.std, latent)

    def un_normalize(self, latent: mx.array) -> mx.array:
        """The inverse of ``normalize``: what the decoder works on."""
        return latent * _per_frame(self.std, latent) + _per_frame(self.mean, latent)


def _per_frame(x: mx.array, latent: mx.array) -> mx.array:
    _, C, _, M = latent.shape
    return x.reshape(C, 1, M)


class AudioVAEPart(nn.Module):
    """Base of ``AudioEncoder`` and ``AudioDecoder``: the official names of their weights."""

    OFFICIAL: ClassVar[dict[str, str]]

    @staticmethod
    def rename(key: str) -> str:
        """Our name of an official ``key`` without its prefix."""
        key = re.sub(r"(\.conv)+\.(weight|bias)$", r".\2", key)
        key = key.replace(".nin_shortcut.", ".shortcut.")
        return re.sub(r"(mean|std)-of-means$", r"\1", key)

    @classmethod
    def sanitize(cls, weights: Weights) -> Weights:
        """The part's own tensors out of any official file's, renamed and channels last; ours come back unchanged."""
        official = strip_prefixes(weights, cls.OFFICIAL)
        if official is None:
            return weights
        return {
            cls.rename(key): channels_last(value) if value.ndim == 4 else value
            for key, value in official.items()
        }
