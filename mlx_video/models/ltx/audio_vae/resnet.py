"""Blocks of the audio autoencoder, over (B, T, M, C): time, mel bins, channels. Knows padding, not the order of blocks.

All are causal: no output frame depends on a later input frame.
"""

import mlx.core as mx
import mlx.nn as nn

from mlx_video.cpu_ops import silu

NORM_EPS = 1e-6


def norm_silu(x: mx.array) -> mx.array:
    """SiLU of ``x`` (B, T, M, C), RMS-normed over the channels."""
    return silu(mx.fast.rms_norm(x, None, NORM_EPS))


class CausalConv2d(nn.Conv2d):
    """Convolution that keeps the size, with zeros before the first frame and on both sides of the mel axis."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3):
        super().__init__(in_channels, out_channels, kernel_size)
        around = kernel_size // 2
        self.zeros = ((0, 0), (kernel_size - 1, 0), (around, around), (0, 0))

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, M, I) -> (B, T, M, O)."""
        return super().__call__(mx.pad(x, self.zeros))


class Downsample(nn.Conv2d):
    """Halve time and mel bins: T frames become ceil(T / 2); the first remains a frame of its own."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, kernel_size=3, stride=2)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, M, C) -> (B, ceil(T / 2), M / 2, C)."""
        return super().__call__(mx.pad(x, ((0, 0), (2, 0), (0, 1), (0, 0))))


class Upsample(CausalConv2d):
    """Double time and mel bins by repetition: T frames become 2T - 1, since the first is not repeated."""

    def __init__(self, channels: int):
        super().__init__(channels, channels)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, M, C) -> (B, 2T - 1, 2M, C)."""
        x = mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2)
        return super().__call__(x)[:, 1:]


class ResnetBlock(nn.Module):
    """Twice norm, SiLU and 3x3 convolution, plus the input, projected if the channels change."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = CausalConv2d(in_channels, out_channels)
        self.conv2 = CausalConv2d(out_channels, out_channels)
        if in_channels != out_channels:
            self.shortcut = CausalConv2d(in_channels, out_channels, kernel_size=1)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, M, I) -> (B, T, M, O)."""
        h = self.conv1(norm_silu(x))
        h = self.conv2(norm_silu(h))
        return h + (self.shortcut(x) if "shortcut" in self else x)


class MidBlock(nn.Module):
    """Two residual blocks at the lowest resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.block_2 = ResnetBlock(channels, channels)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, M, C) -> (B, T, M, C)."""
        return self.block_2(self.block_1(x))


def resnet_blocks(in_channels: int, out_channels: int, count: int) -> list[ResnetBlock]:
    """``count`` blocks; the first changes the channels."""
    widths = [in_channels] + [out_channels] * count
    return [ResnetBlock(*pair) for pair in zip(widths, widths[1:])]
