"""Tiles against Lightricks' slices, masks and pixels; memory and order of streamed frames; every refusal."""

import json
from itertools import product

import mlx.core as mx
import numpy as np
import pytest

from mlx_video.models.ltx.video_vae import tiling
from mlx_video.models.ltx.video_vae.decoding import StreamPlan, decode_stream
from mlx_video.models.ltx.video_vae.tiling import (
    SpatialTilingConfig,
    TemporalTilingConfig,
    TilingConfig,
    cuts_of,
    trapezoid,
)
from mlx_video.types import VideoScale
from tests.memory import Memory
from tests.models.ltx.video_vae.tiny import VECTORS, decoder, iterate_decode
from tests.reference import MODULE_TOLERANCE, TINY, error

SPACE, TIME = SpatialTilingConfig(64, 32), TemporalTilingConfig(24, 8)
BOTH = TilingConfig(SPACE, TIME)
LATENT = VECTORS["tiled.in"]
SCALE = VideoScale(8, 32, 32)


# Lightricks' numbers


@pytest.mark.parametrize(
    "file, cells, config",
    [
        ("tiles_64_32_24_8", (5, 4, 5), BOTH),
        ("tiles_default_121x544x960", (16, 17, 30), TilingConfig.default()),
    ],
)
def test_slices_and_masks(file, cells, config):
    expected = json.loads((TINY / f"{file}.json").read_text())
    tiles = list(product(*config.grid(cells, SCALE)))
    assert len(tiles) == len(expected)
    for tile, official in zip(tiles, expected):
        assert [ends(cut.source) for cut in tile] == official["in"][2:]
        assert [ends(cut.target) for cut in tile] == official["out"][2:]
        for cut, mask in zip(tile, official.get("masks", [])[2:]):
            assert mx.allclose(cut.mask, mx.array(mask), atol=1e-6)


def ends(s: slice) -> list[int]:
    return [s.start, s.stop]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, config, lengths",
    [
        ("whole", StreamPlan(), [33]),
        ("out", BOTH, [8, 25]),
        ("spatial_only", TilingConfig(SPACE, TemporalTilingConfig(64)), [33]),
        ("spatial_only", TilingConfig(spatial_config=SPACE), [33]),
        ("temporal_only", TilingConfig(temporal_config=TIME), [8, 25]),
        ("spatial_only", TilingConfig.spatial_only(64, 32), [33]),
        ("temporal_only", TilingConfig.temporal_only(24, 8), [8, 25]),
    ],
)
def test_decode(name, config, lengths):
    chunks = list(decode_stream(decoder(), LATENT, config))
    assert [chunk.shape[2] for chunk in chunks] == lengths
    pixels = mx.concatenate(chunks, axis=2)[:, :, ::4, ::4, ::4]
    assert error(pixels, VECTORS[f"tiled.{name}_sub"]) < MODULE_TOLERANCE


# Blending, with a decoder that has no borders: tiled must equal whole


def grow(latents: mx.array) -> mx.array:
    """Repeat each cell 8 x 32 x 32 times, the first in time once: what a perfect decoder would do."""
    x = mx.repeat(mx.repeat(latents, 32, axis=3), 32, axis=4)
    return mx.concatenate([x[:, :, :1], mx.repeat(x[:, :, 1:], 8, axis=2)], axis=2)


CONFIGS = [
    BOTH,
    TilingConfig(SpatialTilingConfig(64, 0), TemporalTilingConfig(16, 0)),
    TilingConfig(SpatialTilingConfig(96, 64), TemporalTilingConfig(32, 24)),
    TilingConfig.aggressive(),
]


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_tiles_of_a_perfect_decoder_equal_the_whole(config):
    # Constant in time: a tile's first frame stands for 8, so a step there is not the whole clip's.
    latents = mx.repeat(mx.random.normal((1, 1, 1, 9, 10)), 9, axis=2)
    chunks = list(iterate_decode(grow, latents, config, SCALE))
    assert error(mx.concatenate(chunks, axis=2), grow(latents)) < 1e-6


@pytest.mark.parametrize("config", CONFIGS)
def test_weights_of_every_pixel_sum_to_one(config):
    for cuts in config.grid((11, 9, 11), SCALE):
        total = np.zeros(cuts[-1].target.stop)
        for cut, weight in zip(cuts, tiling._weights(cuts)):
            total[cut.target] += np.array(weight)
        assert np.allclose(total, 1)


def test_tiles_have_the_proportions_of_the_frame():
    _, rows, columns = TilingConfig.default().grid((1, 19, 24), SCALE)
    assert ends(columns[0].source) == [0, 16]
    assert ends(rows[0].source) == [0, 13]  # 16 x 19 / 24 = 12.7


def test_without_tiles_nothing_is_touched():
    whole = decoder()(LATENT)
    (chunk,) = decode_stream(decoder(), LATENT)
    assert mx.array_equal(chunk, whole)


def test_tiles_keep_the_dtype():
    latents = LATENT[:, :3].astype(mx.bfloat16)
    for chunk in iterate_decode(grow, latents, BOTH, SCALE):
        assert chunk.dtype == mx.bfloat16


# Streaming


def test_frames_are_ready_before_the_next_tile_is_decoded():
    events = []

    def logged(latents):
        events.append("tile")
        return grow(latents)

    for _ in iterate_decode(
        logged, LATENT[:, :3], TilingConfig(temporal_config=TIME), SCALE
    ):
        events.append("frames")
    assert events == ["tile", "frames", "tile", "frames"]


@pytest.mark.parametrize("config", [TilingConfig(), BOTH])
def test_frames_are_evaluated_when_they_are_yielded(config):
    latents = LATENT[:, :3] + 1
    mx.eval(latents)
    memory = Memory()
    frames = next(iterate_decode(grow, latents, config, SCALE))
    assert memory.held >= frames.nbytes


def test_memory_does_not_follow_the_length():
    """While a tile is decoded, no more is held than the latents and the shared frames of the tile before."""
    held = []

    def watched(latents):
        held.append(memory.held)
        return grow(latents)

    with mx.stream(mx.cpu):  # a GPU frees when its queue is through
        latents = mx.zeros((1, 3, 41, 2, 2))
        mx.eval(latents)
        config = TilingConfig(temporal_config=TemporalTilingConfig(64, 8))
        memory = Memory()
        for frames in iterate_decode(watched, latents, config, SCALE):
            del frames
    overlap = 3 * 9 * 64 * 64 * 4  # channels, frames shared, rows, columns, float32
    assert len(held) > 4
    assert max(held) < 2 * overlap


# Masks and modes


def test_mask():
    assert trapezoid(4, 0, 0).tolist() == [1, 1, 1, 1]
    assert trapezoid(6, 3, 1).tolist() == [0.25, 0.5, 0.75, 1, 1, 0.5]
    both = trapezoid(3, 3, 3)
    assert mx.allclose(both, mx.array([0.25 * 0.75, 0.25, 0.75 * 0.25]))


def test_a_tile_of_time_leads_in_with_a_frame_of_no_weight():
    tiles = TemporalTilingConfig(32, 16)
    first, second = cuts_of(5, 8, tiles, late=7, lead=1)[:2]
    assert second.source.start == 1 and second.target.start == 8
    assert second.mask[:3].tolist() == [
        0,
        mx.array(1 / 17).item(),
        mx.array(2 / 17).item(),
    ]
    _, alone = cuts_of(5, 8, tiles, late=7)[:2]
    assert alone.source.start == 2 and alone.target.start == 9
    assert mx.array_equal(alone.mask, second.mask[1:])
    assert first.mask[0] == 1


@pytest.mark.parametrize(
    "mode, pixels, frames",
    [("default", 512, 64), ("aggressive", 256, 32), ("conservative", 768, 96)],
)
def test_named(mode, pixels, frames):
    config = TilingConfig.named(mode)
    assert config.spatial_config.tile_size_in_pixels == pixels
    assert config.temporal_config.tile_size_in_frames == frames


def test_none_and_auto():
    assert TilingConfig.named("none") is None
    assert TilingConfig.named("auto") is None
    assert TilingConfig.auto(512, 768, 121) is None
    assert TilingConfig.auto(1024, 1536, 121) == TilingConfig.default()


def test_a_larger_tile_is_decoded_less_often():
    tiles = [
        len(list(product(*config.grid((16, 32, 48), SCALE))))
        for config in (
            TilingConfig(),
            TilingConfig.conservative(),
            TilingConfig.default(),
            TilingConfig.aggressive(),
        )
    ]
    assert tiles == sorted(set(tiles)) and tiles[0] == 1


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: TilingConfig.named("fast"),
            "auto, none, default, aggressive, conservative, spatial, temporal; got 'fast'",
        ),
        (lambda: SpatialTilingConfig(500), "multiple of 32.*got 500. Nearest: 512"),
        (lambda: SpatialTilingConfig(32), "at least 64; got 32. Nearest: 64"),
        (
            lambda: SpatialTilingConfig(64, 64),
            "below the tile's 64; got 64. Nearest: 32",
        ),
        (lambda: SpatialTilingConfig(64, -32), "got -32. Nearest: 0"),
        (lambda: TemporalTilingConfig(20), "frames must be a mult.*Nearest: 16"),
        (lambda: TemporalTilingConfig(64, 20), "overlap must be.*got 20. Nearest: 16"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
