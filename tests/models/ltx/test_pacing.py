"""Pieces of a network are evaluated as they come where somebody asks for it, and nowhere else."""

import mlx.core as mx
import pytest

from mlx_video.models.ltx import pacing as room
from mlx_video.models.ltx.attention import Attention
from mlx_video.models.ltx.config import UpsamplerConfig
from mlx_video.models.ltx.pacing import (
    each_piece_by_piece,
    end_piece,
    piece_by_piece,
)
from mlx_video.models.ltx.upsampler import LatentUpsampler
from tests.models.ltx.dit import inputs, model


@pytest.fixture
def evaluated(monkeypatch) -> list[mx.array]:
    """What is waited for, in order; every piece counts, however small."""
    waited = []
    monkeypatch.setattr(room, "SMALL", 0)
    monkeypatch.setattr(room.mx, "eval", waited.append)
    return waited


def test_a_large_piece_is_waited_for_when_the_next_is_queued(evaluated):
    first, second, third = (mx.array(float(i)) for i in range(3))
    with piece_by_piece(pair=0):
        assert end_piece(first) is first and evaluated == []
        assert end_piece(second, third) == (second, third)
        assert [x is first for x in evaluated] == [True]
        end_piece(third)
        assert [x is second for x in evaluated[1:]] == [True]


def test_a_large_piece_gets_no_memory_before_the_one_before_it_is_done(monkeypatch):
    events = []
    monkeypatch.setattr(room, "SMALL", 0)
    for name in ("eval", "async_eval"):
        note = lambda x, name=name: events.append((name, x.item()))
        monkeypatch.setattr(room.mx, name, note)
    with piece_by_piece(pair=0):
        for i in range(2):
            end_piece(mx.array(float(i)))
    assert events == [("async_eval", 0.0), ("eval", 0.0), ("async_eval", 1.0)]


def test_a_small_result_of_large_work_is_waited_for_too(monkeypatch, evaluated):
    monkeypatch.setattr(room, "SMALL", 8)
    with piece_by_piece():
        end_piece(first := mx.array(0.0), takes=room.PAIR)
        end_piece(mx.array(1.0))  # too small to be noticed
        assert evaluated == []
        end_piece(mx.array(2.0), takes=8)
    assert [x is first for x in evaluated] == [True]


def test_small_pieces_may_wait_together(evaluated):
    pieces = [mx.array(float(i)) for i in range(5)]  # of 4 bytes
    with piece_by_piece(queued=12):
        for piece in pieces:
            end_piece(piece)
    assert [x.item() for x in evaluated] == [0.0, 1.0]


def test_two_pieces_may_be_larger_than_several(evaluated):
    with piece_by_piece(queued=0, pair=8):
        for i in range(3):  # of 4 bytes
            end_piece(mx.array(float(i)))
        assert [x.item() for x in evaluated] == [0.0]
        end_piece(mx.array([3.0, 4.0]))
    assert [x.item() for x in evaluated] == [0.0, 1.0, 2.0]


def test_what_lies_between_items_keeps_no_pace(evaluated):
    def items():
        for i in range(3):
            yield end_piece(mx.array(float(i)))

    for item in each_piece_by_piece(items()):
        end_piece(item)
    assert evaluated == []  # a new item begins anew


def test_nothing_is_evaluated_unasked(evaluated):
    with piece_by_piece():
        pass
    end_piece(mx.array(1.0))
    end_piece(mx.array(2.0))
    assert evaluated == []


def test_small_pieces_join_the_next(monkeypatch, evaluated):
    monkeypatch.setattr(room, "SMALL", 16)
    with piece_by_piece():
        for _ in range(3):
            end_piece(mx.zeros(3))
    assert evaluated == []


def test_tokens_of_a_short_clip_of_the_full_model_are_paced(monkeypatch):
    queued = []
    monkeypatch.setattr(room.mx, "async_eval", lambda *xs: queued.append(xs))
    with piece_by_piece():
        end_piece(mx.zeros((1, 4 * 16 * 24, 4096), mx.bfloat16))  # 25 frames of 768x512
        end_piece(mx.zeros((1, 4 * 2 * 4, 4096), mx.bfloat16))  # and of 128x64
    assert len(queued) == 1


def test_the_pace_changes_no_number(monkeypatch):
    whole = model()(inputs(model()))
    monkeypatch.setattr(room, "SMALL", 0)
    with piece_by_piece():
        paced = model()(inputs(model()))
    for a, b in zip(paced.values, whole.values):
        assert mx.array_equal(a, b)


def test_a_gradient_needs_no_pace():
    loss = lambda x: end_piece(x * x).sum()
    assert mx.grad(loss)(mx.array([3.0])).item() == 6.0


@pytest.fixture
def pieces(monkeypatch) -> list[int]:
    """How many arrays each piece ends in."""
    found = []
    monkeypatch.setattr(room, "SMALL", 0)
    monkeypatch.setattr(room.mx, "async_eval", lambda *xs: found.append(len(xs)))
    return found


def test_both_streams_end_a_piece_together(pieces):
    with piece_by_piece():
        model()(inputs(model()))
    attention, exchange, feed_forward = 1, 1, 1
    blocks = len(model().transformer_blocks)
    assert pieces.count(2) == blocks * (attention + exchange + feed_forward)


def test_an_upsampler_ends_a_piece_at_every_activation_of_a_block(pieces):
    options = {"in_channels": 4, "mid_channels": 32, "num_blocks_per_stage": 2}
    options |= {"spatial_upsample": True, "temporal_upsample": False}
    network = LatentUpsampler(UpsamplerConfig.from_dict(options))
    with piece_by_piece():
        network(mx.ones((1, 4, 1, 2, 2)))
    coarse, resampled, fine = 2 * 2, 1, 2 * 2
    assert pieces == [1] * (coarse + resampled + fine)


def test_queries_keys_and_values_are_pieces_of_their_own(pieces):
    attention, x = Attention(8, heads=2, head_dim=4), mx.ones((1, 3, 8))
    with piece_by_piece():
        attention(x)
    assert pieces == [1, 1, 1]
