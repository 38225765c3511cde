"""The convolutional autoencoders of LTX-2.3 and 2.5 against Lightricks' numbers, whole, streamed and tiled."""

from functools import partial

import mlx.core as mx
import pytest

from mlx_video.models.ltx.video_vae import VideoDecoder, VideoEncoder
from mlx_video.models.ltx.video_vae.decoding import (
    StreamPlan,
    decode_stream,
)
from mlx_video.models.ltx.video_vae.sampling import patchify
from mlx_video.models.ltx.video_vae.stream import FrameCache
from mlx_video.models.ltx.video_vae.tiling import (
    SpatialTilingConfig,
    TemporalTilingConfig,
    TilingConfig,
)
from tests.models.ltx.video_vae.tiny import (
    CONVOLUTIONAL,
    DIFFUSION,
    LTX_2_3,
    channels_first,
    frames_of,
    part_of,
)
from tests.reference import MODULE_TOLERANCE, error, vectors

NUMBERS = {
    LTX_2_3: vectors("video_vae", "ltx23_tiny"),
    CONVOLUTIONAL: vectors("conv_vae", "ltx25_tiny"),
    DIFFUSION: vectors("diffusion_vae", "ltx25_tiny"),
}
FILES = [LTX_2_3, CONVOLUTIONAL]
SPACE, TIME = SpatialTilingConfig(64, 32), TemporalTilingConfig(24, 8)
MORE = partial(pytest.param, marks=pytest.mark.thorough)


def joined(pieces) -> mx.array:
    return mx.concatenate(list(pieces), axis=2)


@pytest.mark.parametrize("file", FILES)
def test_latents_of_a_clip_and_of_an_image(file):
    encoder, numbers = part_of(VideoEncoder, file), NUMBERS[file]
    pixels = numbers["enc.in"]
    assert error(encoder(pixels), numbers["enc.out"]) < MODULE_TOLERANCE
    image = encoder(pixels[:, :, :1])
    assert error(image, numbers["enc.image_out"]) < MODULE_TOLERANCE
    streamed = joined(encoder.stream(pixels, elements=1))
    assert error(streamed, numbers["enc.out"]) < MODULE_TOLERANCE


def test_the_diffusion_file_has_the_same_encoder():
    encoder, numbers = part_of(VideoEncoder, DIFFUSION), NUMBERS[DIFFUSION]
    assert encoder.config.latent_log_var == "constant"
    assert error(encoder(numbers["enc.in"]), numbers["enc.out"]) < MODULE_TOLERANCE


@pytest.mark.parametrize("file", FILES)
def test_every_stage_of_the_encoder(file):
    model, numbers = part_of(VideoEncoder, file), NUMBERS[file]
    x = model.conv_in(
        patchify(numbers["enc.in"], model.config.patch_size), FrameCache()
    )
    stages = {"conv_in_frame0": channels_first(x)[:, :, 0]}
    for index, block in enumerate(model.down_blocks):
        x = block(x, FrameCache())
        stages[f"down{index}"] = channels_first(x)
    stages["raw"] = channels_first(model.conv_out(x, FrameCache(), activate=True))
    assert compared(stages, "enc.", numbers) > 3


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "elements", [1, pytest.param(20_000, marks=pytest.mark.slow), 10**9]
)
def test_pixels(file, elements):
    decoder, numbers = part_of(VideoDecoder, file), NUMBERS[file]
    pixels = joined(decode_stream(decoder, numbers["dec.in"], StreamPlan(elements)))
    assert error(pixels, numbers["dec.out"]) < MODULE_TOLERANCE
    if "dec.video_sub" in numbers:
        assert error(frames_of(pixels), numbers["dec.video_sub"]) < MODULE_TOLERANCE
    if "dec.in_single" in numbers:
        single = decoder(numbers["dec.in_single"])
        assert error(single, numbers["dec.out_single"]) < MODULE_TOLERANCE


def test_pixels_of_the_default_recipe_by_convolution():
    recipe = vectors("recipe_video", "ltx25_tiny")
    pixels = part_of(VideoDecoder, CONVOLUTIONAL)(recipe["recipe2.final_video"])
    expected = recipe["recipe.video_conv_sub"]
    assert error(frames_of(pixels), expected) < MODULE_TOLERANCE


def test_every_stage_of_the_decoder():
    model, numbers = part_of(VideoDecoder, LTX_2_3), NUMBERS[LTX_2_3]
    latent = model.per_channel_statistics.un_normalize(numbers["dec.in"])
    x = model.conv_in(mx.moveaxis(latent, 1, -1), FrameCache(causal=False))
    stages = {"denorm": latent, "conv_in": channels_first(x)}
    for index, block in enumerate(model.up_blocks):
        x = block(x, FrameCache(causal=False))
        stages[f"up{index}"] = channels_first(x)
    assert compared(stages, "dec.", numbers) > 6


def compared(stages: dict, prefix: str, numbers: dict) -> int:
    """How many of ``stages`` the official code states; each must agree."""
    asked = {name for name in stages if prefix + name in numbers}
    for name in asked:
        assert error(stages[name], numbers[prefix + name]) < MODULE_TOLERANCE, name
    return len(asked)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, tiling, lengths",
    [
        ("whole", StreamPlan(), [33]),
        ("out", TilingConfig(SPACE, TIME), [8, 25]),
        MORE("spatial", TilingConfig(SPACE, TemporalTilingConfig(64, 8)), [33]),
        MORE("temporal", TilingConfig(None, TIME), [8, 25]),
    ],
)
def test_tiles(name, tiling, lengths):
    decoder, numbers = part_of(VideoDecoder, LTX_2_3), NUMBERS[LTX_2_3]
    chunks = list(decode_stream(decoder, numbers["tiled.in"], tiling))
    assert [chunk.shape[2] for chunk in chunks] == lengths
    pixels = joined(chunks)[:, :, ::4, ::4, ::4]
    expected = numbers[f"tiled.{name}_sub"]
    assert error(pixels, expected) < MODULE_TOLERANCE
