"""Names that scripts for other MLX ports of LTX-2 import, as aliases of ours. Nothing else uses them."""

import mlx.core as mx

from mlx_video.models.ltx.audio_vae import AudioDecoder, Vocoder
from mlx_video.models.ltx.checkpoint.releases import LTX_2
from mlx_video.models.ltx.ltx import LTXModel
from mlx_video.models.ltx.patchify import audio_positions, position_grid
from mlx_video.models.ltx.video_vae import VideoDecoder
from mlx_video.models.ltx.video_vae.encoder import VideoEncoder
from mlx_video.recipes import DEFAULT_NEGATIVE_PROMPT
from mlx_video.sampling.guidance import cfg_delta
from mlx_video.sampling.schedules import STAGE_1_SIGMAS, STAGE_2_SIGMAS, ltx2_scheduler
from mlx_video.types import VideoPixelShape, VideoScale

# From an official file's tensors to one network's under our names: dict -> dict.
sanitize_transformer_weights = LTXModel.sanitize
sanitize_vae_weights = VideoDecoder.sanitize
sanitize_vae_encoder_weights = VideoEncoder.sanitize
sanitize_audio_vae_weights = AudioDecoder.sanitize
sanitize_vocoder_weights = Vocoder.sanitize

AUDIO_SAMPLE_RATE = LTX_2.geometry.audio.output_rate
AUDIO_LATENT_SAMPLE_RATE = LTX_2.geometry.audio.sample_rate
AUDIO_HOP_LENGTH = LTX_2.geometry.audio.hop
AUDIO_LATENT_CHANNELS = LTX_2.geometry.audio.channels
AUDIO_MEL_BINS = LTX_2.geometry.audio.bins
AUDIO_LATENTS_PER_SECOND = round(LTX_2.geometry.audio.latents_per_second)


def compute_audio_frames(num_frames: int, fps: float) -> int:
    """LTX-2's latent audio frames for a clip of ``num_frames`` at ``fps`` Hz."""
    return LTX_2.geometry.audio_frames(VideoPixelShape(num_frames, 0, 0, fps))


def create_position_grid(
    batch_size: int,
    num_frames: int,
    height: int,
    width: int,
    temporal_scale: int = LTX_2.geometry.video.time,
    spatial_scale: int = LTX_2.geometry.video.height,
    fps: float = 24.0,
    causal_fix: bool = True,
) -> mx.array:
    """[start, end) of every video token of a latent grid: (B, 3, F*H*W, 2) float32."""
    scale = VideoScale(temporal_scale, spatial_scale, spatial_scale)
    cells = num_frames, height, width
    positions = position_grid(cells, scale, fps, causal_fix=causal_fix)
    return mx.repeat(positions, batch_size, axis=0)


def create_audio_position_grid(batch_size: int, audio_frames: int) -> mx.array:
    """[start, end) in seconds of each of LTX-2's audio tokens: (B, 1, T, 2) float32."""
    positions = audio_positions(audio_frames, LTX_2.geometry.audio)
    return mx.repeat(positions, batch_size, axis=0)


__all__ = [
    "AUDIO_HOP_LENGTH",
    "AUDIO_LATENTS_PER_SECOND",
    "AUDIO_LATENT_CHANNELS",
    "AUDIO_LATENT_SAMPLE_RATE",
    "AUDIO_MEL_BINS",
    "AUDIO_SAMPLE_RATE",
    "DEFAULT_NEGATIVE_PROMPT",
    "STAGE_1_SIGMAS",
    "STAGE_2_SIGMAS",
    "cfg_delta",
    "compute_audio_frames",
    "create_audio_position_grid",
    "create_position_grid",
    "ltx2_scheduler",
    "sanitize_audio_vae_weights",
    "sanitize_transformer_weights",
    "sanitize_vae_encoder_weights",
    "sanitize_vae_weights",
    "sanitize_vocoder_weights",
]
