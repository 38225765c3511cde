"""How much of MLX's memory a test takes."""

import gc
from collections.abc import Callable

import mlx.core as mx


class Memory:
    """Bytes of MLX beyond those held when this was made, which is after all that nobody needs was freed."""

    def __init__(self):
        gc.collect()
        mx.synchronize()
        mx.clear_cache()
        self._before = mx.get_active_memory()
        self.forget_peak()

    def forget_peak(self) -> None:
        mx.synchronize()
        mx.reset_peak_memory()

    @property
    def held(self) -> int:
        mx.synchronize()
        return mx.get_active_memory() - self._before

    @property
    def peak(self) -> int:
        mx.synchronize()
        return mx.get_peak_memory() - self._before


def most_taken(work: Callable[[], object], times: int = 1, said: float = 0.0) -> int:
    """Bytes at the peak of ``work()`` beyond those held before: the most of several runs.

    On a CPU, MLX allocates for operations to come while another thread computes and frees. How far it is ahead is
    chance, and so is the peak of one run where operations are short: one in ten, or one in two, may take a tenth less,
    or a quarter. So beyond ``times`` runs there are more, to twenty, while all took a tenth less than ``said`` bytes.
    """
    peaks: list[int] = []
    while len(peaks) < times or len(peaks) < 20 and max(peaks) < 0.9 * said:
        memory = Memory()
        work()
        peaks.append(memory.peak)
    return max(peaks)
