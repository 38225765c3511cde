"""How latents are brought to mean 0 and deviation 1, which the transformer works on."""

import mlx.core as mx
import mlx.nn as nn


class PerChannelStatistics(nn.Module):
    """Mean and standard deviation of each latent channel over the training set, of sound for each (channel, mel bin).

    To the transformer such a pair is one channel of a token, hence the name; the channel index is slowest.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.mean = mx.zeros(channels)
        self.std = mx.ones(channels)

    def normalize(self, latent: mx.array) -> mx.array:
        """What the transformer works on, of latents (B, C, F, H, W) or (B, C, T, bins)."""
        return (latent - _beside(latent, self.mean)) / _beside(latent, self.std)

    def un_normalize(self, latent: mx.array) -> mx.array:
        """The inverse of ``normalize``, in the same shapes: what the decoders and the upsampler work on."""
        return latent * _beside(latent, self.std) + _beside(latent, self.mean)


def _beside(latent: mx.array, x: mx.array) -> mx.array:
    """Numbers of channels, or of channels and mel bins, so shaped that they broadcast to ``latent``."""
    return x.reshape(latent.shape[1], *[1] * (latent.ndim - 3), -1)
