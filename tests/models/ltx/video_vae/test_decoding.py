"""A clip in pieces against the clip whole: pixels, latents, what each step touches, and what is held between steps."""

import json

import mlx.core as mx
import pytest

from mlx_video import backend
from mlx_video.models.ltx.loading import memory_table
from mlx_video.models.ltx.pacing import each_piece_by_piece
from mlx_video.models.ltx.vae_config import VideoVAEConfig
from mlx_video.models.ltx.video_vae import VideoDecoder, VideoEncoder
from mlx_video.models.ltx.video_vae.convolution import MAX_CONV_ELEMENTS, CausalConv3d
from mlx_video.models.ltx.video_vae.decoder import FRAMES_CPU
from mlx_video.models.ltx.video_vae.decoding import (
    PIECE,
    PIECES,
    StreamPlan,
    choose_tiling,
    decode_stream,
    spans,
)
from mlx_video.models.ltx.video_vae.stream import FrameCache, Incomplete, cut
from mlx_video.models.ltx.video_vae.tiling import TilingConfig
from tests.memory import Memory
from tests.models.ltx.video_vae.tiny import (
    VECTORS,
    convolved_sizes,
    decoder,
    encoder,
    small_config,
)
from tests.reference import FIXTURES, MODULE_TOLERANCE, error

EXACT = 1e-5
SMALL, LARGE = 1, 10**9  # a frame at a time, and the clip at once
RESIDUAL = {"multiplier": 2, "residual": True}
LTX_2_3 = [
    ["res_x", 1],
    ["compress_space", {"multiplier": 2}],
    ["res_x", 2],
    ["compress_time", {"multiplier": 2}],
    ["res_x", 1],
    ["compress_all", {"multiplier": 1}],
    ["res_x", 1],
]


def joined(pieces) -> mx.array:
    return mx.concatenate(list(pieces), axis=2)


def small_decoder(blocks, **changes) -> VideoDecoder:
    mx.random.seed(5)
    return VideoDecoder(small_config(decoder_blocks=blocks, **changes))


def test_what_waits_for_the_next_piece_keeps_no_piece_alive():
    cache, module = FrameCache(), object()
    cache.last, x = False, mx.ones((1, 1000, 4, 4, 64)) * 2
    y, before = cache.keep(module, x, 3), mx.get_active_memory()
    mx.eval(y)
    assert mx.get_active_memory() - before >= y.nbytes
    del x, y
    assert mx.get_active_memory() - before < 10**6
    kept, frames, _ = cache.around(module, 3)
    assert frames == kept.shape[1] == 2


# Decoding


def test_streamed_pixels_of_the_official_code():
    pixels = joined(decode_stream(decoder(), VECTORS["dec.in"], StreamPlan(30_000)))
    assert error(pixels, VECTORS["dec.out"]) < MODULE_TOLERANCE


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
@pytest.mark.parametrize("causal", [False, True])
def test_decoded_in_pieces(frames, causal):
    latent = mx.random.normal((1, 128, frames, 2, 3))
    model = decoder(causal=causal)
    whole = model(latent)
    for elements in (SMALL, 100_000, LARGE):
        pieces = list(model.stream(latent, elements))
        assert error(joined(pieces), whole) < EXACT
        if elements == LARGE:
            assert len(pieces) == 1
        elif frames > 2:
            assert len(pieces) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "blocks",
    [
        LTX_2_3,
        [["compress_all", RESIDUAL], ["res_x", 1], ["compress_all", RESIDUAL]],
        [["compress_time", {}], ["res_x", 1], ["compress_space", {}]],
    ],
)
@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize("causal", [False, True])
def test_every_kind_of_block_in_pieces(blocks, padding, causal):
    model = small_decoder(
        blocks,
        decoder_base_channels=8,
        decoder_spatial_padding_mode=padding,
        causal_decoder=causal,
    )
    latent = mx.random.normal((2, 4, 4, 3, 2))
    whole = model(latent)
    for elements in (SMALL, 1_000, 5_000):
        pieces = list(model.stream(latent, elements))
        assert len(pieces) > 1 or elements > SMALL
        assert error(joined(pieces), whole) < EXACT


def test_bfloat16_in_pieces():
    latent = mx.random.normal((1, 128, 3, 2, 3), mx.bfloat16)
    pixels = joined(decode_stream(decoder(mx.bfloat16), latent, StreamPlan(SMALL)))
    assert pixels.dtype == mx.bfloat16
    assert error(pixels, decoder(mx.bfloat16)(latent)) < 0.05


# Tiles with a halo


def test_reach_counts_convolutions_by_their_size():
    model = small_decoder([["compress_space", {}], ["res_x", 1], ["compress_all", {}]])
    # 2 at the latents' size, 3 at twice and 1 at four times that: 2 + 3/2 + 1/4
    assert model.receptive_field == 4


@pytest.mark.parametrize("row, column", [(0, 6), (6, 0)])
def test_nothing_beyond_reach_matters(row, column):
    model = small_decoder([["compress_space", {}], ["res_x", 1]])
    halo = model.receptive_field
    latent = mx.random.normal((1, 4, 1, 8, 8))
    near, far = halo - 1, halo
    pixels = model(latent)[..., :1, :1]
    for axis in (3, 4):
        index = [slice(None)] * 5
        index[axis] = slice(far + 1, None)
        changed = mx.array(latent)
        changed[tuple(index)] += 1
        assert mx.array_equal(model(changed)[..., :1, :1], pixels)
        index[axis] = slice(near, near + 1)
        changed[tuple(index)] += 1
        assert not mx.array_equal(model(changed)[..., :1, :1], pixels)


@pytest.mark.slow
@pytest.mark.parametrize("tiles", [2, 3])
@pytest.mark.parametrize("shape", [(2, 40), (41, 2)])
@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_tiles_with_a_halo_equal_the_whole(tiles, shape, padding):
    model = small_decoder(
        LTX_2_3, decoder_base_channels=8, decoder_spatial_padding_mode=padding
    )
    latent = mx.random.normal((1, 4, 3, *shape))
    assert max(shape) // tiles + 2 * model.receptive_field < max(
        shape
    )  # some cut is real
    pieces = list(decode_stream(model, latent, StreamPlan(20_000, tiles)))
    assert len(pieces) > 1
    assert error(joined(pieces), model(latent)) < EXACT


def test_spans():
    assert spans(20, 1, 3) == [(0, 20, 0, 20)]
    assert spans(20, 2, 3) == [(0, 16, 0, 10), (4, 20, 10, 20)]
    assert spans(21, 3, 1) == [(0, 9, 0, 7), (6, 15, 7, 14), (12, 21, 14, 21)]


# Choosing


def quickest(shape: tuple[int, ...]) -> StreamPlan:
    return next(decoder().plans(shape))


def test_a_cpu_decodes_a_few_frames_at_once(monkeypatch):
    latents = mx.zeros((1, 128, 21, 4, 6))
    pieces = decoder().stream(latents, quickest(latents.shape).elements)
    frames = [piece.shape[2] for piece in pieces]
    assert FRAMES_CPU <= max(frames) <= 2 * FRAMES_CPU
    monkeypatch.setattr(memory_table, "live", lambda *_: memory_table.GPU)
    assert quickest(latents.shape) == StreamPlan()


def test_the_largest_piece_that_fits():
    shape = (1, 128, 61, 4, 60)
    first = quickest(shape)
    needs = decoder().activation_bytes(shape, first)
    assert choose_tiling("auto", decoder(), shape, needs) == first
    less = choose_tiling("auto", decoder(), shape, needs - 1)
    assert less in map(StreamPlan, PIECES[1:])
    assert decoder().activation_bytes(shape, less) < needs
    least = choose_tiling("auto", decoder(), shape, 10)
    assert decoder().activation_bytes(shape, least) == min(
        decoder().activation_bytes(shape, way)
        for way in (*decoder().plans(shape), TilingConfig.aggressive())
    )


@pytest.mark.parametrize(
    "mode, budget, expected",
    [
        ("none", 10, StreamPlan()),
        ("auto", 2**40, None),
        ("aggressive", 2**40, TilingConfig.aggressive()),
    ],
)
def test_modes(mode, budget, expected):
    shape = (1, 128, 16, 34, 60)
    chosen = choose_tiling(mode, decoder(), shape, budget)
    assert chosen == (expected or quickest(shape))


# Encoding


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 9, 17, 41])
@pytest.mark.parametrize("elements", [SMALL, 300_000, LARGE])
def test_encoded_in_pieces(frames, elements):
    pixels = mx.random.normal((1, 3, frames, 64, 96))
    pieces = list(encoder().stream(pixels, elements))
    assert error(joined(pieces), encoder()(pixels)) < EXACT
    if elements == SMALL:
        assert [piece.shape[2] for piece in pieces] == [2] * (frames > 1) + [1] * (
            frames // 8 - 1 if frames > 1 else 1
        )


@pytest.mark.parametrize(
    "blocks, frames",
    [
        ([["compress_space_res", {}], ["compress_time_res", {}], ["res_x", 1]], 9),
        ([["compress_all_res", {}], ["compress_all_res", {"multiplier": 1}]], 17),
        ([["compress_space_res", {}]], 4),
    ],
)
@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_every_kind_of_encoder_block_in_pieces(blocks, frames, padding):
    mx.random.seed(6)
    model = VideoEncoder(small_config(blocks, encoder_spatial_padding_mode=padding))
    pixels = mx.random.normal((2, 3, frames, 16, 24))
    pieces = list(model.stream(pixels, SMALL))
    assert len(pieces) > 2
    assert error(joined(pieces), model(pixels)) < EXACT


# What a step touches, and what is held between steps


@pytest.fixture
def largest(monkeypatch) -> list[int]:
    """Sizes of the inputs and outputs of all convolutions, none of which is computed."""
    monkeypatch.setattr(backend, "eager", False)
    return convolved_sizes(monkeypatch)


def full_config() -> VideoVAEConfig:
    path = FIXTURES / "manifests" / "ltx-2-19b.config.json"
    return VideoVAEConfig.from_dict(json.loads(path.read_text())["config"]["vae"])


# 481 frames of 1920x1088 at full width: the graphs are built and never computed.


@pytest.mark.slow
def test_no_step_of_decoding_is_large(largest):
    latents = mx.zeros((1, 128, 61, 34, 60))
    pieces = list(VideoDecoder(full_config()).stream(latents, PIECE))
    assert sum(piece.shape[2] for piece in pieces) == 481
    assert max(largest) < 1.5 * PIECE < MAX_CONV_ELEMENTS
    assert max(piece.size for piece in pieces) < PIECE


@pytest.mark.slow
def test_no_step_of_encoding_is_large(largest):
    pixels = mx.broadcast_to(mx.zeros(()), (1, 3, 481, 1088, 1920))
    pieces = list(VideoEncoder(full_config()).stream(pixels, PIECE))
    assert sum(piece.shape[2] for piece in pieces) == 61
    # Eight frames are the least that it can encode, and the first piece has one more, and two before it.
    assert max(largest) <= 11 * 272 * 480 * 128 < MAX_CONV_ELEMENTS


def test_whole_clips_are_cut_where_they_must_be(largest):
    VideoDecoder(full_config())(mx.zeros((1, 128, 16, 34, 60)))
    assert max(largest) < MAX_CONV_ELEMENTS


@pytest.mark.slow
@pytest.mark.parametrize("code", ["decode", "encode"])
def test_what_is_held_does_not_follow_the_length(code):
    def held(cells: int) -> int:
        """The most bytes between pieces, beside the input and one copy of the latents."""
        if code == "decode":
            x = mx.zeros((1, 128, cells, 2, 2))
            pieces = decode_stream(decoder(), x, StreamPlan(SMALL))
        else:
            x = mx.zeros((1, 3, 8 * cells + 1, 64, 64))
            pieces = each_piece_by_piece(encoder().stream(x, SMALL))
        mx.eval(x)
        most, memory = 0, Memory()
        for piece in pieces:
            mx.eval(piece)
            del piece
            most = max(most, memory.held)
        return most - 128 * cells * 2 * 2 * 4

    with mx.stream(mx.cpu):
        held(6)  # tables that are made once
        short, long = held(12), held(24)
    assert 0 < long < 1.1 * short


# Streams


def test_a_piece_too_short_is_kept_for_the_next():
    conv, cache = CausalConv3d(2, 3), FrameCache(causal=False)
    x = mx.random.normal((1, 4, 3, 3, 2))
    whole = conv(x, FrameCache(causal=False))
    cache.last = False
    with pytest.raises(Incomplete):
        conv(x[:, :1], cache)
    first = conv(x[:, 1:2], cache)
    cache.last = True
    rest = conv(x[:, 2:], cache)
    assert [first.shape[1], rest.shape[1]] == [1, 3]
    assert error(mx.concatenate([first, rest], axis=1), whole) < EXACT


def test_cuts_are_even():
    x = mx.zeros((2, 33, 4, 4, 1))
    assert [piece.shape[1] for piece in cut(x, 32 * 32)] == [16, 17]
    assert len(cut(x, 1)) == 33
    assert len(cut(x, 33 * 32)) == 1
