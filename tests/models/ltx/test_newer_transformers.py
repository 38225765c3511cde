"""The transformers of LTX-2.3 and 2.5 against Lightricks' numbers, and their names against the real checkpoints'."""

import json
from dataclasses import dataclass, replace
from functools import cache

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_video.conditioning.latent import LatentState
from mlx_video.errors import UserError
from mlx_video.models.ltx.attention import attention_bias
from mlx_video.models.ltx.config import LTXModelConfig, LTXModelType
from mlx_video.models.ltx.ltx import LTXModel
from mlx_video.models.ltx.transformer import CROSS_GATE, ModalityInput
from mlx_video.models.ltx.x0 import X0Model
from mlx_video.types import AV, Modality, Perturbation
from tests.models.ltx.dit import errors, levels, twice
from tests.reference import (
    CHECKPOINT,
    FIXTURES,
    MODULE_TOLERANCE,
    checkpoint,
    error,
    manifest,
    vectors,
)

AudioVideo, VideoOnly, AudioOnly = (
    LTXModelType.AudioVideo,
    LTXModelType.VideoOnly,
    LTXModelType.AudioOnly,
)


@dataclass(frozen=True)
class Official:
    """A miniature checkpoint, and what the official code made of its inputs.

    Where nothing else is said, the first latent frame has no noise and two more tokens have a quarter of it.
    """

    folder: str
    file: str
    stg_block: int

    def __str__(self) -> str:
        return self.folder

    @cache
    def model(self, model_type: LTXModelType = AudioVideo, **changes) -> LTXModel:
        return self.new_model(model_type, **changes)

    def new_model(self, model_type=AudioVideo, **changes) -> LTXModel:
        weights, config = checkpoint(FIXTURES / self.folder / self.file)
        config = LTXModelConfig.from_dict(config["transformer"], model_type)
        model = LTXModel(replace(config, **changes))
        weights = model.select(LTXModel.sanitize(weights))
        model.load_weights(list(weights.items()), strict=not changes)
        return model

    def __getitem__(self, name: str) -> mx.array:
        return vectors("dit", self.folder)[name]

    @property
    def names(self) -> list[str]:
        return list(vectors("dit", self.folder))

    def pair(self, name: str) -> AV[mx.array]:
        """A pair of vectors: ``{}`` in the name stands for the modality."""
        return AV(self[name.format("video")], self[name.format("audio")])

    @property
    def sigmas(self) -> AV[mx.array]:
        return AV(*self["in.sigmas"])

    @property
    def masks(self) -> AV[mx.array]:
        return self.pair("in.{}_latent").map(lambda x: mx.ones((1, x.shape[1], 1)))

    @property
    def pinned(self) -> AV[mx.array]:
        return AV(self["in.denoise_mask"], self.masks.audio)

    def inputs(
        self,
        model: LTXModel,
        masks: AV[mx.array] | None = None,
        *,
        latents: AV[mx.array] | None = None,
        contexts: AV[mx.array] | None = None,
        sigmas: AV[mx.array] | None = None,
        enabled: AV[bool] = AV(True, True),
        keyframes: bool = True,
        attention: mx.array | None = None,
    ) -> AV[ModalityInput]:
        sigmas, masks = sigmas or self.sigmas, masks or self.pinned
        latents = latents or self.pair("in.{}_latent")
        latents = AV(*(latents[m] if m in model.streams.present else None for m in Modality))  # fmt: skip
        contexts = contexts or self.pair("in.{}_context")
        positions = self.pair("in.{}_positions")
        return latents.map(
            ModalityInput,
            sigmas.map(lambda s, m: levels(m * s.reshape(-1, 1, 1), s), masks),
            model.project_context(latents.map(lambda _, c: c, contexts)),
            model.rope(latents.map(lambda _, p: p, positions)),
            enabled,
            AV(self["in.keyframes_mask"] if keyframes else None),
            AV(attention).map(lambda a: attention_bias(a, mx.float32)),
        )


NEWER = [
    Official("ltx23_tiny", "ltx-2.3-tiny.safetensors", 2),
    Official("ltx25_tiny", "ltx-2.5-tiny-transformer-bf16.safetensors", 1),
]
newer = pytest.mark.parametrize("official", NEWER, ids=str)


def stg(official: Official, *modalities: Modality) -> tuple[Perturbation]:
    block = frozenset({official.stg_block})
    skipped = AV(*(block if m in modalities else frozenset() for m in Modality))
    return (Perturbation(skipped),)


# Velocities


@newer
@pytest.mark.parametrize("name", ["av_uniform", "av_per_token"])
def test_velocity_and_x0(official, name):
    model = official.model()
    masks = official.pinned if name == "av_per_token" else official.masks
    velocity = model(official.inputs(model, masks))
    expected = official.pair(name + ".velocity_{}")
    assert errors(velocity, expected) < MODULE_TOLERANCE
    x0 = velocity.map(
        lambda v, x, mask, sigma: x - v * mask * sigma,
        official.pair("in.{}_latent"),
        masks,
        official.sigmas,
    )
    assert errors(x0, official.pair(name + ".x0_{}")) < MODULE_TOLERANCE


@newer
def test_perturbations(official):
    model = official.model()
    for name, perturbations in (
        ("av_stg", stg(official, *Modality)),
        ("av_stg_video", stg(official, Modality.VIDEO)),
        ("av_mod", (Perturbation(isolate=True),)),
    ):
        velocity = model(official.inputs(model), perturbations)
        expected = official.pair(name + ".velocity_{}")
        assert errors(velocity, expected) < MODULE_TOLERANCE, name


@newer
def test_a_stream_that_rests_and_one_that_is_frozen(official):
    model = official.model()
    resting = official.inputs(model, enabled=AV(True, False))
    expected = official.pair("av_audio_disabled.velocity_{}")
    assert errors(model(resting), expected) < MODULE_TOLERANCE
    still = AV(official.sigmas.video, mx.array(0.0))
    masks = AV(official.pinned.video, mx.zeros_like(official.masks.audio))
    frozen = official.inputs(model, masks, sigmas=still)
    expected = official.pair("av_audio_frozen.velocity_{}")
    assert errors(model(frozen), expected) < MODULE_TOLERANCE


@newer
def test_attention_mask(official):
    model = official.model()
    strengths = official["in.attention_mask"]
    velocity = model(official.inputs(model, attention=strengths))
    expected = official.pair("av_attn_mask.velocity_{}")
    assert errors(velocity, expected) < MODULE_TOLERANCE


@newer
def test_one_stream_alone(official):
    model = official.model(VideoOnly)
    velocity = model(official.inputs(model))
    assert velocity.audio is None
    expected = official["video_only.velocity_video"]
    assert error(velocity.video, expected) < MODULE_TOLERANCE
    model = official.model(AudioOnly)
    velocity = model(official.inputs(model))
    assert velocity.video is None
    expected = official["audio_only.velocity_audio"]
    assert error(velocity.audio, expected) < MODULE_TOLERANCE


@newer
@pytest.mark.parametrize("name", ["b2", "b2_stg1"])
def test_a_batch_with_noise_levels_of_its_own(official, name):
    """One sample of two is perturbed in the second case; its mask differs from the other's in both."""
    model, latents = official.model(), official.pair("in.b2.{}_latent")
    masks = AV(
        mx.concatenate([official.masks.video, official["in.denoise_mask"]]),
        mx.ones((2, latents.audio.shape[1], 1)),
    )
    given = official.inputs(
        model,
        masks,
        latents=latents,
        contexts=twice(
            official.pair("in.{}_context"), official.pair("in.{}_context_neg")
        ),
        sigmas=official.pair("in.b2.{}_sigma"),
    )
    both = (Perturbation(), *stg(official, *Modality)) if name == "b2_stg1" else ()
    velocity = model(given, both)
    assert errors(velocity, official.pair(name + ".velocity_{}")) < MODULE_TOLERANCE


def test_keyframes_are_marked_where_the_model_knows_marks():
    older, official = NEWER
    model = official.model()
    plain = model(official.inputs(model, keyframes=False))
    expected = official.pair("av_nokeyframes.velocity_{}")
    assert errors(plain, expected) < MODULE_TOLERANCE
    assert error(plain.video, official["av_per_token.velocity_video"]) > 1e-3
    model = older.model()
    marked, plain = (
        model(older.inputs(model, keyframes=marks)).video for marks in (True, False)
    )
    assert mx.array_equal(marked, plain)


# What a block reads, and what becomes of it


@newer
def test_rows(official):
    model = official.model()
    _, c = model.embed(official.inputs(model))
    for modality, direction in ((Modality.VIDEO, "a2v"), (Modality.AUDIO, "v2a")):
        ours, name = c[modality], modality.value
        for values, expected in (
            (ours.own.rows, f"{name}_adaln"),
            (ours.cross.rows[:, :, :CROSS_GATE], f"{name}_cross_ss"),
            (ours.cross.rows[:, :, CROSS_GATE], f"{direction}_gate"),
            (ours.prompt.rows, f"{name}_prompt_adaln"),
        ):
            expected = official[f"int.{expected}"]
            many = values.shape[1] > 1 and expected.shape[1] > 1
            values = values[:, ours.own.levels] if many else values[:, :1]
            values = mx.broadcast_to(values, expected.shape)
            assert error(values, expected) < MODULE_TOLERANCE
    rows, levels = c.video.output
    embedded = official["int.video_embedded_timestep"]
    assert error(rows[:, levels, 0], embedded) < MODULE_TOLERANCE


@newer
def test_rope(official):
    tables = official.model().rope(official.pair("in.{}_positions"))
    for modality in Modality:
        for table, name in (("tokens", "rope"), ("cross", "cross_rope")):
            for part, kind in zip(getattr(tables[modality], table), ("cos", "sin")):
                expected = official[f"int.{modality.value}_{name}_{kind}"]
                assert error(part.swapaxes(1, 2), expected) < MODULE_TOLERANCE


class Recorder(nn.Module):
    """A module that remembers what it was last given, and what it made of it."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self._module = [module]

    def __call__(self, *given, **options):
        self.given, self.made = list(given), self._module[0](*given, **options)
        return self.made


def recorded(module: nn.Module, name: str) -> Recorder:
    recorder = Recorder(module[name])
    module[name] = recorder
    return recorder


ATTENTIONS = {
    "attn1": ("video", "attn1"),
    "attn2": ("video", "attn2"),
    "audio_attn1": ("audio", "attn1"),
    "audio_attn2": ("audio", "attn2"),
    "audio_to_video_attn": ("video", "cross_attn"),
    "video_to_audio_attn": ("audio", "cross_attn"),
}


@newer
def test_every_step_of_the_first_block(official):
    model = official.new_model()
    block, seen = model.transformer_blocks[0], {}
    for name, (stream, attention) in ATTENTIONS.items():
        parts = block[stream][attention]
        seen[f"{name}.gate_logits"] = recorded(parts, "to_gate_logits")
        seen[f"{name}.heads"] = recorded(parts, "to_out")
        seen[f"{name}.out"] = recorded(block[stream], attention)
    seen["ff.out"] = recorded(block.video, "ff")
    seen["audio_ff.out"] = recorded(block.audio, "ff")
    x, c = model.embed(official.inputs(model))
    assert errors(x, official.pair("int.{}_x")) < MODULE_TOLERANCE
    assert errors(block(x, c), official.pair("blk0.{}")) < MODULE_TOLERANCE
    checked = 0
    for name, recorder in seen.items():
        made = recorder.given[0] if name.endswith(".heads") else recorder.made
        found = {name: made}
        if name.endswith(".out"):
            given = dict(zip(("in", "context"), recorder.given))
            found |= {name.replace("out", kind): x for kind, x in given.items()}
        for key, value in found.items():
            if key != "audio_ff.in":  # the only step without a vector
                assert error(value, official[f"blk0.{key}"]) < MODULE_TOLERANCE, key
                checked += 1
    assert checked == len([k for k in official.names if k.startswith("blk0.")]) - 2


# The sampler's view


@newer
def test_x0_model_passes_on_what_a_state_says(official):
    """A frozen stream, marked keyframes and an attention mask; the levels of both streams are one sampler's."""
    latents, positions = (
        official.pair(f"in.{{}}_{x}") for x in ("latent", "positions")
    )
    states = latents.map(LatentState.fresh, positions)
    video = states.video._replace(
        keyframes_mask=official["in.keyframes_mask"],
        attention_mask=official["in.attention_mask"],
    )
    states = AV(video, LatentState.pinned(latents.audio, positions.audio))
    model, sigma = official.model(), 0.6
    contexts = official.pair("in.{}_context")
    x0 = X0Model(model)(states, contexts, sigma)
    given = official.inputs(
        model,
        AV(official.masks.video, mx.zeros_like(official.masks.audio)),
        sigmas=AV(mx.array(sigma), mx.array(0.0)),
        attention=official["in.attention_mask"],
    )
    velocity = model(given)
    assert error(x0.video, latents.video - sigma * velocity.video) < 1e-6
    assert mx.array_equal(x0.audio, latents.audio)


# Configs and names


@newer
def test_prompts_may_be_modulated_by_tables_alone(official):
    static = official.model(use_prompt_adaln_single=False)
    assert "prompt_adaln_single" not in static.video
    muted = official.new_model()
    for stream in muted.streams.values:
        layer = stream.prompt_adaln_single.linear
        layer.weight, layer.bias = map(mx.zeros_like, (layer.weight, layer.bias))
    ours, expected = (model(official.inputs(model)) for model in (static, muted))
    assert errors(ours, expected) < 1e-6


@pytest.mark.parametrize("key", ["first", "second"])
@pytest.mark.parametrize("before", [True, False])
def test_a_half_projected_text_is_refused(key, before):
    _, config = checkpoint(FIXTURES / NEWER[0].folder / NEWER[0].file)
    config = config["transformer"] | {"caption_proj_before_connector": before}
    layers = {f"caption_projection_{k}_linear": not before for k in ("first", "second")}
    LTXModelConfig.from_dict(config | layers)
    layers[f"caption_projection_{key}_linear"] = before
    with pytest.raises(UserError, match=f"caption_projection_{key}_linear = {before}"):
        LTXModelConfig.from_dict(config | layers)


REAL = {
    "ltx-2.3-22b": ("ltx-2.3-22b", lambda c: c["config"]),
    "ltx-2.5-22b-transformer": (
        "ltx-2.5",
        lambda c: c[
            "diffusion_models/ltx-2.5-22b-{dev,distilled}-transformer-bf16.safetensors"
        ]["metadata"]["config"],
    ),
}


def real(name: str) -> tuple[dict, dict]:
    """The transformer's config in a real file, and all of its tensors, never made."""
    file, inside = REAL[name]
    text = (FIXTURES / "manifests" / f"{file}.config.json").read_text()
    weights = {k: mx.zeros(shape) for k, shape in manifest(name).items()}
    return inside(json.loads(text))["transformer"], weights


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, model_type, count, parameters",
    [
        ("ltx-2.3-22b", AudioVideo, 4186, 18_988_838_144),
        ("ltx-2.3-22b", VideoOnly, 1457, 13_124_316_288),
        ("ltx-2.3-22b", AudioOnly, 1457, 3_286_408_320),
        ("ltx-2.5-22b-transformer", AudioVideo, 4091, 18_987_859_200),
        ("ltx-2.5-22b-transformer", VideoOnly, 1362, 13_123_337_344),
        ("ltx-2.5-22b-transformer", AudioOnly, 1457, 3_286_408_320),
    ],
)
def test_real_checkpoint_is_consumed(name, model_type, count, parameters):
    config, weights = real(name)
    model = LTXModel(LTXModelConfig.from_dict(config, model_type))
    ours = dict(tree_flatten(model.parameters()))
    taken = model.select(LTXModel.sanitize(weights))
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in taken.items()
    }
    assert (len(ours), sum(v.size for v in ours.values())) == (count, parameters)


@pytest.mark.parametrize("name", ["ltx-2-19b", *REAL])
def test_official_names_come_back(name):
    """Every tensor of a real file that is the transformer's."""
    prefix, connectors = "model.diffusion_model.", "_embeddings_connector."
    names = {k for k in manifest(name) if k.startswith(prefix) and connectors not in k}
    ours = LTXModel.sanitize({key: key for key in manifest(name)})
    assert set(ours.values()) == names
    for key, official in ours.items():
        assert LTXModel.NAMES.official(key) == official


@pytest.mark.parametrize("official", [None, *NEWER], ids=str)
def test_folders_written_before_the_streams_were_modules(official):
    """They had official names within a block, without the prefix, and short ones for layers."""
    path = (
        CHECKPOINT if official is None else FIXTURES / official.folder / official.file
    )
    weights = LTXModel.sanitize(checkpoint(path)[0])
    short = {
        ".emb.timestep_embedder": "",
        ".to_out.0": ".to_out",
        ".net.0.proj": ".proj_in",
        ".net.2": ".proj_out",
    }

    def before(key: str) -> str:
        key = LTXModel.NAMES.official(key).removeprefix("model.diffusion_model.")
        for theirs, ours in short.items():
            key = key.replace(theirs, ours)
        return key

    earlier = {before(key): value for key, value in weights.items()}
    earlier["transformer_blocks.0.attn1.to_q.scales"] = mx.zeros(1)
    again = LTXModel.sanitize(earlier)
    assert again.pop("transformer_blocks.0.video.attn1.to_q.scales").size == 1
    assert again == weights
