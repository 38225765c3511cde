"""Convolutional video decoder: latents to pixels. Knows its blocks in order, not how a long clip is cut into tiles."""

import math
from functools import partial
from typing import ClassVar, Iterator

import mlx.core as mx
import mlx.nn as nn

from mlx_video.errors import UserError
from mlx_video.models.ltx.config import VideoVAEConfig
from mlx_video.models.ltx.video_vae.base import (
    CONVOLUTIONS,
    STRIDES,
    Block,
    ConvolutionalPart,
    PerChannelStatistics,
    compression,
    names_of,
    read_blocks,
)
from mlx_video.models.ltx.video_vae.convolution import (
    MAX_CONV_ELEMENTS,
    CausalConv3d,
)
from mlx_video.models.ltx.video_vae.resnet import MidBlock3D, PixelNorm
from mlx_video.models.ltx.video_vae.sampling import DepthToSpaceUpsample, unpatchify
from mlx_video.models.ltx.video_vae.stream import Stage, Stream, in_pieces, widest


class VideoDecoder(ConvolutionalPart):
    """The decoder; not causal in LTX-2, so that a pixel frame may depend on later latents."""

    CONFIG = VideoVAEConfig
    NAMES: ClassVar = names_of("decoder", CONVOLUTIONS)

    def __init__(self, config: VideoVAEConfig):
        super().__init__()
        self.config = config
        self.scale = compression(config.decoder_blocks, config.patch_size)
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels)

        padding_mode = config.decoder_spatial_padding_mode
        blocks = list(read_blocks(config.decoder_blocks))[::-1]
        channels = config.decoder_base_channels * math.prod(map(_narrowing, blocks))
        self.conv_in = CausalConv3d(
            config.latent_channels, channels, padding_mode=padding_mode
        )
        self.up_blocks = []
        for block in blocks:
            self.up_blocks.append(_up_block(block, channels, padding_mode))
            channels //= _narrowing(block)
        self.conv_norm_out = PixelNorm()
        self.conv_out = CausalConv3d(
            channels,
            config.out_channels * config.patch_size**2,
            padding_mode=padding_mode,
        )

    def __call__(
        self,
        latent: mx.array,
        causal: bool | None = None,
        key: mx.array | None = None,
    ) -> mx.array:
        """Normalised latents (B, 128, F, H, W) -> pixels (B, 3, 8*(F-1)+1, 32*H, 32*W) near [-1, 1].

        ``causal`` overrides the config. ``key`` is for the decoders that draw noise; this one has no use for it.
        """
        pieces = self.stream(latent, MAX_CONV_ELEMENTS, causal, key)
        return mx.concatenate(list(pieces), axis=2)

    def stream(
        self,
        latent: mx.array,
        elements: int,
        causal: bool | None = None,
        key: mx.array | None = None,
    ) -> Iterator[mx.array]:
        """The same pixels in consecutive pieces, for whose sake no convolution touches more than about ``elements``.

        Evaluate each piece before the next is taken, and memory follows ``elements`` and the size of a frame, not the
        length of the clip.
        """
        if causal is None:
            causal = self.config.causal_decoder
        x = mx.moveaxis(self.per_channel_statistics.un_normalize(latent), 1, -1)
        x = x.astype(self.conv_in.weight.dtype)
        pieces = in_pieces(self._stages(), x, Stream(causal), elements)
        del x
        yield from map(partial(unpatchify, size=self.config.patch_size), pieces)

    def _stages(self) -> list[Stage]:
        def finish(x: mx.array, stream: Stream) -> mx.array:
            return self.conv_out(nn.silu(self.conv_norm_out(x)), stream)

        layers = [
            layer
            for block in self.up_blocks
            for layer in (
                block.res_blocks if isinstance(block, MidBlock3D) else [block]
            )
        ]
        stages = [Stage(layer, widest(layer)) for layer in (self.conv_in, *layers)]
        return [*stages, Stage(finish, widest(self.conv_out))]


def _narrowing(block: Block) -> int:
    """By how much a block divides the channels."""
    name, parameters = block
    return parameters.get("multiplier", 1) if name in STRIDES else 1


def _up_block(block: Block, channels: int, padding_mode: str) -> nn.Module:
    """A block of the decoder for an input of ``channels``."""
    name, parameters = block
    if name == "res_x":
        return MidBlock3D(channels, parameters["num_layers"], padding_mode)
    if name in STRIDES:
        return DepthToSpaceUpsample(
            channels,
            STRIDES[name],
            multiplier=_narrowing(block),
            # The official decoder reads it for this block alone.
            residual=name == "compress_all" and parameters.get("residual", False),
            padding_mode=padding_mode,
        )
    raise UserError(f"Video VAE decoder block {name!r} is not implemented.")
