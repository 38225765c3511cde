"""Residual blocks of the convolutional video autoencoder. Knows what is inside a block, not the blocks' order."""

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx.video_vae.convolution import CausalConv3d
from mlx_video.models.ltx.video_vae.stream import Stream
from mlx_video.models.ltx.video_vae.window import plus_delayed


class ResnetBlock3D(nn.Module):
    """Twice norm, SiLU, 3x3x3 convolution; added to the input."""

    def __init__(self, channels: int, padding_mode: str):
        super().__init__()
        self.conv1 = CausalConv3d(channels, channels, padding_mode)
        self.conv2 = CausalConv3d(channels, channels, padding_mode)

    def __call__(self, x: mx.array, stream: Stream) -> mx.array:
        kept, x = stream.delay(self, x, 2)
        h = self.conv1.linear(x, stream, activate=True)
        h = self.conv2.linear(h, stream, activate=True, bias=self.conv1.bias)
        known = 0 if kept is None else kept.shape[1]
        return plus_delayed(h, kept, x, self.conv2.bias, known)


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


def layers(blocks: list[nn.Module]) -> list[nn.Module]:
    """``blocks`` in order, with the residual ones of each one by one."""
    return [
        layer
        for block in blocks
        for layer in (block.res_blocks if isinstance(block, MidBlock3D) else [block])
    ]
