"""The vocoder: log-mel spectrogram to waveform. HiFi-GAN (Kong et al. 2020, arXiv:2010.05646), generator V1.

Both channels pass through it as one: their mel bins side by side go in, two samples at a time come out.
"""

import math
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from mlx_video.errors import UserError
from mlx_video.models.ltx.config import VocoderConfig
from mlx_video.weights import Weights, channels_last, strip_prefixes

MEL_BINS = 64  # per channel; in no config
EDGE_KERNEL = 7  # of the first and the last convolution
SLOPE = 0.1  # of the leaky ReLUs,
LAST_SLOPE = 0.01  # but for the last one


class Vocoder(nn.Module):
    """Log-mel spectrogram (B, 2, T_mel, 64) -> waveform (B, 2, T_mel * hop) in [-1, 1] at ``sample_rate`` Hz.

    Float32 whatever the weights' dtype: run in bfloat16, the same weights leave a hiss 42 dB below the sound (on the
    tests' checkpoint). A float32 input is enough for that, since MLX then promotes each weight as it is used.
    """

    OFFICIAL: ClassVar = {"vocoder.": ""}

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
        official = strip_prefixes(weights, cls.OFFICIAL)
        if official is None:
            return weights
        return {key: _to_mlx(key, value) for key, value in official.items()}


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


class SameConv1d(nn.Conv1d):
    """Length-keeping convolution over (B, L, C), odd kernels only.

    A dilated one is run as a dense one over every ``dilation``-th sample: MLX's CPU backend multiplies matrices only
    for dense kernels, and is some hundred times slower otherwise.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2
        )
        self.phases = dilation

    def __call__(self, x: mx.array) -> mx.array:
        if self.phases == 1:
            return super().__call__(x)
        length = x.shape[1]
        y = super().__call__(split_phases(x, self.phases))
        return join_phases(y, self.phases)[:, :length]


def split_phases(x: mx.array, phases: int) -> mx.array:
    """Samples ``phases`` apart as sequences of their own, zeros at the end: (B, L, C) -> (B*phases, ~L/phases, C)."""
    B, L, C = x.shape
    x = mx.pad(x, ((0, 0), (0, -L % phases), (0, 0)))
    return x.reshape(B, -1, phases, C).swapaxes(1, 2).reshape(B * phases, -1, C)


def join_phases(x: mx.array, phases: int) -> mx.array:
    """The inverse of ``split_phases``, but for the zeros at the end."""
    N, L, C = x.shape
    x = x.reshape(N // phases, phases, L, C).swapaxes(1, 2)
    return x.reshape(N // phases, phases * L, C)


class Upsample(nn.ConvTranspose1d):
    """Transposed convolution (B, L, I) -> (B, L * stride, O).

    Run as a dense convolution that makes ``stride`` neighbouring samples at a time, which every backend has fast and
    which multiplies no inserted zeros. Raises ``ValueError`` unless kernel - stride is even and not negative.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int
    ):
        if kernel_size < stride or (kernel_size - stride) % 2:
            raise UserError(
                f"upsample_kernel_sizes must exceed upsample_rates by an even number; got {kernel_size} for a rate "
                f"of {stride}."
            )
        super().__init__(in_channels, out_channels, kernel_size, stride)

    def __call__(self, x: mx.array) -> mx.array:
        O, K, I = self.weight.shape
        B, L, _ = x.shape
        taps = -(-K // self.stride)
        weight = mx.pad(self.weight, ((0, 0), (0, taps * self.stride - K), (0, 0)))
        # Output stride * a + b takes input a - j through tap stride * j + b.
        weight = weight.reshape(O, taps, self.stride, I)[:, ::-1]
        weight = weight.transpose(2, 0, 1, 3).reshape(self.stride * O, taps, I)
        y = mx.conv1d(x, weight, padding=taps - 1).reshape(B, -1, O)
        start = (K - self.stride) // 2
        return y[:, start : start + L * self.stride] + self.bias
