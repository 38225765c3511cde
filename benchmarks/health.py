"""What the health checks cost: frames watched, pixels and latents checked, of clips of 121 frames of noise.

    python benchmarks/health.py [--frames N]

Milliseconds, the least of three. A share of a run is this over the run's own time: docs/measurements/2026-11.md has both.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Callable

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
import mlx_video  # noqa: E402,F401  isort: skip  first: it chooses MLX's backend
import mlx.core as mx  # noqa: E402

from mlx_video import health  # noqa: E402
from mlx_video.types import AV  # noqa: E402

SIZES = ((512, 768), (1024, 1536))
PIECE = 16  # frames that the decoder hands over at once
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=121)
    frames = parser.parse_args().frames
    print(f"{mx.default_device()}, {frames} frames, milliseconds")
    for size in SIZES:
        watch, pixels, latents = measured(frames, *size)
        print(
            f"{size[0]}x{size[1]}: watched {watch:.1f} ({watch / frames:.3f} a frame), "
            f"check_pixels {pixels:.1f}, check_latents {latents:.2f}"
        )


def measured(count: int, height: int, width: int) -> tuple[float, float, float]:
    """Milliseconds for all frames, for all pixels and for the latents of one stage."""
    rng = np.random.default_rng(0)
    few = [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(8)]
    chunk = mx.random.uniform(-1, 1, (1, 3, PIECE, height, width)).astype(mx.bfloat16)
    latent = mx.random.normal((1, 128, (count + 7) // 8, height // 32, width // 32))
    sound = mx.random.normal((1, 8, count + 5, 16))
    mx.eval(chunk, latent, sound)
    return (
        least(
            lambda: all(True for _ in health.watched(few[i % 8] for i in range(count)))
        ),
        least(lambda: health.check_pixels(chunk)) * count / PIECE,
        least(lambda: health.check_latents(AV(latent, sound), "stage 2")),
    )


def least(work: Callable[[], object]) -> float:
    """Milliseconds of the fastest of some calls."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


if __name__ == "__main__":
    main()
