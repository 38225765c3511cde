"""LoRA fusion: every naming style, exact arithmetic, and nothing lost in silence."""

import json

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_video import lora
from mlx_video.convert import quantize_blocks
from mlx_video.models.ltx.components import build
from mlx_video.models.ltx.config import (
    ConnectorConfig,
    LTXModelConfig,
    LTXModelType,
)
from mlx_video.models.ltx.connector import TextConnectors
from mlx_video.models.ltx.layouts import identify
from mlx_video.models.ltx.ltx import LTXModel
from tests.reference import CHECKPOINT, FIXTURES, manifest

ATTENTION = "transformer_blocks.0.attn1.to_q"


def transformer(**options) -> LTXModel:
    sources = identify(CHECKPOINT).sources
    return build("transformer", sources["transformer"], mx.float32, **options)


def factors(inputs: int = 64, outputs: int = 64, rank: int = 4):
    a, b = mx.random.split(mx.random.key(0))
    return (
        mx.random.normal((rank, inputs), key=a),
        mx.random.normal((outputs, rank), key=b),
    )


def layer(module: nn.Module, path: str) -> nn.Module:
    return dict(module.named_modules())[path]


@pytest.mark.parametrize(
    "prefix", ["diffusion_model.", "model.diffusion_model.", "transformer.", ""]
)
@pytest.mark.parametrize(
    "down, up",
    [
        ("lora_A.weight", "lora_B.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
        ("lora_down.weight", "lora_up.weight"),
    ],
)
def test_every_style_changes_the_same_weight(prefix, down, up):
    model, (A, B) = transformer(), factors()
    before = layer(model, ATTENTION).weight
    name = prefix + ATTENTION
    report = lora.fuse(model, {f"{name}.{down}": A, f"{name}.{up}": B}, 0.5)
    assert report == lora.Report((ATTENTION,), (), ())
    expected = before + 0.5 * (B @ A)
    assert mx.allclose(layer(model, ATTENTION).weight, expected, atol=1e-6)


@pytest.mark.parametrize(
    "name, path",
    [
        (f"diffusion_model.{ATTENTION[:-4]}to_out.0", f"{ATTENTION[:-4]}to_out"),
        (
            "diffusion_model.transformer_blocks.2.ff.net.0.proj",
            "transformer_blocks.2.ff.proj_in",
        ),
        (
            "diffusion_model.transformer_blocks.2.audio_ff.net.2",
            "transformer_blocks.2.audio_ff.proj_out",
        ),
        (
            "diffusion_model.adaln_single.emb.timestep_embedder.linear_1",
            "adaln_single.linear_1",
        ),
        (
            "transformer.time_embed.emb.timestep_embedder.linear_1",
            "adaln_single.linear_1",
        ),
        ("transformer.proj_in", "patchify_proj"),
        ("transformer.audio_proj_in", "audio_patchify_proj"),
        (
            "transformer.av_cross_attn_video_a2v_gate.linear",
            "av_ca_a2v_gate_adaln_single.linear",
        ),
        ("transformer.proj_out", "proj_out"),
    ],
)
def test_finds_layers_under_official_and_diffusers_names(name, path):
    model = transformer()
    outputs, inputs = layer(model, path).weight.shape
    A, B = factors(inputs, outputs)
    weights = {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    assert lora.fuse(model, weights).matched == (path,)


@pytest.mark.parametrize(
    "name", ["text_embedding_projection.aggregate_embed", "connectors.text_proj_in"]
)
def test_the_text_projection_belongs_to_the_connectors(name):
    source = identify(CHECKPOINT).sources["connectors"]
    connectors = build("connectors", source, mx.float32)
    A, B = factors(384, 48)
    weights = {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    before = connectors.projection.aggregate_embed.weight
    assert lora.fuse(connectors, weights).matched == ("projection.aggregate_embed",)
    expected = before + B @ A
    assert mx.allclose(
        connectors.projection.aggregate_embed.weight, expected, atol=1e-5
    )
    assert lora.concerns(weights, TextConnectors)
    assert not lora.concerns(weights, LTXModel)


def test_alpha_over_rank_scales_the_change():
    model, (A, B) = transformer(), factors(rank=4)
    before = layer(model, ATTENTION).weight
    name = f"diffusion_model.{ATTENTION}"
    lora.fuse(
        model,
        {
            f"{name}.lora_down.weight": A,
            f"{name}.lora_up.weight": B,
            f"{name}.alpha": mx.array(2.0),
        },
    )
    expected = before + 0.5 * (B @ A)
    assert mx.allclose(layer(model, ATTENTION).weight, expected, atol=1e-6)


def test_adds_in_float32_and_rounds_once():
    model = transformer()
    model.set_dtype(mx.bfloat16)
    before = layer(model, ATTENTION).weight
    A, B = (x.astype(mx.bfloat16) for x in factors())
    name = f"diffusion_model.{ATTENTION}"
    lora.fuse(model, {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}, 0.1)
    exact = before.astype(mx.float32) + 0.1 * (
        B.astype(mx.float32) @ A.astype(mx.float32)
    )
    weight = layer(model, ATTENTION).weight
    assert weight.dtype == mx.bfloat16
    # BLAS's order of sums turns a tie now and then; a second rounding would turn one weight in ten.
    same = weight == exact.astype(mx.bfloat16)
    assert mx.mean(same.astype(mx.float32)) > 0.99
    assert mx.all(mx.abs(weight.astype(mx.float32) - exact) <= 2**-7 * mx.abs(exact))


def test_a_quantized_layer_becomes_dense_rather_than_lose_the_change():
    model = transformer()
    quantize_blocks(model, 32, 4)
    packed = layer(model, ATTENTION)
    dense = mx.dequantize(
        packed.weight, packed.scales, packed.biases, group_size=32, bits=4
    )
    A, B = factors()
    name = f"diffusion_model.{ATTENTION}"
    report = lora.fuse(
        model, {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}, 1e-4
    )
    assert report.dense == report.matched == (ATTENTION,)
    fused = layer(model, ATTENTION)
    assert isinstance(fused, nn.Linear) and mx.array_equal(fused.bias, packed.bias)
    assert mx.allclose(fused.weight - dense, 1e-4 * (B @ A), atol=1e-6)
    assert isinstance(
        layer(model, "transformer_blocks.0.attn1.to_k"), nn.QuantizedLinear
    )


def test_reports_what_found_no_place():
    model, (A, B) = transformer(model_type=LTXModelType.VideoOnly), factors()
    names = [
        f"diffusion_model.{ATTENTION}",
        "diffusion_model.transformer_blocks.0.audio_attn1.to_q",
    ]
    weights = {f"{n}.lora_{x}.weight": f for n in names for x, f in zip("AB", (A, B))}
    weights["diffusion_model.x.diff_b"] = mx.zeros(1)
    report = lora.fuse(model, weights)
    assert report.matched == (ATTENTION,)
    assert report.skipped == (f"model.{names[1]}", "diffusion_model.x.diff_b")


def test_no_match_is_an_error():
    A, B = factors()
    weights = {
        "lora_unet_blocks.lora_down.weight": A,
        "lora_unet_blocks.lora_up.weight": B,
    }
    with pytest.raises(ValueError) as error:
        lora.fuse(transformer(), weights, source="style.safetensors")
    message = str(error.value)
    assert message.startswith(
        "style.safetensors changes nothing in LTXModel: no layer answers to lora_unet_blocks"
    )
    assert (
        "diffusion_model., transformer., text_embedding_projection. or nothing"
        in message
    )


def test_wrong_shapes_and_lonely_factors_are_errors():
    name = f"diffusion_model.{ATTENTION}"
    A, B = factors(inputs=32)
    with pytest.raises(
        ValueError,
        match=r"attn1.to_q changes a weight of shape \(64, 32\) .* is \(64, 64\)",
    ):
        lora.fuse(
            transformer(), {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
        )
    A, B = factors()
    with pytest.raises(ValueError, match="made for another model"):
        lora.fuse(
            transformer(), {f"{name}.lora_A.weight": A[:2], f"{name}.lora_B.weight": B}
        )
    with pytest.raises(ValueError, match="is incomplete: .*attn1.to_q has only one"):
        lora.fuse(transformer(), {f"{name}.lora_A.weight": A})


def full_size(name: str) -> nn.Module:
    """A part of the real checkpoint, never evaluated."""
    config = json.loads((FIXTURES / "manifests/ltx-2-19b.config.json").read_text())
    block = config["config"]["transformer"]
    if name == "connectors":
        return TextConnectors(ConnectorConfig.from_dict(block))
    return LTXModel(LTXModelConfig.from_dict(block))


def test_the_official_distilled_lora_matches_every_layer_it_names():
    weights = {
        k: mx.zeros(s) for k, s in manifest("ltx-2-19b-distilled-lora-384").items()
    }
    of_transformer = lora.fuse(full_size("transformer"), weights)
    of_connectors = lora.fuse(full_size("connectors"), weights)
    assert len(of_transformer.matched) + len(of_connectors.matched) == len(weights) // 2
    assert of_transformer.skipped == ("text_embedding_projection.aggregate_embed",)
    assert of_connectors.matched == ("projection.aggregate_embed",)
