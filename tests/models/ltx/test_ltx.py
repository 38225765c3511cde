"""The whole transformer against Lightricks' numbers, its names against the real checkpoint's, and its equivalences."""

import gc
import json
import weakref
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_video.conditioning.latent import LatentState
from mlx_video.models.ltx.config import LTXModelConfig, LTXModelType, LTXRopeType
from mlx_video.models.ltx.ltx import LTXModel
from mlx_video.models.ltx.transformer import Timesteps
from mlx_video.models.ltx.x0 import X0Model, to_x0
from mlx_video.types import AV, Modality, Perturbation
from tests.models.ltx.dit import (
    CONTEXTS,
    DIT,
    HEAD,
    LATENTS,
    NEGATIVES,
    PER_TOKEN,
    POSITIONS,
    SIGMA,
    UNIFORM,
    av,
    config,
    errors,
    fresh_model,
    inputs,
    model,
    twice,
)
from tests.reference import (
    FIXTURES,
    MODULE_TOLERANCE,
    checkpoint,
    error,
    manifest,
    vectors,
)

BLOCK_1 = AV(frozenset({1}), frozenset({1}))
STG = Perturbation(BLOCK_1)
ISOLATED = Perturbation(isolate=True)
NOTHING = Perturbation()
VideoOnly, AudioOnly = LTXModelType.VideoOnly, LTXModelType.AudioOnly


# Lightricks' numbers


@pytest.mark.parametrize(
    "name, source, timesteps, perturbations",
    [
        ("av_uniform", DIT, UNIFORM, ()),
        ("av_per_token", HEAD, PER_TOKEN, ()),
        ("av_stg", HEAD, UNIFORM, (STG,)),
        ("av_mod", DIT, UNIFORM, (ISOLATED,)),
    ],
)
def test_velocity(name, source, timesteps, perturbations):
    velocity = model()(inputs(model(), timesteps), perturbations)
    assert errors(velocity, av(name + ".velocity_{}", source)) < MODULE_TOLERANCE


def test_what_the_february_release_did_otherwise():
    """Gates of a stream's own level, no residual under STG, bfloat16 positions: the vectors tell them apart from ours."""
    for name, timesteps, perturbations in (
        ("av_per_token", PER_TOKEN, ()),
        ("av_stg", UNIFORM, (STG,)),
    ):
        velocity = model()(inputs(model(), timesteps), perturbations)
        assert errors(velocity, av(name + ".velocity_{}")) > 10 * MODULE_TOLERANCE
    ours = model()(inputs(model())).video
    rounded = DIT["av_uniform_bf16pos.velocity_video"]
    assert error(ours, rounded) > 10 * MODULE_TOLERANCE


def test_bfloat16_positions_lose_less_here_than_in_the_february_release():
    exact = DIT["av_uniform.velocity_video"]
    streams = inputs(model())
    positions = AV(DIT["in.video_positions_bf16"], POSITIONS.audio)
    rope = model().rope(positions)
    assert rope.video.tokens[0].dtype == mx.float32
    rounded = streams.map(lambda stream, r: replace(stream, rope=r), rope)
    ours = error(model()(rounded).video, exact)
    assert ours <= error(DIT["av_uniform_bf16pos.velocity_video"], exact)


def test_disabled_sound_stays_but_is_heard():
    enabled = AV(True, False)
    velocity = model()(inputs(model(), enabled=enabled))
    assert errors(velocity, av("av_audio_disabled.velocity_{}")) < MODULE_TOLERANCE
    x0 = LATENTS.map(to_x0, velocity, UNIFORM)
    assert errors(x0, av("av_audio_disabled.x0_{}")) < MODULE_TOLERANCE


def test_batch_of_two_noise_levels_and_prompts():
    batch = inputs(
        model(),
        av("in.b2.{}_timesteps"),
        latents=av("in.b2.{}_latent"),
        contexts=twice(CONTEXTS, NEGATIVES),
        sigma=DIT["in.b2.video_timesteps"][:, 0, 0],
    )
    assert errors(model()(batch), av("b2.velocity_{}")) < MODULE_TOLERANCE


def test_video_alone():
    expected = DIT["video_only.velocity_video"]
    only = model(VideoOnly)
    alone = inputs(only, PER_TOKEN, latents=AV(LATENTS.video))
    velocity = only(alone)
    assert velocity.audio is None
    assert error(velocity.video, expected) < MODULE_TOLERANCE
    assert mx.array_equal(model()(alone).video, velocity.video)


def test_sound_alone_is_the_isolated_sound():
    only = model(AudioOnly)
    velocity = only(inputs(only, latents=AV(audio=LATENTS.audio)))
    assert error(velocity.audio, DIT["av_mod.velocity_audio"]) < MODULE_TOLERANCE


# X0Model


def test_x0_of_a_velocity():
    official = vectors("sampling")
    x0 = to_x0(official["euler.sample"], official["x0.velocity"], mx.array(SIGMA))
    assert error(x0, official["x0.out"]) < 1e-6


def states(mask=AV(mx.ones((1, 48, 1)), mx.ones((1, 18, 1)))):
    return LATENTS.map(lambda x, m, p: LatentState(x, x, m, p), mask, POSITIONS)


@pytest.mark.parametrize(
    "name, perturbations",
    [("av_uniform", ()), ("av_mod", (ISOLATED,))],
)
def test_x0(name, perturbations):
    x0 = X0Model(model())(states(), CONTEXTS, SIGMA, perturbations)
    assert errors(x0, av(name + ".x0_{}")) < MODULE_TOLERANCE


def test_x0_of_pinned_tokens_is_their_latent():
    mask = PER_TOKEN.map(lambda timesteps: timesteps / SIGMA)
    x0 = X0Model(model())(states(mask), CONTEXTS, SIGMA)
    assert mx.array_equal(x0.video[:, :16], LATENTS.video[:, :16])
    velocity = HEAD["av_per_token.velocity_video"]
    expected = LATENTS.video - velocity * PER_TOKEN.video
    assert error(x0.video, expected) < MODULE_TOLERANCE


def test_x0_is_float32_from_a_bfloat16_model():
    half = model(dtype=mx.bfloat16)
    assert half.dtype == mx.bfloat16
    x0 = X0Model(half)(states(), CONTEXTS, SIGMA)
    assert x0.video.dtype == x0.audio.dtype == mx.float32
    assert errors(x0, av("av_uniform.x0_{}")) < 2e-2


def test_x0_of_video_alone_takes_a_prompt_for_both():
    x0 = X0Model(model(VideoOnly))(AV(states().video), CONTEXTS, SIGMA)
    assert x0.audio is None
    assert error(x0.video, DIT["av_mod.x0_video"]) < MODULE_TOLERANCE


def test_guided_passes_share_masks_and_positions():
    """Latents and prompts in a batch of two, masks and positions of one item, as a batched guided step sends them."""
    x0_model = X0Model(model())
    batch = states().map(lambda s: s._replace(latent=mx.concatenate([s.latent] * 2)))
    both = x0_model(batch, twice(CONTEXTS, NEGATIVES), SIGMA, (STG, NOTHING))
    for item, (context, perturbation) in enumerate(
        [(CONTEXTS, STG), (NEGATIVES, NOTHING)]
    ):
        one = x0_model(states(), context, SIGMA, (perturbation,))
        assert errors(both.map(lambda x: x[item : item + 1]), one) < 1e-5


def test_nothing_outlives_its_last_name():
    """Garbage would hold weights and tables beside the next part."""
    alone = fresh_model()
    x0_model, gone = X0Model(alone), weakref.ref(alone)
    mx.eval(x0_model(states(), CONTEXTS, SIGMA).values)
    gc.disable()
    try:
        del alone, x0_model
        assert gone() is None
    finally:
        gc.enable()


def test_what_does_not_change_is_computed_once(monkeypatch):
    calls = []

    def count(name):
        original = getattr(LTXModel, name)

        def counted(self, arrays):
            calls.append(name)
            return original(self, arrays)

        monkeypatch.setattr(LTXModel, name, counted)

    count("project_context"), count("rope")
    x0_model, state = X0Model(model()), states()
    for sigma in (0.9, 0.8, 0.7):
        for context in (CONTEXTS, NEGATIVES):
            state = state.map(lambda s: s._replace(latent=s.latent * 1.0))
            x0_model(state, context, sigma)
    assert sorted(calls) == ["project_context", "project_context", "rope"]
    moved = state.map(lambda s: s._replace(positions=s.positions * 2))
    there, here = (x0_model(s, CONTEXTS, 0.7).video for s in (moved, state))
    assert not mx.allclose(there, here, atol=1e-3)


# Perturbations


def test_batched_perturbations_equal_single_ones():
    each = [
        NOTHING,
        STG,
        ISOLATED,
        Perturbation(AV(frozenset({0, 2}), frozenset()), True),
    ]
    batch = LATENTS.map(lambda x: mx.concatenate([x] * 4))
    contexts = CONTEXTS.map(lambda x: mx.concatenate([x] * 4))
    timesteps = UNIFORM.map(lambda x: mx.concatenate([x] * 4))
    together = model()(
        inputs(model(), timesteps, latents=batch, contexts=contexts), each
    )
    for item, perturbation in enumerate(each):
        alone = model()(inputs(model()), (perturbation,))
        assert errors(together.map(lambda x: x[item : item + 1]), alone) < 1e-5


def test_stg_of_one_stream_leaves_the_other_its_attention():
    video_only = Perturbation(AV(frozenset({2}), frozenset()))
    assert len(model().transformer_blocks) == 3  # so only the last one is perturbed
    perturbed, whole = (model()(inputs(model()), (p,)) for p in (video_only, NOTHING))
    assert errors(AV(perturbed.video), AV(whole.video)) > 1e-3
    isolated = Perturbation(video_only.skip_self_attention, isolate=True)
    alone, also = (model()(inputs(model()), (p,)) for p in (isolated, ISOLATED))
    assert errors(AV(audio=alone.audio), AV(audio=also.audio)) == 0


class Forbidden(nn.Module):
    def __call__(self, x):
        raise AssertionError("computed in vain")


def test_what_all_leave_out_is_not_computed():
    some = fresh_model()
    block = some.transformer_blocks[1]
    block.video.attn1.to_q = block.video.cross_attn.to_v = Forbidden()
    skip = Perturbation(BLOCK_1, isolate=True)
    assert mx.isfinite(some(inputs(some), (skip,)).video).all()
    for half in (STG, ISOLATED):
        with pytest.raises(AssertionError, match="in vain"):
            some(inputs(some), (half,))


# Names


def real_config(model_type=LTXModelType.AudioVideo):
    path = FIXTURES / "manifests" / "ltx-2-19b.config.json"
    block = json.loads(path.read_text())["config"]["transformer"]
    return LTXModelConfig.from_dict(block, model_type)


def real_weights():
    """The whole official file, as arrays that are never made."""
    return {k: mx.zeros(shape) for k, shape in manifest("ltx-2-19b").items()}


def shapes(weights):
    return {k: v.shape for k, v in dict(weights).items()}


@pytest.mark.parametrize(
    "model_type, billions",
    [
        (LTXModelType.AudioVideo, 18.876),
        pytest.param(LTXModelType.VideoOnly, 13.04, marks=pytest.mark.slow),
        pytest.param(LTXModelType.AudioOnly, 3.27, marks=pytest.mark.slow),
    ],
)
def test_real_checkpoint_is_consumed(model_type, billions):
    full = LTXModel(real_config(model_type))
    parameters = shapes(tree_flatten(full.parameters()))
    assert parameters == shapes(full.select(LTXModel.sanitize(real_weights())))
    count = sum(v.size for _, v in tree_flatten(full.parameters()))
    assert count / 1e9 == pytest.approx(billions, abs=0.005)


def test_sanitize_is_idempotent_and_complete():
    weights = real_weights()
    once = LTXModel.sanitize(weights)
    assert LTXModel.sanitize(once) is once
    official = [k for k in weights if k.startswith("model.diffusion_model.")]
    connectors = [k for k in official if "_embeddings_connector." in k]
    assert len(once) == len(official) - len(connectors) == 3510


@pytest.mark.parametrize(
    "kind, own, other",
    [
        (LTXModelType.VideoOnly, "video", "audio"),
        (LTXModelType.AudioOnly, "audio", "video"),
    ],
)
def test_a_model_of_one_stream_reads_nothing_of_the_other_or_of_the_exchange(
    kind, own, other
):
    unknown = ["proj_out.weight", f"{own}.proj_off.weight"]  # refused when loaded
    stays = [
        f"transformer_blocks.1.{own}.attn1.to_q.weight",
        f"transformer_blocks.1.{own}.attn1.to_q.scales",
        f"{own}.scale_shift_table",
        *unknown,
    ]
    goes = [
        f"transformer_blocks.1.{other}.ff.proj_in.bias",
        f"{other}.caption_projection.linear_1.weight",
        f"transformer_blocks.1.{own}.cross_attn.to_q.weight",
        f"transformer_blocks.1.{own}.cross_scale_shift_table",
        f"{own}.cross_adaln_single.linear.weight",
        f"{own}.gate_adaln_single.linear.weight",
    ]
    weights = dict.fromkeys([*stays, *goes], mx.zeros(1))
    assert list(model(kind).select(weights)) == stays
    assert model().select(weights) == weights


def test_a_missing_tensor_stops_the_load():
    weights = LTXModel.sanitize(checkpoint()[0])
    del weights["video.proj_out.bias"]
    with pytest.raises(ValueError, match="video.proj_out.bias"):
        LTXModel(config()).load_weights(list(weights.items()))


# What a caller may count on


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_velocity_keeps_shape_and_dtype(dtype):
    some = model(dtype=dtype)
    batch = twice(LATENTS)
    streams = inputs(
        some,
        twice(PER_TOKEN),
        latents=batch,
        contexts=twice(CONTEXTS),
        dtype=dtype,
    )
    velocity = some(streams)
    for modality in Modality:
        assert velocity[modality].shape == batch[modality].shape
        assert velocity[modality].dtype == dtype
    exact = twice(av("av_per_token.velocity_{}", HEAD))
    assert errors(velocity, exact) < (2e-2 if dtype == mx.bfloat16 else 1e-4)


def test_tables_may_stay_float32_in_a_bfloat16_model():
    half = LTXModel(config())
    half.load_weights(
        [
            (k, v if k.endswith("table") else v.astype(mx.bfloat16))
            for k, v in LTXModel.sanitize(checkpoint()[0]).items()
        ]
    )
    assert half(inputs(half, dtype=mx.bfloat16)).video.dtype == mx.bfloat16


@pytest.mark.parametrize(
    "rope_type",
    [
        LTXRopeType.SPLIT,
        pytest.param(LTXRopeType.INTERLEAVED, marks=pytest.mark.slow),
    ],
)
def test_gradients_reach_every_parameter(rope_type):
    some = fresh_model(rope_type=rope_type)

    def loss(some):
        velocity = some(inputs(some, PER_TOKEN))
        return sum(mx.square(v).mean() for v in velocity.values)

    _, gradients = nn.value_and_grad(some, loss)(some)
    for name, gradient in tree_flatten(gradients):
        assert mx.isfinite(gradient).all() and mx.abs(gradient).max() > 0, name


def test_gradients_reach_latents_and_noise_levels():
    mask = PER_TOKEN.map(lambda timesteps: timesteps / SIGMA)

    def loss(latent, sigma):
        streams = inputs(model())
        video = replace(
            streams.video,
            latent=latent,
            timesteps=Timesteps.from_mask(sigma, mask.video),
        )
        return mx.square(model()(AV(video, streams.audio)).video).mean()

    gradients = mx.grad(loss, argnums=(0, 1))(LATENTS.video, mx.array([SIGMA]))
    assert all(mx.abs(gradient).max() > 0 for gradient in gradients)


def test_a_stream_that_the_model_lacks():
    only = model(VideoOnly)
    with pytest.raises(
        ValueError, match="VideoOnly model has no audio stream; give it video only"
    ):
        only(inputs(model()))


def test_batch_sizes_must_agree():
    with pytest.raises(ValueError, match="must share one batch size; got .*'video"):
        X0Model(model())(states(), twice(CONTEXTS, NEGATIVES), SIGMA)


def test_perturbations_must_be_one_or_one_per_item():
    with pytest.raises(ValueError, match="each of the 1 batch items; got 2"):
        model()(inputs(model()), (STG, NOTHING))


def test_every_latent_needs_a_context():
    with pytest.raises(ValueError, match="no text context for audio"):
        X0Model(model())(states(), AV(CONTEXTS.video), SIGMA)
