"""How many bytes each part of LTX-2 takes while it is lent, and while it computes. Knows sizes; reads no tensor.

A part that computes holds so many arrays of its widest size at once. How many follows from the code, and
``benchmarks/plan.py`` measures it. They are more on a CPU, where MLX unfolds what it convolves and keeps the scores of
an attention.
"""

from functools import cache
from typing import NamedTuple

import mlx.core as mx

from mlx_video.models.ltx import fitted
from mlx_video.models.ltx.components import Components
from mlx_video.models.ltx.config import LTXModelType
from mlx_video.models.ltx.layouts import MAX_TOKENS, max_tokens
from mlx_video.models.ltx.parts import part_config
from mlx_video.models.ltx.residency import Residency
from mlx_video.models.ltx.video_vae.convolution import by_product, preferred_form
from mlx_video.models.ltx.video_vae.decoder import LIVE_PIECES
from mlx_video.models.ltx.video_vae.tiling import (
    TilingConfig,
    choose_tiling,
    decode_grid,
)
from mlx_video.types import VideoPixelShape


class Live(NamedTuple):
    """How many arrays of its widest size the video autoencoder holds at once.

    video  of a clip decoded whole; ``piece`` of one that is decoded in pieces, which overlap, and ``brief`` of one so
           short that its pieces are never full
    """

    image: float
    video: float
    piece: float
    brief: float


CPU = Live(212, 78, 100, 78)
# Where a CPU convolves by matrix products of narrow kernels, it unfolds less.
PRODUCTS = Live(132, 40, 52, 40)
GPU = Live(112, 20, 20.05, 8.7)


def live() -> Live:
    return GPU if fitted.live() is fitted.GPU else CPU


class Footprint:
    """Bytes of the parts of ``components``, each of which is laid out once, lazily.

    model_type  the streams of the transformer that are lent
    residency   how weights are kept, by default as ``components`` do
    context     tokens of a prompt with its registers, as the text encoder pads it
    """

    def __init__(
        self,
        components: Components,
        model_type: LTXModelType,
        residency: Residency | None = None,
    ):
        sources = components.sources
        self.components = components
        self.residency = residency = residency or components.residency
        self.live = live()
        self.itemsize = components.dtype.size
        self.part = cache(lambda name: components.sketch(name, model_type))
        self.config = cache(lambda name: part_config(name, sources[name]))
        self.weights = cache(
            lambda name: residency.weight_bytes(self.part(name), sources[name])
        )
        gemma = sources.get("text_encoder")
        self.context = max_tokens(gemma.path) if gemma else MAX_TOKENS

    # While a part computes

    def image(self, height: int, width: int) -> float:
        """Of the video encoder for one picture."""
        config = self.config("video_encoder")
        cells, base = (
            height * width / config.patch_size**2,
            config.encoder_base_channels,
        )
        # The second grid, of twice the channels, unfolds as much as the first.
        return self._autoencoder(2 * base).image * cells * base * self._unfolded

    def _autoencoder(self, channels: int) -> Live:
        """Of the video encoder or decoder, whose kernels are so wide where it takes most."""
        if self.live is not CPU:
            return self.live
        form = preferred_form((channels, 3, 3, 3, channels), self.components.dtype)
        return PRODUCTS if form is by_product else CPU

    @property
    def _unfolded(self) -> int:
        """Bytes of a number that is convolved: a CPU computes in float32 whatever it is given."""
        return fitted.FLOAT32 if self.live is CPU else self.itemsize

    def video(self, shape: VideoPixelShape, mode: str, limit: float) -> float:
        """Of the video decoder in a tiling ``mode``, where that leaves it a choice within ``limit``."""
        decoder = self.part("video_decoder")
        grid = self.components.geometry.latents(shape)
        live = self._autoencoder(decoder.config.decoder_base_channels)
        budget = decode_budget(limit - self.weights("video_decoder"))
        tiling = choose_tiling(mode, decoder, mx.zeros(grid), shape, budget)
        if isinstance(tiling, TilingConfig):
            cuts = decode_grid(grid[2:], tiling, decoder.scale)
            tile = [max(c.source.stop - c.source.start for c in axis) for axis in cuts]
            return live.video * self._decoded(*tile)
        # In pieces of as many cells as ``elements`` are where the decoder is widest, a frame at least.
        config, (rows, columns) = decoder.config, grid[3:]
        pixels = config.out_channels * config.patch_size**2
        share = min(1, config.decoder_base_channels / pixels)
        frame = self._decoded(1, rows, columns) / tiling.tiles
        piece = max(tiling.elements * share * self._unfolded, frame)
        unfolded = (live.piece - LIVE_PIECES) * piece
        pieces = decoder.stream_bytes(grid, tiling) + unfolded
        return min(live.brief * self._decoded(*grid[2:]), pieces)

    def _decoded(self, frames: int, rows: int, columns: int) -> float:
        """The widest array that the video decoder makes of so many latent frames, rows and columns."""
        decoder = self.part("video_decoder")
        config, (time, height, width) = decoder.config, decoder.scale
        pixels = ((frames - 1) * time + 1) * rows * height * columns * width
        cells = pixels / config.patch_size**2
        return cells * config.decoder_base_channels * self._unfolded


def decode_budget(free: float) -> float:
    """What ``choose_tiling``, which counts as on a GPU, may plan with where so many bytes are ``free``."""
    return free * LIVE_PIECES / live().piece
