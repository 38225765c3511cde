"""The vocoder: log-mel spectrogram to waveform. HiFi-GAN (Kong et al. 2020, arXiv:2010.05646), generator V1.

Both channels pass through it as one: their mel bins go in side by side, and two samples come out at a time.
"""

from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx import fitted
from mlx_video.models.ltx.audio_config import VocoderConfig
from mlx_video.models.ltx.audio_vae.convolution import (
    SameConv1d,
    grouped,
    to_mlx,
    upsampling,
)
from mlx_video.models.ltx.network import Network
from mlx_video.tensor_names import TensorNames

MEL_BINS = 64  # per channel; in no config
EDGE_KERNEL = 7  # of the first and the last convolution
SLOPE = 0.1  # of the leaky ReLUs,
LAST_SLOPE = 0.01  # but for the last one


class Vocoder(Network):
    """Log-mel spectrogram (B, 2, T_mel, 64) -> waveform (B, 2, T_mel * hop) in [-1, 1] at ``sample_rate`` Hz.

    Computes in float32 whatever the weights' dtype: in bfloat16 the same weights leave a hiss 42 dB below the sound (on
    the tests' checkpoint). Given a float32 input, MLX promotes each weight as it is used.
    """

    CONFIG: ClassVar = VocoderConfig
    NAMES: ClassVar = TensorNames({"vocoder.": ""})
    to_mlx = staticmethod(to_mlx)

    def __init__(self, config: VocoderConfig):
        super().__init__()
        width = config.upsample_initial_channel
        self.sample_rate, self.hop = config.output_sample_rate, config.hop
        self.conv_pre = SameConv1d(config.channels * MEL_BINS, width, EDGE_KERNEL)
        self.ups, self.resblocks = upsampling(config, ResBlock)
        self.conv_post = SameConv1d(config.last_width, config.channels, EDGE_KERNEL)

    def activation_bytes(self, mel_frames: int) -> float:
        """For ``mel_frames``, in float32."""
        width = self.conv_post.weight.shape[-1]
        return fitted.live().sound * mel_frames * self.hop * width * fitted.FLOAT32

    def __call__(self, log_mel: mx.array) -> mx.array:
        B, C, T, M = log_mel.shape
        x = log_mel.astype(mx.float32).transpose(0, 2, 1, 3).reshape(B, T, C * M)
        x = self.conv_pre(x)
        for up, blocks in grouped(self.ups, self.resblocks):
            x = up(nn.leaky_relu(x, SLOPE))
            x = sum(block(x) for block in blocks) / len(blocks)
        x = self.conv_post(nn.leaky_relu(x, LAST_SLOPE))
        return mx.tanh(x).transpose(0, 2, 1)


class ResBlock(nn.Module):
    """Residual pairs of convolutions, (B, L, C) -> (B, L, C); the first of each pair is dilated."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...]):
        super().__init__()
        self.convs1 = [
            SameConv1d(channels, channels, kernel_size, dilation)
            for dilation in dilations
        ]
        self.convs2 = [SameConv1d(channels, channels, kernel_size) for _ in dilations]

    def __call__(self, x: mx.array) -> mx.array:
        for conv1, conv2 in zip(self.convs1, self.convs2):
            x = x + conv2(nn.leaky_relu(conv1(nn.leaky_relu(x, SLOPE)), SLOPE))
        return x
