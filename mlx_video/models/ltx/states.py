"""The states of a stage: from latents to tokens before it, and back after it."""

from typing import Iterable

import mlx.core as mx

from mlx_video.conditioning.latent import (
    Condition,
    LatentState,
    apply_conditioning,
)
from mlx_video.models.ltx.patchify import (
    audio_positions,
    patchify_audio,
    patchify_video,
    unpatchify_audio,
    unpatchify_video,
    video_positions,
)
from mlx_video.types import AV, Geometry, VideoPixelShape


def initial_states(
    shape: VideoPixelShape,
    geometry: Geometry,
    latents: AV[mx.array],
    conditions: Iterable[AV[list[Condition]]],
    audio: bool,
) -> AV[LatentState]:
    """Conditioned states of a stage, before noise, from the previous stage's latents (see ``unpatchify``) or zeros."""
    grid = geometry.latents(shape)
    if latents.video is None:
        video = mx.zeros((1, grid.tokens, grid.channels))
    else:
        video = patchify_video(latents.video)
    positions = video_positions(shape, geometry)
    video = LatentState.fresh(video, positions, grid.tokens_per_frame)
    states = AV(video, fresh_sound(shape, geometry, latents.audio) if audio else None)
    for condition in conditions:
        states = states.map(
            lambda state, given: apply_conditioning(state, given or ()), condition
        )
    return states


def fresh_sound(
    shape: VideoPixelShape, geometry: Geometry, latent: mx.array | None
) -> LatentState:
    """The state of a clip's sound, from the previous stage's ``latent`` (B, C, T, M) or zeros."""
    T = geometry.audio_frames(shape)
    if latent is None:
        sound = mx.zeros((1, T, geometry.audio.token_width))
    else:
        sound = patchify_audio(latent)
    return LatentState.fresh(sound, audio_positions(T, geometry.audio))


def noised(states: AV[LatentState], sigma: float, key: mx.array) -> AV[LatentState]:
    """``states`` with Gaussian noise mixed in to level ``sigma`` in [0, 1], drawn for each modality."""
    keys = AV(*mx.random.split(key))
    return states.map(
        lambda state, key: state.noised(
            sigma, mx.random.normal(state.latent.shape, key=key)
        ),
        keys,
    )


def unpatchify(
    states: AV[LatentState], shape: VideoPixelShape, geometry: Geometry
) -> AV[mx.array]:
    """Latents of finished states: (B, C, F, H, W) and (B, C, T, M)."""
    video = unpatchify_video(states.video.latent, geometry.latents(shape))
    if states.audio is None:
        return AV(video)
    return AV(video, unpatchify_audio(states.audio.latent, geometry.audio))
