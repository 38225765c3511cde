"""Normalises latents to mean 0 and deviation 1, as the transformer needs them."""

import mlx.core as mx
import mlx.nn as nn


class PerChannelStatistics(nn.Module):
    """Mean and standard deviation of each latent channel over the training set; for sound, of each (channel, mel bin).

    The transformer sees each such pair as one channel of a token; the channel index is slowest.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.mean = mx.zeros(channels)
        self.std = mx.ones(channels)

    def normalize(self, latent: mx.array) -> mx.array:
        """Latents (B, C, F, H, W) or (B, C, T, bins) as the transformer needs them."""
        return (latent - _beside(latent, self.mean)) / _beside(latent, self.std)

    def un_normalize(self, latent: mx.array) -> mx.array:
        """The inverse of ``normalize``, as the decoders and the upsampler need them; same shapes."""
        return latent * _beside(latent, self.std) + _beside(latent, self.mean)


def _beside(latent: mx.array, x: mx.array) -> mx.array:
    """``x`` of each channel, or (channel, mel bin), in a shape that broadcasts to ``latent``."""
    return x.reshape(latent.shape[1], *[1] * (latent.ndim - 3), -1)
