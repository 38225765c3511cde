"""How many bytes each part of LTX-2 takes while it is lent, and while it computes. Knows sizes; reads no tensor.

A part that computes holds so many arrays of its widest size at once. How many follows from the code, and
``benchmarks/plan.py`` measures it. They are more on a CPU, where MLX unfolds what it convolves and keeps the scores of
an attention.
"""

from functools import cache
from typing import NamedTuple

import mlx.core as mx

from mlx_video.models.ltx.components import Components
from mlx_video.models.ltx.config import LTXModelType, LTXRopeType
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
from mlx_video.types import AV, VideoPixelShape

FLOAT32 = 4  # bytes


class Live(NamedTuple):
    """How many arrays of a part's widest size are alive at once; ``scores`` are those of an attention.

    tokens     of the transformer; its pieces let ``queued`` more wait, at most ``QUEUED`` bytes
    connected  of the connectors, which nothing paces
    video      of a clip decoded whole; ``piece`` of one that is decoded in pieces, which overlap, and ``brief`` of one so
               short that its pieces are never full
    upsample   likewise, with ``finer`` more that wait, at most ``QUEUED_FINER`` bytes
    """

    tokens: float
    scores: float
    queued: float
    connected: float
    hidden_states: float
    image: float
    video: float
    piece: float
    brief: float
    upsample: float
    finer: float
    spectrogram: float
    sound: float


QUEUED, QUEUED_FINER = 115e6, 430e6
CPU = Live(12, 1, 0, 12, 4, 212, 78, 100, 78, 110, 0, 90, 96)
# Where a CPU convolves by matrix products of narrow kernels, it unfolds less.
PRODUCTS = CPU._replace(image=132, video=40, piece=52, brief=40)
GPU = Live(9.6, 0, 8, 110, 4, 112, 20, 20.05, 8.7, 9.2, 20, 42, 48.6)


def live() -> Live:
    return GPU if mx.default_device() == mx.gpu else CPU


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

    def hidden_states(self, rows: int) -> float:
        """Of the text encoder for ``rows`` tokens: every layer's, alone and stacked, and what one layer makes."""
        config = self.part("connectors").config
        width = config.caption_channels
        return rows * (2 * (config.text_layers + 1) + 16) * width * self.itemsize

    def contexts(self, rows: int, prompts: int) -> float:
        """Of the connectors for ``rows`` tokens in so many ``prompts``."""
        config = self.part("connectors").config
        inputs = (config.text_layers + 1) * config.caption_channels
        width, heads = config.streams.video.width, config.streams.video.heads
        # Both connectors' scores wait at once: nothing paces them.
        each = self.live.connected * width
        each += 3.5 * self.live.scores * heads * self.context
        connected = prompts * self.context * each * self.itemsize
        normalized = rows * inputs * FLOAT32 * self.live.hidden_states
        return rows * inputs * self.itemsize + max(connected, normalized)

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
        return FLOAT32 if self.live is CPU else self.itemsize

    def held(self, tokens: AV[int], passes: int) -> float:
        """From step to step of a stage: float32 rotary tables, and the contexts of its passes."""
        config = self.config("transformer")
        angles = 1 + (config.rope_type is LTXRopeType.INTERLEAVED)
        cross = config.streams.audio.width if len(tokens.present) > 1 else 0
        total = 0
        for modality in tokens.present:
            width = config.streams[modality].width
            total += tokens[modality] * (width + cross) * angles * FLOAT32
            total += (passes + 4) * self.context * width * self.itemsize
        return total

    def forward(self, tokens: AV[int], passes: int = 1) -> float:
        """Of the transformer for so many passes at once."""
        config = self.config("transformer")
        moving = scores = 0
        for modality in tokens.present:
            count, own = tokens[modality], config.streams[modality]
            moving += count * own.width
            scores = max(scores, own.heads * count * max(count, self.context))
        elements = self.live.tokens * moving + self.live.scores * scores
        waiting = min(QUEUED, self.live.queued * moving * self.itemsize)
        return passes * elements * self.itemsize + waiting

    def operations(self, tokens: AV[int]) -> float:
        """Floating-point operations of one pass, in matrix products of the video stream."""
        config, N = self.config("transformer"), tokens.video
        D = config.streams.video.width
        cross = config.streams.audio.width if len(tokens.present) > 1 else 0
        each = 2 * (14 * D**2 + 4 * D * cross) + 4 * D * (N + self.context)
        return config.num_layers * N * each

    def upsample(self, tokens: int) -> float:
        """Of the upsampler for so many video tokens at the finer grid."""
        width = self.config("upsampler").mid_channels
        each = tokens * width * self.itemsize
        waiting = min(QUEUED_FINER, self.live.finer * each)
        return self.live.upsample * each + waiting

    def spectrogram(self, frames: int) -> float:
        """Of the audio decoder for so many latent frames."""
        config = self.config("audio_decoder")
        cells = config.time_factor * frames * config.mel_bins
        return self.live.spectrogram * cells * config.ch * self.itemsize

    def sound(self, frames: int) -> float:
        """Of the vocoder, which computes in float32, likewise."""
        config = self.config("vocoder")
        samples = self.config("audio_decoder").time_factor * frames * config.hop
        width = config.upsample_initial_channel >> len(config.upsample_rates)
        return self.live.sound * samples * width * FLOAT32

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
