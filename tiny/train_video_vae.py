"""Trains the video autoencoder of ``ltx-2-tiny`` on crops of the world's clips: ``python -m tiny.train_video_vae``.

Knows what a good reconstruction of pixels is; not what is made of the latents.
"""

import argparse
import math
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_video.models.ltx.video_vae import VideoDecoder, VideoEncoder
from mlx_video.models.ltx.video_vae.convolution import ResnetBlock3D
from tiny import quick
from tiny.model import WORK, fresh, load, store
from tiny.start_video_vae import start
from tiny.training import Plan, slope_of, train
from tiny.world import FPS, Scene, draw, path, random_scene

GPU = mx.default_device() == mx.gpu
SMOOTH = 0.01  # errors below it count by their square
SQUARES = 20.0  # weight beside the mean error of the squared one, which PSNR is about
NOISE = 0.1  # on latents of deviation 1: what a transformer leaves
MAGNITUDE = 1e-4  # weight of the latents' mean square, lest they grow
LEAST_STD = 0.05  # of a latent channel, as a share of the mean one


class Cut(NamedTuple):
    """A square crop of ``size`` pixels and so many frames, of clips drawn ``height`` pixels high."""

    size: int
    frames: int
    height: int

    @property
    def pixels(self) -> int:
        return self.size**2 * self.frames


# What a step may train on. Small crops learn most a second, whole frames what lies at their edges.
CUTS = (
    [Cut(64, 17, 256), Cut(128, 17, 128), Cut(128, 25, 256), Cut(256, 33, 256)]
    if GPU
    else [Cut(64, 9, 128), Cut(64, 9, 256), Cut(64, 17, 128), Cut(96, 9, 256)]
    + [Cut(128, 9, 128)]
)
PIXELS = 2**25 if GPU else 2**18  # a step
SIZES = (128, 256)  # of the frames that statistics and measures are of, in pixels
SCENES = 64 if GPU else 8  # of each size, that statistics are of
LENGTH = 17  # frames of those clips


class Autoencoder(nn.Module):
    """Both parts at once; their statistics are the identity but in files."""

    def __init__(self, encoder: VideoEncoder, decoder: VideoDecoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        found = encoder.per_channel_statistics
        self._found = found.mean, found.std
        ones = mx.ones(encoder.config.latent_channels)
        set_statistics(self, mx.zeros_like(ones), ones)
        for part in (self.encoder, self.decoder):
            part.per_channel_statistics.freeze()


def begin() -> Autoencoder:
    """Both parts as training left them, or else by linear algebra, stored."""
    if not (WORK / "video_encoder").is_dir():
        pair = Autoencoder(fresh("video_encoder"), fresh("video_decoder"))
        start(pair.encoder, pair.decoder)
        finish(pair)
    return Autoencoder(load("video_encoder"), load("video_decoder"))


# ---- data


def draw_crops(rng: np.random.Generator, cut: Cut, count: int) -> mx.array:
    """Crops (count, 3, F, S, S) around things of training's scenes, several from a clip that is much larger."""
    each = min(4, cut.height // cut.size)
    scenes = [random_scene(rng) for _ in range(-(-count // each))]
    clips = draw(scenes, cut.frames, cut.height, cut.height)
    crops = []
    for i in range(count):
        y, x = corner(rng, scenes[i // each], cut)
        crops.append(clips[i // each, :, :, y : y + cut.size, x : x + cut.size])
    return mx.stack(crops)


def corner(rng: np.random.Generator, scene: Scene, cut: Cut) -> tuple[int, int]:
    """Row and column where a crop begins that shows a part of a thing at some time, or what is just beside it."""
    actor = scene.actors[rng.integers(len(scene.actors))]
    at = path(actor, rng.uniform(0, cut.frames / FPS, 1))
    centre = np.array([at.y[0], at.x[0]]) * cut.height - cut.size / 2
    reach = at.size[0] * cut.height + cut.size / 8
    place = np.clip(centre + rng.uniform(-reach, reach, 2), 0, cut.height - cut.size)
    return int(place[0]), int(place[1])


def training_crops(step: int, pixels: int, cuts: list[Cut]) -> mx.array:
    rng = np.random.default_rng((step, pixels))
    cut = cuts[rng.integers(len(cuts))]
    return draw_crops(rng, cut, max(1, pixels // cut.pixels))


# ---- objective


def distance(x: mx.array, target: mx.array) -> mx.array:
    """Mean error, smooth at 0, and mean squared error: edges are sharp and no place is far off."""
    square = mx.square(x.astype(mx.float32) - target)
    return mx.mean(mx.sqrt(square + SMOOTH**2)) + SQUARES * mx.mean(square)


def statistics(latent: mx.array) -> tuple[mx.array, mx.array]:
    """Mean and deviation of every channel: (B, C, F, H, W) -> two of (C,)."""
    mean = mx.mean(latent, axis=(0, 2, 3, 4))
    std = mx.std(latent, axis=(0, 2, 3, 4))
    return mean, mx.maximum(std, LEAST_STD * mx.mean(std))


def noisy(latent: mx.array, key: mx.array) -> mx.array:
    """A latent off by ``NOISE`` of each channel's deviation in its batch."""
    _, std = statistics(mx.stop_gradient(latent.astype(mx.float32)))
    noise = NOISE * std[:, None, None, None] * mx.random.normal(latent.shape, key=key)
    return latent + noise.astype(latent.dtype)


def keep_trainable(pair: Autoencoder, only: str) -> None:
    """Freeze all but the decoder (``only`` = "decoder") or its residual blocks ("residual"); nothing for "all"."""
    if only == "all":
        return
    pair.encoder.freeze()
    if only == "residual":
        pair.decoder.freeze()
        for module in pair.decoder.modules():
            if isinstance(module, ResnetBlock3D):
                module.unfreeze()


def train_pair(
    pair: Autoencoder, plan: Plan, pixels: int, cuts: list[Cut]
) -> Autoencoder:
    """Descend on the reconstruction, and store both parts whenever the training pauses."""

    def loss(step: int) -> mx.array:
        target = training_crops(step, pixels, cuts)
        latent = pair.encoder(target.astype(plan.dtype))
        decoded = pair.decoder(noisy(latent, mx.random.key(step)))
        magnitude = mx.mean(mx.square(latent.astype(mx.float32)))
        return distance(decoded, target) + MAGNITUDE * magnitude

    return train(pair, slope_of(pair, loss), plan, on_pause=lambda: finish(pair))


# ---- what is left of it


def finish(pair: Autoencoder) -> None:
    """Store both parts with their statistics; the pair itself keeps none.

    An encoder that is trained has those of the latents of ``SCENES`` scenes at each size; one that is not, those it came with.
    """
    mean, std = pair._found
    if tree_flatten(pair.encoder.trainable_parameters()):
        mean, std = _measured_statistics(pair.encoder)
    set_statistics(pair, mean, std)
    store("video_encoder", pair.encoder)
    store("video_decoder", pair.decoder)
    set_statistics(pair, mx.zeros_like(mean), mx.ones_like(std))
    quality = measure(pair.encoder, pair.decoder, 2, LENGTH)
    print("PSNR of unseen clips (dB):", quality, flush=True)


def _measured_statistics(encoder: VideoEncoder) -> tuple[mx.array, mx.array]:
    rng = np.random.default_rng(0)
    latents = [
        encoder(draw([random_scene(rng)], LENGTH, size, size)).flatten(2)
        for size in SIZES
        for _ in range(SCENES)
    ]
    return statistics(mx.concatenate(latents, axis=2)[..., None, None])


def set_statistics(pair: Autoencoder, mean: mx.array, std: mx.array) -> None:
    for part in (pair.encoder, pair.decoder):
        part.per_channel_statistics.update({"mean": mean, "std": std})


def psnr(x: mx.array, target: mx.array) -> float:
    """Peak signal-to-noise ratio in dB of pixels in [-1, 1], those beyond cut off."""
    error = mx.mean(mx.square(mx.clip(x, -1, 1) - target)).item()
    return 10 * math.log10(4 / error)


def measure(
    encoder: VideoEncoder, decoder: VideoDecoder, count: int, frames: int
) -> dict[str, float]:
    """PSNR of as many clips that no training has: the mean, the worst, and the mean of the first frames alone."""
    rng, size = np.random.default_rng(0), SIZES[-1]
    scenes = [random_scene(rng, unseen=True) for _ in range(count)]
    clips = [draw([scene], frames, size, size) for scene in scenes]
    whole = [psnr(decoder(encoder(x)), x) for x in clips]
    first = [psnr(decoder(encoder(x[:, :, :1])), x[:, :, :1]) for x in clips]
    return {
        "mean": float(np.mean(whole)),
        "worst": min(whole),
        "image": float(np.mean(first)),
    }


def main() -> None:
    options = _options()
    quick.install()
    pair = begin()
    keep_trainable(pair, options.only)
    plan = Plan(
        f"video_vae_{options.only}",
        options.steps,
        options.minutes,
        options.learning_rate or (1e-3 if options.only == "residual" else 3e-5),
        average=0.998 if GPU else 0.99,
        save_seconds=120 if GPU else 180,
        dtype=mx.bfloat16 if GPU else mx.float32,
    )
    train_pair(pair, plan, options.pixels, CUTS)
    stored = load("video_encoder"), load("video_decoder")
    print("PSNR of 32 unseen clips (dB):", measure(*stored, 32, 49))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--pixels", type=int, default=PIXELS, help="a step")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument(
        "--only",
        choices=("residual", "decoder", "all"),
        default="all",
        help="what is trained: without the encoder latents stay what they are; the decoder's residual blocks alone bear "
        "30 times the rate that the fitted layers do",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
