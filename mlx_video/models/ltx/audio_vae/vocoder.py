"""Log-mel spectrogram to waveform: what vocoders share, and HiFi-GAN, generator V1 (Kong et al. 2020, arXiv:2010.05646)."""

from functools import partial
from typing import Callable, ClassVar, Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_video.errors import UserError
from mlx_video.models.ltx.loading import memory_table
from mlx_video.models.ltx.loading.parts import Network
from mlx_video.models.ltx.vae_config import MEL_BINS, GeneratorConfig, VocoderConfig
from mlx_video.tensor_names import TensorNames

EDGE_KERNEL = 7  # of the first and the last convolution
SLOPE = 0.1  # of the leaky ReLUs ...
LAST_SLOPE = 0.01  # ... except the last


class SameConv1d(nn.Conv1d):
    """Convolution (B, L, I) -> (B, L, O) with an odd kernel.

    A dilated one runs as a dense one over every ``dilation``-th sample: MLX's CPU backend uses matrix products only for
    dense kernels, and is about a hundred times slower otherwise.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1
    ):
        super().__init__(in_channels, out_channels, kernel_size)
        self.padding, self.phases = kernel_size // 2, dilation

    def __call__(self, x: mx.array) -> mx.array:
        if self.phases == 1:
            return super().__call__(x)
        B, L, _ = x.shape
        x = mx.pad(x, ((0, 0), (0, -L % self.phases), (0, 0)))
        x = mx.unflatten(x, 1, (-1, self.phases)).swapaxes(1, 2)
        y = super().__call__(x.flatten(0, 1))  # (B * phases, L / phases, O)
        return mx.unflatten(y, 0, (B, -1)).swapaxes(1, 2).flatten(1, 2)[:, :L]


class TransposedConv1d(nn.ConvTranspose1d):
    """Transposed convolution (B, L, I) -> (B, L * stride, O).

    Runs as a dense convolution that makes ``stride`` consecutive samples at a time, which is fast on every backend and
    multiplies no inserted zeros. Raises ``UserError`` unless kernel - stride is even and not negative.
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


class Generator(nn.Module):
    """What vocoders share: two convolutions, and between them layers that each lengthen the sound and halve its width.

    Each layer is followed by the mean of residual blocks ``block(width, kernel size, dilations)``.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        bins: int,
        block: Callable[[int, int, Sequence[int]], nn.Module],
    ):
        super().__init__()
        width, channels = config.upsample_initial_channel, 2 if config.stereo else 1
        self.conv_pre = SameConv1d(channels * bins, width, EDGE_KERNEL)
        self.ups, self.resblocks = [], []
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes):
            self.ups.append(TransposedConv1d(width, width // 2, kernel, rate))
            width //= 2
            sizes = zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes)
            self.resblocks += [block(width, *size) for size in sizes]
        self.conv_post = SameConv1d(width, channels, EDGE_KERNEL)

    def lengthened(
        self, log_mel: mx.array, activation: Callable[[mx.array], mx.array]
    ) -> mx.array:
        """(B, C, T, bins) -> (B, T * hop, width), all channels together; ``activation`` precedes each layer."""
        x = self.conv_pre(log_mel.swapaxes(1, 2).flatten(2))
        each = len(self.resblocks) // len(self.ups)
        for i, up in enumerate(self.ups):
            x = up(activation(x))
            blocks = self.resblocks[i * each : (i + 1) * each]
            x = sum(block(x) for block in blocks) / each
        return x

    @staticmethod
    def to_mlx(key: str, value: mx.array) -> mx.array:
        """PyTorch stores transposed convolutions as (I, O, k), others as (O, I, k); MLX stores all as (O, k, I)."""
        if value.ndim != 3:
            return value
        transposed = ".ups." in f".{key}"
        return value.transpose((1, 2, 0) if transposed else (0, 2, 1))


class Vocoder(Generator, Network):
    """HiFi-GAN: log-mel spectrogram (B, 2, T_mel, 64) -> waveform (B, 2, T_mel * hop) in [-1, 1] at ``sample_rate`` Hz.

    Computes in float32 whatever the weights' dtype: in bfloat16 the tests' checkpoint leaves a hiss 42 dB below the sound.
    """

    CONFIG: ClassVar = VocoderConfig
    NAMES: ClassVar = TensorNames({"vocoder.": ""})

    def __init__(self, config: VocoderConfig):
        super().__init__(config, MEL_BINS, VocoderBlock)
        self.sample_rate, self.hop = config.output_sample_rate, config.hop

    def activation_bytes(self, mel_frames: int) -> float:
        """The most bytes that the sound of ``mel_frames`` needs besides the weights, in float32."""
        weight, samples = self.conv_post.weight, mel_frames * self.hop
        live = memory_table.live(weight.dtype).sound
        return live * samples * weight.shape[-1] * memory_table.FLOAT32

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
            SameConv1d(channels, channels, kernel_size, d) for d in dilations
        ]
        self.convs2 = [SameConv1d(channels, channels, kernel_size) for _ in dilations]

    def __call__(self, x: mx.array) -> mx.array:
        for conv1, conv2 in zip(self.convs1, self.convs2):
            x = x + conv2(nn.leaky_relu(conv1(nn.leaky_relu(x, SLOPE)), SLOPE))
        return x
