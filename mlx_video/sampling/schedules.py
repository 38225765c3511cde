"""Noise schedules: descending sigmas that end at 0, one more than there are steps. Data and closed forms only."""

import math

import mlx.core as mx
import numpy as np

# Released with the distilled checkpoint (Lightricks/LTX-2, ltx_pipelines/utils/constants.py).
STAGE_1_SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
STAGE_2_SIGMAS = (0.909375, 0.725, 0.421875, 0.0)


def ltx2_scheduler(
    steps: int,
    num_tokens: int | None = None,
    max_shift: float = 2.05,
    base_shift: float = 0.95,
    stretch: bool = True,
    terminal: float = 0.1,
) -> mx.array:
    """Flow-matching schedule, (steps + 1,) float32, shifted towards noise as the clip grows.

    num_tokens  video tokens; the shift is ``base_shift`` at 1,024 and ``max_shift`` at 4,096, linear between and beyond.
                ``None`` means 4,096, which the official pipelines use for every size
    stretch     move the last sigma before 0 to ``terminal``
    Source: LTX2Scheduler of Lightricks/LTX-2; the shift is that of https://arxiv.org/abs/2403.03206, section 5.3.2.
    """
    if steps < 1:
        raise ValueError(
            f"steps must be at least 1; got {steps}. The usual number is 40."
        )
    tokens = 4096 if num_tokens is None else num_tokens
    slope = (max_shift - base_shift) / (4096 - 1024)
    shift = np.float32(math.exp(base_shift + (tokens - 1024) * slope))
    times = np.linspace(1, 0, steps + 1, dtype=np.float32)[:-1]
    # Float32 throughout, and a reciprocal times the shift: the official schedule begins at 0.99999976 rather than 1 for
    # some sizes, and guidance multiplies the difference.
    sigmas = 1 / (shift + (1 / times - 1)) * shift
    if stretch:
        distance = 1 - sigmas
        sigmas = 1 - distance / (distance[-1] / np.float32(1 - terminal))
    return mx.array(np.append(sigmas, np.float32(0)))


def linear_quadratic_scheduler(steps: int, threshold: float = 0.025) -> mx.array:
    """Half the steps linear in the first ``threshold`` of the way, half quadratic: (steps + 1,) float32.

    Source: Movie Gen, https://arxiv.org/abs/2410.13720, section 3.4.2, as LTX-Video samples it.
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2 for this schedule; got {steps}.")
    linear = steps // 2
    quadratic = steps - linear
    slope = threshold / linear
    # The parabola continues the line's value and slope, and reaches 1 at the last step.
    curvature = (1 - threshold - slope * quadratic) / quadratic**2
    tail = np.arange(1, quadratic + 1)
    progress = np.concatenate(
        [
            slope * np.arange(linear + 1),
            threshold + slope * tail + curvature * tail**2,
        ]
    )
    return mx.array(1 - progress, mx.float32)


def beta_scheduler(steps: int, alpha: float = 0.6, beta: float = 0.6) -> mx.array:
    """Times at quantiles of a Beta distribution, so denser near both ends: (steps + 1,) float32.

    The times are shifted as in ``ltx2_scheduler`` by exp(2.37), and rounded to 10,000 of them.
    Source: Beta sampling, https://arxiv.org/abs/2407.12173, as Lightricks/LTX-2 does it.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1; got {steps}.")
    quantiles = _beta_quantiles(1 - np.arange(steps) / steps, alpha, beta)
    times = (np.rint(quantiles * 9999) + 1) / 10000
    shift = math.exp(2.37)
    return mx.array(np.append(shift / (shift + 1 / times - 1), 0.0), mx.float32)


def _beta_quantiles(p: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """Inverse distribution function of Beta(alpha, beta), by integrating its density over x = sin^2(angle)."""
    angle = np.linspace(0, np.pi / 2, 100_001)
    middle = (angle[1:] + angle[:-1]) / 2
    density = np.sin(middle) ** (2 * alpha - 1) * np.cos(middle) ** (2 * beta - 1)
    distribution = np.append(0, np.cumsum(density))
    return np.sin(np.interp(p, distribution / distribution[-1], angle)) ** 2
