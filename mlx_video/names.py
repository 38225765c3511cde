"""The names that users of the three doors import from them: constants, grids, schedules and guidance of LTX-2."""

from mlx_video.models.ltx.patchify import (
    AUDIO_HOP_LENGTH,
    AUDIO_LATENT_CHANNELS,
    AUDIO_LATENT_SAMPLE_RATE,
    AUDIO_LATENTS_PER_SECOND,
    AUDIO_MEL_BINS,
    AUDIO_SAMPLE_RATE,
    compute_audio_frames,
    create_audio_position_grid,
    create_position_grid,
)
from mlx_video.recipes import DEFAULT_NEGATIVE_PROMPT
from mlx_video.sampling.guidance import cfg_delta
from mlx_video.sampling.schedules import (
    STAGE_1_SIGMAS,
    STAGE_2_SIGMAS,
    ltx2_scheduler,
)

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
]
