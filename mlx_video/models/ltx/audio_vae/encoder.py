"""The audio encoder: log-mel spectrogram to latent."""

from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx.audio_config import AudioVAEConfig
from mlx_video.models.ltx.audio_vae.base import PerChannelStatistics, names_of
from mlx_video.models.ltx.audio_vae.mel import log_mel
from mlx_video.models.ltx.audio_vae.resnet import (
    CausalConv2d,
    Downsample,
    MidBlock,
    norm_silu,
    resnet_blocks,
)
from mlx_video.models.ltx.audio_vae.signal import resample
from mlx_video.models.ltx.network import Network
from mlx_video.types import Waveform


class DownLevel(nn.Module):
    """Residual blocks at one resolution, and the step to the next lower one if there is one."""

    def __init__(self, in_channels: int, out_channels: int, count: int, last: bool):
        super().__init__()
        self.block = resnet_blocks(in_channels, out_channels, count)
        if not last:
            self.downsample = Downsample(out_channels)

    def __call__(self, x: mx.array) -> mx.array:
        for block in self.block:
            x = block(x)
        return self.downsample(x) if "downsample" in self else x


class AudioEncoder(Network):
    """Log-mel spectrogram (B, 2, T_mel, 64) -> normalised latent (B, 8, ceil(T_mel / 4), 16): 25 frames a second."""

    CONFIG: ClassVar = AudioVAEConfig
    NAMES: ClassVar = names_of("encoder")

    def __init__(self, config: AudioVAEConfig):
        super().__init__()
        self.config = config
        widths = config.widths
        self.conv_in = CausalConv2d(config.in_channels, config.ch)
        self.down = [
            DownLevel(before, width, config.num_res_blocks, last=i == len(widths) - 1)
            for i, (before, width) in enumerate(zip((config.ch, *widths), widths))
        ]
        self.mid = MidBlock(widths[-1])
        self.conv_out = CausalConv2d(widths[-1], 2 * config.z_channels)
        self.per_channel_statistics = PerChannelStatistics(
            config.z_channels, config.latent_bins
        )

    def __call__(self, log_mel: mx.array) -> mx.array:
        """The most likely latent: the mean of the posterior, whose log-variance is dropped."""
        x = log_mel.astype(self.conv_in.weight.dtype).transpose(0, 2, 3, 1)
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        x = self.conv_out(norm_silu(self.mid(x)))
        mean, _ = mx.split(x.transpose(0, 3, 1, 2), 2, axis=1)
        return self.per_channel_statistics.normalize(mean)

    def encode_sound(self, sound: Waveform) -> mx.array:
        """The latent (1, 8, T, 16) of sound at any rate, in stereo or mono."""
        samples = resample(sound.samples, sound.sample_rate, self.config.sampling_rate)
        channels = self.config.in_channels
        samples = mx.broadcast_to(samples, (channels, samples.shape[-1]))
        return self(log_mel(samples[None], self.config))
