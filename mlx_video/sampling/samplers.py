"""Samplers: loops from noise to a sample, for any pair of latent states.

Each is a generator over (states, sigma) after a step. It sees the model only as
``denoise(states, sigma) -> AV[x0]``, and evaluates nothing: the caller decides when.
"""

from typing import Callable, Iterator, Sequence

import mlx.core as mx

from mlx_video.conditioning.latent import LatentState, apply_denoise_mask
from mlx_video.types import AV

Denoise = Callable[[AV[LatentState], float], AV[mx.array]]


def euler(
    denoise: Denoise, states: AV[LatentState], sigmas: Sequence[float]
) -> Iterator[tuple[AV[LatentState], float]]:
    """Euler steps along the rectified flow: x <- x + (x - x0) / sigma * (sigma' - sigma), in float32."""
    for sigma, sigma_next in zip(sigmas, sigmas[1:]):

        def step(state: LatentState, x0: mx.array) -> LatentState:
            x0 = apply_denoise_mask(x0, state.clean_latent, state.denoise_mask)
            return state._replace(
                latent=euler_step(state.latent, x0, sigma, sigma_next)
            )

        states = states.map(step, denoise(states, sigma))
        yield states, sigma_next


def euler_step(x: mx.array, x0: mx.array, sigma: float, sigma_next: float) -> mx.array:
    """One step from noise level ``sigma`` to ``sigma_next``, towards the predicted clean sample ``x0``."""
    return x + to_velocity(x, x0, sigma) * (sigma_next - sigma)


def to_velocity(x: mx.array, x0: mx.array, sigma: float) -> mx.array:
    """The flow's velocity at ``x`` when it ends in ``x0``."""
    return (x - x0) / sigma
