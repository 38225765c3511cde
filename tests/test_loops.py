"""Short sampling loops against the official code: model, conditions, guidance and sampler together."""

from dataclasses import replace
from functools import cache

import pytest

from mlx_video.conditioning.latent import (
    LatentState,
    VideoConditionByLatentIndex,
)
from mlx_video.models.ltx.checkpoint.releases import LTX_2
from mlx_video.models.ltx.condition_tokens import Place, keyframe
from mlx_video.models.ltx.config import LTXModelConfig
from mlx_video.models.ltx.ltx import LTXModel
from mlx_video.models.ltx.patchify import (
    initial_states,
    unpatchify_audio,
    unpatchify_video,
)
from mlx_video.models.ltx.x0 import X0Model
from mlx_video.recipes import AUDIO_GUIDANCE, VIDEO_GUIDANCE
from mlx_video.sampling.guidance import Guidance, guided
from mlx_video.sampling.samplers import euler
from mlx_video.types import (
    AV,
    Modality,
    PromptEmbeddings,
    VideoPixelShape,
)
from tests.reference import LOOP_TOLERANCE, checkpoint, error, vectors

LOOPS = vectors("loops")
# Where the official releases differ, the newest one's numbers are ours.
HEAD = {**LOOPS, **vectors("head_variants")}
GEOMETRY = LTX_2.geometry
SHAPE = VideoPixelShape(17, 64, 96, 24.0)
IMAGE = LOOPS["i2v.image_latent"]
PROMPT = PromptEmbeddings(
    AV(LOOPS["ctx.video_pos"], LOOPS["ctx.audio_pos"]),
    AV(LOOPS["ctx.video_neg"], LOOPS["ctx.audio_neg"]),
)
PLAIN = AV(Guidance(), Guidance())


@cache
def predict() -> X0Model:
    weights, config = checkpoint()
    model = LTXModel(LTXModelConfig.from_dict(config["transformer"]))
    model.load_weights(list(LTXModel.sanitize(weights).items()))
    return X0Model(model)


LAST = keyframe(IMAGE, 16, Place(GEOMETRY.video, SHAPE.fps))


def start(loop: str, shape=SHAPE, latents=AV(), conditions=()) -> AV[LatentState]:
    """The states of a loop as the pipeline makes them, with the loop's own noise mixed in."""
    given = [AV([condition]) for condition in conditions]
    states = initial_states(shape, GEOMETRY, latents, given, audio=True)
    noise = AV(LOOPS[f"{loop}.noise_video"], LOOPS[f"{loop}.noise_audio"])
    sigma = LOOPS[f"{loop}.sigmas"][0].item()
    return states.map(lambda state, noise: state.noised(sigma, noise), noise)


def check_start(loop: str, states: AV[LatentState]):
    for modality in Modality:
        official = LOOPS[f"{loop}.init_{modality.value}_tokens"]
        assert error(states[modality].latent, official) < 1e-6


def check_first_prediction(loop: str, states: AV[LatentState], guidance=PLAIN):
    """Before pinned tokens are put back."""
    x0 = guided(predict(), PROMPT, guidance)(states, LOOPS[f"{loop}.sigmas"][0].item())
    for modality in Modality:
        official = LOOPS[f"{loop}.step0_denoised_{modality.value}"]
        assert error(x0[modality], official) < LOOP_TOLERANCE


def run(loop: str, states: AV[LatentState], guidance=PLAIN, batched=False):
    denoise = guided(predict(), PROMPT, guidance, batched=batched)
    *_, (states, _) = euler(denoise, states, LOOPS[f"{loop}.sigmas"].tolist())
    return states


def check(loop: str, states: AV[LatentState], shape=SHAPE):
    grid = GEOMETRY.latents(shape)
    video = unpatchify_video(states.video.latent, grid)
    assert error(video, HEAD[f"{loop}.final_video"]) < LOOP_TOLERANCE
    audio = unpatchify_audio(states.audio.latent, GEOMETRY.audio)
    assert error(audio, HEAD[f"{loop}.final_audio"]) < LOOP_TOLERANCE


CONDITIONS = {
    "t2v4": [],
    "t2v8": [],
    "i2v4": [VideoConditionByLatentIndex(IMAGE)],
    "i2v4_s08": [VideoConditionByLatentIndex(IMAGE, strength=0.8)],
    "kf4": [VideoConditionByLatentIndex(IMAGE), LAST],
}


# The first predictions of `i2v4`, `i2v4_s08` and `kf4` are the February release's, whose gates hear a stream's own noise
# levels, and so is `guided4`'s, whose STG leaves out the residual: the newest release's numbers are of the ends only.


@pytest.mark.parametrize(
    "loop",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("t2v4", "i2v4")),
        *("t2v8", "i2v4_s08", "kf4"),
    ],
)
def test_a_loop_ends_where_the_official_one_does(loop):
    states = start(loop, conditions=CONDITIONS[loop])
    check_start(loop, states)
    check(loop, run(loop, states))


@pytest.mark.parametrize("loop", ["t2v4", "t2v8"])
def test_the_first_prediction_is_the_official_one(loop):
    check_first_prediction(loop, start(loop))


def test_the_second_stage_refines_what_the_first_left():
    shape = SHAPE.scaled(2)
    latents = AV(LOOPS["stage2.upsampled"], LOOPS["t2v8.final_audio"])
    states = start("stage2", shape, latents)
    check_start("stage2", states)
    check_first_prediction("stage2", states)
    check("stage2", run("stage2", states), shape)


def with_blocks(*blocks: int, **strengths) -> AV[Guidance]:
    change = {"stg_blocks": blocks, **strengths}
    return AV(replace(VIDEO_GUIDANCE, **change), replace(AUDIO_GUIDANCE, **change))


@pytest.mark.slow
@pytest.mark.parametrize("batched", [False, True])
def test_a_guided_loop_with_every_pass(batched):
    states = start("guided4")
    check_start("guided4", states)
    check("guided4", run("guided4", states, with_blocks(1), batched))


def test_a_guided_loop_without_stg():
    guidance = with_blocks(1, stg=0.0)
    states = start("guided4_nostg")
    check_start("guided4_nostg", states)
    check_first_prediction("guided4_nostg", states, guidance)
    check("guided4_nostg", run("guided4_nostg", states, guidance))
