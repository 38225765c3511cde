"""Latents as tokens, each token's position in time and space, and the states that a stage begins with. Knows no network."""

from typing import Iterable, Sequence

import mlx.core as mx

from mlx_video.conditioning.latent import (
    Condition,
    LatentState,
    apply_conditioning,
    patchify_video,
)
from mlx_video.types import (
    AV,
    AudioScale,
    Geometry,
    VideoLatentShape,
    VideoPixelShape,
    VideoScale,
)


def unpatchify_video(tokens: mx.array, shape: VideoLatentShape) -> mx.array:
    """The inverse of ``patchify_video``: (B, N, C) -> (B, C, F, H, W); tokens beyond the grid (conditions) are dropped."""
    return mx.unflatten(tokens[:, : shape.tokens].swapaxes(1, 2), -1, shape[2:])


def patchify_audio(latent: mx.array) -> mx.array:
    """Tokens of latent sound, one per latent frame: (B, C, T, M) -> (B, T, C*M), mel bins fastest."""
    return latent.swapaxes(1, 2).flatten(2)


def unpatchify_audio(tokens: mx.array, scale: AudioScale) -> mx.array:
    """The inverse of ``patchify_audio``: (B, T, C*M) -> (B, C, T, M)."""
    return mx.unflatten(tokens, -1, (scale.channels, scale.bins)).swapaxes(1, 2)


def video_positions(shape: VideoPixelShape, geometry: Geometry) -> mx.array:
    """Positions of all tokens of a clip: (1, 3, N, 2)."""
    return position_grid(geometry.latents(shape)[2:], geometry.video, shape.fps)


def position_grid(
    cells: Sequence[int],
    scale: VideoScale,
    fps: float,
    *,
    causal_fix: bool = True,
    first_frame: int = 0,
) -> mx.array:
    """[start, end) of every video token: (1, 3, F*H*W, 2) float32, axes seconds, pixel row, pixel column.

    cells        latent frames, rows and columns
    causal_fix   the first latent covers a single frame, as the causal VAE encodes it
    first_frame  pixel frame at which the grid begins in the clip
    """
    frames, rows, columns = map(_cells, cells, scale)
    if causal_fix:
        frames = mx.maximum(frames + 1 - scale.time, 0)
    frames = (frames + first_frame) / fps
    axes = mx.broadcast_arrays(frames[:, None, None], rows[:, None], columns)
    return mx.stack(axes).reshape(1, 3, -1, 2)


def audio_positions(count: int, scale: AudioScale) -> mx.array:
    """[start, end) in seconds of ``count`` audio tokens: (1, 1, T, 2) float32, the first one mel frame long (causal)."""
    mel_frames = _cells(count, scale.mel_frames)
    mel_frames = mx.maximum(mel_frames + 1 - scale.mel_frames, 0)
    return (mel_frames * scale.hop / scale.sample_rate)[None, None]


def _cells(count: int, size: int) -> mx.array:
    """[start, end) of ``count`` consecutive cells of ``size``: (count, 2) float32."""
    edges = mx.arange(count + 1, dtype=mx.float32) * size
    return mx.stack([edges[:-1], edges[1:]], axis=-1)


def initial_states(
    shape: VideoPixelShape,
    geometry: Geometry,
    latents: AV[mx.array],
    conditions: Iterable[AV[list[Condition]]],
    audio: bool,
) -> AV[LatentState]:
    """Conditioned states of a stage, before noise, from the previous stage's latents (see ``unpatchify``) or zeros."""
    grid, sound = geometry.latents(shape), None
    video = mx.zeros(grid) if latents.video is None else latents.video
    positions = video_positions(shape, geometry)
    video = LatentState.fresh(patchify_video(video), positions, grid.tokens_per_frame)
    if audio:
        T = geometry.audio_frames(shape)
        sound = mx.zeros((1, T, geometry.audio.token_width))
        if latents.audio is not None:
            sound = patchify_audio(latents.audio)
        sound = LatentState.fresh(sound, audio_positions(T, geometry.audio))
    states = AV(video, sound)
    for condition in conditions:
        states = states.map(lambda s, own: apply_conditioning(s, own or ()), condition)
    return states


def noised(states: AV[LatentState], sigma: float, key: mx.array) -> AV[LatentState]:
    """``states`` with Gaussian noise mixed in to level ``sigma`` in [0, 1], drawn for each modality."""

    def one(state: LatentState, key: mx.array) -> LatentState:
        return state.noised(sigma, mx.random.normal(state.latent.shape, key=key))

    return states.map(one, AV(*mx.random.split(key)))


def unpatchify(
    states: AV[LatentState], shape: VideoPixelShape, geometry: Geometry
) -> AV[mx.array]:
    """Latents of finished states: (B, C, F, H, W) and (B, C, T, M)."""
    video = unpatchify_video(states.video.latent, geometry.latents(shape))
    if states.audio is None:
        return AV(video)
    return AV(video, unpatchify_audio(states.audio.latent, geometry.audio))
