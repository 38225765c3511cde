"""The video encoder: pixels to latents. Knows the order of its blocks, and the memory that an image needs."""

from functools import partial
from pathlib import Path
from typing import Callable, ClassVar, Iterator

import mlx.core as mx
import mlx.nn as nn

from mlx_video.clip_limits import Grid, VideoPixelShape
from mlx_video.errors import UserError
from mlx_video.models.ltx.loading.memory_table import FLOAT32, copied_bytes, on_gpu
from mlx_video.models.ltx.loading.parts import Network
from mlx_video.models.ltx.pacing import PAIR, end_piece
from mlx_video.models.ltx.statistics import PerChannelStatistics
from mlx_video.models.ltx.vae_config import STRIDES, VideoEncoderConfig
from mlx_video.models.ltx.video_vae import convolution
from mlx_video.models.ltx.video_vae.convolution import CausalConv3d, MidBlock3D, widest
from mlx_video.models.ltx.video_vae.sampling import SpaceToDepthDownsample, patchify
from mlx_video.models.ltx.video_vae.stream import FrameCache, Piece, gathered

# Arrays of the first grid that are alive at once while an image is encoded, ...
LIVE = 19.3  # ... on a GPU, measured on an H200, besides QUEUED
LIVE_SMALL = 165  # ... for an image so small that everything is queued
QUEUED = 900e6  # bytes
# ... on a CPU, by its form of convolution, in float32; measured on two cores
LIVE_UNFOLDED = {convolution.by_volume: 112, convolution.by_product: 95}
# ... and of other types, at the first layers, and at the last beside the copies of their weights
LIVE_COPIED, LIVE_LAST = 150, 36


class VideoEncoder(Network):
    """The encoder. It is causal: latents depend on no later frame, so an image is a clip of one frame."""

    CONFIG = VideoEncoderConfig
    NAMES: ClassVar = convolution.video_names("encoder")

    def __init__(self, config: VideoEncoderConfig):
        super().__init__()
        self.config = config
        self.scale = config.encoder_scale
        self.per_channel_statistics = PerChannelStatistics(config.latent_channels)

        padding_mode = config.encoder_spatial_padding_mode
        channels = config.encoder_base_channels
        patch = config.in_channels * config.patch_size**2
        self.conv_in = CausalConv3d(patch, channels, padding_mode)
        self.down_blocks = []
        for block in convolution.read_blocks(config.encoder_blocks):
            module, channels = _down_block(block, channels, padding_mode)
            self.down_blocks.append(module)
        # Log-variances follow the means, and are not used.
        means = config.latent_channels
        log_variances = {"none": 0, "per_channel": means}.get(config.latent_log_var, 1)
        self.conv_out = CausalConv3d(channels, means + log_variances, padding_mode)

    def __call__(self, pixels: mx.array) -> mx.array:
        """Pixels (B, 3, F, H, W) in [-1, 1] -> normalised latent means (B, C, F', H', W').

        Raises ``UserError``, naming the nearest size, for a size that has no latents (LTX-2 takes 1 + 8k frames, and
        multiples of 32 for H and W).
        """
        pieces = self.stream(pixels, convolution.MAX_CONV_ELEMENTS)
        return mx.concatenate(list(pieces), axis=2)

    def stream(self, pixels: mx.array, elements: int) -> Iterator[mx.array]:
        """The same latents in consecutive pieces, with memory bounded as in ``VideoDecoder.stream``."""
        Grid(*self.scale).check(VideoPixelShape(*pixels.shape[2:], fps=1))
        cache = FrameCache()
        cut = self._cut(pixels, elements)
        pieces = ((x, i == len(cut)) for i, x in enumerate(cut, 1))
        pieces = map(partial(_through, self._begin, cache), pieces)
        for layer in convolution.layers_of(self.down_blocks):
            through = partial(_through, layer, cache, takes=_copied_bytes(layer))
            pieces = map(through, gathered(pieces, elements))
        pieces = map(partial(_through, self._finish, cache), gathered(pieces, elements))
        yield from (latents for latents, _ in pieces)

    def _cut(self, pixels: mx.array, elements: int) -> list[mx.array]:
        """Pieces whose frames are a multiple of those of a latent; the first has one more."""
        B, _, F, H, W = pixels.shape
        cells = B * (H // self.config.patch_size) * (W // self.config.patch_size)
        step = self.scale.time
        size = step * max(1, elements // (cells * widest(self.conv_in) * step))
        return mx.split(pixels, list(range(1 + size, F, size)), axis=2)

    def _begin(self, pixels: mx.array, cache: FrameCache) -> mx.array:
        x = patchify(pixels.astype(self.conv_in.weight.dtype), self.config.patch_size)
        return self.conv_in(x, cache)

    def _finish(self, x: mx.array, cache: FrameCache) -> mx.array:
        x = self.conv_out(x, cache, activate=True)
        means = x[..., : self.config.latent_channels]
        return self.per_channel_statistics.normalize(mx.moveaxis(means, -1, 1))

    def activation_bytes(self, height: int, width: int) -> int:
        """About how many bytes encoding an image of this size needs besides the weights."""
        base = self.config.encoder_base_channels
        cells = height * width // self.config.patch_size**2
        if on_gpu():
            grid = cells * base * self.conv_in.weight.itemsize
            return round(min(LIVE_SMALL * grid, QUEUED + LIVE * grid))
        grid, dtype = cells * base * FLOAT32, self.conv_in.weight.dtype
        if dtype != mx.float32:
            # The last two layers have the largest weights, and are queued together if their copies are small.
            copies = _copied_bytes(self, 4)
            copies = copies if copies <= PAIR else _copied_bytes(self, 2)
            return max(LIVE_COPIED * grid, copies + LIVE_LAST * grid)
        # The second grid, with twice the channels, unfolds as much as the first.
        form = convolution.preferred_form((2 * base, 3, 3, 3, 2 * base), dtype)
        return grid * LIVE_UNFOLDED[form]


def _copied_bytes(module: nn.Module, most: int = 2) -> int:
    """Bytes of the ``most`` largest copies that a CPU makes of the weights in ``module``; a residual block has two."""
    return copied_bytes((conv.weight for conv in convolution.within(module)), most)


def _through(layer: Callable, cache: FrameCache, piece: Piece, takes: int = 0) -> Piece:
    x, cache.last = piece
    # One layer's arrays for one piece at a time.
    return end_piece(layer(x, cache), takes=takes), cache.last


def _down_block(
    block: convolution.Block, channels: int, padding_mode: str
) -> tuple[nn.Module, int]:
    """A block of the encoder for an input of ``channels``, and the channels it returns."""
    name, parameters = block
    if name == "res_x":
        return MidBlock3D(channels, parameters["num_layers"], padding_mode), channels
    if name.endswith("_res") and (stride := STRIDES.get(name.removesuffix("_res"))):
        wider = channels * parameters.get("multiplier", 2)
        return SpaceToDepthDownsample(channels, wider, stride, padding_mode), wider
    raise UserError(f"Video VAE encoder block {name!r} is not implemented.")


def load_vae_encoder(path: str | Path) -> VideoEncoder:
    """The video encoder of a local checkpoint, with lazy weights."""
    # It knows this room.
    from mlx_video.models.ltx.checkpoint.layouts import identify

    return VideoEncoder.from_source(identify(Path(path)).sources["video_encoder"])
