"""What encoder and decoder share: the statistics of the latents and the names of the weights."""

import mlx.core as mx
import mlx.nn as nn

from mlx_video.tensor_names import TensorNames


class PerChannelStatistics(nn.Module):
    """Mean and standard deviation over the training set of each (channel, mel bin) of a latent frame.

    To the transformer such a pair is one channel of a token, hence the name; the channel index is slowest.
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


def names_of(part: str) -> TensorNames:
    """The names of the "encoder" or the "decoder"."""
    return TensorNames(
        {
            f"audio_vae.{part}.": "",
            "audio_vae.per_channel_statistics.": "per_channel_statistics.",
        },
        {
            "*nin_shortcut.conv.*": "*shortcut.*",
            "*upsample.conv.conv.*": "*upsample.*",
            "*mean-of-means": "*mean",
            "*std-of-means": "*std",
            "*.conv.weight": "*.weight",
            "*.conv.bias": "*.bias",
        },
    )
