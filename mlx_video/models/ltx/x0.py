"""What a sampler sees of the transformer: latent states in, the clean sample (x0) of each out. Knows no layers."""

import math
from functools import lru_cache, partial
from typing import Callable, Sequence

import mlx.core as mx

from mlx_video.conditioning.latent import LatentState
from mlx_video.models.ltx.attention import attention_bias
from mlx_video.models.ltx.ltx import LTXModel
from mlx_video.models.ltx.pacing import QUEUED, piece_by_piece
from mlx_video.models.ltx.transformer import ModalityInput, Timesteps
from mlx_video.types import AV, Perturbation

# On an H200 a short forward takes 2 % less time with twice the queue, and a long one 1 % if a piece always waits behind the
# one that runs; each takes 0.3 GB more.
PACE = {"queued": 2 * QUEUED, "pair": math.inf}


class X0Model:
    """The clean sample that ``model`` predicts from latent states. What depends only on arrays that stay the same is kept."""

    def __init__(self, model: LTXModel):
        self.model = model
        # Functions of ``model``, not of ``self``: the reference cycle would keep both until Python's collector runs.
        self._contexts = _remembering(model.project_context, 4)  # one a guided pass
        self._ropes = _remembering(model.rope)
        self._levels = lru_cache(2)(partial(Timesteps.from_mask, 1.0))  # one a stream
        self._biases = _remembering(
            lambda masks: masks.map(partial(attention_bias, dtype=model.dtype))
        )

    def __call__(
        self,
        states: AV[LatentState],
        context: AV[mx.array],
        sigma: float,
        perturbations: Sequence[Perturbation] = (),
    ) -> AV[mx.array]:
        """x0 of each modality, (B, N, C) float32, at noise level ``sigma`` in [0, 1].

        context        the text connectors' output, (B, L, caption_channels)
        perturbations  one per batch item, or one for all of them
        Latents and contexts must share a batch size; that of masks and positions may be 1. Raises ``ValueError`` otherwise,
        or where a latent has no context.
        """
        if absent := [m.value for m in states.present if context[m] is None]:
            raise ValueError(
                f"There is a latent but no text context for {absent[0]}; give one for each modality."
            )
        inputs = states.map(
            lambda state, context, rope, bias: ModalityInput(
                state.latent.astype(self.model.dtype),
                self._levels(state.denoise_mask).scaled(0 if state.frozen else sigma),
                context,
                rope,
                state.enabled,
                state.keyframes_mask,
                bias,
            ),
            self._contexts(states.map(lambda _, c: c, context)),
            self._ropes(states.map(lambda state: state.positions)),
            self._biases(states.map(lambda state: state.attention_mask)),
        )
        with piece_by_piece(**PACE):
            velocity = self.model(inputs, perturbations)
        return states.map(
            lambda state, v: to_x0(state.latent, v, state.denoise_mask * sigma),
            velocity,
        )


def to_x0(latent: mx.array, velocity: mx.array, timesteps: mx.array) -> mx.array:
    """The origin of the flow through ``latent``, in float32; ``timesteps`` are (B, N, 1) float32."""
    return latent - velocity * timesteps


def _remembering(function: Callable[[AV], AV], size: int = 1) -> Callable[[AV], AV]:
    """``function`` of arrays, which keeps its last ``size`` results. Arrays are told apart by identity, as MLX hashes them."""
    remembered = lru_cache(size)(lambda video, audio: function(AV(video, audio)))
    return lambda arrays: remembered(arrays.video, arrays.audio)
