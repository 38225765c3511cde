"""How many bytes each part of LTX-2 needs while it is lent, and while it computes. Knows sizes; reads no tensor."""

from functools import cache

import mlx.core as mx

from mlx_video.models.ltx.components import Components
from mlx_video.models.ltx.config import LTXModelType
from mlx_video.models.ltx.layouts import MAX_TOKENS, max_tokens
from mlx_video.models.ltx.residency import Residency
from mlx_video.models.ltx.video_vae.decoding import choose_tiling
from mlx_video.types import VideoPixelShape


class Footprint:
    """Bytes of the parts of ``components``; each is built once, lazily.

    model_type  the streams of the transformer that are lent
    residency   how weights are kept; by default that of ``components``
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
        self.part = cache(lambda name: components.sketch(name, model_type))
        self.weights = cache(
            lambda name: residency.weight_bytes(self.part(name), sources[name])
        )
        gemma = sources.get("text_encoder")
        self.context = max_tokens(gemma.path) if gemma else MAX_TOKENS

    # While a part computes

    def image(self, height: int, width: int) -> int:
        """Bytes of the video encoder for one picture."""
        return self.part("video_encoder").activation_bytes(height, width)

    def video(self, shape: VideoPixelShape, mode: str, limit: float) -> int:
        """Bytes of the video decoder in a tiling ``mode``, which may choose within ``limit``."""
        decoder = self.part("video_decoder")
        grid = self.components.geometry.latents(shape)
        budget = limit - self.weights("video_decoder")
        tiling = choose_tiling(mode, decoder, mx.zeros(grid), shape, budget)
        return decoder.activation_bytes(grid, tiling)
