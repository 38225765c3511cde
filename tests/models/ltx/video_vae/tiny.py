"""The tiny video autoencoder, and configurations of other shapes."""

from dataclasses import replace
from functools import cache

import mlx.core as mx

from mlx_video.models.ltx.vae_config import VideoVAEConfig
from mlx_video.models.ltx.video_vae import VideoDecoder, VideoEncoder
from mlx_video.models.ltx.video_vae.tiling import run_tiles
from tests.reference import FIXTURES, checkpoint, vectors

VECTORS = vectors("video_vae")
# Files of the other releases, and the official numbers for each.
LTX_2_3 = FIXTURES / "ltx23_tiny" / "ltx-2.3-tiny.safetensors"
CONVOLUTIONAL = FIXTURES / "ltx25_tiny" / "ltx-2.5-tiny-video-vae-conv-bf16.safetensors"
DIFFUSION = FIXTURES / "ltx25_tiny" / "ltx-2.5-tiny-video-vae-bf16.safetensors"


def config() -> VideoVAEConfig:
    return VideoVAEConfig.from_dict(checkpoint()[1]["vae"])


@cache
def encoder(dtype=mx.float32) -> VideoEncoder:
    return load(VideoEncoder(config()), dtype)


@cache
def decoder(dtype=mx.float32, causal=False) -> VideoDecoder:
    return load(VideoDecoder(replace(config(), causal_decoder=causal)), dtype)


def load(part, dtype=mx.float32, weights=None):
    weights = part.sanitize(weights or checkpoint()[0])
    part.load_weights([(k, v.astype(dtype)) for k, v in weights.items()])
    return part


@cache
def part_of(part, file):
    """An encoder or decoder of another tiny file."""
    weights, config = checkpoint(file)
    return load(part(part.CONFIG.from_dict(config["vae"])), weights=weights)


def iterate_decode(decode, latents, tiling, scale):
    """Blended pixels from tiles that ``decode`` enlarges by ``scale``."""

    def tile(time, row, column):
        return decode(latents[:, :, time.source, row.source, column.source])

    return run_tiles(tile, tiling.grid(latents.shape[2:], scale))


def small_config(encoder_blocks=(), decoder_blocks=(), **changes) -> VideoVAEConfig:
    """4 latent channels, patches of 2, 32 channels at full resolution."""
    return VideoVAEConfig.from_dict(
        {
            "encoder_blocks": encoder_blocks,
            "decoder_blocks": decoder_blocks,
            "latent_channels": 4,
            "patch_size": 2,
            "encoder_base_channels": 32,
            "decoder_base_channels": 32,
            "timestep_conditioning": False,
        }
        | changes
    )


def channels_first(x: mx.array) -> mx.array:
    return mx.moveaxis(x, -1, 1)


def frames_of(pixels: mx.array) -> mx.array:
    """Every fourth row and column of a clip as frames (F, H, W, C) in [0, 1], as the official code returns them."""
    return mx.clip((pixels[0, :, :, ::4, ::4] + 1) / 2, 0, 1).transpose(1, 2, 3, 0)


def convolved_sizes(monkeypatch) -> list[int]:
    """A list that receives the size of every convolution's input and output."""
    sizes = []

    def counted(convolve):
        def call(x, *args, **kwargs):
            y = convolve(x, *args, **kwargs)
            sizes.extend((x.size, y.size))
            return y

        return call

    monkeypatch.setattr(mx, "conv2d", counted(mx.conv2d))
    monkeypatch.setattr(mx, "conv3d", counted(mx.conv3d))
    return sizes
