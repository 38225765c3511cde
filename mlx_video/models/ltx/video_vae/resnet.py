"""Residual blocks of the convolutional video autoencoder. Knows what is inside a block, not the blocks' order."""

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx.video_vae.convolution import CausalConv3d, total
from mlx_video.models.ltx.video_vae.stream import Stream

NORM_EPS = 1e-8


class PixelNorm(nn.Module):
    """Divide each cell by the root mean square of its channels."""

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, None, NORM_EPS)


class ResnetBlock3D(nn.Module):
    """Twice norm, SiLU, 3x3x3 convolution; added to the input."""

    def __init__(self, channels: int, padding_mode: str):
        super().__init__()
        self.norm1 = PixelNorm()
        self.conv1 = CausalConv3d(channels, channels, padding_mode=padding_mode)
        self.norm2 = PixelNorm()
        self.conv2 = CausalConv3d(channels, channels, padding_mode=padding_mode)

    def __call__(self, x: mx.array, stream: Stream) -> mx.array:
        skip = stream.delay(self, x, 2)
        h = self.conv1(nn.silu(self.norm1(x)), stream)
        h = self.conv2.linear(nn.silu(self.norm2(h)), stream)
        return total(h, self.conv2.bias, skip)


class MidBlock3D(nn.Module):
    """``num_layers`` residual blocks at one resolution."""

    def __init__(self, channels: int, num_layers: int, padding_mode: str):
        super().__init__()
        self.res_blocks = [
            ResnetBlock3D(channels, padding_mode) for _ in range(num_layers)
        ]

    def __call__(self, x: mx.array, stream: Stream) -> mx.array:
        for block in self.res_blocks:
            x = block(x, stream)
        return x
