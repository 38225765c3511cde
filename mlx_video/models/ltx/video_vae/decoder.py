"""Video decoder: latents to pixels. Knows its blocks in order, not how a long clip is cut into tiles."""

import math
from functools import partial
from typing import ClassVar, Iterator

import mlx.core as mx
import mlx.nn as nn

from mlx_video.errors import UserError
from mlx_video.models.ltx.adaln import modulate
from mlx_video.models.ltx.config import VideoVAEConfig
from mlx_video.models.ltx.video_vae.base import (
    STRIDES,
    Block,
    PerChannelStatistics,
    VideoVAEPart,
    compression,
    read_blocks,
)
from mlx_video.models.ltx.video_vae.convolution import (
    MAX_CONV_ELEMENTS,
    CausalConv3d,
)
from mlx_video.models.ltx.video_vae.resnet import (
    MidBlock3D,
    ResnetBlock3D,
    TimestepEmbedder,
    make_norm,
    modulation,
    split_key,
)
from mlx_video.models.ltx.video_vae.sampling import DepthToSpaceUpsample, unpatchify
from mlx_video.models.ltx.video_vae.stream import Stage, Stream, in_pieces, widest

# What a timestep-conditioned decoder is given unless told otherwise: it undoes a little noise as it decodes.
DECODE_NOISE_SCALE = 0.025
DECODE_TIMESTEP = 0.05


class VideoDecoder(VideoVAEPart):
    """The decoder; not causal in LTX-2, so that a pixel frame may depend on later latents."""

    OFFICIAL: ClassVar = {
        "vae.decoder.": "",
        "vae.per_channel_statistics.": "per_channel_statistics.",
    }

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
            self.up_blocks.append(_up_block(block, channels, config))
            channels //= _narrowing(block)
        self.conv_norm_out = make_norm(config.norm_layer, channels)
        self.conv_out = CausalConv3d(
            channels,
            config.out_channels * config.patch_size**2,
            padding_mode=padding_mode,
        )
        if config.timestep_conditioning:
            self.timestep_scale_multiplier = mx.array(1000.0)
            self.last_time_embedder = TimestepEmbedder(2 * channels)
            self.last_scale_shift_table = mx.zeros((2, channels))

    def __call__(
        self,
        latent: mx.array,
        causal: bool | None = None,
        timestep: mx.array | None = None,
        key: mx.array | None = None,
    ) -> mx.array:
        """Normalised latents (B, 128, F, H, W) -> pixels (B, 3, 8*(F-1)+1, 32*H, 32*W) near [-1, 1].

        causal    overrides the config
        timestep  (B,) noise level in [0, 1] that a timestep-conditioned decoder is told; by default 0.05
        key       draws the noise that such a decoder expects on its latent, and what its blocks inject; without one,
                  neither is added
        """
        pieces = self.stream(latent, MAX_CONV_ELEMENTS, causal, timestep, key)
        return mx.concatenate(list(pieces), axis=2)

    def stream(
        self,
        latent: mx.array,
        elements: int,
        causal: bool | None = None,
        timestep: mx.array | None = None,
        key: mx.array | None = None,
    ) -> Iterator[mx.array]:
        """The same pixels in consecutive pieces, for whose sake no convolution touches more than about ``elements``.

        Evaluate each piece before the next is taken, and memory follows ``elements`` and the size of a frame, not the
        length of the clip. A group norm needs the whole clip at once: there is one piece then.
        """
        if causal is None:
            causal = self.config.causal_decoder
        key, *keys = split_key(key, 1 + len(self.up_blocks))
        stages = self._stages(self._timestep(timestep, latent.shape[0]), keys)
        if not self.streams:
            elements = latent.size * max(stage.width for stage in stages)
        x = self._enter(latent, key)
        pieces = in_pieces(stages, x, Stream(causal), elements)
        del x
        yield from map(partial(unpatchify, size=self.config.patch_size), pieces)

    def _enter(self, latent: mx.array, key: mx.array | None) -> mx.array:
        latent = self.per_channel_statistics.un_normalize(self._add_noise(latent, key))
        return mx.moveaxis(latent, 1, -1).astype(self.conv_in.weight.dtype)

    def _stages(self, timestep: mx.array | None, keys: list) -> list[Stage]:
        def finish(x: mx.array, stream: Stream) -> mx.array:
            return self.conv_out(
                self._activate(self.conv_norm_out(x), timestep), stream
            )

        blocks = [
            Stage(layer, widest(block))
            for block, key in zip(self.up_blocks, keys)
            for layer in _layers(block, timestep, key)
        ]
        first = Stage(self.conv_in, widest(self.conv_in))
        return [first, *blocks, Stage(finish, widest(self.conv_out))]

    def _timestep(self, timestep: mx.array | None, batch: int) -> mx.array | None:
        if not self.config.timestep_conditioning:
            return None
        if timestep is None:
            timestep = mx.full(batch, DECODE_TIMESTEP)
        return timestep * self.timestep_scale_multiplier

    def _add_noise(self, latent: mx.array, key: mx.array | None) -> mx.array:
        if key is None or not self.config.timestep_conditioning:
            return latent
        noise = mx.random.normal(latent.shape, latent.dtype, key=key)
        return noise * DECODE_NOISE_SCALE + latent * (1 - DECODE_NOISE_SCALE)

    def _activate(self, x: mx.array, timestep: mx.array | None) -> mx.array:
        if timestep is None:
            return nn.silu(x)
        embedding = self.last_time_embedder(timestep)
        shift, scale = modulation(embedding, self.last_scale_shift_table)
        return nn.silu(modulate(x, shift, scale))


def _layers(block: nn.Module, timestep: mx.array | None, key: mx.array | None):
    match block:
        case MidBlock3D():
            return block.layers(timestep, key)
        case ResnetBlock3D():
            return [partial(block, key=key)]
    return [block]


def _narrowing(block: Block) -> int:
    """By how much a block divides the channels."""
    name, parameters = block
    if name == "res_x_y":
        return parameters.get("multiplier", 2)
    return parameters.get("multiplier", 1) if name in STRIDES else 1


def _up_block(block: Block, channels: int, config: VideoVAEConfig) -> nn.Module:
    """A block of the decoder for an input of ``channels``."""
    name, parameters = block
    padding_mode = config.decoder_spatial_padding_mode
    style = {
        "norm_layer": config.norm_layer,
        "padding_mode": padding_mode,
        "inject_noise": parameters.get("inject_noise", False),
    }
    match name:
        case "res_x":
            return MidBlock3D(
                channels,
                parameters["num_layers"],
                timestep_conditioning=config.timestep_conditioning,
                **style,
            )
        case "res_x_y":
            return ResnetBlock3D(channels, channels // _narrowing(block), **style)
        case "compress_time" | "compress_space" | "compress_all":
            return DepthToSpaceUpsample(
                channels,
                STRIDES[name],
                multiplier=_narrowing(block),
                # The official decoder reads it for this block alone.
                residual=name == "compress_all" and parameters.get("residual", False),
                padding_mode=padding_mode,
            )
    raise UserError(f"Video VAE decoder block {name!r} is not implemented.")
