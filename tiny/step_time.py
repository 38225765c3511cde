"""How long a step of ``tiny.train_transformer`` takes, shape by shape: ``python -m tiny.step_time``.

Trains on noise in place of latents and keeps nothing. Knows seconds; not what is learned.
"""

import argparse
import time
from statistics import median

import mlx.core as mx
import numpy as np

from mlx_video.models.ltx.text_encoder import GemmaTextEncoder
from mlx_video.types import VideoPixelShape
from tiny import quick
from tiny.denoiser import Slope
from tiny.latents import Latents, tell
from tiny.model import GEOMETRY
from tiny.text import load_encoder
from tiny.train_transformer import (
    GPU,
    LARGE,
    SMALL,
    USUAL,
    Batch,
    draw_clips,
    draw_sigmas,
    even_count,
    features,
    lesson,
    new_denoiser,
)
from tiny.training import CACHE, Plan, State, advance
from tiny.world import FPS, random_scene

LONGEST = 97  # frames
CASES = (  # pixels, frames, whether the first frame is given
    (SMALL, USUAL, False),
    (SMALL, USUAL, True),
    (LARGE, USUAL, False),
    (LARGE, LONGEST, False),
)
KNOWN = 64  # clips


def noise(shape: VideoPixelShape, encoder: GemmaTextEncoder) -> Latents:
    """As many normal numbers as clips of ``shape`` have, and sentences of the world."""
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(KNOWN)]
    tokens = GEOMETRY.latents(shape).tokens
    sounds = GEOMETRY.audio_frames(shape)
    video, audio = (
        mx.random.normal((KNOWN, n, 128)).astype(mx.float16) for n in (tokens, sounds)
    )
    return Latents(video, audio, tell(encoder, scenes, rng))


def measure(
    state: State,
    plan: Plan,
    encoder: GemmaTextEncoder,
    shape: VideoPixelShape,
    pinned: bool,
    count: int,
) -> list[float]:
    """Seconds of each step on clips of ``shape``, of which there are as many as have the tokens of ``count`` usual ones."""
    latents, seconds = noise(shape, encoder), []

    def draw(step: int) -> tuple:
        rng = np.random.default_rng(step)
        clips = even_count(shape, count)
        x0, ids = draw_clips(rng, latents, shape, clips)
        told, sigma = features(encoder, ids), mx.array(draw_sigmas(rng, clips))
        batch = Batch(x0, told, sigma, shape, pinned)
        return (lesson(batch, mx.random.key(step)),)

    for _ in range(plan.steps):
        began = time.perf_counter()
        mx.eval(advance(state, plan, draw, 0.0), state.weights)
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=512 if GPU else 16)
    parser.add_argument("--steps", type=int, default=6, help="of each shape")
    options = parser.parse_args()
    quick.install()
    mx.set_cache_limit(CACHE)
    encoder, denoiser = load_encoder(), new_denoiser()
    plan = Plan(
        "step_time",
        options.steps,
        dtype=mx.bfloat16 if GPU else mx.float32,
    )

    state = State(denoiser, Slope(denoiser), plan)
    print("| frames | pixels | first given | first step, ms | later steps, ms |")
    print("|---|---|---|---|---|")
    for size, frames, pinned in CASES:
        shape = VideoPixelShape(frames, size, size, FPS)
        first, *later = measure(state, plan, encoder, shape, pinned, options.batch)
        times = f"{1000 * first:.0f} | {1000 * median(later):.0f}"
        print(f"| {frames} | {size} | {pinned} | {times} |", flush=True)


if __name__ == "__main__":
    main()
