"""What encoder and decoder share: the statistics of the latents and the names of the weights."""

from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx.audio_config import AudioVAEConfig
from mlx_video.models.ltx.network import Network
from mlx_video.tensor_names import TensorNames
from mlx_video.weights import Weights, channels_last


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


class AudioVAEPart(Network):
    """Base of ``AudioEncoder`` and ``AudioDecoder``: the names and the layout of their weights."""

    CONFIG: ClassVar = AudioVAEConfig
    NAMES: ClassVar[TensorNames]

    @staticmethod
    def names(part: str) -> TensorNames:
        """Of the ``part`` of the autoencoder, "encoder" or "decoder"."""
        prefixes = {
            f"audio_vae.{part}.": "",
            "audio_vae.per_channel_statistics.": "per_channel_statistics.",
        }
        return TensorNames(
            prefixes,
            {
                "*nin_shortcut.conv.*": "*shortcut.*",
                "*upsample.conv.conv.*": "*upsample.*",
                "*mean-of-means": "*mean",
                "*std-of-means": "*std",
                "*.conv.weight": "*.weight",
                "*.conv.bias": "*.bias",
            },
        )

    @classmethod
    def sanitize(cls, weights: Weights) -> Weights:
        """The part's own tensors out of any official file's, renamed and channels last; ours come back unchanged."""
        official = cls.NAMES.take(weights)
        if official is None:
            return weights
        return {
            key: channels_last(value) if value.ndim == 4 else value
            for key, value in official.items()
        }

    @classmethod
    def official_name(cls, key: str) -> str:
        """What the official files call our ``key``."""
        return cls.NAMES.official(key)
