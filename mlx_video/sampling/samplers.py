"""Samplers: loops from noise to a sample, for any pair of latent states.

Each is a generator of (states, sigma) after each step. It sees the model only as ``denoise(states, sigma, step) -> AV[x0]``
and randomness only as ``noise(draw, states)``. It evaluates nothing; its caller does.

**Resuming.** A step depends on earlier ones only through their latents. So a run can be saved as its latents after ``k``
steps, the number ``k``, the sigmas and the key of the noise; a sampler given those latents and ``start=k`` reaches the same
bytes. With ``Guidance.skip_step`` the denoiser also keeps x0, so such a run resumes only at a step that reuses none (see
``guidance.may_start``).
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Callable, Iterator, Sequence

import mlx.core as mx

from mlx_video.conditioning.latent import LatentState
from mlx_video.errors import UserError
from mlx_video.types import AV

Denoise = Callable[[AV[LatentState], float, int], AV[mx.array]]
Noise = Callable[[int, AV[LatentState]], AV[mx.array]]
Steps = Iterator[tuple[AV[LatentState], float]]

NAMES = ("euler", "euler_ancestral", "res_2s")


@dataclass(frozen=True)
class Sampler:
    """A sampler of a recipe.

    name  "euler", "euler_ancestral" or "res_2s"
    eta   of ancestral Euler: the share of the noise that each step replaces
    """

    name: str = "euler"
    eta: float = 1.0

    def __post_init__(self):
        if self.name not in NAMES:
            raise UserError(
                f"There is no sampler {ascii(self.name[:40])}; known are {', '.join(NAMES)}."
            )
        if not 0 <= self.eta <= 1:
            raise UserError(
                f"A sampler's eta must be from 0 to 1, such as 0.5; got {self.eta}."
            )

    def __call__(
        self,
        denoise: Denoise,
        states: AV[LatentState],
        sigmas: Sequence[float],
        *,
        key: mx.array,
        start: int = 0,
    ) -> Steps:
        """The steps from ``start`` on, with any noise drawn from ``key``."""
        noise = gaussian(key, 2 * len(sigmas))
        if self.name == "euler_ancestral":
            return euler_ancestral(
                denoise, states, sigmas, noise=noise, eta=self.eta, start=start
            )
        if self.name == "res_2s":
            noise = normalized(noise)
            return res_2s(denoise, states, sigmas, noise=noise, start=start)
        return euler(denoise, states, sigmas, start=start)


def euler(
    denoise: Denoise,
    states: AV[LatentState],
    sigmas: Sequence[float],
    *,
    start: int = 0,
) -> Steps:
    """Euler steps along the rectified flow: x <- x + (x - x0) / sigma * (sigma' - sigma), in float32."""
    for index, sigma, sigma_next in _pairs(sigmas, start):
        step = partial(euler_step, sigma=sigma, sigma_next=sigma_next)
        states = _moved(states, step, _clean(denoise, states, sigma, index))
        yield states, sigma_next


def euler_ancestral(
    denoise: Denoise,
    states: AV[LatentState],
    sigmas: Sequence[float],
    *,
    noise: Noise,
    eta: float = 1.0,
    start: int = 0,
) -> Steps:
    """Euler steps that overshoot and add fresh noise, in float32.

    noise  Gaussian; draw k is for step k
    eta    the share of the noise that each step replaces, from 0 (plain Euler) to 1
    """
    for index, sigma, sigma_next in _pairs(sigmas, start):
        step = partial(ancestral_step, sigma=sigma, sigma_next=sigma_next, eta=eta)
        x0s = _clean(denoise, states, sigma, index)
        if sigma_next == 0:
            states = _moved(states, lambda _, x0: x0, x0s)
        else:
            states = _masked(_moved(states, step, x0s, noise(index, states)))
        yield states, sigma_next


def res_2s(
    denoise: Denoise,
    states: AV[LatentState],
    sigmas: Sequence[float],
    *,
    noise: Noise,
    start: int = 0,
) -> Steps:
    """Two-stage exponential Runge-Kutta steps with fresh noise, and a last prediction at ``RES_2S_LAST_SIGMA``.

    noise  Gaussian of mean 0 and deviation 1 (``normalized``); draw 2k is for the middle of step k, 2k + 1 for its end
    The official code computes in float64 on CUDA and in float32 on Apple devices; here it is float32 (within 2e-6 after 15
    steps). Source: RES4LYF's res_2s, after https://arxiv.org/abs/2308.02157, as in the HQ recipe of Lightricks/LTX-2.
    """
    levels = [*sigmas[:-1], RES_2S_LAST_SIGMA]
    for index, sigma, sigma_next in _pairs(levels, start):
        states = _res_2s_step(denoise, states, sigma, sigma_next, noise, index)
        last = index == len(levels) - 2
        if last:
            x0s = _clean(denoise, states, RES_2S_LAST_SIGMA, index + 1)
            states = _moved(states, lambda _, x0: x0, x0s)
        yield states, 0.0 if last else sigma_next


RES_2S_LAST_SIGMA = 0.0011


def _res_2s_step(
    denoise: Denoise,
    states: AV[LatentState],
    sigma: float,
    sigma_next: float,
    noise: Noise,
    index: int,
) -> AV[LatentState]:
    """One step: a prediction x1 at ``sigma``, another x2 at the geometric mean of both levels, and their combination."""
    h, middle = math.log(sigma / sigma_next), math.sqrt(sigma * sigma_next)
    c, b2 = h * (0.5 * _phi_1(-h / 2)), 2 * _phi_2(-h)
    b1 = _phi_1(-h) - b2

    def halfway(x: mx.array, x1: mx.array, fresh: mx.array) -> mx.array:
        return sde_step(x, x + c * (x1 - x), sigma, middle, fresh)

    def anchor(x: mx.array, x1: mx.array, mid: mx.array) -> mx.array:
        # The fixed point of x <- mid - c (x1 - x), which the official code iterates a hundred times.
        return (mid - c * x1) / (1 - c) if h < 0.5 and sigma > 0.03 else x

    def whole(x: mx.array, x1: mx.array, x2: mx.array, fresh: mx.array) -> mx.array:
        end = x + h * (b1 * (x1 - x) + b2 * (x2 - x))
        return sde_step(x, end, sigma, sigma_next, fresh)

    first = _clean(denoise, states, sigma, index)
    between = _masked(_moved(states, halfway, first, noise(2 * index, states)))
    second = _clean(denoise, between, middle, index)
    anchors = _moved(states, anchor, first, between.map(lambda state: state.latent))
    ends = _moved(anchors, whole, first, second, noise(2 * index + 1, states))
    return _masked(ends)


def _phi_1(z: float) -> float:
    return math.expm1(z) / z


def _phi_2(z: float) -> float:
    return (math.expm1(z) - z) / z**2


def sde_step(
    x: mx.array, y: mx.array, sigma: float, sigma_next: float, noise: mx.array
) -> mx.array:
    """A sampler's step from ``x`` to ``y``, of any shape, with half of the remaining noise redrawn."""
    up = min(0.5 * sigma_next, 0.9999 * sigma_next)
    kept = math.sqrt(sigma_next**2 - up**2)
    alpha = (1 - sigma_next) + kept
    eps = (x - y) / (sigma - sigma_next)
    x0 = x - sigma * eps
    return alpha * (x0 + kept / alpha * eps) + up * noise


def euler_step(x: mx.array, x0: mx.array, sigma: float, sigma_next: float) -> mx.array:
    """One step from noise level ``sigma`` to ``sigma_next``, towards the predicted ``x0`` of the same shape."""
    return x + (x - x0) / sigma * (sigma_next - sigma)


def ancestral_step(
    x: mx.array,
    x0: mx.array,
    noise: mx.array,
    sigma: float,
    sigma_next: float,
    eta: float = 1.0,
) -> mx.array:
    """One step to below ``sigma_next`` (not 0), then back up to it with ``noise``; ``eta`` sets how far below."""
    down = sigma_next * (1 + (sigma_next / sigma - 1) * eta)
    x = down / sigma * x + (1 - down / sigma) * x0
    scale = (1 - sigma_next) / (1 - down)
    fresh = math.sqrt(max(0.0, sigma_next**2 - (down * scale) ** 2))
    return scale * x + fresh * noise


def gaussian(key: mx.array, draws: int) -> Noise:
    """Standard normal noise (B, N, C) for ``draws`` draws; it depends only on the key and the draw, not on earlier draws."""
    keys = mx.random.split(key, draws)

    def noise(draw: int, states: AV[LatentState]) -> AV[mx.array]:
        return states.map(
            lambda state, key: mx.random.normal(state.latent.shape, key=key),
            AV(*mx.random.split(keys[draw])),
        )

    return noise


def normalized(noise: Noise) -> Noise:
    """``noise`` normalised to mean 0 and deviation 1, first as a whole, then per batch item, as res_2s needs it."""

    def one(x: mx.array) -> mx.array:
        x = (x - x.mean()) / mx.std(x, ddof=1)
        mean = x.mean(axis=(-2, -1), keepdims=True)
        return (x - mean) / mx.std(x, axis=(-2, -1), keepdims=True, ddof=1)

    return lambda draw, states: noise(draw, states).map(one)


def _pairs(sigmas: Sequence[float], start: int) -> Iterator[tuple[int, float, float]]:
    """(step, sigma, next sigma) from step ``start`` on."""
    pairs = enumerate(pairwise(sigmas))
    return ((index, *pair) for index, pair in pairs if index >= start)


def _clean(
    denoise: Denoise, states: AV[LatentState], sigma: float, step: int
) -> AV[mx.array]:
    """The predicted clean samples, with the kept tokens restored."""
    return states.map(lambda state, x0: state.masked(x0), denoise(states, sigma, step))


def _moved(states: AV[LatentState], step: Callable, *given: AV) -> AV[LatentState]:
    """``states`` with ``step`` applied to each latent and its modality's ``given`` values."""
    return states.map(
        lambda state, *each: state._replace(latent=step(state.latent, *each)), *given
    )


def _masked(states: AV[LatentState]) -> AV[LatentState]:
    """``states`` with the kept tokens restored."""
    return states.map(lambda state: state._replace(latent=state.masked(state.latent)))
