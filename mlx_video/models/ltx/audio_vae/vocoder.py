"""The vocoder: log-mel spectrogram to waveform. HiFi-GAN (Kong et al. 2020, arXiv:2010.05646), generator V1.

Both channels pass through it as one: their mel bins side by side go in, two samples at a time come out.
"""

import math
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx import fitted
from mlx_video.models.ltx.audio_config import VocoderConfig
from mlx_video.models.ltx.audio_vae.convolution import SameConv1d, Upsample
from mlx_video.models.ltx.network import Network
from mlx_video.tensor_names import TensorNames
from mlx_video.weights import Weights, channels_last

MEL_BINS = 64  # per channel; in no config
EDGE_KERNEL = 7  # of the first and the last convolution
SLOPE = 0.1  # of the leaky ReLUs,
LAST_SLOPE = 0.01  # but for the last one


class Vocoder(Network):
    """Log-mel spectrogram (B, 2, T_mel, 64) -> waveform (B, 2, T_mel * hop) in [-1, 1] at ``sample_rate`` Hz.

    Float32 whatever the weights' dtype: run in bfloat16, the same weights leave a hiss 42 dB below the sound (on the
    tests' checkpoint). A float32 input is enough for that, since MLX then promotes each weight as it is used.
    """

    CONFIG: ClassVar = VocoderConfig
    NAMES: ClassVar = TensorNames({"vocoder.": ""})

    def __init__(self, config: VocoderConfig):
        super().__init__()
        channels = 2 if config.stereo else 1
        width = config.upsample_initial_channel
        self.sample_rate = config.output_sample_rate
        self.hop = math.prod(config.upsample_rates)
        self.conv_pre = SameConv1d(channels * MEL_BINS, width, EDGE_KERNEL)
        self.ups, self.resblocks = [], []
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes):
            self.ups.append(Upsample(width, width // 2, kernel, rate))
            width //= 2
            self.resblocks += [
                ResBlock(width, *kernel_and_dilations)
                for kernel_and_dilations in zip(
                    config.resblock_kernel_sizes, config.resblock_dilation_sizes
                )
            ]
        self.conv_post = SameConv1d(width, channels, EDGE_KERNEL)

    def activation_bytes(self, mel_frames: int) -> float:
        """For so many mel frames, in float32 as it computes."""
        width = self.conv_post.weight.shape[-1]
        return fitted.live().sound * mel_frames * self.hop * width * fitted.FLOAT32

    def __call__(self, log_mel: mx.array) -> mx.array:
        B, C, T, M = log_mel.shape
        x = log_mel.astype(mx.float32).transpose(0, 2, 1, 3).reshape(B, T, C * M)
        x = self.conv_pre(x)
        at_once = len(self.resblocks) // len(self.ups)
        for i, up in enumerate(self.ups):
            x = up(nn.leaky_relu(x, SLOPE))
            x = _mean(self.resblocks[i * at_once : (i + 1) * at_once], x)
        x = self.conv_post(nn.leaky_relu(x, LAST_SLOPE))
        return mx.tanh(x).transpose(0, 2, 1)

    @classmethod
    def sanitize(cls, weights: Weights) -> Weights:
        """The vocoder's tensors out of any official file's, channels last; ours come back unchanged."""
        official = cls.NAMES.take(weights)
        if official is None:
            return weights
        return {key: _to_mlx(key, value) for key, value in official.items()}

    @classmethod
    def official_name(cls, key: str) -> str:
        """What the official files call our ``key``."""
        return cls.NAMES.official(key)


def _to_mlx(key: str, value: mx.array) -> mx.array:
    """PyTorch's transposed convolutions hold (I, O, k), its others (O, I, k); MLX's all (O, k, I)."""
    if value.ndim != 3:
        return value
    return value.transpose(1, 2, 0) if key.startswith("ups.") else channels_last(value)


def _mean(blocks: list[nn.Module], x: mx.array) -> mx.array:
    return sum(block(x) for block in blocks) / len(blocks)


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
