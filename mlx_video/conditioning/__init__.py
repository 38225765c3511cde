"""Conditions on latents, under the names of other ports."""

from mlx_video.conditioning.latent import (
    VideoConditionByLatentIndex,
    apply_conditioning,
)

__all__ = ["VideoConditionByLatentIndex", "apply_conditioning"]
