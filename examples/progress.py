"""Hear of each step, and stop a clip that takes too long: python examples/progress.py [SECONDS]"""

import sys
import time

import mlx_video

deadline = time.monotonic() + float(sys.argv[1] if len(sys.argv) > 1 else 600)


def show(step: mlx_video.Step) -> None:
    """``index`` of ``total`` units of a phase are done; ``sigma`` is the noise that is left."""
    noise = "" if step.sigma is None else f", noise {step.sigma:.2f}"
    print(f"{step.phase}: {step.index}/{step.total}{noise}")
    if time.monotonic() > deadline:
        raise TimeoutError("the clip took too long")


pipeline = mlx_video.load("ltx-2-tiny")
clip = pipeline("an orange cloud circles", seed=4, frames=17, on_step=show)
print(clip.save("clips/"))
