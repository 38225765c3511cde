import mlx.core as mx

from mlx_video.conditioning.latent import LatentState
from mlx_video.models.ltx import pacing
from mlx_video.models.ltx.x0 import X0Model
from mlx_video.types import AV
from tests.models.ltx.dit import CONTEXTS, LATENTS, POSITIONS, model


class Seen:
    """The network, which keeps what it was given."""

    def __init__(self, network):
        self.network = network

    def __getattr__(self, name: str):
        return getattr(self.network, name)

    def __call__(self, inputs, perturbations):
        self.inputs = inputs
        return self.network(inputs, perturbations)


def test_a_given_stream_has_the_level_of_a_clean_one_while_the_other_is_sampled():
    states = AV(
        LatentState.fresh(LATENTS.video, POSITIONS.video),
        LatentState.pinned(LATENTS.audio, POSITIONS.audio),
    )
    seen = Seen(model())
    clean = X0Model(seen)(states, CONTEXTS, 0.725)
    assert seen.inputs.video.timesteps.sigma.tolist() == [mx.array(0.725).item()]
    assert seen.inputs.audio.timesteps.sigma.tolist() == [0.0]
    assert mx.array_equal(clean.audio, LATENTS.audio)


def test_the_model_gets_its_own_dtype_but_for_levels_and_angles():
    seen = Seen(model(dtype=mx.bfloat16))
    X0Model(seen)(LATENTS.map(LatentState.fresh, POSITIONS), CONTEXTS, 0.725)
    for stream in seen.inputs.values:
        assert stream.latent.dtype == stream.context.dtype == mx.bfloat16
        levels, (cosines, _) = stream.timesteps.values, stream.rope.tokens
        assert levels.dtype == cosines.dtype == mx.float32


def test_a_piece_waits_behind_the_one_that_runs_however_large(monkeypatch):
    """Or a GPU would wait for Python around every feed-forward of a long clip."""
    waited, large = [], pacing.PAIR

    def network(inputs, perturbations):
        for i in range(3):
            pacing.end_piece(mx.array(float(i)), takes=large)
        return LATENTS

    seen = Seen(model())
    monkeypatch.setattr(Seen, "__call__", lambda self, *given: network(*given))
    monkeypatch.setattr(pacing.mx, "eval", lambda x: waited.append(x.tolist()))
    X0Model(seen)(LATENTS.map(LatentState.fresh, POSITIONS), CONTEXTS, 0.725)
    assert [x for x in waited if isinstance(x, float)] == [0.0]
