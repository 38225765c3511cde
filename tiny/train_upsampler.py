"""Trains the latent upsampler of ``ltx-2-tiny``, from scenes at 128 pixels to the same at 256: ``python -m tiny.train_upsampler``.

Knows pairs of latents; not how the autoencoder that makes them was trained, which comes first.
"""

import argparse
from typing import Iterator, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_video.models.ltx.statistics import PerChannelStatistics
from mlx_video.models.ltx.upsampler import LatentUpsampler, upsample_normalized
from mlx_video.models.ltx.video_vae import VideoEncoder
from tiny import quick
from tiny.model import fresh, load, store
from tiny.muon import Muon
from tiny.train_video_vae import psnr
from tiny.training import Plan, slope_of, train
from tiny.world import Scene, draw, random_scene

GPU = mx.default_device() == mx.gpu
COARSE, FINE = 128, 256  # pixels
NOISE = 0.1  # on the coarse latents, of deviation 1: what a transformer leaves
PIXELS = 2**27 if GPU else 2**22  # encoded at once


class Pairs(NamedTuple):
    """Normalised latents of the same scenes at both sizes: (n, 128, F, 4, 4) and (n, 128, F, 8, 8).

    A shorter clip is their beginning, for the encoder is causal.
    """

    coarse: mx.array
    fine: mx.array

    def batch(self, rows: np.ndarray, frames: int) -> "Pairs":
        """So many latent frames of the scenes ``rows``."""
        rows = mx.array(rows)
        return Pairs(self.coarse[rows, :, :frames], self.fine[rows, :, :frames])


def encode(encoder: VideoEncoder, scenes: list[Scene], frames: int) -> Pairs:
    """The latents of ``scenes`` that last so many frames of pixels."""
    step = max(1, PIXELS // (frames * FINE**2))

    def pieces(size: int) -> Iterator[mx.array]:
        for i in range(0, len(scenes), step):
            latent = encoder(draw(scenes[i : i + step], frames, size, size))
            mx.eval(latent)
            yield latent.astype(mx.float32)

    return Pairs(*(mx.concatenate(list(pieces(size))) for size in (COARSE, FINE)))


def training_batch(pairs: Pairs, step: int, count: int) -> Pairs:
    """Any scenes, cut to a length of at least 3 latent frames where there are as many."""
    rng = np.random.default_rng((step, count))
    longest = pairs.fine.shape[2]
    frames = int(rng.integers(min(3, longest), longest + 1))
    return pairs.batch(rng.integers(len(pairs.fine), size=count), frames)


def train_upsampler(
    upsampler: LatentUpsampler,
    statistics: PerChannelStatistics,
    pairs: Pairs,
    plan: Plan,
    batch: int,
) -> LatentUpsampler:
    """Descend on the mean error of fine latents, and store the upsampler whenever the training pauses."""

    def loss(step: int) -> mx.array:
        coarse, fine = training_batch(pairs, step, batch)
        noise = mx.random.normal(coarse.shape, key=mx.random.key(step))
        x = upsample_normalized(upsampler, statistics, coarse + NOISE * noise)
        return mx.mean(mx.abs(x.astype(mx.float32) - fine))

    def pause() -> None:
        store("upsampler", upsampler)

    return train(upsampler, slope_of(upsampler, loss), plan, on_pause=pause)


def measure(
    upsampler: LatentUpsampler,
    encoder: VideoEncoder,
    decoder: nn.Module,
    count: int,
    frames: int,
) -> dict[str, float]:
    """On scenes that no training has: mean squared error of normalised latents, and PSNR (dB) of what they decode to.

    Beside them the same of latents merely repeated, and the PSNR of the fine latents themselves.
    """
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng, unseen=True) for _ in range(count)]
    coarse, fine = encode(encoder, scenes, frames)
    x = upsample_normalized(upsampler, encoder.per_channel_statistics, coarse)
    repeated = mx.repeat(mx.repeat(coarse, 2, axis=3), 2, axis=4)

    def decoded(latent: mx.array) -> float:
        each = [
            psnr(decoder(z[None]), draw([scene], frames, FINE, FINE))
            for scene, z in zip(scenes, latent)
        ]
        return float(np.mean(each))

    def error(latent: mx.array) -> float:
        return mx.mean(mx.square(latent - fine)).item()

    return {
        "error": error(x),
        "error of repeated": error(repeated),
        "dB": decoded(x),
        "dB of repeated": decoded(repeated),
        "dB of fine": decoded(fine),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000 if GPU else 3000)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--batch", type=int, default=128 if GPU else 8)
    parser.add_argument("--scenes", type=int, default=8192 if GPU else 256)
    parser.add_argument("--frames", type=int, default=49 if GPU else 25)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    options = parser.parse_args()
    quick.install()
    plan = Plan(
        "upsampler",
        options.steps,
        options.minutes,
        options.learning_rate,
        optimizer=Muon,
        average=0.998 if GPU else 0.99,
        dtype=mx.bfloat16 if GPU else mx.float32,
    )
    encoder, decoder = load("video_encoder"), load("video_decoder")
    rng = np.random.default_rng(1)
    scenes = [random_scene(rng) for _ in range(options.scenes)]
    pairs = encode(encoder, scenes, options.frames)
    print(f"{len(scenes)} scenes encoded", flush=True)
    statistics = encoder.per_channel_statistics
    train_upsampler(fresh("upsampler"), statistics, pairs, plan, options.batch)
    print(measure(load("upsampler"), encoder, decoder, 32, options.frames))


if __name__ == "__main__":
    main()
