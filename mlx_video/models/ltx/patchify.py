"""Latents as tokens, and where each token lies in time and space. Knows the latent grids of LTX-2, no network."""

import mlx.core as mx

from mlx_video.conditioning.latent import latent_tokens
from mlx_video.types import VideoLatentShape, VideoPixelShape

AUDIO_SAMPLE_RATE = 24000  # Hz, of the waveform that the vocoder makes
AUDIO_LATENT_SAMPLE_RATE = 16000  # Hz, of the waveform that the mel frames describe
AUDIO_HOP_LENGTH = 160  # samples at AUDIO_LATENT_SAMPLE_RATE per mel frame
AUDIO_DOWNSAMPLE = 4  # mel frames per latent
AUDIO_LATENT_CHANNELS = 8
AUDIO_MEL_BINS = 16  # of a latent
AUDIO_LATENTS_PER_SECOND = (
    AUDIO_LATENT_SAMPLE_RATE // AUDIO_HOP_LENGTH // AUDIO_DOWNSAMPLE
)


def patchify_video(latent: mx.array) -> mx.array:
    """Tokens of a latent clip: (B, C, F, H, W) -> (B, F*H*W, C), columns fastest."""
    return latent_tokens(latent)


def unpatchify_video(tokens: mx.array, shape: VideoLatentShape) -> mx.array:
    """The inverse of ``patchify_video``; tokens beyond the grid (appended conditions) are dropped."""
    B, _, C = tokens.shape
    grid = tokens[:, : shape.tokens].swapaxes(1, 2)
    return grid.reshape(B, C, shape.frames, shape.height, shape.width)


def patchify_audio(latent: mx.array) -> mx.array:
    """Tokens of latent sound, one per latent frame: (B, C, T, M) -> (B, T, C*M), mel bins fastest."""
    B, C, T, M = latent.shape
    return latent.swapaxes(1, 2).reshape(B, T, C * M)


def unpatchify_audio(tokens: mx.array) -> mx.array:
    """The inverse of ``patchify_audio``: (B, T, C*M) -> (B, C, T, M)."""
    B, T, _ = tokens.shape
    return tokens.reshape(B, T, AUDIO_LATENT_CHANNELS, AUDIO_MEL_BINS).swapaxes(1, 2)


def compute_audio_frames(num_frames: int, fps: float) -> int:
    """Audio latents that last as long as ``num_frames`` at ``fps`` Hz, to the nearest (ties to even)."""
    return round(num_frames / fps * AUDIO_LATENTS_PER_SECOND)


def create_position_grid(
    batch_size: int,
    num_frames: int,
    height: int,
    width: int,
    temporal_scale: int = 8,
    spatial_scale: int = 32,
    fps: float = 24.0,
    causal_fix: bool = True,
    first_frame: int = 0,
) -> mx.array:
    """[start, end) of every video token: (B, 3, F*H*W, 2) float32, axes seconds, pixel row, pixel column.

    num_frames, height, width  the latent grid
    causal_fix   the first latent covers one frame alone, as the causal VAE codes it
    first_frame  pixel frame at which the grid begins in the clip
    """
    frames, rows, columns = (
        _cells(num_frames, temporal_scale),
        _cells(height, spatial_scale),
        _cells(width, spatial_scale),
    )
    if causal_fix:
        frames = mx.maximum(frames + 1 - temporal_scale, 0)
    frames = (frames + first_frame) / fps
    shape = (num_frames, height, width, 2)
    grid = mx.stack(
        [
            mx.broadcast_to(frames[:, None, None], shape),
            mx.broadcast_to(rows[None, :, None], shape),
            mx.broadcast_to(columns[None, None], shape),
        ]
    ).reshape(1, 3, -1, 2)
    return mx.repeat(grid, batch_size, axis=0)


def create_audio_position_grid(batch_size: int, audio_frames: int) -> mx.array:
    """[start, end) in seconds of every audio token: (B, 1, T, 2) float32, the first one mel frame long (causal)."""
    mel_frames = _cells(audio_frames, AUDIO_DOWNSAMPLE)
    mel_frames = mx.maximum(mel_frames + 1 - AUDIO_DOWNSAMPLE, 0)
    seconds = mel_frames * AUDIO_HOP_LENGTH / AUDIO_LATENT_SAMPLE_RATE
    return mx.repeat(seconds[None, None], batch_size, axis=0)


def keyframe_positions(shape: VideoLatentShape, frame: int, fps: float) -> mx.array:
    """Positions of an image's tokens that stand at pixel frame ``frame`` and last one frame: (1, 3, H*W, 2)."""
    grid = create_position_grid(
        1, 1, shape.height, shape.width, fps=fps, first_frame=frame
    )
    return grid


def video_positions(shape: VideoPixelShape) -> mx.array:
    """Positions of all tokens of a clip: (1, 3, N, 2)."""
    grid = VideoLatentShape.from_pixels(shape)
    return create_position_grid(1, grid.frames, grid.height, grid.width, fps=shape.fps)


def _cells(count: int, size: int) -> mx.array:
    """[start, end) of ``count`` consecutive cells of ``size``: (count, 2) float32."""
    edges = mx.arange(count + 1, dtype=mx.float32) * size
    return mx.stack([edges[:-1], edges[1:]], axis=-1)
