"""The vocoder: log-mel spectrogram to waveform. HiFi-GAN (Kong et al. 2020, arXiv:2010.05646), generator V1.

Both channels are processed together: their mel bins enter side by side, and two samples come out at a time.
"""

from functools import partial
from typing import ClassVar, Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx import memory_table
from mlx_video.models.ltx.audio_config import MEL_BINS, VocoderConfig
from mlx_video.models.ltx.audio_vae.convolution import (
    Generator,
    SameConv1d,
    to_mlx,
)
from mlx_video.models.ltx.parts import Network
from mlx_video.tensor_names import TensorNames

SLOPE = 0.1  # of the leaky ReLUs ...
LAST_SLOPE = 0.01  # ... except the last


class Vocoder(Generator, Network):
    """Log-mel spectrogram (B, 2, T_mel, 64) -> waveform (B, 2, T_mel * hop) in [-1, 1] at ``sample_rate`` Hz.

    Computes in float32 whatever the weights' dtype: in bfloat16 the same weights leave a hiss 42 dB below the sound (on
    the tests' checkpoint). Given a float32 input, MLX promotes each weight as it is used.
    """

    CONFIG: ClassVar = VocoderConfig
    NAMES: ClassVar = TensorNames({"vocoder.": ""})
    to_mlx = staticmethod(to_mlx)

    def __init__(self, config: VocoderConfig):
        super().__init__(config, MEL_BINS, VocoderBlock)
        self.sample_rate, self.hop = config.output_sample_rate, config.hop

    def activation_bytes(self, mel_frames: int) -> float:
        """For ``mel_frames``, in float32."""
        width = self.conv_post.weight.shape[-1]
        samples = mel_frames * self.hop
        return memory_table.live().sound * samples * width * memory_table.FLOAT32

    def __call__(self, log_mel: mx.array) -> mx.array:
        """(B, 2, T_mel, 64) of any dtype -> (B, 2, T_mel * hop) float32."""
        leaky = partial(nn.leaky_relu, negative_slope=SLOPE)
        x = self.lengthened(log_mel.astype(mx.float32), leaky)
        x = self.conv_post(nn.leaky_relu(x, LAST_SLOPE))
        return mx.tanh(x).transpose(0, 2, 1)


class VocoderBlock(nn.Module):
    """Residual pairs of convolutions, (B, L, C) -> (B, L, C); the first of each pair is dilated."""

    def __init__(self, channels: int, kernel_size: int, dilations: Sequence[int]):
        super().__init__()
        self.convs1 = [
            SameConv1d(channels, channels, kernel_size, dilation)
            for dilation in dilations
        ]
        self.convs2 = [SameConv1d(channels, channels, kernel_size) for _ in dilations]

    def __call__(self, x: mx.array) -> mx.array:
        """(B, L, C) -> (B, L, C)."""
        for conv1, conv2 in zip(self.convs1, self.convs2):
            x = x + conv2(nn.leaky_relu(conv1(nn.leaky_relu(x, SLOPE)), SLOPE))
        return x
