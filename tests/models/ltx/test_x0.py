import mlx.core as mx

from mlx_video.conditioning.latent import LatentState
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
