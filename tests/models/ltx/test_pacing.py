"""Pieces of a network are evaluated as they come where somebody asks for it, and nowhere else."""

import mlx.core as mx
import pytest

from mlx_video.models.ltx import pacing
from mlx_video.models.ltx.pacing import end_piece, piece_by_piece
from tests.models.ltx.dit import inputs, model


@pytest.fixture
def evaluated(monkeypatch) -> list[mx.array]:
    """What is waited for, in order; every piece counts, however small."""
    waited = []
    monkeypatch.setattr(pacing, "SMALL", 0)
    monkeypatch.setattr(pacing.mx, "eval", waited.append)
    return waited


def test_a_piece_is_waited_for_when_the_next_is_queued(evaluated):
    first, second, third = (mx.array(float(i)) for i in range(3))
    with piece_by_piece():
        assert end_piece(first) is first and evaluated == []
        assert end_piece(second, third) == (second, third)
        assert [x is first for x in evaluated] == [True]
        end_piece(third)
        assert [x is second for x in evaluated[1:]] == [True]


def test_nothing_is_evaluated_unasked(evaluated):
    with piece_by_piece():
        pass
    end_piece(mx.array(1.0))
    end_piece(mx.array(2.0))
    assert evaluated == []


def test_small_pieces_join_the_next(monkeypatch, evaluated):
    monkeypatch.setattr(pacing, "SMALL", 16)
    with piece_by_piece():
        for _ in range(3):
            end_piece(mx.zeros(3))
    assert evaluated == []


def test_the_pace_changes_no_number(monkeypatch):
    whole = model()(inputs(model()))
    monkeypatch.setattr(pacing, "SMALL", 0)
    with piece_by_piece():
        paced = model()(inputs(model()))
    for a, b in zip(paced.values, whole.values):
        assert mx.array_equal(a, b)


def test_a_gradient_needs_no_pace():
    loss = lambda x: end_piece(x * x).sum()
    assert mx.grad(loss)(mx.array([3.0])).item() == 6.0
