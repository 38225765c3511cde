"""The audio autoencoder: log-mel spectrograms to latents, and back."""

from itertools import pairwise
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from mlx_video.cpu_ops import silu
from mlx_video.models.ltx.loading import memory_table
from mlx_video.models.ltx.loading.parts import Network
from mlx_video.models.ltx.statistics import PerChannelStatistics
from mlx_video.models.ltx.vae_config import AudioVAEConfig
from mlx_video.tensor_names import TensorNames

NORM_EPS = 1e-6


def audio_names(part: str) -> TensorNames:
    """Tensor names of the "encoder" or the "decoder"."""
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


class AudioEncoder(Network):
    """Log-mel spectrogram -> normalised latent (LTX-2: (B, 2, T_mel, 64) -> (B, 8, ceil(T_mel / 4), 16), 25 per second)."""

    CONFIG: ClassVar = AudioVAEConfig
    NAMES: ClassVar = audio_names("encoder")

    def __init__(self, config: AudioVAEConfig):
        super().__init__()
        widths, self.config = config.widths, config
        self.conv_in = CausalConv2d(config.in_channels, config.ch)
        self.down = [
            Level(before, width, config.num_res_blocks)
            for before, width in pairwise((config.ch, *widths))
        ]
        for level, width in zip(self.down[:-1], widths):
            level.downsample = CausalConv2d(width, width, stride=2)
        self.mid = MidBlock(widths[-1])
        self.conv_out = CausalConv2d(widths[-1], 2 * config.z_channels)
        tokens = config.z_channels * config.latent_bins
        self.per_channel_statistics = PerChannelStatistics(tokens)

    def activation_bytes(self, mel_frames: int) -> float:
        """The most bytes that encoding ``mel_frames`` needs besides the weights."""
        cells, dtype = mel_frames * self.config.mel_bins, self.conv_in.weight.dtype
        return memory_table.live(dtype).mel * cells * self.config.ch * dtype.size

    def __call__(self, log_mel: mx.array) -> mx.array:
        """(B, 2, T_mel, bins) -> (B, C, T, M), the mean of the posterior; its log-variance is dropped."""
        x = log_mel.astype(self.conv_in.weight.dtype).transpose(0, 2, 3, 1)
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        x = self.conv_out(norm_silu(self.mid(x)))
        mean, _ = mx.split(x.transpose(0, 3, 1, 2), 2, axis=1)
        return self.per_channel_statistics.normalize(mean)


class AudioDecoder(Network):
    """Normalised latent -> log-mel spectrogram."""

    CONFIG: ClassVar = AudioVAEConfig
    NAMES: ClassVar = audio_names("decoder")

    def __init__(self, config: AudioVAEConfig):
        super().__init__()
        widths, self.config = config.widths, config
        tokens = config.z_channels * config.latent_bins
        self.per_channel_statistics = PerChannelStatistics(tokens)
        self.conv_in = CausalConv2d(config.z_channels, widths[-1])
        self.mid = MidBlock(widths[-1])
        # In the checkpoint's order, highest resolution first; they run in reverse.
        self.up = [
            Level(before, width, config.num_res_blocks + 1)
            for before, width in zip((*widths[1:], widths[-1]), widths)
        ]
        for level, width in zip(self.up[1:], widths[1:]):
            level.upsample = Upsample(width, width)
        self.conv_out = CausalConv2d(widths[0], config.out_ch)

    def activation_bytes(self, frames: int) -> float:
        """The most bytes that decoding ``frames`` of the latent needs besides the weights."""
        cells = self.config.time_factor * frames * self.config.mel_bins
        live, dtype = memory_table.live, self.conv_in.weight.dtype
        return live(dtype).spectrogram * cells * self.config.ch * dtype.size

    def __call__(self, latent: mx.array) -> mx.array:
        """(B, C, T, M) -> (B, 2, T_mel, bins) (LTX-2: (B, 8, T, 16) -> (B, 2, 4T - 3, 64))."""
        x = latent.astype(self.conv_in.weight.dtype)
        x = self.per_channel_statistics.un_normalize(x).transpose(0, 2, 3, 1)
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(norm_silu(x)).transpose(0, 3, 1, 2)


class Level(nn.Module):
    """Residual blocks at one resolution, then the step to the next lower or higher one, if there is one."""

    def __init__(self, in_channels: int, out_channels: int, count: int):
        super().__init__()
        widths = [in_channels] + [out_channels] * count
        self.block = [ResnetBlock(*pair) for pair in pairwise(widths)]

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, M, C) -> (B, ceil(T / 2), M / 2, C') or (B, 2T - 1, 2M, C'); without a step, T and M stay."""
        for block in self.block:
            x = block(x)
        if "downsample" in self:
            return self.downsample(x)
        return self.upsample(x) if "upsample" in self else x


# Blocks, over (B, T, M, C): time, mel bins, channels. Time is causal: no output frame depends on a later input frame.


def norm_silu(x: mx.array) -> mx.array:
    """SiLU of ``x`` (B, T, M, C), RMS-normed over the channels."""
    return silu(mx.fast.rms_norm(x, None, NORM_EPS))


class CausalConv2d(nn.Conv2d):
    """3x3 convolution (B, T, M, I) -> (B, ceil(T / stride), M / stride, O).

    Zeros precede the first frame and surround the mel axis; at stride 2 only above its highest bin.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size=3, stride=stride)
        self.zeros = ((0, 0), (2, 0), (2 - stride, 1), (0, 0))

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(mx.pad(x, self.zeros))


class Upsample(CausalConv2d):
    """Double time and mel bins by repetition, (B, T, M, C) -> (B, 2T - 1, 2M, C): the first frame is not repeated."""

    def __call__(self, x: mx.array) -> mx.array:
        x = mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2)
        return super().__call__(x)[:, 1:]


class ResnetBlock(nn.Module):
    """Twice norm, SiLU and 3x3 convolution, plus the input, projected if I != O: (B, T, M, I) -> (B, T, M, O)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = CausalConv2d(in_channels, out_channels)
        self.conv2 = CausalConv2d(out_channels, out_channels)
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def __call__(self, x: mx.array) -> mx.array:
        h = self.conv1(norm_silu(x))
        h = self.conv2(norm_silu(h))
        return h + (self.shortcut(x) if "shortcut" in self else x)


class MidBlock(nn.Module):
    """Two residual blocks at the lowest resolution, (B, T, M, C) -> (B, T, M, C)."""

    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.block_2 = ResnetBlock(channels, channels)

    def __call__(self, x: mx.array) -> mx.array:
        return self.block_2(self.block_1(x))
