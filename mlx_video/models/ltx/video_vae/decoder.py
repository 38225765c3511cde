"""Convolutional video decoder: latents to pixels. Knows its blocks in order, not how a long clip is cut into tiles."""

import math
from fractions import Fraction
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
from mlx_video.models.ltx.video_vae.streaming_decode import PIECES, StreamPlan
from mlx_video.models.ltx.video_vae.tiling import TilingConfig, iterate_decode

LIVE_PIECES = 16
"""Arrays of a piece's size that are alive at once, those that a GPU's queue has not yet let go included."""


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

    def tiled(
        self, latents: mx.array, tiling: TilingConfig, key: mx.array | None = None
    ) -> Iterator[mx.array]:
        """Pixels from overlapping tiles of the latents, as Lightricks' code makes them: one piece per tile of time."""
        return iterate_decode(partial(self, key=key), latents, tiling, self.scale)

    def plans(self, shape: tuple[int, ...]) -> Iterator[StreamPlan]:
        """How latents of ``shape`` may be cut with the same pixels, the fastest first."""
        for tiles in range(1, max(shape[3:]) // 2):
            for elements in PIECES:
                yield StreamPlan(elements, tiles)

    def stream_bytes(self, shape: tuple[int, ...], plan: StreamPlan) -> int:
        """About how much memory it takes to decode latents of ``shape`` beside the weights, whatever their length.

        That is the piece at work, and the two frames or three that each convolution and its skip keep for the next.
        """
        B, _, _, *sides = shape
        halo = self.receptive_field if plan.tiles > 1 else 0
        length = min(max(sides), -(-max(sides) // plan.tiles) + 2 * halo)
        cells = B * min(sides) * length
        kept = frame = 0
        for block, scale in self._walk():
            inputs = sum(conv.weight.shape[-1] for conv in _convolutions(block))
            kept += 3 * inputs * cells * scale**2
            frame = max(frame, widest(block) * cells * scale**2)
        elements = plan.tiles * kept + LIVE_PIECES * max(plan.elements, frame)
        return elements * self.conv_in.weight.itemsize

    @property
    def receptive_field(self) -> int:
        """How many latent rows or columns away a cell may be and still matter to a pixel."""
        steps = (
            Fraction(len(_convolutions(block)), scale) for block, scale in self._walk()
        )
        return math.ceil(sum(steps))

    def _walk(self) -> Iterator[tuple[nn.Module, int]]:
        """Every block, and how many rows and columns it has for each of the latents'."""
        scale = 1
        for block in [self.conv_in, *self.up_blocks, self.conv_out]:
            yield block, scale
            scale *= block.stride[1] if isinstance(block, DepthToSpaceUpsample) else 1

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


def _convolutions(block: nn.Module) -> list[CausalConv3d]:
    """Those that see their neighbours."""
    parts = (part for part in block.modules() if isinstance(part, CausalConv3d))
    return [part for part in parts if part.kernel_size > 1]


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
