"""Latents under denoising, and conditions that pin parts of them. Knows tokens and masks, not models or samplers."""

from dataclasses import dataclass
from typing import Iterable, NamedTuple

import mlx.core as mx


class LatentState(NamedTuple):
    """One modality during sampling, as tokens.

    latent        (B, N, C)     current sample x_t, float32
    clean_latent  (B, N, C)     what pinned tokens must stay equal to, float32
    denoise_mask  (B, N, 1)     1 = denoise fully, 0 = keep clean, float32
    positions     (B, A, N, 2)  [start, end) of each token on each of A axes, float32;
                                seconds on the time axis, pixels on the others
    """

    latent: mx.array
    clean_latent: mx.array
    denoise_mask: mx.array
    positions: mx.array
