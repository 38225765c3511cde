"""Noise schedules: descending sigmas that end at 0, one more than there are steps."""

import math

import mlx.core as mx
import numpy as np

from mlx_video.clip_limits import MOST_STEPS
from mlx_video.errors import UserError

# Released with the distilled checkpoint (Lightricks/LTX-2, ltx_pipelines/utils/constants.py).
STAGE_1_SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
STAGE_2_SIGMAS = (0.909375, 0.725, 0.421875, 0.0)
# For the tiles of DFR's temporal rounds, which refine an existing clip.
DFR_ROUND_SIGMAS = STAGE_1_SIGMAS[4:]


def ltx2_scheduler(
    steps: int,
    num_tokens: int | None = None,
    max_shift: float = 2.05,
    base_shift: float = 0.95,
    stretch: bool = True,
    terminal: float = 0.1,
) -> mx.array:
    """Flow-matching schedule, (steps + 1,) float32, shifted towards noise as the clip grows.

    num_tokens  video tokens; the shift is linear in them, ``base_shift`` at 1,024 and ``max_shift`` at 4,096. ``None`` is
                4,096, which the official pipelines use for every size
    stretch     whether to move the last sigma before 0 to ``terminal``
    Source: LTX2Scheduler of Lightricks/LTX-2; the shift is that of https://arxiv.org/abs/2403.03206, section 5.3.2.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise UserError(
            f"steps must be from 1 to {MOST_STEPS:,}; got {steps}. The usual number is 40."
        )
    tokens = 4096 if num_tokens is None else num_tokens
    slope = (max_shift - base_shift) / (4096 - 1024)
    shift = np.float32(math.exp(base_shift + (tokens - 1024) * slope))
    # In float32, and as a reciprocal times the shift, as in the official code: for some sizes that begins at 0.99999976
    # instead of 1, and guidance amplifies the difference.
    sigmas = 1 / (shift + (1 / _times(steps) - 1)) * shift
    if stretch:
        distance = 1 - sigmas
        sigmas = 1 - distance / (distance[-1] / np.float32(1 - terminal))
    return mx.array(np.append(sigmas, np.float32(0)))


def _times(steps: int) -> np.ndarray:
    """From 1 towards 0 in ``steps`` equal float32 steps, computed from the nearer end, as in torch.linspace."""
    step, index = float(np.float32(1 / steps)), np.arange(steps)
    near_end = index >= (steps + 1) // 2
    times = np.where(near_end, step * (steps - index), 1 - step * index)
    return times.astype(np.float32)
