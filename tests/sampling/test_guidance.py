"""Guidance formulas against the official numbers, and the passes that strengths ask for."""

from dataclasses import replace

import mlx.core as mx
import pytest

from mlx_video.conditioning.latent import LatentState
from mlx_video.recipes import AUDIO_GUIDANCE, VIDEO_GUIDANCE
from mlx_video.sampling.guidance import (
    Guidance,
    cfg_delta,
    guided,
    may_start,
    passes_of,
)
from mlx_video.types import AV, PromptEmbeddings
from tests.reference import error, vectors

OFFICIAL = vectors("sampling")
COND, UNCOND, PERTURBED, ISOLATED = (
    OFFICIAL[f"guid.{name}"] for name in ("cond", "uncond", "perturbed", "modality")
)

X0S = dict(cond=COND, uncond=UNCOND, perturbed=PERTURBED, isolated=ISOLATED)


@pytest.mark.parametrize(
    "guidance, name",
    [(VIDEO_GUIDANCE, "guid.video_default"), (AUDIO_GUIDANCE, "guid.audio_default")],
)
def test_default_strengths_combine_as_the_official_code_does(guidance, name):
    combined = guidance.combine(X0S)
    assert error(combined, OFFICIAL[name]) < 1e-6


def test_cfg_alone():
    combined = Guidance(cfg=4.0).combine({"cond": COND, "uncond": UNCOND})
    assert error(combined, OFFICIAL["guid.cfg_only"]) < 1e-6


def test_a_delta_is_the_official_one():
    assert error(cfg_delta(COND, UNCOND, 3.0), OFFICIAL["guid.cfg_delta"]) < 1e-5


def test_stg_alone():
    guided = Guidance(stg=1.0).combine({"cond": COND, "perturbed": PERTURBED})
    assert error(guided, COND + OFFICIAL["guid.stg_delta"]) < 1e-5


def test_cfg_delta_keeps_the_dtype():
    half = COND.astype(mx.bfloat16)
    assert cfg_delta(half, half, 4.0).dtype == mx.bfloat16


PROMPT = PromptEmbeddings(
    AV(mx.full((1, 4, 8), 1.0), mx.full((1, 4, 8), 2.0)),
    AV(mx.full((1, 4, 8), -1.0), mx.full((1, 4, 8), -2.0)),
)
STATES = AV(
    *(
        LatentState.fresh(
            mx.random.normal((1, n, 3), key=mx.random.key(n)), mx.zeros((1, 1, n, 2))
        )
        for n in (5, 7)
    )
)


def spy(calls):
    """A model whose prediction depends on everything a pass may change."""

    def predict(states, context, sigma, perturbations):
        calls.append(perturbations)
        offsets = mx.array([3.0 * p.isolate for p in perturbations])[:, None, None]

        def x0(state, text, *skipped):
            blocks = mx.array([10.0 * len(each) for each in skipped])[:, None, None]
            text = text.mean(axis=(1, 2), keepdims=True)
            return state.latent * text + offsets + blocks

        return states.map(x0, context, *(p.skip_self_attention for p in perturbations))

    return predict


def test_no_guidance_is_one_pass():
    calls = []
    guided(spy(calls), PROMPT, AV(Guidance(), Guidance()))(STATES, 0.5)
    assert len(calls) == 1


def test_a_pass_that_one_modality_needs_is_run_for_both():
    calls = []
    strengths = AV(Guidance(), Guidance(stg=1.0, stg_blocks=(1, 2)))
    x0 = guided(spy(calls), PROMPT, strengths)(STATES, 0.5)
    assert len(calls) == 2
    assert error(x0.video, STATES.video.latent) < 1e-6  # strength 0 leaves video alone


def test_stg_perturbs_only_the_modality_that_asks_and_each_in_its_own_blocks():
    def skipped(video: Guidance, audio: Guidance):
        _, perturbation = passes_of(PROMPT, AV(video, audio))["perturbed"]
        return perturbation.skip_self_attention

    some, other = Guidance(stg=1.0, stg_blocks=(1, 2)), Guidance(stg_blocks=(3,))
    assert skipped(some, other) == AV(frozenset({1, 2}), frozenset())
    assert skipped(other, some) == AV(frozenset(), frozenset({1, 2}))
    other = replace(other, stg=0.5)
    assert skipped(some, other) == AV(frozenset({1, 2}), frozenset({3}))


def test_batched_passes_equal_passes_in_turn():
    strengths = AV(VIDEO_GUIDANCE, AUDIO_GUIDANCE)
    calls = []
    in_turn = guided(spy([]), PROMPT, strengths)(STATES, 0.5)
    batched = guided(spy(calls), PROMPT, strengths, batched=True)(STATES, 0.5)
    assert len(calls) == 1 and len(calls[0]) == 4
    for a, b in zip(batched.values, in_turn.values):
        assert error(a, b) < 1e-6


def test_video_alone_needs_no_modality_pass():
    calls = []
    prompt = PromptEmbeddings(AV(PROMPT.positive.video), AV(PROMPT.negative.video))
    guided(spy(calls), prompt, AV(VIDEO_GUIDANCE))(AV(STATES.video), 0.5)
    assert len(calls) == 3


def test_cfg_without_a_negative_prompt_is_refused():
    with pytest.raises(ValueError, match="cfg 4.0 needs a negative prompt"):
        guided(spy([]), PromptEmbeddings(PROMPT.positive), AV(Guidance(cfg=4.0)))


def test_a_modality_without_a_negative_prompt_keeps_the_positive_one():
    prompt = PromptEmbeddings(PROMPT.positive, AV(PROMPT.negative.video))
    context, _ = passes_of(prompt, AV(Guidance(cfg=3.0), Guidance()))["uncond"]
    assert context.video is PROMPT.negative.video
    assert context.audio is PROMPT.positive.audio


def resting(calls, video: int, audio: int):
    """A denoiser that counts its calls in what it predicts, with a modality resting so many steps."""

    def predict(states, context, sigma, perturbations):
        calls.append(states.map(lambda state: state.enabled))
        return states.map(lambda state: mx.full(state.latent.shape, len(calls)))

    return guided(
        predict, PROMPT, AV(Guidance(skip_step=video), Guidance(skip_step=audio))
    )


def test_a_modality_that_skips_steps_rests_and_its_last_x0_is_used_again():
    calls = []
    denoise = resting(calls, video=1, audio=0)
    x0s = [denoise(STATES, 0.5, step) for step in range(4)]
    assert [x0.video[0, 0, 0].item() for x0 in x0s] == [1, 1, 3, 3]
    assert [x0.audio[0, 0, 0].item() for x0 in x0s] == [1, 2, 3, 4]
    assert calls == [AV(True, True), AV(False, True)] * 2


def test_nothing_is_computed_where_both_modalities_rest():
    calls = []
    denoise = resting(calls, video=1, audio=2)
    for step in range(6):
        denoise(STATES, 0.5, step)
    assert [call.values for call in calls] == [
        (True, True),
        (True, False),
        (False, True),
        (True, False),
    ]


def test_a_run_starts_only_where_nothing_is_reused():
    strengths = AV(Guidance(skip_step=1), Guidance(skip_step=2))
    assert [step for step in range(8) if may_start(strengths, step)] == [0, 6]
    with pytest.raises(ValueError, match="Step 3 reuses a prediction"):
        resting([], video=1, audio=0)(STATES, 0.5, 3)
