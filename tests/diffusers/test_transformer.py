"""The transformer beside diffusers' on fresh random weights, in float32."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import LTX2VideoTransformer3DModel

from mlx_video.models.ltx.config import LTXModelConfig, LTXModelType, LTXRopeType
from mlx_video.models.ltx.ltx import LTXModel
from mlx_video.models.ltx.transformer import ModalityInput, Timesteps
from mlx_video.types import AV, Perturbation
from tests.reference import error

TOLERANCE = 3e-5
SIGMA = np.array([0.7, 0.3], np.float32)

# Parts of names: diffusers' and the official one.
OFFICIAL_NAMES = {
    "proj_in.": "patchify_proj.",
    "time_embed.": "adaln_single.",
    "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
    "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
    "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
    "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
    "video_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_video",
    "audio_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_audio",
    "prompt_adaln.": "prompt_adaln_single.",
    ".norm_q.": ".q_norm.",
    ".norm_k.": ".k_norm.",
}

SIZES = [
    dict(num_attention_heads=4, attention_head_dim=16, audio_num_attention_heads=4),
    # A width into which the pairs of three axes fit without a rest.
    dict(num_attention_heads=3, attention_head_dim=24, audio_num_attention_heads=3),
]
CASES = [
    pytest.param(size, rope_type, id=f"{i}-{rope_type.value}")
    for i, size in enumerate(SIZES)
    for rope_type in LTXRopeType
]


# What LTX-2.3 and 2.5 switch on, in diffusers' words and in ours.
NEWER = (
    dict(
        gated_attn=True,
        audio_gated_attn=True,
        cross_attn_mod=True,
        audio_cross_attn_mod=True,
        use_prompt_embeddings=False,
    ),
    dict(
        apply_gated_attention=True,
        cross_attention_adaln=True,
        caption_proj_before_connector=True,
    ),
)
GENERATIONS = {
    "2.3": {},
    "2.5": dict(ff_bias=False, use_keyframes_abs_pos_embedding=True),
    "2.5, prompts by tables": dict(ff_bias=False, use_prompt_adaln_single=False),
}


def configs(size, rope_type):
    """The same network for diffusers and for us."""
    width = size["num_attention_heads"] * size["attention_head_dim"]
    audio = size["audio_num_attention_heads"] * 8
    shared = dict(
        num_layers=2,
        audio_attention_head_dim=8,
        in_channels=12,
        out_channels=12,
        audio_in_channels=10,
        audio_out_channels=10,
        caption_channels=24,
        cross_attention_dim=width,
        audio_cross_attention_dim=audio,
        **size,
    )
    ours = LTXModelConfig(
        **shared,
        rope_type=rope_type,
        double_precision_rope=True,
        av_ca_timestep_scale_multiplier=1000.0,
    )
    theirs = dict(shared, rope_type=rope_type.value, perturbed_attn=True)
    return theirs, ours


def pair(size, rope_type, model_type=LTXModelType.AudioVideo, newer=None):
    """Diffusers' model and ours with the same weights; ``newer`` are the settings of a later generation."""
    torch.manual_seed(0)
    theirs, config = configs(size, rope_type)
    if newer is not None:
        theirs |= NEWER[0] | newer
        config = replace(config, **NEWER[1], **newer)
    theirs = LTX2VideoTransformer3DModel(**theirs).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    ours = LTXModel(replace(config, model_type=model_type))
    weights = {
        "model.diffusion_model." + official(k): mx.array(v.numpy())
        for k, v in theirs.state_dict().items()
    }
    ours.load_weights(list(ours.select(LTXModel.sanitize(weights)).items()))
    return theirs, ours


def official(key):
    for theirs, name in OFFICIAL_NAMES.items():
        key = key.replace(theirs, name)
    return key


def batch(text=AV(24, 24)):
    """Inputs of two clips at two noise levels: 30 tokens of video, 9 of sound, 7 of text in these widths."""
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    def bounds(axes, tokens):
        start = random.uniform(0, 10, (2, axes, tokens)).astype(np.float32)
        return np.stack([start, start + 0.5], axis=-1)

    return dict(
        latent=AV(normal(2, 30, 12), normal(2, 9, 10)),
        context=text.map(lambda width: normal(2, 7, width)),
        positions=AV(bounds(3, 30), bounds(1, 9)),
        timesteps=AV(level(SIGMA, 30), level(SIGMA, 9)),
    )


def level(sigma, tokens):
    """The same level for every token of a clip, (B, N)."""
    return np.repeat(sigma[:, None], tokens, axis=1)


def run_theirs(model, given, **options):
    given = {name: value.map(torch.tensor) for name, value in given.items()}
    timesteps = given["timesteps"].map(lambda t: t * 1000)
    with torch.no_grad():
        out = model(
            *given["latent"].values,
            *given["context"].values,
            *timesteps.values,
            video_coords=given["positions"].video,
            audio_coords=given["positions"].audio,
            return_dict=False,
            **options,
        )
    return AV(*(mx.array(x.numpy()) for x in out))


def run_ours(model, given, perturbations=(), keyframes=None):
    given = {name: value.map(mx.array) for name, value in given.items()}
    if model.config.model_type is LTXModelType.VideoOnly:
        given = {name: AV(value.video) for name, value in given.items()}
    inputs = given["latent"].map(
        ModalityInput,
        given["timesteps"].map(noise_levels),
        model.project_context(given["context"]),
        model.rope(given["positions"]),
        AV(True, True),
        AV(keyframes),
    )
    return model(inputs, perturbations)


def noise_levels(timesteps):
    """From the level of every token, (B, N)."""
    levels = Timesteps.from_mask(1.0, timesteps[..., None])
    return levels._replace(sigma=mx.array(SIGMA, mx.float32))


def largest_error(ours, theirs):
    return max(error(ours[m], theirs[m]) for m in ours.present)


@pytest.mark.parametrize("size, rope_type", CASES)
def test_video_and_sound(size, rope_type):
    theirs, ours = pair(size, rope_type)
    given = batch()
    expected = run_theirs(theirs, given)
    assert largest_error(run_ours(ours, given), expected) < TOLERANCE


@pytest.mark.parametrize("size, rope_type", CASES)
def test_video_only(size, rope_type):
    """Each token at its own noise level; diffusers has sound, but does not listen to it."""
    theirs, ours = pair(size, rope_type, LTXModelType.VideoOnly)
    given = batch()
    mask = np.random.default_rng(1).integers(0, 3, (1, 30)).astype(np.float32) / 2
    given["timesteps"] = given["timesteps"].map(
        lambda t, mask: t if mask is None else t * mask, AV(mask)
    )
    expected = run_theirs(theirs, given, isolate_modalities=True)
    velocity = run_ours(ours, given)
    assert velocity.audio is None
    assert largest_error(velocity, expected) < TOLERANCE


def test_guidance_passes():
    theirs, ours = pair(SIZES[0], LTXRopeType.SPLIT)
    given = batch()
    stg = Perturbation(AV(frozenset({1}), frozenset({1})))
    for perturbations, options in (
        ((stg,), dict(spatio_temporal_guidance_blocks=[1])),
        (
            (stg, Perturbation()),
            dict(
                spatio_temporal_guidance_blocks=[1],
                perturbation_mask=torch.tensor([0.0, 1.0]),
            ),
        ),
        ((Perturbation(isolate=True),), dict(isolate_modalities=True)),
    ):
        expected = run_theirs(theirs, given, **options)
        velocity = run_ours(ours, given, perturbations=perturbations)
        assert largest_error(velocity, expected) < TOLERANCE


@pytest.mark.parametrize("name", GENERATIONS)
def test_later_generations(name):
    theirs, ours = pair(SIZES[0], LTXRopeType.SPLIT, newer=GENERATIONS[name])
    given = batch(AV(64, 32))
    marks = np.tile(np.arange(30)[:, None] < 6, (2, 1, 1))
    expected = run_theirs(
        theirs,
        given,
        sigma=torch.tensor(1000 * SIGMA),
        video_keyframes_mask=torch.tensor(marks),
    )
    velocity = run_ours(ours, given, keyframes=mx.array(marks))
    assert largest_error(velocity, expected) < TOLERANCE
