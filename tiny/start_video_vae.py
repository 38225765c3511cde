"""A video autoencoder by linear algebra, for training to start from: principal components in, least squares out.

Knows blocks of pixels and how the layers of ``tiny.model.VAE`` can be made to sum them up; not how to train.

The encoder is made almost linear: its residual blocks add nothing, and before its norm stands an offset so large that
norm and SiLU bend little. Its last convolution is then fitted to the 128 principal components of 32x32x8 pixels, turned
so that each latent channel holds an equal share. Each layer of the decoder is fitted to the components of ever smaller
blocks, from what the layers before it really give.
"""

import math
from typing import Callable, Iterable, Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_video.models.ltx.video_vae.cell_kernels import activated
from mlx_video.models.ltx.video_vae.convolution import MidBlock3D
from mlx_video.models.ltx.video_vae.decoder import VideoDecoder
from mlx_video.models.ltx.video_vae.encoder import VideoEncoder
from mlx_video.models.ltx.video_vae.sampling import (
    DepthToSpaceUpsample,
    SpaceToDepthDownsample,
    patchify,
    space_to_depth,
)
from mlx_video.models.ltx.video_vae.stream import FrameCache
from tiny.model import VAE
from tiny.world import draw, random_scene

FRAMES = 17
CLIPS = {128: 320, 256: 96}  # height in pixels -> how many clips
TOGETHER = 8  # clips
ROWS = 40_000  # of cells that components are taken of
CELLS = 20_000  # of each few clips, that a layer is fitted to
RIDGE = 1e-5  # of the mean square of what is fitted with
NOISE = 0.1  # in latents of deviation 1, for the decoder to bear
OFFSET = 4.0  # before a norm, in deviations of what stands there
LATENTS = VAE["latent_channels"]
PATCH = VAE["patch_size"]

Batch = tuple[np.ndarray, ...]
Layers = Callable[[mx.array], mx.array]


def start(encoder: VideoEncoder, decoder: VideoDecoder, seed: int = 0) -> None:
    """Set the weights of both parts; their statistics stay the identity."""
    rng = np.random.default_rng(seed)
    for block in (*encoder.down_blocks, *decoder.up_blocks):
        if isinstance(block, MidBlock3D):
            for layer in block.res_blocks:
                layer.conv2.weight = mx.zeros_like(layer.conv2.weight)
    clips = list(_clips(rng))
    _start_encoder(rng, encoder, clips)
    _start_decoder(
        rng, decoder, [(clip, _latent(rng, encoder, clip)) for clip in clips]
    )


# ---- data


def _clips(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Few at a time, (n, 3, F, S, S) in [-1, 1]."""
    for size, count in CLIPS.items():
        for _ in range(0, count, TOGETHER):
            scenes = [random_scene(rng) for _ in range(TOGETHER)]
            yield np.array(draw(scenes, FRAMES, size, size))


def _latent(rng: np.random.Generator, encoder: VideoEncoder, clip) -> np.ndarray:
    """Noisy latents of clips, channels last: (n, F', H', W', 128)."""
    z = np.moveaxis(np.array(encoder(mx.array(clip))), 1, -1)
    noise = rng.standard_normal(z.shape, np.float32)
    return z + NOISE * z.std(axis=(0, 1, 2, 3)) * noise


def _blocks(clip: np.ndarray, stride: tuple[int, int, int]) -> np.ndarray:
    """(B, F', H', W', D): what each cell shows, the first frame eight times, ``stride`` in frames and patches."""
    whole = np.concatenate([clip[:, :, :1]] * 7 + [clip], axis=2)
    return np.array(space_to_depth(patchify(mx.array(whole), PATCH), stride))


def _rows(rng: np.random.Generator, arrays: Iterable, most: int) -> np.ndarray:
    """As many cells of each of ``arrays`` (..., D), ``most`` in all: (n, D)."""
    arrays = [np.array(x).reshape(-1, x.shape[-1]) for x in arrays]
    each = -(-most // len(arrays))
    return np.concatenate([x[rng.permutation(len(x))[:each]] for x in arrays])


class Components:
    """The ``count`` principal components of ``rows`` (n, D): the map to them, from and without their mean."""

    def __init__(self, rows: np.ndarray, count: int):
        self.mean = rows.mean(0)
        x = rows - self.mean
        if len(x) < x.shape[1]:
            values, vectors = np.linalg.eigh(x @ x.T)
            values, vectors = values[-count:], vectors[:, -count:]
            values = np.maximum(values, 1e-9 * values[-1])  # as rounded, some are < 0
            self.basis = x.T @ (vectors / np.sqrt(values))
        else:
            self.basis = np.linalg.eigh(x.T @ x)[1][:, -count:]
        self.basis = self.basis[:, ::-1].astype(np.float32)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x - self.mean) @ self.basis


class LeastSquares:
    """Weights (D, K) and offset (K,) for which x @ weights + offset is nearest to y, from rows that come in parts."""

    def __init__(self):
        self.square, self.product = 0.0, 0.0

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        x = np.concatenate([x, np.ones_like(x[:, :1])], axis=1)
        self.square = self.square + (x.T @ x).astype(np.float64)
        self.product = self.product + (x.T @ y).astype(np.float64)

    def solve(self) -> tuple[np.ndarray, np.ndarray]:
        square = self.square.copy()
        size = len(square) - 1
        square[np.diag_indices(size)] += RIDGE * np.trace(square[:size, :size]) / size
        solution = np.linalg.solve(square, self.product).astype(np.float32)
        return solution[:-1], solution[-1]


# ---- encoder


def _start_encoder(rng, encoder: VideoEncoder, clips: list[np.ndarray]) -> None:
    blocks = (_blocks(clip, (8, 8, 8)) for clip in clips)
    basis = Components(_rows(rng, blocks, 4000), LATENTS)
    turn = np.linalg.qr(rng.standard_normal((LATENTS, LATENTS)))[0]
    layers = _Layers(lambda x: encoder.conv_in(x, FrameCache()))
    _project(rng, encoder.conv_in, [patchify(mx.array(c), PATCH) for c in clips[::4]])
    *_, last = (b for b in encoder.down_blocks if isinstance(b, SpaceToDepthDownsample))
    for block in encoder.down_blocks:
        if isinstance(block, SpaceToDepthDownsample):
            x = [layers(patchify(mx.array(clip), PATCH)) for clip in clips[::4]]
            _project(rng, block.conv, x)
            if block is last:
                spread = np.std(_rows(rng, [block(a, FrameCache()) for a in x], ROWS))
                block.conv.bias = block.conv.bias + OFFSET * float(spread)
        layers.append(lambda x, block=block: block(x, FrameCache()))
    fit = LeastSquares()
    for clip in clips:
        x = layers(patchify(mx.array(clip), PATCH))
        x = np.array(activated(x))
        z = basis(_blocks(clip, (8, 8, 8))) @ turn
        fit.add(x.reshape(-1, x.shape[-1]), z.reshape(-1, LATENTS))
    _set_point(encoder.conv_out, *fit.solve(), tap=-1)


class _Layers(list):
    """Layers of a network, one after the other."""

    def __init__(self, *layers: Layers):
        super().__init__(layers)

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self:
            x = layer(x)
        return x


def _project(rng, conv: nn.Module, x: list[mx.array]) -> None:
    """Make a causal convolution the principal components of each cell alone."""
    parts = Components(_rows(rng, x, ROWS), min(conv.weight.shape[0], x[0].shape[-1]))
    _set_point(conv, parts.basis, -parts.mean @ parts.basis, tap=-1)


def _set_point(conv: nn.Module, weights: np.ndarray, offset: np.ndarray, tap: int):
    """Let a convolution see one cell alone, the frame ``tap`` of its kernel; outputs beyond (I, K) weights are 0."""
    weight = np.zeros(conv.weight.shape, np.float32)
    bias = np.zeros(conv.bias.shape, np.float32)
    weight[: len(offset), tap, 1, 1], bias[: len(offset)] = weights.T, offset
    conv.weight, conv.bias = mx.array(weight), mx.array(bias)


# ---- decoder


def _start_decoder(rng, decoder: VideoDecoder, pairs: list[Batch]) -> None:
    """``pairs`` are clips and their latents (n, F', H', W', 128)."""
    parts = Components(
        _rows(rng, [z for _, z in pairs], ROWS), len(decoder.conv_in.bias)
    )
    _set_point(decoder.conv_in, parts.basis, -parts.mean @ parts.basis, tap=1)
    layers = _Layers(lambda x: decoder.conv_in(x, FrameCache(causal=False)))
    stride = np.array([8, 8, 8])
    for block in decoder.up_blocks:
        if isinstance(block, DepthToSpaceUpsample):
            stride //= block.stride
            _fit_upsample(rng, block, layers, pairs, tuple(stride))
        layers.append(lambda x, block=block: block(x, FrameCache(causal=False)))
    layers.append(activated)
    _fit(
        rng,
        decoder.conv_out,
        layers,
        pairs,
        lambda clip: patchify(mx.array(clip), PATCH),
    )


def _fit_upsample(
    rng, block: DepthToSpaceUpsample, layers: Layers, pairs: list[Batch], stride
) -> None:
    """Fit to the components of the blocks that a cell shows after it; the last ones stand on an offset."""
    channels = len(block.conv.bias) // math.prod(block.stride)
    parts = Components(
        _rows(rng, (_blocks(clip, stride) for clip, _ in pairs[::3]), ROWS), channels
    )
    spread = np.std(
        parts(_rows(rng, (_blocks(clip, stride) for clip, _ in pairs[::8]), ROWS))
    )
    offset = OFFSET * spread if stride[0] == 1 else 0.0

    def target(clip: np.ndarray) -> mx.array:
        fine = mx.array((parts(_blocks(clip, stride)) + offset).astype(np.float32))
        return space_to_depth(fine, block.stride)

    _fit(rng, block.conv, layers, pairs, target)
    outputs, *_, channels = block.conv.weight.shape
    skip = mx.tile(mx.eye(channels), (outputs // channels, 1))
    block.conv.weight[:, 1, 1, 1] = block.conv.weight[:, 1, 1, 1] - skip


def _fit(rng, conv: nn.Module, layers: Layers, pairs: list[Batch], target) -> None:
    """Make a convolution, not causal, what brings ``layers`` of the latents nearest to ``target`` of the clips.

    Targets may begin earlier: cells of the time before the clip, which the layers have dropped.
    """
    fit = LeastSquares()
    for clip, latent in pairs:
        x, y = np.array(layers(mx.array(latent))), np.array(target(clip))
        y = y[:, y.shape[1] - x.shape[1] :]
        cells = math.prod(x.shape[:-1])
        chosen = rng.permutation(cells)[:CELLS]
        fit.add(_neighbourhoods(x, chosen), y.reshape(cells, -1)[chosen])
    weights, offset = fit.solve()
    O, *kernel, I = conv.weight.shape
    conv.weight = mx.array(weights.T.reshape(O, *kernel, I))
    conv.bias = mx.array(offset)


def _neighbourhoods(x: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The 3x3x3 cells around the ``chosen`` ones, as the decoder pads: (n, 27 * C)."""
    B, F, H, W, C = x.shape
    x = np.pad(x, [(0, 0), (1, 1), (0, 0), (0, 0), (0, 0)], mode="edge")
    x = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
    b, f, h, w = np.unravel_index(chosen, (B, F, H, W))
    taps = [
        x[b, f + i, h + j, w + k] for i in range(3) for j in range(3) for k in range(3)
    ]
    return np.concatenate(taps, axis=1)
