"""The clock beside a training does what the training does."""

import mlx.core as mx
import pytest

from mlx_video.types import VideoPixelShape
from tiny import step_time, text
from tiny.denoiser import Slope
from tiny.model import CONFIGS, TRANSFORMER
from tiny.train_transformer import new_denoiser
from tiny.training import Plan, State


@pytest.mark.slow
def test_every_step_is_timed_and_taken(tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIGS, "transformer", {**TRANSFORMER, "num_layers": 1})
    shape = VideoPixelShape(9, 64, 64, 24.0)
    monkeypatch.setattr(step_time, "even_count", lambda *_: 2)
    encoder, denoiser = text.fresh_encoder(tmp_path / "text_encoder"), new_denoiser()
    plan, seen = Plan("step_time", steps=2), []

    slope = Slope(denoiser)

    def watched(weights, lesson):
        seen.append((lesson.shape, lesson.pinned, lesson.x.video.shape))
        return slope(weights, lesson)

    state = State(denoiser, watched, plan)
    before = mx.array(state.weights["vector"])
    seconds = step_time.measure(state, plan, encoder, shape, True, 512)
    assert len(seconds) == state.step == 2 and min(seconds) > 0
    assert seen == [(shape, True, (2, 8, 128))] * 2
    proj_out = state.tree(state.weights)["transformer"]["video"]["proj_out"]["weight"]
    assert proj_out.shape == denoiser.transformer.video.proj_out.weight.shape
    assert not mx.array_equal(before, state.weights["vector"])
