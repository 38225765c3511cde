"""The convolutional video decoder: latents to pixels. Knows the order of its blocks, not how a clip is cut into tiles."""

import math
from functools import partial
from typing import ClassVar, Iterator

import mlx.core as mx
import mlx.nn as nn

from mlx_video.errors import UserError
from mlx_video.models.ltx.loading.parts import Network
from mlx_video.models.ltx.statistics import PerChannelStatistics
from mlx_video.models.ltx.vae_config import STRIDES, VideoVAEConfig
from mlx_video.models.ltx.video_vae.convolution import (
    CONVOLUTIONS,
    MAX_CONV_ELEMENTS,
    Block,
    CausalConv3d,
    MidBlock3D,
    layers_of,
    read_blocks,
    video_names,
    widest,
)
from mlx_video.models.ltx.video_vae.decoder_memory import DecoderMemory
from mlx_video.models.ltx.video_vae.decoding import WHOLE
from mlx_video.models.ltx.video_vae.sampling import DepthToSpaceUpsample, unpatchify
from mlx_video.models.ltx.video_vae.stream import DecoderStep, FrameCache, in_pieces
from mlx_video.models.ltx.video_vae.tiling import TilingConfig, iterate_decode


class VideoDecoder(DecoderMemory, Network):
    """The decoder. It is not causal in LTX-2, so a pixel frame may depend on later latents."""

    CONFIG = VideoVAEConfig
    NAMES: ClassVar = video_names("decoder", CONVOLUTIONS)
    FRAME: ClassVar = WHOLE  # how previews decode one latent frame

    def __init__(self, config: VideoVAEConfig):
        super().__init__()
        self.config = config
        self.scale = config.decoder_scale
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels)

        padding_mode = config.decoder_spatial_padding_mode
        blocks = list(read_blocks(config.decoder_blocks))[::-1]
        channels = config.decoder_base_channels * math.prod(map(_narrowing, blocks))
        self.conv_in = CausalConv3d(config.latent_channels, channels, padding_mode)
        self.up_blocks = []
        for block in blocks:
            self.up_blocks.append(_up_block(block, channels, padding_mode))
            channels //= _narrowing(block)
        patch = config.out_channels * config.patch_size**2
        self.conv_out = CausalConv3d(channels, patch, padding_mode)

    def __call__(self, latent: mx.array) -> mx.array:
        """Normalised latents -> pixels near [-1, 1] (LTX-2: (B, 128, F, H, W) -> (B, 3, 8*(F-1)+1, 32*H, 32*W))."""
        return mx.concatenate(list(self.stream(latent, MAX_CONV_ELEMENTS)), axis=2)

    def stream(
        self, latent: mx.array, elements: int, key: mx.array | None = None
    ) -> Iterator[mx.array]:
        """The same pixels in consecutive pieces, so that no convolution touches more than about ``elements``.

        If each piece is evaluated before the next is taken, memory is bounded by ``elements`` and the size of a frame.
        ``key`` is for decoders that draw noise; this one ignores it.
        """
        cache = FrameCache(self.config.causal_decoder)
        x = mx.moveaxis(self.per_channel_statistics.un_normalize(latent), 1, -1)
        x = x.astype(self.conv_in.weight.dtype)
        pieces = in_pieces(self._steps(), x, cache, elements)
        del x
        yield from map(partial(unpatchify, size=self.config.patch_size), pieces)

    def tiled(
        self, latents: mx.array, tiling: TilingConfig, key: mx.array | None = None
    ) -> Iterator[mx.array]:
        """Pixels from overlapping tiles of the latents, as in Lightricks' code; one piece per tile of time."""
        return iterate_decode(self, latents, tiling, self.scale)

    @property
    def layers(self) -> list[nn.Module]:
        """All layers, in the order in which they run."""
        return [self.conv_in, *layers_of(self.up_blocks), self.conv_out]

    def _steps(self) -> list[DecoderStep]:
        *steps, last = (DecoderStep(layer, widest(layer)) for layer in self.layers)
        finish = partial(self.conv_out, activate=True)
        return [*steps, DecoderStep(finish, last.width)]


def _narrowing(block: Block) -> int:
    """The divisor of a block's channels."""
    name, parameters = block
    return parameters.get("multiplier", 1) if name in STRIDES else 1


def _up_block(block: Block, channels: int, padding_mode: str) -> nn.Module:
    name, parameters = block
    if name == "res_x":
        return MidBlock3D(channels, parameters["num_layers"], padding_mode)
    if name in STRIDES:
        return DepthToSpaceUpsample(
            channels,
            STRIDES[name],
            multiplier=_narrowing(block),
            # The official decoder reads it for this block only.
            residual=name == "compress_all" and parameters.get("residual", False),
            padding_mode=padding_mode,
        )
    raise UserError(f"Video VAE decoder block {name!r} is not implemented.")
