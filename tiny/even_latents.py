"""Turns the video latents so that no direction drowns the others, without changing what they decode to.

Knows linear maps, and where they fold into the networks around a latent; not how those were trained. Where a few
directions hold nearly all variance, noise hides the others until the last step of the official schedules.
``python -m tiny.even_latents``: before the transformer is trained.
"""

import argparse
from typing import Mapping

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from tiny.model import WORK, load, store

POWER = 0.5  # of each principal direction's variance that is kept: 1 changes nothing, 0 makes all alike
LEAST = 1e-5  # of the largest variance, lest noise be blown up


def turn(tokens: np.ndarray, power: float) -> np.ndarray:
    """The symmetric map (C, C) that takes tokens (n, C) of variances v along their principal directions to v ** power.

    The mean variance of the result is 1.
    """
    variances, directions = np.linalg.eigh(np.cov(tokens.astype(np.float64).T))
    variances = np.maximum(variances, LEAST * variances[-1])
    scale = variances ** ((power - 1) / 2)
    scale /= np.sqrt(np.mean(scale**2 * variances))
    return (directions * scale) @ directions.T


def fold(parts: Mapping[str, nn.Module], matrix: np.ndarray) -> None:
    """Let encoder and decoder, and an upsampler where there is one, work on latents x -> ``matrix`` x."""
    there = mx.array(matrix.astype(np.float32))
    back = mx.array(np.linalg.inv(matrix).astype(np.float32))
    after(parts["video_encoder"].conv_out, there)
    before(parts["video_decoder"].conv_in, back)
    if upsampler := parts.get("upsampler"):
        before(upsampler.conv_in, back)
        after(upsampler.conv_out, there)


def after(layer: nn.Module, matrix: mx.array) -> None:
    """Fold a map of a convolution's first outputs into it."""
    count = len(matrix)
    weight, bias = layer.weight, layer.bias
    turned = mx.tensordot(matrix, weight[:count], axes=1)
    layer.weight = mx.concatenate([turned, weight[count:]])
    layer.bias = mx.concatenate([matrix @ bias[:count], bias[count:]])


def before(layer: nn.Module, matrix: mx.array) -> None:
    """Fold a map of a convolution's inputs into it."""
    layer.weight = layer.weight @ matrix


def restate(parts: Mapping[str, nn.Module], tokens: np.ndarray) -> None:
    """Set the statistics of encoder and decoder to those of latents (n, C) that are not normalised."""
    mean, std = (
        mx.array(x.astype(np.float32)) for x in (tokens.mean(0), tokens.std(0))
    )
    for name in ("video_encoder", "video_decoder"):
        parts[name].per_channel_statistics.update({"mean": mean, "std": std})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--power", type=float, default=POWER)
    options = parser.parse_args()
    names = ["video_encoder", "video_decoder"]
    names += ["upsampler"] if (WORK / "upsampler").is_dir() else []
    parts = {name: load(name) for name in names}
    files = sorted(WORK.glob("latents-*.safetensors"))
    seen = [file for file in files if "unseen" not in file.name]
    statistics = parts["video_encoder"].per_channel_statistics
    mean, std = np.array(statistics.mean), np.array(statistics.std)
    raw = np.concatenate([_tokens(file) for file in seen]) * std + mean
    matrix = turn(raw, options.power)
    fold(parts, matrix)
    restate(parts, raw @ matrix.T)
    mean2, std2 = (np.array(x) for x in (statistics.mean, statistics.std))
    for file in files:
        shard = mx.load(str(file))
        video = (np.array(shard["video"], np.float32) * std + mean) @ matrix.T
        shard["video"] = mx.array(((video - mean2) / std2).astype(np.float16))
        aside = file.with_suffix(".part.safetensors")
        mx.save_safetensors(str(aside), shard)
        aside.rename(file)
    for name, part in parts.items():
        store(name, part)
    print(f"{len(seen)} shards, {len(parts)} parts turned; statistics set anew")


def _tokens(file) -> np.ndarray:
    """Some tokens (n, C) of a shard, as they are normalised."""
    video = np.array(mx.load(str(file))["video"], np.float32)
    return video[:, :: max(1, video.shape[1] // 40)].reshape(-1, video.shape[-1])


if __name__ == "__main__":
    main()
