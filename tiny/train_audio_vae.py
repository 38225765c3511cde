"""Trains the audio autoencoder of ``ltx-2-tiny`` on the log-mel spectrograms of the world's sounds.

Knows what a good reconstruction of a spectrogram is; not how it becomes a waveform. ``python -m tiny.train_audio_vae``.
"""

import argparse

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_video.models.ltx.vae_config import AudioVAEConfig
from mlx_video.types import VideoPixelShape
from tiny.mel import LOG_FLOOR, log_mel
from tiny.model import AUDIO_VAE, GEOMETRY, fresh, store
from tiny.training import Plan, slope_of, train
from tiny.world import FPS, random_scene, sound

CONFIG = AudioVAEConfig.from_dict(AUDIO_VAE)
SILENCE = float(np.log(LOG_FLOOR))
LENGTHS = (25, 41)  # video frames of a training clip; the networks see 0.4 s around
LOUDNESS = 3.0  # how much more a cell at magnitude 1 counts than a silent one
NOISE = 0.1  # on latents of deviation 1: what a transformer leaves
CLIPS = 64  # whose latents the statistics are of
LEAST_STD = 0.05  # of a latent's cell, as a share of the mean one


class Autoencoder(nn.Module):
    """Both parts at once; their statistics are the identity until ``finished``."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = fresh("audio_encoder"), fresh("audio_decoder")
        # From silence, what most cells are, and not from magnitude 1.
        self.decoder.conv_out.bias += SILENCE
        for part in (self.encoder, self.decoder):
            part.per_channel_statistics.freeze()


def draw_scenes(step: int, count: int) -> tuple[list, int]:
    """The scenes of a training step, and how many video frames they last."""
    rng = np.random.default_rng((step, count))
    frames = int(rng.choice(LENGTHS))
    return [random_scene(rng) for _ in range(count)], frames


def unseen_scenes(count: int) -> tuple[list, int]:
    """Scenes that no training has, for measuring, and how many video frames they last."""
    rng = np.random.default_rng(0)
    return [random_scene(rng, unseen=True) for _ in range(count)], 49


def spectrograms(scenes: list, frames: int) -> mx.array:
    """Log-mel of the scenes' sound, as long as T latents decode to: (B, 2, 4T - 3, 64)."""
    T = GEOMETRY.audio_frames(VideoPixelShape(frames, 0, 0, FPS))
    waveform = sound(scenes, frames, CONFIG.sampling_rate)
    return log_mel(waveform, CONFIG)[:, :, : 4 * T - 3]


def distance(x: mx.array, target: mx.array) -> mx.array:
    """Mean absolute difference of two log-mels, loud cells of the target counting more."""
    loudness = 1 - target / SILENCE  # 0 at silence, 1 at magnitude 1
    return mx.mean(mx.abs(x - target) * (1 + LOUDNESS * mx.maximum(loudness, 0)))


def statistics(latent: mx.array) -> tuple[mx.array, mx.array]:
    """Mean and deviation over clips and time of every (channel, bin): (B, C, T, M) -> two of (C * M,)."""
    mean = mx.mean(latent, axis=(0, 2)).flatten()
    std = mx.std(latent, axis=(0, 2)).flatten()
    return mean, mx.maximum(std, LEAST_STD * mx.mean(std))


def noisy(latent: mx.array, key: mx.array) -> mx.array:
    """A latent off by ``NOISE`` of each cell's deviation in its batch."""
    B, C, _, M = latent.shape
    _, std = statistics(mx.stop_gradient(latent))
    noise = mx.random.normal(latent.shape, key=key).astype(latent.dtype)
    return latent + NOISE * std.reshape(C, 1, M) * noise


def train_pair(pair: Autoencoder, plan: Plan, batch: int) -> Autoencoder:
    """Descend on the reconstruction, and store both parts whenever the training pauses."""

    def loss(step: int) -> mx.array:
        target = spectrograms(*draw_scenes(step, batch))
        latent = pair.encoder(target.astype(plan.dtype))
        decoded = pair.decoder(noisy(latent, mx.random.key(step)))
        return distance(decoded.astype(mx.float32), target)

    return train(pair, slope_of(pair, loss), plan, on_pause=lambda: finish(pair))


def finish(pair: Autoencoder) -> None:
    """Store both parts with the statistics of the latents of some clips; the pair itself keeps none."""
    latent = pair.encoder(spectrograms(*draw_scenes(0, CLIPS)))
    mean, std = statistics(latent)
    set_statistics(pair, mean, std)
    store("audio_encoder", pair.encoder)
    store("audio_decoder", pair.decoder)
    set_statistics(pair, mx.zeros_like(mean), mx.ones_like(std))


def set_statistics(pair: Autoencoder, mean: mx.array, std: mx.array) -> None:
    for part in (pair.encoder, pair.decoder):
        part.per_channel_statistics.update({"mean": mean, "std": std})


def measure(encoder: nn.Module, decoder: nn.Module, count: int = 64) -> dict:
    """Mean absolute error of log-mels in nepers, of all cells, of the loud ones (over -6), and of silent clips."""
    target = spectrograms(*unseen_scenes(count))
    error = mx.abs(decoder(encoder(target)) - target)
    loud = target > -6
    silent = mx.all(target <= SILENCE + 1e-3, axis=(1, 2, 3))
    return {
        "all": mx.mean(error).item(),
        "loud": (mx.sum(error * loud) / mx.sum(loud)).item(),
        "silent": (
            mx.sum(mx.mean(error, axis=(1, 2, 3)) * silent)
            / mx.maximum(mx.sum(silent), 1)
        ).item(),
    }


def main() -> None:
    on_gpu = mx.default_device() == mx.gpu
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--batch", type=int, default=128 if on_gpu else 2)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args()
    plan = Plan(
        "audio_vae",
        options.steps,
        options.minutes,
        options.learning_rate,
        average=0.998 if on_gpu else 0.99,
        dtype=mx.bfloat16 if on_gpu else mx.float32,
    )
    pair = train_pair(Autoencoder(), plan, options.batch)
    print("mean error of log-mels (nepers):", measure(pair.encoder, pair.decoder))


if __name__ == "__main__":
    main()
