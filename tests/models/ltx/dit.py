"""The tiny transformer, and the inputs that its vectors were computed from."""

from dataclasses import replace
from functools import cache

import mlx.core as mx

from mlx_video.models.ltx.config import LTXModelConfig, LTXModelType
from mlx_video.models.ltx.ltx import LTXModel
from mlx_video.models.ltx.transformer import ModalityInput, Timesteps
from mlx_video.types import AV
from tests.reference import checkpoint, error, vectors

DIT = vectors("dit")
HEAD = vectors("head_variants")
SIGMA = 0.725


def config(model_type=LTXModelType.AudioVideo) -> LTXModelConfig:
    return LTXModelConfig.from_dict(checkpoint()[1]["transformer"], model_type)


@cache
def model(model_type=LTXModelType.AudioVideo, dtype=mx.float32) -> LTXModel:
    model = LTXModel(config(model_type))
    weights = model.select(LTXModel.sanitize(checkpoint()[0]))
    model.load_weights([(k, v.astype(dtype)) for k, v in weights.items()])
    return model


def fresh_model(**changes):
    """A tiny model of its own, with some settings changed."""
    some = LTXModel(replace(config(), **changes))
    some.load_weights(list(LTXModel.sanitize(checkpoint()[0]).items()))
    return some


def av(name: str, source=DIT) -> AV[mx.array]:
    """A pair of vectors: ``{}`` in the name stands for the modality."""
    return AV(source[name.format("video")], source[name.format("audio")])


POSITIONS = av("in.{}_positions")
LATENTS = av("in.{}_latent")
CONTEXTS = av("in.{}_context")
NEGATIVES = av("in.{}_context_neg")
UNIFORM = AV(DIT["in.video_timesteps_uniform"], DIT["in.audio_timesteps"])
PER_TOKEN = AV(DIT["in.video_timesteps_per_token"], DIT["in.audio_timesteps"])


def inputs(
    model,
    timesteps=UNIFORM,
    *,
    latents=LATENTS,
    contexts=CONTEXTS,
    sigma=SIGMA,
    enabled=AV(True, True),
    dtype=mx.float32,
) -> AV[ModalityInput]:
    def one(latent, timesteps, context, rope, enabled):
        times = levels(timesteps, sigma)
        return ModalityInput(latent.astype(dtype), times, context, rope, enabled)

    contexts = latents.map(lambda _, context: context.astype(dtype), contexts)
    contexts = model.project_context(contexts)
    rope = model.rope(latents.map(lambda _, positions: positions, POSITIONS))
    return latents.map(one, timesteps, contexts, rope, enabled)


def levels(timesteps: mx.array, sigma: mx.array | float) -> Timesteps:
    """From the noise level of every token (B, N, 1), and that of the whole stream."""
    sigma = mx.broadcast_to(mx.array(sigma, mx.float32), timesteps.shape[:1])
    return Timesteps.from_mask(1.0, timesteps)._replace(sigma=sigma)


def twice(first: AV, second: AV | None = None) -> AV:
    """Two batch items."""
    return first.map(lambda a, b: mx.concatenate([a, b]), second or first)


def errors(actual: AV[mx.array], expected: AV[mx.array]) -> float:
    """The larger of the two modalities' errors."""
    return max(error(actual[m], expected[m]) for m in actual.present)
