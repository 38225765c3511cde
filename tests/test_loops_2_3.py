"""Official loops of LTX-2.3 and 2.5: the recipes of both releases, with network, conditions, guidance and sampler together.

Of each official loop the fixtures keep what goes in and what comes out. Sizes are those of its results; where the network is
told of noise, it is the official one, in the order in which it was drawn.
"""

from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import mlx.core as mx
import pytest

from mlx_video.conditioning.latent import (
    LatentState,
    VideoConditionByLatentIndex,
    apply_conditioning,
)
from mlx_video.models.ltx import dfr_layout
from mlx_video.models.ltx.checkpoint.releases import LTX_2
from mlx_video.models.ltx.condition_tokens import (
    Place,
    evenly_spaced,
    generated_keyframes,
    keyframe,
    reference,
)
from mlx_video.models.ltx.config import LTXModelConfig, UpsamplerConfig
from mlx_video.models.ltx.ltx import LTXModel
from mlx_video.models.ltx.patchify import (
    audio_positions,
    patchify_audio,
    patchify_video,
    position_grid,
)
from mlx_video.models.ltx.upsampler import LatentUpsampler, upsample_normalized
from mlx_video.models.ltx.video_vae import VideoEncoder
from mlx_video.models.ltx.x0 import X0Model
from mlx_video.recipes import AUDIO_GUIDANCE, VIDEO_GUIDANCE
from mlx_video.sampling.guidance import Guidance, guided
from mlx_video.sampling.samplers import euler, euler_ancestral, res_2s
from mlx_video.sampling.schedules import (
    DFR_ROUND_SIGMAS,
    STAGE_1_SIGMAS,
    STAGE_2_SIGMAS,
    ltx2_scheduler,
)
from mlx_video.types import AV, PromptEmbeddings
from tests.models.ltx.video_vae.tiny import LTX_2_3, part_of
from tests.reference import (
    FIXTURES,
    LOOP_TOLERANCE,
    MODULE_TOLERANCE,
    checkpoint,
    error,
    vectors,
)

GEOMETRY = LTX_2.geometry  # which the later releases share
PLAIN = AV(Guidance(), Guidance())


class Release(NamedTuple):
    """Where a release's tiny transformer and its loops lie, and the fps of the loops."""

    checkpoint: str
    folder: str
    loops: str
    fps: float

    @property
    def vectors(self) -> dict[str, mx.array]:
        return vectors(self.loops, self.folder)

    @property
    def begun(self) -> dict[str, mx.array]:
        """Masks, positions, marks and clean tokens of what the loops begin with."""
        return vectors(f"{self.loops}_states", self.folder)


V2_3 = Release("ltx23_tiny/ltx-2.3-tiny", "ltx23_tiny", "loops", 25.0)
V2_5 = Release("ltx25_tiny/ltx-2.5-tiny-transformer-bf16", "ltx25_tiny", "loops", 24.0)
HQ = V2_3._replace(folder="ltx2_modes", loops="modes", fps=24.0)
DFR = V2_5._replace(folder="ltx2_modes", loops="modes")


@cache
def network(file: str) -> X0Model:
    weights, config = checkpoint(FIXTURES / f"{file}.safetensors")
    model = LTXModel(LTXModelConfig.from_dict(config["transformer"]))
    model.load_weights(list(LTXModel.sanitize(weights).items()))
    return X0Model(model)


def prompt(given: dict[str, mx.array]) -> PromptEmbeddings:
    if "dfr.ctx_video" in given and "ctx.video_pos" not in given:
        return PromptEmbeddings(AV(given["dfr.ctx_video"], given["dfr.ctx_audio"]))
    positive, negative = (
        AV(given[f"ctx.video_{kind}"], given[f"ctx.audio_{kind}"])
        for kind in ("pos", "neg")
    )
    return PromptEmbeddings(positive, negative)


class Loop:
    """One official loop: its states before the noise, its run, and its results."""

    def __init__(self, release: Release, name: str, fps: float | None = None):
        self.release, self.name = release, name
        self.given = release.vectors
        self.place = Place(GEOMETRY.video, fps or release.fps)

    def __getitem__(self, key: str) -> mx.array:
        return self.given[f"{self.name}.{key}"]

    @property
    def sigmas(self) -> list[float]:
        return self["sigmas"].tolist()

    def states(self, conditions=(), latents: AV[mx.array] = AV()) -> AV[LatentState]:
        """What the loop begins with: ``latents`` or zeros, conditioned, with the official noise mixed in."""
        *_, F, H, W = self["final_video"].shape
        video = latents.video
        tokens = (
            mx.zeros((1, F * H * W, 128)) if video is None else patchify_video(video)
        )
        positions = position_grid((F, H, W), *self.place)
        state = LatentState.fresh(tokens, positions, H * W)
        states = AV(apply_conditioning(state, conditions), self._sound(latents.audio))
        self._check_begun(states)
        noise = states.map(lambda _, name: self[name], AV("noise_video", "noise_audio"))
        return states.map(lambda state, x: state.noised(self.sigmas[0], x), noise)

    def _check_begun(self, states: AV[LatentState]) -> None:
        """What conditions made of the states, before any noise, is what the official ones make."""
        for modality in states.present:
            state, name = states[modality], f"{self.name}.{modality.value}"
            ours = {
                f"{name}_mask": state.denoise_mask,
                f"{name}_positions": state.positions,
                f"{name}_keyframes_mask": state.keyframes_mask,
                f"{self.name}.clean_{modality.value}_tokens": state.clean_latent,
            }
            official = {
                k: self.release.begun[k] for k in ours if k in self.release.begun
            }
            assert f"{name}_mask" in official
            for key, value in official.items():
                found = mx.zeros_like(value) if ours[key] is None else ours[key]
                assert found.shape == value.shape, key
                assert mx.abs(found - value).max() < 1e-5 * max(1, value.max()), key

    def _sound(self, latent: mx.array | None) -> LatentState | None:
        if f"{self.name}.final_audio" not in self.given:
            return None
        T = self["final_audio"].shape[2]
        tokens = mx.zeros((1, T, 128)) if latent is None else patchify_audio(latent)
        return LatentState.fresh(tokens, audio_positions(T, GEOMETRY.audio))

    def noise(self, draw: int, states: AV[LatentState]) -> AV[mx.array]:
        """What the official sampler drew: video before audio in each draw."""
        first = draw * len(states.present)
        names = [f"step_noise{first + i:02}" for i in range(len(states.present))]
        return AV(*(self[name] for name in names))

    def run(
        self, states, sampler=euler, guidance=PLAIN, context=None, batched=False
    ) -> AV[LatentState]:
        """The states after the last step; the first prediction is checked on the way."""
        predict = network(self.release.checkpoint)
        guidance = states.map(lambda _, strengths: strengths, guidance)
        context = context or prompt(self.given)
        denoise = guided(predict, context, guidance, batched=batched)
        first = denoise(states, self.sigmas[0])
        for modality in states.present:
            official = self[f"step0_denoised_{modality.value}"]
            assert error(first[modality], official) < LOOP_TOLERANCE
        *_, (states, sigma) = sampler(denoise, states, self.sigmas)
        assert sigma == 0.0
        return states

    def check(self, states: AV[LatentState]):
        video = patchify_video(self["final_video"])
        own = states.video.latent[:, : states.video.own_tokens]
        assert error(own, video) < LOOP_TOLERANCE
        if states.audio is not None:
            sound = patchify_audio(self["final_audio"])
            assert error(states.audio.latent, sound) < LOOP_TOLERANCE
        if f"{self.name}.generated_keyframes" in self.given:
            pictures = patchify_video(self["generated_keyframes"])
            generated = states.video.generated_keyframes()
            assert error(generated, pictures) < LOOP_TOLERANCE


def image(release: Release, name="image_latent") -> VideoConditionByLatentIndex:
    return VideoConditionByLatentIndex(release.vectors[name])


def official_guidance(*blocks: int, **strengths) -> AV[Guidance]:
    change = {"stg_blocks": blocks, **strengths}
    return AV(replace(VIDEO_GUIDANCE, **change), replace(AUDIO_GUIDANCE, **change))


def test_schedules_are_the_official_ones():
    for release, name, ours in (
        (V2_3, "t2v4", ltx2_scheduler(4).tolist()),
        (V2_5, "guided3", ltx2_scheduler(3).tolist()),
        (HQ, "hq1", ltx2_scheduler(3, num_tokens=8).tolist()),
        (V2_5, "anc8", STAGE_1_SIGMAS),
        (V2_3, "two_stage", STAGE_2_SIGMAS),
        (DFR, "dfr3.tile0", DFR_ROUND_SIGMAS),
    ):
        assert mx.array_equal(mx.array(ours), Loop(release, name)["sigmas"]), name


# One stage


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param("t2v4", marks=pytest.mark.thorough), "i2v4", "distilled8"],
)
def test_2_3_without_guidance(name):
    loop = Loop(V2_3, name)
    conditions = [image(V2_3)] if name == "i2v4" else []
    loop.check(loop.run(loop.states(conditions)))


@pytest.mark.slow
@pytest.mark.parametrize("release, block", [(V2_3, 2), (V2_5, 1)], ids=["2.3", "2.5"])
def test_guided(release, block):
    loop = Loop(release, "guided3")
    loop.check(loop.run(loop.states(), guidance=official_guidance(block)))


@pytest.mark.slow
@pytest.mark.parametrize("batched", [False, True])
def test_guided_with_pictures(batched):
    loop = Loop(V2_3, "i2v_kf3")
    last = keyframe(V2_3.vectors["image_latent2"], 16, loop.place, 0.9)
    states = loop.states([replace(image(V2_3), strength=0.8), last])
    guidance = official_guidance(2)
    loop.check(loop.run(states, guidance=guidance, batched=batched))


@pytest.mark.slow
def test_guided_with_a_resting_modality():
    loop = Loop(V2_3, "guided_skip3")
    video, audio = official_guidance(2, stg=0.0).values
    guidance = AV(
        replace(video, skip_step=1, rescale=0.45), replace(audio, rescale=1.0)
    )
    loop.check(loop.run(loop.states(), guidance=guidance))


@pytest.mark.slow
def test_hq():
    loop = Loop(HQ, "hq1")
    video, audio = official_guidance(2, stg=0.0).values
    guidance = AV(replace(video, rescale=0.45), replace(audio, rescale=1.0))
    states = loop.states([image(HQ, "image")])
    loop.check(loop.run(states, partial(res_2s, noise=loop.noise), guidance))


def ancestral(loop: Loop, eta=1.0):
    return partial(euler_ancestral, noise=loop.noise, eta=eta)


# Two stages


def test_the_second_stage_begins_with_the_first_one_upsampled():
    file = FIXTURES / "ltx23_tiny" / "ltx-2.3-tiny-spatial-upscaler-x2.safetensors"
    weights, config = checkpoint(file)
    upsampler = LatentUpsampler(UpsamplerConfig.from_dict(config))
    upsampler.load_weights(list(LatentUpsampler.sanitize(weights).items()))
    statistics = part_of(VideoEncoder, LTX_2_3).per_channel_statistics
    latent = Loop(V2_3, "distilled8")["final_video"]
    upsampled = upsample_normalized(upsampler, statistics, latent)
    assert error(upsampled, Loop(V2_3, "two_stage")["upsampled"]) < MODULE_TOLERANCE


@pytest.mark.slow
def test_distilled_2_3_refines_what_the_first_stage_left():
    loop, first = Loop(V2_3, "two_stage"), Loop(V2_3, "distilled8")
    latents = AV(loop["upsampled"], first["final_audio"])
    loop.check(loop.run(loop.states([image(V2_3, "two_stage.image_latent")], latents)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["anc8", "slots8"])
def test_distilled_2_5_begins_with_ancestral_steps(name):
    loop = Loop(V2_5, name)
    conditions = [image(V2_5)]
    if name == "slots8":
        slots = evenly_spaced(2, 17)
        conditions.append(generated_keyframes(slots, (2, 3), loop.place))
    loop.check(loop.run(loop.states(conditions), ancestral(loop)))


def test_distilled_2_5_refines_what_the_first_stage_left():
    loop, first = Loop(V2_5, "stage2"), Loop(V2_5, "anc8")
    latents = AV(loop["upsampled"], first["final_audio"])
    loop.check(loop.run(loop.states([image(V2_5, "stage2.image_latent")], latents)))


@pytest.mark.slow
def test_both_stages_of_2_5_on_a_real_prompt():
    text = vectors("text", "ltx25_tiny")
    context = PromptEmbeddings(AV(text["a.video_embeds"], text["a.audio_embeds"]))
    loop = Loop(V2_5, "recipe1")
    loop.check(loop.run(loop.states(), ancestral(loop), context=context))
    latents = AV(Loop(V2_5, "recipe2")["upsampled"], loop["final_audio"])
    loop = Loop(V2_5, "recipe2")
    loop.check(loop.run(loop.states(latents=latents), context=context))


# DFR


CANVAS = dfr_layout.Canvas.of(49)
DFR_PROMPT = PromptEmbeddings(
    AV(DFR.vectors["dfr.ctx_video"], DFR.vectors["dfr.ctx_audio"])
)


def test_dfr_generates_pictures_with_the_clip():
    loop = Loop(DFR, "dfr1")
    pictures = generated_keyframes(CANVAS.keyframes, (1, 1), loop.place)
    loop.check(loop.run(loop.states([pictures]), context=DFR_PROMPT))


def test_dfr_refines_clip_and_pictures_after_the_small_clip():
    loop, first = Loop(DFR, "dfr2"), Loop(DFR, "dfr1")
    seeds = loop["upsampled_slots"]
    conditions = [
        generated_keyframes(CANVAS.keyframes, (2, 2), loop.place, seeds),
        reference(first["final_video"], loop.place, downscale=2),
    ]
    latents = AV(loop["upsampled"], first["final_audio"])
    loop.check(loop.run(loop.states(conditions, latents), context=DFR_PROMPT))


TIME = GEOMETRY.video.time
LAYOUT = dfr_layout.tiles(dfr_layout.doubled(CANVAS.keyframes), 2, TIME)


@pytest.mark.parametrize("number", range(len(LAYOUT)))
def test_a_tile_of_a_temporal_round(number):
    loop = Loop(DFR, f"dfr3.tile{number}", fps=48.0)
    tile = LAYOUT[number]
    pictures = mx.split(DFR.vectors["dfr2.generated_keyframes"], 2, axis=2)
    carried = dict(zip(dfr_layout.doubled(CANVAS.keyframes), pictures))
    video = DFR.vectors["dfr3.temporal_upsampled"][:, :, tile.latents(TIME)]
    conditions = dfr_layout.tile_conditions(tile, carried, video, loop.place)
    states = loop.states(conditions, AV(video))
    sampler = ancestral(loop, dfr_layout.ROUND_ETA)
    states = loop.run(states, sampler, AV(Guidance()), DFR_PROMPT)
    loop.check(states)
    made = dfr_layout.generated_pictures(states.video, tile.slots, (2, 2))
    assert tuple(made) == tile.slots
    stack = mx.concatenate(list(made.values()), axis=2)
    assert error(stack, loop["generated_keyframes"]) < LOOP_TOLERANCE


def test_tiles_are_joined():
    tiles = [DFR.vectors[f"dfr3.tile{i}.final_video"] for i in range(len(LAYOUT))]
    assert mx.array_equal(dfr_layout.join(tiles, LAYOUT), DFR.vectors["dfr3.stitched"])
