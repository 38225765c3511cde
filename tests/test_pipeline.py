"""The path from a request to a clip, seen from inside: what the transformer is lent with, and what it is asked."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from PIL import Image as Picture

from mlx_video import inputs, recipes
from mlx_video.conditioning.latent import LatentState
from mlx_video.errors import UserError
from mlx_video.health import HealthError
from mlx_video.inputs import Image, Keyframes
from mlx_video.models.ltx import enhance
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.config import LTXModelType
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.ltx import LTXModel
from mlx_video.models.ltx.patchify import patchify_audio
from mlx_video.models.ltx.video_vae.decoding import StreamPlan
from mlx_video.pipeline import Pipeline, Reached, Request
from mlx_video.recipes import AUDIO_GUIDANCE, VIDEO_GUIDANCE, Recipe, Stage
from mlx_video.types import AV, Sample, VideoPixelShape, Waveform
from tests.checkpoints import MODEL, completed, rewrite, tiny_folder
from tests.reference import FIXTURES, error

# At half size it has as many video tokens as audio tokens, 18, so that noise from one key would be the same for both.
SHAPE = VideoPixelShape(17, 128, 192, 24.0)
HALF_TOKENS, TOKENS = 18, 72

# Pure noise at first, and so little in the second stage that what it starts from shows through.
LITTLE = 0.1
TWO_STAGES = Recipe(
    "distilled", (Stage((1.0, 0.5, 0.0), scale=0.5), Stage((LITTLE, 0.05, 0.0)))
)
ONE_STAGE = Recipe("distilled", (Stage((1.0, 0.0)),))
DEV = recipes.dev(
    steps=1,
    guidance=AV(
        replace(VIDEO_GUIDANCE, stg_blocks=(1,)),
        replace(AUDIO_GUIDANCE, stg_blocks=(1,)),
    ),
    two_stage=True,
)
USERS, DISTILLED = (f"transformer_blocks.{block}.video.attn1.to_q" for block in (0, 1))


class Call(NamedTuple):
    """One question to the transformer, and its answer."""

    states: AV[LatentState]
    context: AV[mx.array]
    sigma: float
    x0: AV[mx.array]


class Loan(NamedTuple):
    """The transformer while it was lent: ``weights`` are those of two layers."""

    model_type: LTXModelType
    weights: dict[str, mx.array]
    calls: list[Call]


class Recorded(Components):
    """Components that write down what the transformer is asked."""

    loans: list[Loan]

    @contextmanager
    def transformer(self, *loras):
        with super().transformer(*loras) as x0_model:
            layers = dict(x0_model.model.named_modules())
            weights = {path: layers[path].weight for path in (USERS, DISTILLED)}
            loan = Loan(self.model_type, weights, [])
            self.loans.append(loan)

            def predict(states, context, sigma, perturbations=()):
                x0 = x0_model(states, context, sigma, perturbations)
                loan.calls.append(Call(states, context, sigma, x0))
                return x0

            yield predict


def pipeline(model: Path, recipe: Recipe = TWO_STAGES, health=True, **files):
    components = Recorded.open(Files(str(model), **files))
    components.loans = []
    return Pipeline(components, recipe, health=health)


def request(**changes) -> Request:
    return Request(**{"prompt": "a red ball", "shape": SHAPE, "audio": True, **changes})


def sample(pipeline: Pipeline, request: Request) -> Sample:
    """What is sampled; nothing is decoded."""
    return next(e for e in pipeline.stream(request) if isinstance(e, Sample))


def loans(pipeline: Pipeline, request: Request) -> list[Loan]:
    sample(pipeline, request)
    return pipeline.components.loans


def likeness(a: mx.array, b: mx.array) -> float:
    """Correlation, 1 for the same and about 0 for unrelated noise."""
    return float(np.corrcoef(np.array(a).ravel(), np.array(b).ravel())[0, 1])


def is_noise(x: mx.array) -> bool:
    return abs(x.mean().item()) < 0.1 and abs(mx.std(x).item() - 1) < 0.1


# Noise, and what a stage starts from


def test_noise_is_new_in_each_modality_and_stage_and_the_second_keeps_the_sound(model):
    (loan,) = loans(pipeline(model), request())
    first, last, second, _ = loan.calls
    assert (first.sigma, last.sigma, second.sigma) == (1.0, 0.5, LITTLE)
    video, audio = (state.latent for state in first.states.values)
    assert video.shape == audio.shape == (1, HALF_TOKENS, 128)
    assert is_noise(video) and is_noise(audio)
    assert abs(likeness(video, audio)) < 0.1
    again = (second.states.audio.latent - (1 - LITTLE) * last.x0.audio) / LITTLE
    assert is_noise(again)
    assert abs(likeness(again, audio)) < 0.1
    assert second.states.video.latent.shape == (1, TOKENS, 128)
    assert likeness(second.states.audio.latent, last.x0.audio) > 0.9


@pytest.mark.slow
def test_the_sound_of_the_stage_that_the_recipe_names_is_kept_and_gone_on_with(model):
    ours = pipeline(model, replace(TWO_STAGES, sound=0))
    *events, whole = ours.events(request())
    last = sample(pipeline(model), request()).latents
    ((first, *_),) = [loan.calls[1:] for loan in ours.components.loans]
    # The step to noise level 0 ends in what the transformer predicts.
    assert error(patchify_audio(whole.latents.audio), first.x0.audio) < 1e-6
    assert mx.array_equal(whole.latents.video, last.video)
    assert not mx.array_equal(whole.latents.audio, last.audio)
    reached = [event for event in events if isinstance(event, Reached)]
    assert [(r.stage, r.sound is None) for r in reached] == [(0, True), (1, False)]
    resumed = pipeline(model, replace(TWO_STAGES, sound=0))
    *_, again = resumed.events(request(), reached[-1])
    assert all(map(mx.array_equal, again.latents.values, whole.latents.values))


@pytest.mark.slow
def test_generated_keyframes_are_sampled_with_the_first_stage_and_cut_off(
    model, monkeypatch
):
    monkeypatch.setattr(Keyframes, "check", lambda *_: None)
    ours = pipeline(model)
    latents = sample(ours, request(inputs=(Keyframes(2),))).latents
    (loan,) = ours.components.loans
    tokens = [call.states.video.latent.shape[1] for call in loan.calls]
    assert tokens == [HALF_TOKENS + 2 * 6] * 2 + [TOKENS] * 2
    assert latents.video.shape == (1, 128, 3, 4, 6)


@pytest.mark.slow
def test_the_seed_decides_the_noise(model):
    starts = [
        loans(pipeline(model, ONE_STAGE), request(seed=seed))[0].calls[0].states
        for seed in (1, 1, 2)
    ]
    for modality in starts[0].present:
        a, b, c = (start[modality].latent for start in starts)
        assert mx.array_equal(a, b) and abs(likeness(a, c)) < 0.1


def test_a_sampler_draws_from_a_seed_of_its_own(model, monkeypatch):
    """That of the run and 10,000, as in the official code."""
    ours, seeds = pipeline(model, ONE_STAGE), []
    key = ours._key

    def noted(seed: int, number: int) -> mx.array:
        seeds.append(seed)
        return key(seed, number)

    monkeypatch.setattr(ours, "_key", noted)
    sample(ours, request(seed=7, audio=False))
    assert seeds == [7, 10_007]


@pytest.mark.parametrize(
    "seed, decoders",
    [(7, 20_007), (2**31, 2**31 + 20_000), (2**32 + 5, 20_005), (2**64 - 1, 19_999)],
)
def test_a_decoder_draws_from_a_seed_of_its_own(seed, decoders, model, monkeypatch):
    """That of the run and 20,000, of which 32 bits count, so that the largest seed makes a clip too."""
    keys = []

    def noted(decoder, latent, tiling, *, key):
        keys.append(key)
        return iter(())

    monkeypatch.setattr("mlx_video.pipeline.decode_stream", noted)
    latent = mx.zeros((1, 128, 1, 2, 2))
    assert not [
        *pipeline(model, health=False)._decode_video(latent, request(seed=seed))
    ]
    assert mx.array_equal(keys[0], mx.random.key(decoders))


@pytest.mark.parametrize("memory, bound", [(None, 2**40), (2**39, 2**39)])
def test_decoding_stays_within_what_is_given_or_else_the_machine(
    memory, bound, model, monkeypatch
):
    budgets = []

    def noted(mode, decoder, shape, budget):
        budgets.append(budget)
        return StreamPlan()

    monkeypatch.setattr("mlx_video.pipeline.machine_bytes", lambda: 2**40)
    monkeypatch.setattr("mlx_video.pipeline.choose_tiling", noted)
    monkeypatch.setattr("mlx_video.pipeline.decode_stream", lambda *_, key: iter(()))
    ours = replace(pipeline(model, health=False), memory=memory)
    assert not [*ours._decode_video(mx.zeros((1, 128, 1, 2, 2)), request())]
    assert bound - 2**38 < budgets[0] <= bound


@pytest.mark.parametrize(
    "shape, sentence",
    [
        ({"frames": 16}, "16 frames of 192x128 does not fit"),
        ({"frames": 1, "fps": 240}, "0.0042 s is too short for sound. Try 9 frames"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_lent(shape, sentence, model):
    ours = pipeline(model, ONE_STAGE)
    wrong = request(shape=SHAPE._replace(**shape), audio=True)
    with pytest.raises(UserError, match=sentence):
        next(ours.events(wrong))
    assert not ours.components.loans


def test_without_sound_the_transformer_has_no_stream_for_it(model):
    silent = pipeline(model, ONE_STAGE)
    assert sample(silent, request(audio=False)).latents.audio is None
    (loan,) = silent.components.loans
    assert loan.model_type is LTXModelType.VideoOnly
    assert loan.calls[0].states.audio is None


# Images


def picture(file: Path, color: tuple[int, int, int]) -> str:
    pixels = np.full((128, 192, 3), color, np.uint8)
    pixels[::2] //= 2
    Picture.fromarray(pixels).save(file)
    return str(file)


@pytest.mark.slow
def test_images_stand_at_their_frames_as_strongly_as_asked(model, tmp_path):
    images = (
        Image(picture(tmp_path / "red.png", (220, 0, 0)), strength=0.75),
        Image(picture(tmp_path / "blue.png", (0, 0, 220)), frame=8, strength=0.5),
    )
    asked = request(shape=SHAPE._replace(fps=30.0), inputs=images)
    (loan,) = loans(pipeline(model), asked)
    for call, own in ((loan.calls[0], HALF_TOKENS), (loan.calls[2], TOKENS)):
        frame, state = own // 3, call.states.video
        mask = state.denoise_mask[0, :, 0]
        assert mask.tolist() == [0.25] * frame + [1.0] * (own - frame) + [0.5] * frame
        seconds = state.positions[0, 0, own:]
        assert error(seconds, mx.array([[8 / 30, 9 / 30]] * frame)) < 1e-6
        assert error(state.positions[0, 1:, own:], state.positions[0, 1:, :frame]) == 0
        first, keyframe = state.clean_latent[:, :frame], state.clean_latent[:, own:]
        assert error(first, keyframe) > 0.1
    assert inputs._read_picture.cache_info().currsize == 0  # freed once encoded


# Prompts


@pytest.mark.slow
def test_the_negative_prompt_is_what_the_guided_pass_goes_away_from(model):
    one = replace(DEV, stages=(replace(DEV.stages[0], scale=1.0),))
    contexts = []
    for negative in ("blurry", "a green cube"):
        (loan,) = loans(pipeline(model, one), request(negative_prompt=negative))
        contexts.append([call.context.video for call in loan.calls])
    changed = [not mx.array_equal(a, b) for a, b in zip(*contexts)]
    assert changed == [False, True, False, False]


@pytest.mark.slow
@pytest.mark.parametrize("with_image, seed", [(False, 3), (True, 4)])
def test_the_prompt_is_enhanced_for_what_goes_with_it(
    with_image, seed, model, tmp_path, monkeypatch
):
    calls = []

    def writes(name):
        def enhanced(encoder, prompt, *, seed):
            calls.append((name, prompt, seed))
            return f"{prompt} by {name}"

        return enhanced

    for name in ("enhance_t2v", "enhance_i2v"):
        monkeypatch.setattr(enhance, name, writes(name))
    images = (Image(picture(tmp_path / "red.png", (220, 0, 0))),) if with_image else ()
    name = "enhance_i2v" if with_image else "enhance_t2v"
    asked = request(enhance=True, seed=seed, inputs=images)
    made = sample(pipeline(model, ONE_STAGE), asked)
    assert made.prompt == f"a red ball by {name}"
    assert calls == [(name, "a red ball", seed)]


# LoRAs


def write_lora(file: Path, layer: str, seed: int) -> mx.array:
    """A file of rank 1 for one layer of 64 by 64; returns what it adds at strength 1."""
    down, up = mx.random.normal((2, 64), key=mx.random.key(seed))
    name = f"diffusion_model.{layer}"
    weights = {
        f"{name}.lora_A.weight": down[None],
        f"{name}.lora_B.weight": up[:, None],
    }
    mx.save_safetensors(str(file), weights)
    return mx.outer(up, down)


@pytest.mark.slow
def test_the_users_lora_stays_beside_the_distilled_one(model, tmp_path):
    users, distilled = (
        tmp_path / "users.safetensors",
        tmp_path / "distilled.safetensors",
    )
    added = {
        USERS: 0.5 * write_lora(users, LTXModel.NAMES.official(USERS), seed=1),
        DISTILLED: write_lora(distilled, LTXModel.NAMES.official(DISTILLED), seed=2),
    }
    plainly = pipeline(model, ONE_STAGE)
    completed(distilled, plainly.components.sketch("transformer"))
    (plain,) = loans(plainly, request())
    tuned = pipeline(model, DEV, loras=[(users, 0.5)], distilled_lora=distilled)
    first, second = loans(tuned, request())
    for loan, fused in ((first, [USERS]), (second, [USERS, DISTILLED])):
        for layer, weight in plain.weights.items():
            change = added[layer] if layer in fused else mx.zeros((64, 64))
            assert mx.allclose(loan.weights[layer], weight + change, atol=1e-5), layer
    told = [(Path(f.source), f.strength) for f in tuned.components.fusions]
    assert told == [(users, 0.5), (users, 0.5), (distilled, 1.0)]


# Health: each phase is looked at


class Spoiled:
    """A part whose output is spoiled."""

    def __init__(self, part, spoil):
        self.part, self.spoil = part, spoil

    def __getattr__(self, name):
        return getattr(self.part, name)

    def __call__(self, *inputs):
        return self.spoil(self.part(*inputs))


def spoiled(model: Path, name: str, spoil, health=True) -> Pipeline:
    made = pipeline(model, ONE_STAGE, health)
    lend = made.components.lend

    @contextmanager
    def lend_spoiled(part, *how):
        with lend(part, *how) as lent:
            yield Spoiled(lent, spoil) if part == name else lent

    made.components.lend = lend_spoiled
    return made


@pytest.mark.thorough
def test_the_seed_draws_the_noise_of_a_diffusion_decoder():
    """LTX-2.5's: the same latents and seed make the same frames, another seed makes others."""
    made = pipeline(FIXTURES / "ltx25_tiny", ONE_STAGE, health=False)
    shape = VideoPixelShape(1, 32, 32, 24.0)
    latents = AV(mx.random.normal(made.components.geometry.latents(shape)))
    first, same, other = (
        np.stack(list(made.decode(latents, request(shape=shape, seed=seed)).frames))
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def nan_in_sound(context: AV[mx.array]) -> AV[mx.array]:
    return AV(context.video, context.audio * mx.nan)


@pytest.mark.slow
def test_prompt_embeddings_are_looked_at_before_sampling(model):
    broken = spoiled(model, "connectors", nan_in_sound)
    with pytest.raises(HealthError, match="in the audio prompt embedding"):
        sample(broken, request())
    assert broken.components.loans == []


@pytest.mark.slow
def test_an_upsampler_that_makes_nan_is_blamed_itself(model):
    broken = pipeline(model, TWO_STAGES)
    lend = broken.components.lend

    @contextmanager
    def lend_spoiled(part, *how):
        with lend(part, *how) as lent:
            if part == "upsampler":
                lent.update(tree_map(lambda weight: weight * mx.nan, lent.parameters()))
            yield lent

    broken.components.lend = lend_spoiled
    with pytest.raises(HealthError, match="NaN .* in the video latent after upsampl"):
        sample(broken, request())
    assert len(broken.components.loans) == 1


def without_output(weights: dict) -> None:
    """What each stream's last layer makes of anything is next to nothing; all zeros would be refused as they are read."""
    for name in ("proj_out", "audio_proj_out"):
        for kind in ("weight", "bias"):
            key = f"model.diffusion_model.{name}.{kind}"
            weights[key] = weights[key] * 1e-6


@pytest.mark.slow
def test_noise_that_nothing_was_removed_from_is_not_decoded(tmp_path):
    folder = tiny_folder(tmp_path / "tiny")
    rewrite(folder / MODEL, without_output)
    broken = pipeline(folder, ONE_STAGE)
    with pytest.raises(
        HealthError, match="video latent after stage 1 is still the noise"
    ):
        sample(broken, request())
    latents = sample(pipeline(folder, ONE_STAGE, health=False), request()).latents
    with pytest.raises(HealthError, match="after sampling is still the noise"):
        broken.decode(latents, request())


def test_latents_of_nothing_are_not_decoded(model):
    nothing = AV(mx.zeros((1, 128, 2, 2, 4)), mx.zeros((1, 8, 9, 16)))
    with pytest.raises(HealthError, match="nothing in the video latent after sampling"):
        pipeline(model, ONE_STAGE).decode(nothing, request())


@pytest.mark.slow
def test_the_sound_is_looked_at(model):
    broken = spoiled(model, "vocoder", mx.zeros_like)
    with pytest.raises(HealthError, match="silence"):
        broken(request())


@pytest.mark.slow
def test_nothing_is_looked_at_where_that_is_not_wanted(model):
    clip = spoiled(model, "vocoder", mx.zeros_like, health=False)(request())
    assert isinstance(clip.audio, Waveform)
    assert not mx.any(clip.audio.samples)
