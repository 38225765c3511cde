"""The diffusion decoder against Lightricks' numbers: inside, whole, streamed and tiled; its noise, names and bounds."""

from functools import cache, partial
from itertools import count

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_video.models.ltx.loading import memory_table
from mlx_video.models.ltx.pacing import piece_by_piece
from mlx_video.models.ltx.video_vae import DiffusionDecoder, diffusion_blocks
from mlx_video.models.ltx.video_vae.decoding import (
    PIECE,
    StreamPlan,
    choose_tiling,
    decode_stream,
)
from mlx_video.models.ltx.video_vae.diffusion import _drawn
from mlx_video.models.ltx.video_vae.neighborhood import attend, rotate, shifted
from mlx_video.models.ltx.video_vae.sampling import patchify
from mlx_video.models.ltx.video_vae.stream import FrameCache
from mlx_video.models.ltx.video_vae.tiling import TilingConfig
from tests.memory import Memory
from tests.models.ltx.video_vae.test_names import real_config, real_weights
from tests.models.ltx.video_vae.tiny import DIFFUSION, frames_of, load, part_of
from tests.reference import MODULE_TOLERANCE, checkpoint, error, vectors

VECTORS = vectors("diffusion_vae", "ltx25_tiny")
LATENT = VECTORS["in"]
REAL = "ltx-2.5-video-vae-diffusion.partial"
EXACT = 1e-5
MORE = partial(pytest.param, marks=pytest.mark.thorough)


def decoder() -> DiffusionDecoder:
    return part_of(DiffusionDecoder, DIFFUSION)


@cache
def combined() -> DiffusionDecoder:
    weights, config = checkpoint(DIFFUSION)
    config = DiffusionDecoder.CONFIG.from_dict(config["vae"])
    return load(DiffusionDecoder(config, repeat_columns=False), weights=weights)


@cache
def small(repeat_columns: bool = True) -> DiffusionDecoder:
    """Three stages of few channels, 4 x 4 x 4 pixels to a latent cell, windows of 5 frames where pixels are made."""
    mx.random.seed(4)
    config = DiffusionDecoder.CONFIG.from_dict(
        {
            "model_output_type": "x0",
            "decoder": {
                "in_channels": 4,
                "patch_size": 1,
                "head_dim": 8,
                "stage_channels": [16, 8, 8],
                "stage_depths": [1, 1, 2],
                "stage_kernels": [[3, 3, 3], [3, 3, 3], [5, 3, 5]],
                "upsamples": [[[2, 2, 2], 2], [[2, 2, 2], 1]],
                "default_num_inference_steps": 1,
            },
        }
    )
    return DiffusionDecoder(config, repeat_columns)


def small_latent(frames: int = 5) -> mx.array:
    return mx.random.normal((2, 4, frames, 3, 4), key=mx.random.key(1))


def noise(*size: int, draw: int = 0) -> mx.array:
    """What the official code drew: a block repeated along frames, rows and columns, and cut from the origin."""
    x = VECTORS["noise_blocks"][draw % 4][None]
    for axis, length in enumerate(size, start=2):
        x = mx.take(x, mx.arange(length) % x.shape[axis], axis=axis)
    return x


def noises():
    """Another draw for each tile, whose pieces are cut from it."""
    for draw in count():
        yield lambda first, shape, draw=draw: noise(
            first + shape[2], *shape[3:], draw=draw
        )[:, :, first:]


def joined(pieces) -> mx.array:
    return mx.concatenate(list(pieces), axis=2)


# Lightricks' numbers


@pytest.mark.slow  # test_official_pixels_in_pieces is quicker
def test_pixels():
    pixels = decoder()(LATENT, noise=noise(17, 96, 128))
    assert error(pixels[:, :, :, ::3], VECTORS["out_rows"]) < MODULE_TOLERANCE
    assert error(frames_of(pixels), VECTORS["video_sub"]) < MODULE_TOLERANCE


@pytest.mark.thorough
def test_pixels_of_the_default_recipe():
    recipe = vectors("recipe_video", "ltx25_tiny")
    pixels = decoder()(recipe["recipe2.final_video"], noise=noise(17, 128, 192))
    assert error(frames_of(pixels), recipe["recipe.video_sub"]) < MODULE_TOLERANCE


@pytest.mark.slow
def test_windows_that_shift_at_the_left_and_right_border_too():
    pixels = combined()(LATENT, noise=noise(17, 96, 128))
    expected = VECTORS["out_combined_sub"]
    assert error(pixels[:, :, ::2, ::4], expected) < MODULE_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["single", MORE("under")])
def test_clips_smaller_than_a_window(name):
    pixels = decoder()(VECTORS[f"{name}.in"], noise=noise(17, 96, 96))
    assert error(pixels, VECTORS[f"{name}.out"]) < MODULE_TOLERANCE


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name, config, lengths",
    [
        ("tiled_t", TilingConfig.temporal_only(16, 8), [7, 8, 8, 10]),
        ("tiled_w", TilingConfig.spatial_only(128, 64), [9]),
    ],
)
def test_tiles(name, config, lengths):
    chunks = list(decoder().tiled(VECTORS[f"{name}.in"], config, noises=noises()))
    assert [chunk.shape[2] for chunk in chunks] == lengths
    pixels = joined(chunks)[:, :, ::2, ::4, ::4]
    assert error(pixels, VECTORS[f"{name}.out_sub"]) < MODULE_TOLERANCE


@pytest.mark.thorough
def test_the_clip_that_was_tiled_is_another_whole():
    whole = decoder()(VECTORS["tiled_t.in"], noise=noise(33, 96, 96))
    expected = VECTORS["tiled_t.whole_sub"]
    assert error(whole[:, :, ::2, ::4, ::4], expected) < MODULE_TOLERANCE


@pytest.mark.slow
def test_inside():
    """Every step that the official code wrote down."""
    model, found = decoder(), {}
    x = model._with_appendix(model._padded(LATENT).latents)
    x = found["conv_in"] = model.conv_in(x)
    block = model.det_stages[0][0]
    h = block.norm1(x)
    q, k = (
        rotate(norm(block.attn._heads(h, part)))
        for part, norm in enumerate((block.attn.q_norm, block.attn.k_norm))
    )
    v = block.attn._heads(h, 2)
    found |= {"s0b0.q": q * q.shape[-1] ** -0.5, "s0b0.k": k, "s0b0.v": v}
    windows = tuple(map(shifted, x.shape[1:4], block.attn.kernel))
    y = attend(q, k, v, windows)
    found["s0b0.na"] = y.reshape(q.shape)
    found["s0b0.attn"] = block.attn.proj(y)
    found["s0b0.out"] = block(x, FrameCache())
    names = "up0", "up1", "up2_sub", "context_sub"
    for name, blocks, upsample in zip(names, model.det_stages, model.upsamples):
        for block in blocks:
            x = block(x, FrameCache())
        x = found[name] = upsample(x, FrameCache())
    found["up2_sub"] = found["up2_sub"][:, ::2]
    found["context_sub"] = x[:, :, ::3, ::3]

    x_t = model.conv_in_x_t(patchify(noise(17, 96, 128), model.config.patch_size))
    found["x_t_sub"] = x_t[:, :, ::3, ::3]
    level = mx.array([1000.0])
    found["t_emb"] = model.t_embedder(level, mx.float32)
    found["modulation"] = model._shared_rows()
    rows = {"": model.diff_blocks[0], "_combined": combined().diff_blocks[0]}
    x = x_t + rows[""].context_proj(x[:, :17])
    found["d0.inject_sub"] = x[:, :, ::3, ::3]
    for mode, block in rows.items():
        scales = block.rows(model._shared_rows())
        y = block(x, FrameCache(), scales)
        if not mode:
            found["d0.out_sub"] = y[:, :, ::3, ::3]
        h = block.norm1(x) * (1 + scales[0]) + scales[1]
        rows_of = shifted(x.shape[2], block.attn.kernel[1])
        y = x + block.attn(h, slice(0, 17), slice(0, x.shape[2]), rows_of)
        found[f"d0.attn{mode}_sub"] = y[:, :, ::3, ::3]

    asked = {key[4:] for key in VECTORS if key.startswith("int.")}
    assert asked == found.keys()
    for name in asked:
        assert error(found[name], VECTORS[f"int.{name}"]) < MODULE_TOLERANCE, name


def test_geometry():
    """Least overlap in frames and pixels, least latents; the rest follows from those."""
    model = decoder()
    expected = VECTORS["geometry"].tolist()
    assert [*model.cells.least_overlap, *model.cells.least_latents] == expected[:5]
    real = DiffusionDecoder(DiffusionDecoder.CONFIG.from_dict(real_config(REAL)))
    assert real.cells.least_overlap == (40, 160)
    assert real.cells.least_latents == (3, 7, 7)
    assert real.scale == model.scale == (8, 32, 32)


# Pieces


@pytest.mark.slow
@pytest.mark.parametrize("elements", [1, MORE(500), MORE(2_000), 10**9])
@pytest.mark.parametrize("frames", [1, MORE(2), 5])
@pytest.mark.parametrize("repeat_columns", [True, False])
def test_in_pieces(elements, frames, repeat_columns):
    model, latent = small(repeat_columns), small_latent(frames)
    key = mx.random.key(5)
    pieces = list(model.stream(latent, elements, key))
    whole = model(latent, key)
    assert whole.shape == (2, 3, 4 * (frames - 1) + 1, 12, 16)
    assert error(joined(pieces), whole) < EXACT
    assert len(pieces) > 4 or elements > 1 or frames < 5


def test_official_pixels_in_pieces():
    pieces = list(decoder().stream(LATENT, 20_000, noise=noise(17, 96, 128)))
    assert len(pieces) > 2
    rows = joined(pieces)[:, :, :, ::3]
    assert error(rows, VECTORS["out_rows"]) < MODULE_TOLERANCE


@pytest.mark.slow
def test_bands_of_rows_equal_the_whole(monkeypatch):
    whole = small()(small_latent())
    monkeypatch.setattr(diffusion_blocks, "BAND", 1)
    with piece_by_piece():
        banded = small()(small_latent())
    assert error(banded, whole) < EXACT


@pytest.mark.thorough
def test_what_is_held_does_not_follow_the_length():
    def held(frames: int) -> int:
        latent = small_latent(frames)
        mx.eval(latent)
        most, memory = 0, Memory()
        for piece in decode_stream(small(), latent, StreamPlan(1)):
            del piece
            most = max(most, memory.held)
        return most - 2 * latent.nbytes

    with mx.stream(mx.cpu):
        held(4)
        short, long = held(8), held(16)
    assert 0 < long < 1.1 * short


@pytest.mark.thorough
def test_bfloat16():
    weights, config = checkpoint(DIFFUSION)
    config = DiffusionDecoder.CONFIG.from_dict(config["vae"])
    model = load(DiffusionDecoder(config), mx.bfloat16, weights)
    pixels = model(LATENT, noise=noise(17, 96, 128))
    assert pixels.dtype == mx.bfloat16
    assert error(pixels[:, :, :, ::3], VECTORS["out_rows"]) < 0.1


# Noise


@pytest.mark.slow
def test_a_key_draws_the_noise_and_repeats_it():
    model, latent = small(), small_latent(2)
    first, second = (model(latent, mx.random.key(i)) for i in (1, 2))
    assert mx.array_equal(first, model(latent, mx.random.key(1)))
    assert error(first, second) > 0.01
    assert mx.array_equal(model(latent), model(latent))


@pytest.mark.slow
@pytest.mark.parametrize("tiling", [StreamPlan(), TilingConfig.temporal_only(16, 8)])
def test_the_key_reaches_streams_and_tiles(tiling):
    one, same, other = (
        joined(decode_stream(small(), small_latent(), tiling, key=mx.random.key(i)))
        for i in (3, 3, 4)
    )
    assert mx.array_equal(one, same)
    assert error(one, other) > 0.01


def test_noise_is_normal_and_of_each_frame():
    draw = _drawn(mx.random.key(0), 9)
    x = draw(2, (1, 3, 7, 32, 32))
    assert x.shape == (1, 3, 7, 32, 32)
    assert abs(x.mean().item()) < 0.03 and abs(mx.std(x).item() - 1) < 0.03
    assert mx.array_equal(x[:, :, 1:3], draw(3, (1, 3, 2, 32, 32)))


# Tiles and plans


def test_tiles_are_as_large_as_the_windows_want():
    real = DiffusionDecoder(DiffusionDecoder.CONFIG.from_dict(real_config(REAL)))
    grid = real.cells.grid((1, 128, 16, 32, 48), TilingConfig.aggressive())
    time, rows, columns = (
        [(c.source.start, c.source.stop) for c in cuts] for cuts in grid
    )
    assert time == [(0, 40), (20, 60), (40, 69)]  # 61 cells, and 8 of the appendix
    assert columns[:2] == [(0, 40), (20, 60)]  # 320 pixels, 160 shared
    assert [len(rows), rows[-1][1]] == [6, 128]


@pytest.mark.slow
def test_a_tile_at_neither_end_keeps_every_frame():
    model = decoder()
    x = mx.random.normal((1, 4, 12, 12, 32))
    shapes = [
        model._tile(x, first, frames, next(noises())).shape
        for first, frames in ((True, 7), (False, 8))
    ]
    assert [shape[2:] for shape in shapes] == [(7, 96, 96), (8, 96, 96)]


def test_modes():
    shape = (1, 128, 3, 3, 4)
    choose = lambda mode, budget: choose_tiling(mode, decoder(), shape, budget)
    assert choose("auto", 2**40) == choose("none", 2**40) == StreamPlan()
    assert choose("default", 2**40) == TilingConfig.default()
    whole = decoder().activation_bytes(shape, StreamPlan())
    assert choose("auto", whole - 1) is not None


def test_memory_at_full_size(monkeypatch):
    """1024 x 1536 in pieces within 12 GiB of a GPU, weights and all; a longer clip takes as much."""
    monkeypatch.setattr(memory_table, "live", lambda *_: memory_table.GPU)
    real = DiffusionDecoder(DiffusionDecoder.CONFIG.from_dict(real_config(REAL)))
    real.set_dtype(mx.bfloat16)
    weights = sum(value.nbytes for _, value in tree_flatten(real.parameters()))
    sizes = [
        real.activation_bytes((1, 128, frames, 32, 48), StreamPlan(PIECE))
        for frames in (16, 61)
    ]
    assert sizes[0] == sizes[1]
    assert weights + sizes[0] < 12 * 2**30


@pytest.mark.parametrize(
    "latents, tiling, measured",
    [
        ((1, 3, 3), StreamPlan(), 57),
        ((2, 4, 6), StreamPlan(), 137),
        ((4, 3, 4), StreamPlan(), 101),
        ((4, 3, 4), StreamPlan(20_000), 27),
        ((2, 3, 6), TilingConfig.spatial_only(128, 64), 78),
    ],
)
def test_memory_of_the_miniature_on_a_cpu(latents, tiling, measured):
    """MB measured in float32 on two cores, 27 November 2026; to 35 %, whole clips to 15."""
    said = decoder().activation_bytes((1, 128, *latents), tiling)
    whole = tiling == StreamPlan()
    assert said == pytest.approx(measured * 1e6, rel=0.15 if whole else 0.35)


@pytest.mark.parametrize(
    "latents, measured",
    [((7, 16, 24), 3438), ((16, 16, 24), 4109), ((16, 32, 48), 10082)],
)
def test_memory_of_the_full_decoder_on_a_gpu(monkeypatch, latents, measured):
    """MB beside the weights on an H200, bfloat16, 27 and 28 November 2026."""
    monkeypatch.setattr(memory_table, "live", lambda *_: memory_table.GPU)
    real = DiffusionDecoder(DiffusionDecoder.CONFIG.from_dict(real_config(REAL)))
    real.set_dtype(mx.bfloat16)
    said = real.activation_bytes((1, 128, *latents), StreamPlan(PIECE))
    assert said == pytest.approx(measured * 1e6, rel=0.15)


# Names


def test_full_size_takes_every_tensor():
    real = DiffusionDecoder(DiffusionDecoder.CONFIG.from_dict(real_config(REAL)))
    ours = {k: v.shape for k, v in tree_flatten(real.parameters())}
    taken = DiffusionDecoder.sanitize(real_weights(REAL))
    assert {k: v.shape for k, v in taken.items()} == ours
    assert round(sum(v.size for v in taken.values()) / 1e6) == 417


def test_one_unnamed_tensor_of_128_elements_is_passed_over():
    model, weights = decoder(), checkpoint(DIFFUSION)[0]
    ours = model.sanitize(weights).keys()

    def beside(strangers: dict[str, mx.array]) -> set[str]:
        return model.select(model.sanitize(weights | strangers)).keys() - ours

    one = {"decoder.type_emb": mx.zeros((2, 64))}
    assert not beside(one)
    assert beside({"decoder.type_emb": mx.zeros(129)}) == {"type_emb"}
    assert beside(one | {"decoder.other": mx.zeros(128)}) == {"type_emb", "other"}


def test_gates_are_folded_and_coarse_heads_dropped():
    weights, config = checkpoint(DIFFUSION)
    ours = DiffusionDecoder.sanitize(weights)
    gate = mx.arange(16.0) / 8
    gated = weights | {
        "decoder.diff_blocks.0.gate_msa": gate,
        "decoder.diff_blocks.1.gate_mlp": gate,
        "decoder.diff_blocks.2.gate_ctx": gate[None],
        "decoder.coarse_head.weight": mx.zeros((3, 3)),
    }
    folded = DiffusionDecoder.sanitize(gated)
    assert folded.keys() == ours.keys()
    changed = {
        "diff_blocks.0.attn.proj.weight",
        "diff_blocks.0.attn.proj.bias",
        "diff_blocks.1.mlp.w_down.weight",
        "diff_blocks.2.context_proj.weight",
        "diff_blocks.2.context_proj.bias",
    }
    for key, value in folded.items():
        rows = gate.reshape(-1, *[1] * (value.ndim - 1)) if key in changed else 1.0
        assert mx.array_equal(value, ours[key] * rows), key


def test_sanitize_twice_is_once_and_names_go_back():
    weights = {f"vae.{k}": v for k, v in checkpoint(DIFFUSION)[0].items()}
    once = DiffusionDecoder.sanitize(weights)
    assert DiffusionDecoder.sanitize(once) is once
    for key in once:
        official = DiffusionDecoder.NAMES.official(key)
        assert list(DiffusionDecoder.sanitize({official: weights[official]})) == [key]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_output_type": "v"}, "model_output_type = 'v' is not implemented"),
        ({"model_output_type": None}, "model_output_type = None is not implemented"),
        ({"decoder": {"default_num_inference_steps": 2}}, "steps = 2 is not impl"),
        ({"decoder": {"resampler_kind": "conv"}}, "resampler_kind = 'conv' is not"),
        ({"decoder": {"new": 1}}, "unknown keys new"),
    ],
)
def test_refuses_what_it_does_not_know(changes, message):
    config = real_config(REAL)
    decoder = config["decoder"] | changes.get("decoder", {})
    with pytest.raises(ValueError, match=message):
        DiffusionDecoder.CONFIG.from_dict(config | changes | {"decoder": decoder})


@pytest.mark.parametrize(
    "key, meaning", [("model_output_type", "'v'"), ("default_num_inference_steps", "2")]
)
def test_absent_keys_mean_what_they_do_officially(key, meaning):
    config = real_config(REAL)
    decoder = {k: v for k, v in config["decoder"].items() if k != key}
    config = {k: v for k, v in config.items() if k != key} | {"decoder": decoder}
    with pytest.raises(ValueError, match=f"{key} = {meaning} is not implemented"):
        DiffusionDecoder.CONFIG.from_dict(config)
