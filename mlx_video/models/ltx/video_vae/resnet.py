"""Residual blocks of the video autoencoder. Knows norms, noise and timesteps inside a block, not the blocks' order."""

from functools import partial
from typing import Callable, Iterator

import mlx.core as mx
import mlx.nn as nn

from mlx_video.errors import UserError
from mlx_video.models.ltx.adaln import (
    EMBEDDING_WIDTH,
    modulate,
    timestep_embedding,
)
from mlx_video.models.ltx.video_vae.convolution import CausalConv3d, total
from mlx_video.models.ltx.video_vae.stream import Stream

NORM_GROUPS = 32
NORM_EPS = 1e-6


class PixelNorm(nn.Module):
    """Divide each cell by the root mean square of its channels."""

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, None, 1e-8)


def make_norm(name: str, channels: int) -> nn.Module:
    """The norm that the config calls ``"pixel_norm"`` or ``"group_norm"``."""
    if name == "pixel_norm":
        return PixelNorm()
    if name == "group_norm":
        return nn.GroupNorm(NORM_GROUPS, channels, NORM_EPS, pytorch_compatible=True)
    raise UserError(f"norm_layer must be 'pixel_norm' or 'group_norm'; got {name!r}.")


class TimestepEmbedder(nn.Module):
    """Timesteps (B,) -> (B, channels): a sinusoid, [cos, sin], through two linear layers."""

    def __init__(self, channels: int):
        super().__init__()
        self.linear_1 = nn.Linear(EMBEDDING_WIDTH, channels)
        self.linear_2 = nn.Linear(channels, channels)

    def __call__(self, timestep: mx.array) -> mx.array:
        x = timestep_embedding(timestep, EMBEDDING_WIDTH)
        x = self.linear_1(x.astype(self.linear_1.weight.dtype))
        return self.linear_2(nn.silu(x))


def modulation(embedding: mx.array, table: mx.array) -> list[mx.array]:
    """Rows of a scale-shift ``table`` (n, C) moved by a timestep's ``embedding`` (B, n*C): n of (B, 1, 1, 1, C)."""
    rows = table + embedding.reshape(-1, *table.shape)
    return [rows[:, i, None, None, None] for i in range(len(table))]


def split_key(key: mx.array | None, count: int) -> list[mx.array | None]:
    """``count`` PRNG keys from one; without a key there is no noise, and none is drawn."""
    return [None] * count if key is None else list(mx.random.split(key, count))


class ResnetBlock3D(nn.Module):
    """Twice norm, SiLU, 3x3x3 convolution; added to the input, or to its projection where the channels change."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm_layer: str,
        padding_mode: str,
        inject_noise: bool = False,
        timestep_conditioning: bool = False,
    ):
        super().__init__()
        self.norm1 = make_norm(norm_layer, in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, padding_mode=padding_mode)
        self.norm2 = make_norm(norm_layer, out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, padding_mode=padding_mode)
        if in_channels != out_channels:
            self.norm3 = nn.GroupNorm(1, in_channels, NORM_EPS, pytorch_compatible=True)
            self.conv_shortcut = CausalConv3d(in_channels, out_channels, kernel_size=1)
        if inject_noise:
            self.per_channel_scale1 = mx.zeros((1, 1, out_channels))
            self.per_channel_scale2 = mx.zeros((1, 1, out_channels))
        if timestep_conditioning:
            self.scale_shift_table = mx.zeros((4, in_channels))

    def __call__(
        self,
        x: mx.array,
        stream: Stream,
        embedding: mx.array | None = None,
        key: mx.array | None = None,
    ) -> mx.array:
        """``embedding`` (B, 4*C) of the timestep, where the block is conditioned; ``key`` for its noise, if any."""
        shift1, scale1, shift2, scale2 = self._modulation(embedding)
        key1, key2 = split_key(key, 2)
        skip = stream.delay(self, x, 2)
        h = self.conv1.linear(_activate(self.norm1(x), shift1, scale1), stream)
        h = total(h, self.conv1.bias, *self._noise(h, "per_channel_scale1", key1))
        h = self.conv2.linear(_activate(self.norm2(h), shift2, scale2), stream)
        noise = self._noise(h, "per_channel_scale2", key2)
        if "conv_shortcut" in self:
            skip = self.conv_shortcut(self.norm3(skip), stream)
        return total(h, self.conv2.bias, *noise, skip)

    def _modulation(self, embedding: mx.array | None) -> list[mx.array | None]:
        if "scale_shift_table" not in self:
            return [None] * 4
        return modulation(embedding, self.scale_shift_table)

    def _noise(
        self, x: mx.array, scale: str, key: mx.array | None
    ) -> Iterator[mx.array]:
        """One noise image for all frames and channels, as strong in each channel as the block learned; or none."""
        if key is not None and scale in self:
            image = mx.random.normal((*x.shape[2:4], 1), x.dtype, key=key)
            yield image * self[scale]


def _activate(x: mx.array, shift: mx.array | None, scale: mx.array | None) -> mx.array:
    return nn.silu(x if scale is None else modulate(x, shift, scale))


class MidBlock3D(nn.Module):
    """``num_layers`` residual blocks at one resolution that share one timestep embedding."""

    def __init__(
        self,
        channels: int,
        num_layers: int,
        *,
        norm_layer: str,
        padding_mode: str,
        inject_noise: bool = False,
        timestep_conditioning: bool = False,
    ):
        super().__init__()
        if timestep_conditioning:
            self.time_embedder = TimestepEmbedder(4 * channels)
        self.res_blocks = [
            ResnetBlock3D(
                channels,
                channels,
                norm_layer=norm_layer,
                padding_mode=padding_mode,
                inject_noise=inject_noise,
                timestep_conditioning=timestep_conditioning,
            )
            for _ in range(num_layers)
        ]

    def __call__(
        self,
        x: mx.array,
        stream: Stream,
        timestep: mx.array | None = None,
        key: mx.array | None = None,
    ) -> mx.array:
        for layer in self.layers(timestep, key):
            x = layer(x, stream)
        return x

    def layers(
        self, timestep: mx.array | None, key: mx.array | None
    ) -> list[Callable[[mx.array, Stream], mx.array]]:
        """The residual blocks, told the ``timestep`` (B,) and what draws their noise."""
        embedding = self.time_embedder(timestep) if "time_embedder" in self else None
        keys = split_key(key, len(self.res_blocks))
        return [
            partial(block, embedding=embedding, key=key)
            for block, key in zip(self.res_blocks, keys)
        ]
