"""LoRAs: every naming style and kind, exact arithmetic, and nothing applied by half or to another model."""

import copy
import json
from functools import cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_video import lora
from mlx_video.cli import main
from mlx_video.errors import UserError
from mlx_video.lora import Adapter, fuse
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.layouts import identify
from mlx_video.models.ltx.config import ConnectorConfig, LTXModelConfig, LTXModelType
from mlx_video.models.ltx.connector import TextConnectors
from mlx_video.models.ltx.loading.parts import PARTS, quantize_blocks
from mlx_video.models.ltx.ltx import LTXModel
from tests.checkpoints import write_raw
from tests.reference import CHECKPOINT, FIXTURES, error, manifest

ATTENTION = "transformer_blocks.0.attn1.to_q"
NAME = f"diffusion_model.{ATTENTION}"
PATHS: dict[type, dict[str, str]] = {}  # official name -> path, of each network
SIZE = 64  # of the layer's weight, both ways


@cache
def built(part: str, **options) -> nn.Module:
    source = identify(CHECKPOINT).sources[part]
    return PARTS[part].build(source, mx.float32, **options)


def transformer(**options) -> LTXModel:
    """One of the test's own, to change."""
    return copy.deepcopy(built("transformer", **options))


def connectors() -> TextConnectors:
    return copy.deepcopy(built("connectors"))


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def factors(inputs: int = SIZE, outputs: int = SIZE, rank: int = 4):
    return normal(rank, inputs, seed=1), normal(outputs, rank, seed=2)


def pair(name: str, *sizes: int) -> dict[str, mx.array]:
    A, B = factors(*sizes)
    return {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}


def layer(module: nn.Module, name: str = ATTENTION) -> nn.Module:
    """The layer of that official name."""
    return dict(module.named_modules())[path_of(module, name)]


def path_of(module: nn.Module, name: str = ATTENTION) -> str:
    if type(module) not in PATHS:
        PATHS[type(module)] = lora.layer_names(module)
    return PATHS[type(module)][name.replace(".", "_")]


def changed(weights, *, strength=1.0, metadata={}, peft={}, name=ATTENTION) -> mx.array:
    """What fusing adds to the weight of one layer of the miniature."""
    model = transformer()
    before = layer(model, name).weight
    fuse(model, Adapter.of(weights, metadata, peft=peft), strength)
    return layer(model, name).weight - before


# Names


STYLES = {
    "lightricks": (NAME, "lora_A.weight", "lora_B.weight"),
    "comfyui": (f"model.{NAME}", "lora_A.weight", "lora_B.weight"),
    "comfyui, older": (NAME, "lora_down.weight", "lora_up.weight"),
    "diffusers": (f"transformer.{ATTENTION}", "lora_A.weight", "lora_B.weight"),
    "diffusers, older": (f"transformer.{ATTENTION}", "lora.down.weight", "lora.up.weight"),  # fmt: skip
    "bare": (ATTENTION, "lora_A.default.weight", "lora_B.default.weight"),
    "PEFT": (f"base_model.model.{ATTENTION}", "lora_A.weight", "lora_B.weight"),
    "PEFT of ours": (f"base_model.model.{NAME}", "lora_A.weight", "lora_B.weight"),
    "Kohya": (f"lora_unet_{ATTENTION}".replace(".", "_"), "lora_down.weight", "lora_up.weight"),  # fmt: skip
    "LyCORIS": (f"lycoris_{ATTENTION}".replace(".", "_"), "lora_down.weight", "lora_up.weight"),  # fmt: skip
}


@pytest.mark.parametrize("name, down, up", STYLES.values(), ids=STYLES)
def test_every_style_changes_the_same_weight(name, down, up):
    model, (A, B) = transformer(), factors()
    before = layer(model).weight
    report = fuse(model, Adapter.of({f"{name}.{down}": A, f"{name}.{up}": B}), 0.5)
    assert report[3:] == ((path_of(model),), (), ())
    assert mx.allclose(layer(model).weight, before + 0.5 * (B @ A), atol=1e-6)


@pytest.mark.parametrize(
    "name, official",
    [
        ("transformer.proj_in", "patchify_proj"),
        ("transformer.audio_proj_in", "audio_patchify_proj"),
        ("transformer.proj_out", "proj_out"),
        ("transformer.time_embed.linear", "adaln_single.linear"),
        (
            "transformer.audio_time_embed.emb.timestep_embedder.linear_1",
            "audio_adaln_single.emb.timestep_embedder.linear_1",
        ),
        (
            "lora_transformer_av_cross_attn_video_a2v_gate_linear",
            "av_ca_a2v_gate_adaln_single.linear",
        ),
        (
            "lora_unet_transformer_blocks_2_audio_ff_net_0_proj",
            "transformer_blocks.2.audio_ff.net.0.proj",
        ),
        ("transformer_blocks.1.ff.proj_in", "transformer_blocks.1.ff.net.0.proj"),
        ("transformer_blocks.1.attn2.to_out", "transformer_blocks.1.attn2.to_out.0"),
        (
            "diffusion_model.transformer_blocks.2.ff.net.2",
            "transformer_blocks.2.ff.net.2",
        ),
        (
            "diffusion_model.transformer_blocks.0.attn1.to_out.0",
            "transformer_blocks.0.attn1.to_out.0",
        ),
    ],
)
def test_finds_layers_under_the_names_of_others(name, official):
    model = transformer()
    outputs, inputs = layer(model, official).weight.shape
    report = fuse(model, Adapter.of(pair(name, inputs, outputs)))
    assert report.matched == (path_of(model, official),)


@pytest.mark.parametrize(
    "name, official, sizes",
    [
        ("text_embedding_projection.aggregate_embed", "aggregate_embed", (384, 48)),
        ("connectors.text_proj_in", "aggregate_embed", (384, 48)),
        (
            "connectors.video_connector.transformer_blocks.0.attn1.to_k",
            "video_embeddings_connector.transformer_1d_blocks.0.attn1.to_k",
            (48, 48),
        ),
    ],
)
def test_some_layers_belong_to_the_connectors(name, official, sizes):
    module, adapter = connectors(), Adapter.of(pair(name, *sizes))
    assert not fuse(transformer(), adapter).matched
    before = layer(module, official).weight
    fuse(module, adapter)
    A, B = factors(*sizes)
    assert mx.allclose(layer(module, official).weight, before + B @ A, atol=1e-5)


def full_size(name: str) -> nn.Module:
    """A part of the real checkpoint, never evaluated."""
    config = json.loads((FIXTURES / "manifests/ltx-2-19b.config.json").read_text())
    block = config["config"]["transformer"]
    if name == "connectors":
        return TextConnectors(ConnectorConfig.from_dict(block))
    return LTXModel(LTXModelConfig.from_dict(block))


def test_no_two_layers_share_a_name():
    for name in ("transformer", "connectors"):
        module = full_size(name)
        linears = [m for _, m in module.named_modules() if isinstance(m, nn.Linear)]
        assert len(set(lora.layer_names(module).values())) == len(linears)


@pytest.mark.slow
def test_the_official_distilled_lora_matches_every_layer_it_names():
    shapes = manifest("ltx-2-19b-distilled-lora-384")
    adapter = Adapter.of({key: mx.zeros(shape) for key, shape in shapes.items()})
    modules = [full_size("transformer"), full_size("connectors")]
    adapter.check_layers(modules)
    of_transformer, of_connectors = (fuse(module, adapter) for module in modules)
    assert len(of_transformer.matched) + len(of_connectors.matched) == len(shapes) // 2
    assert of_transformer.skipped == ("text_embedding_projection.aggregate_embed",)
    assert adapter.about == lora.About("LoRA", 384, 1371)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, sizes, told",
    [
        pytest.param(
            "attn1.to_q",
            (4096, 4096),
            "LTX-2, LTX-2.3 and LTX-2.5",
            marks=pytest.mark.thorough,
        ),
        ("attn1.to_gate_logits", (4096, 32), "LTX-2.3 and LTX-2.5"),
        ("attn1.to_q", (2048, 2048), "no release of Lightricks"),
    ],
)
def test_what_states_no_version_is_told_by_its_layers(name, sizes, told, tmp_path, capsys):  # fmt: skip
    file, layer = tmp_path / "a.safetensors", f"transformer_blocks.0.{name}"
    mx.save_safetensors(str(file), pair(f"diffusion_model.{layer}", *sizes))
    assert main(["info", str(file)]) == 0
    assert f"fits        {told}, by the names" in capsys.readouterr().out


# Arithmetic


def test_alpha_over_rank_scales_the_change():
    A, B = factors(rank=4)
    weights = {
        f"{NAME}.lora_down.weight": A,
        f"{NAME}.lora_up.weight": B,
        f"{NAME}.alpha": mx.array(2.0),
    }
    assert error(changed(weights), 0.5 * (B @ A)) < 1e-5
    weights[f"{NAME}.alpha"] = mx.array([2], mx.int64)
    assert error(changed(weights), 0.5 * (B @ A)) < 1e-5


@pytest.mark.parametrize(
    "config, factor",
    [
        ({"lora_alpha": 8}, 2.0),
        ({"lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 2}}, 0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"to_k": 2}}, 2.0),
        ({"lora_alpha": None}, 1.0),
    ],
)
def test_alpha_may_stand_in_the_config_of_peft(config, factor, tmp_path):
    A, B = factors(rank=4)
    packed = json.dumps({f"transformer.{key}": v for key, v in config.items()})
    metadata = {"lora_adapter_metadata": packed}
    assert error(changed(pair(NAME), metadata=metadata), factor * (B @ A)) < 1e-5
    mx.save_safetensors(str(tmp_path / "adapter_model.safetensors"), pair(NAME))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    model = transformer()
    before = layer(model).weight
    fuse(model, Adapter.read(tmp_path / "adapter_model.safetensors"))
    assert error(layer(model).weight - before, factor * (B @ A)) < 1e-5


def test_adds_in_float32_and_rounds_once():
    model = transformer()
    model.set_dtype(mx.bfloat16)
    before = layer(model).weight
    A, B = (x.astype(mx.bfloat16).astype(mx.float32) for x in factors())
    fuse(
        model, Adapter.of({f"{NAME}.lora_A.weight": A, f"{NAME}.lora_B.weight": B}), 0.1
    )
    exact = before.astype(mx.float32) + 0.1 * (B @ A)
    weight = layer(model).weight
    assert weight.dtype == mx.bfloat16
    # BLAS's order of sums turns a tie now and then; a second rounding would turn one weight in ten.
    same = weight == exact.astype(mx.bfloat16)
    assert mx.mean(same.astype(mx.float32)) > 0.99
    assert mx.all(mx.abs(weight.astype(mx.float32) - exact) <= 2**-7 * mx.abs(exact))


@pytest.mark.parametrize("shape", [(SIZE, 1), (SIZE,), (1, SIZE)])
@pytest.mark.parametrize("strength", [1.0, 0.25])
@pytest.mark.parametrize("key", ["dora_scale", "lora_magnitude_vector.weight"])
def test_dora_gives_rows_or_columns_a_length(key, strength, shape):
    A, B = factors()
    lengths = 1 + mx.abs(normal(SIZE, seed=3)).reshape(shape)
    before = layer(transformer()).weight
    weights = pair(NAME) | {f"{NAME}.{key}": lengths, f"{NAME}.alpha": mx.array(2.0)}
    tuned = np.array(before + 0.5 * (B @ A), np.float64)
    axis = 0 if shape == (1, SIZE) else 1
    norm = np.sqrt((tuned**2).sum(axis, keepdims=True))
    exact = tuned / norm * np.array(lengths).reshape(norm.shape)
    expected = strength * (exact - np.array(before, np.float64))
    assert error(changed(weights, strength=strength), mx.array(expected)) < 1e-4


def test_loha_multiplies_two_products():
    parts = {
        f"{NAME}.hada_{n}": normal(*s, seed=i)
        for i, (n, s) in enumerate(
            {"w1_a": (SIZE, 3), "w1_b": (3, SIZE), "w2_a": (SIZE, 3), "w2_b": (3, SIZE)}.items()  # fmt: skip
        )
    }
    a, b, c, d = (np.array(x) for x in parts.values())
    weights = parts | {f"{NAME}.alpha": mx.array(1.0)}
    assert error(changed(weights), mx.array((a @ b) * (c @ d) / 3)) < 1e-5


@pytest.mark.parametrize("first", ["whole", "factored"])
@pytest.mark.parametrize("second", ["whole", "factored"])
def test_lokr_is_a_kronecker_product(first, second):
    shapes = {
        "w1": {"whole": {"w1": (4, 8)}, "factored": {"w1_a": (4, 2), "w1_b": (2, 8)}},
        "w2": {"whole": {"w2": (16, 8)}, "factored": {"w2_a": (16, 3), "w2_b": (3, 8)}},
    }
    parts = shapes["w1"][first] | shapes["w2"][second]
    drawn = {name: normal(*s, seed=i) for i, (name, s) in enumerate(parts.items())}

    def whole(name):
        found = {n: np.array(v) for n, v in drawn.items() if n.startswith(name)}
        return found[name] if name in found else np.matmul(*found.values())

    # Alpha counts where there is a rank to divide it by.
    rank = {"factored": 3.0}.get(second) or {"factored": 2.0}.get(first)
    scale = 6.0 / rank if rank else 1.0
    weights = {f"{NAME}.lokr_{name}": value for name, value in drawn.items()}
    expected = scale * np.kron(whole("w1"), whole("w2"))
    weights[f"{NAME}.alpha"] = mx.array(6.0)
    assert error(changed(weights), mx.array(expected)) < 1e-5


def test_differences_are_added_to_weight_and_bias():
    model = transformer()
    before, bias = layer(model).weight, layer(model).bias
    weights = {f"{NAME}.diff": normal(SIZE, SIZE), f"{NAME}.diff_b": normal(SIZE)}
    fuse(model, Adapter.of(weights), 0.5)
    assert error(layer(model).weight - before, 0.5 * weights[f"{NAME}.diff"]) < 1e-5
    assert error(layer(model).bias - bias, 0.5 * weights[f"{NAME}.diff_b"]) < 1e-5
    fuse(model, Adapter.of({f"{NAME}.diff_b": normal(SIZE)}), -0.5)
    assert mx.allclose(layer(model).bias, bias, atol=1e-6)


@pytest.mark.slow
def test_fp8_factors_are_decoded_with_their_scales(tmp_path):
    A, B = (mx.round(4 * x) / 4 for x in factors())
    tensors = {}
    for name, value in ((f"{NAME}.lora_A", A), (f"{NAME}.lora_B", B)):
        codes = np.array(mx.to_fp8(value))
        tensors[f"{name}.weight"] = ("F8_E4M3", list(codes.shape), codes.tobytes())
    plain = write_raw(tmp_path / "plain.safetensors", tensors)
    half = ("F32", [], np.float32(0.5).tobytes())
    tensors |= {f"{NAME}.lora_A.weight_scale": half}
    scaled = write_raw(tmp_path / "scaled.safetensors", tensors)
    for file, factor in ((plain, 1.0), (scaled, 0.5)):
        model = transformer()
        before = layer(model).weight
        fuse(model, Adapter.read(file))
        assert error(layer(model).weight - before, factor * (B @ A)) < 1e-5


def test_a_quantized_layer_becomes_dense_rather_than_lose_the_change():
    model = transformer()
    quantize_blocks(model, 32, 4)
    packed, (A, B) = layer(model), factors()
    dense = mx.dequantize(
        packed.weight, packed.scales, packed.biases, group_size=32, bits=4
    )
    adapter = Adapter.of(pair(NAME))
    adapter.check_layers([model])
    report = fuse(model, adapter, 1e-4)
    assert report.dense == report.matched == (path_of(model),)
    fused = layer(model)
    assert isinstance(fused, nn.Linear) and mx.array_equal(fused.bias, packed.bias)
    assert mx.allclose(fused.weight - dense, 1e-4 * (B @ A), atol=1e-6)
    assert isinstance(layer(model, ATTENTION[:-1] + "k"), nn.QuantizedLinear)


# What is said and what is refused


def test_reports_what_found_no_place():
    model = transformer(model_type=LTXModelType.VideoOnly)
    other = "diffusion_model.transformer_blocks.0.audio_attn1.to_q"
    report = fuse(model, Adapter.of(pair(NAME) | pair(other)))
    assert report[3:] == ((path_of(model),), (other,), ())


def test_says_what_a_file_is(tmp_path):
    metadata = {
        "model_version": "2.3.0",
        "modelspec.trigger_phrase": "in clay",
        "reference_downscale_factor": "2",
    }
    weights = pair(NAME, 64, 64, 7) | {f"{NAME}.dora_scale": mx.ones((SIZE, 1))}
    weights |= pair(f"{NAME[:-1]}k") | {f"{NAME[:-1]}v.diff": mx.ones((SIZE, SIZE))}
    about = Adapter.of(weights, metadata).about
    assert about == lora.About(
        "DoRA and LoRA and difference", 7, 3, "2.3.0", "in clay", True
    )
    assert str(about) == (
        "DoRA and LoRA and difference of rank 7, 3 layers, made for version 2.3.0, trigger 'in clay', "
        "needs a reference video"
    )
    assert str(Adapter.of({f"{NAME}.diff_b": mx.ones(1)}).about) == "difference, 1 layer"  # fmt: skip


def test_a_lora_is_known_by_its_names():
    assert lora.holds_changes(pair(NAME))
    assert lora.holds_changes(["x.lokr_w1"]) and lora.holds_changes(["x.diff"])
    assert not lora.holds_changes(["vocoder.resblocks.0.acts.0.alpha", "x.weight"])
    assert all(lora.holds_changes([f"x{part}R.default"]) for part in lora.REFUSED)


REFUSALS = {
    "whole numbers": (
        {
            f"{NAME}.lora_A.weight": mx.ones((4, SIZE), mx.int8),
            f"{NAME}.lora_B.weight": mx.ones((SIZE, 4)),
        },
        r"lora_A.weight holds whole numbers \(mlx.core.int8\)",
    ),
    "one factor": (
        {f"{NAME}.lora_A.weight": mx.ones((4, SIZE))},
        "to_q is incomplete or mixed: it has lora_down without",
    ),
    "a mixture": (
        pair(NAME) | {f"{NAME}.diff": mx.ones(1)},
        "it has diff, lora_down, lora_up",
    ),
    "a lone alpha": ({f"{NAME}.alpha": mx.ones(1)}, "it has alpha without"),
    "a lone magnitude": ({f"{NAME}.dora_scale": mx.ones(1)}, "has magnitude without"),
    "half a LoKr": ({f"{NAME}.lokr_w1": mx.ones((2, 2))}, "it has lokr_w1 without"),
    "half a LoHa": (
        {f"{NAME}.hada_w1_a": mx.ones((2, 2)), f"{NAME}.hada_w1_b": mx.ones((2, 2))},
        "it has hada_w1_down, hada_w1_up without",
    ),
    "a convolution": (
        {
            f"{NAME}.lora_down.weight": mx.ones((4, SIZE, 3)),
            f"{NAME}.lora_up.weight": mx.ones((SIZE, 4, 1)),
        },
        r"has a factor \(lora_down\) of shape \(4, 64, 3\); only linear layers",
    ),
    "many alphas": (pair(NAME) | {f"{NAME}.alpha": mx.ones(4)}, "an alpha of shape"),
    "OFT": ({f"{NAME}.oft_blocks": mx.ones(4)}, r"holds .*oft_blocks \(OFT\)"),
    "LoCon": (
        pair(NAME) | {f"{NAME}.lora_mid.weight": mx.ones(4)},
        "LoCon with a middle factor",
    ),
    "something else": ({"encoder.weight": mx.ones(4)}, "it holds encoder.weight. Sup"),
    "nothing": ({}, "is not a LoRA: it holds no tensors"),
    "the same twice": (
        pair(NAME) | {f"{NAME}.lora_down.weight": mx.ones((4, SIZE))},
        "under two names",
    ),
}


@pytest.mark.parametrize("weights, message", REFUSALS.values(), ids=REFUSALS)
def test_what_is_half_or_strange_is_refused_when_read(weights, message):
    with pytest.raises(UserError, match=message):
        Adapter.of(weights)


MISFITS = {
    "narrower": pair(NAME, 32),
    "of other ranks": pair(NAME) | {f"{NAME}.lora_A.weight": mx.ones((2, SIZE))},
    "a smaller difference": {f"{NAME}.diff": mx.ones((SIZE, 1))},
    "a smaller bias": {f"{NAME}.diff_b": mx.ones(1)},
    "a smaller magnitude": pair(NAME) | {f"{NAME}.dora_scale": mx.ones((2, 1))},
    "another Kronecker product": {
        f"{NAME}.lokr_w1": mx.ones((2, 2)),
        f"{NAME}.lokr_w2": mx.ones((2, 2)),
    },
}


@pytest.mark.parametrize("weights", MISFITS.values(), ids=MISFITS)
def test_other_shapes_are_refused_before_anything_is_read(weights):
    adapter = Adapter.of(weights)
    message = r"to_q does not fit: .* weight is \(64, 64\)\. .* another model"
    with pytest.raises(UserError, match=message):
        adapter.check_layers([transformer()])
    with pytest.raises(UserError, match=message):
        fuse(transformer(), adapter)


def test_a_lora_with_layers_that_the_model_lacks_is_refused():
    newer = "diffusion_model.transformer_blocks.0.attn1.to_gate_logits"
    adapter = Adapter.of(pair(NAME) | pair(newer))
    with pytest.raises(UserError, match=f"changes {newer}, which the model does not"):
        adapter.check_layers([transformer(), connectors()])
    Adapter.of(pair(NAME)).check_layers([transformer(), connectors()])


@pytest.mark.slow
def test_a_distilled_lora_changes_all_of_the_transformer():
    model = full_size("transformer")
    shapes = manifest("ltx-2-19b-distilled-lora-384")
    whole = {key: mx.zeros(shape) for key, shape in shapes.items()}
    Adapter.of(whole).check_distillation(model)
    style = {k: v for k, v in whole.items() if ".attn" in k or ".audio_attn" in k}
    with pytest.raises(UserError, match="s changes 5.% of the transformer's layers; .*use it with --lora"):  # fmt: skip
        Adapter.of(style, source="s").check_distillation(model)


@pytest.mark.parametrize("version", ["2.5.0", "2-5", "2.5"])
def test_a_lora_of_another_version_is_refused(version):
    adapter = Adapter.of(pair(NAME), {"model_version": version})
    with pytest.raises(
        UserError, match=f"made for version {version} .* is version 2.0"
    ):
        adapter.check("2.0")
    adapter.check("2.5.1")
    adapter.check("")
    Adapter.of(pair(NAME)).check("2.0")


@pytest.mark.parametrize(
    "metadata, name",
    [
        ({"reference_downscale_factor": "2"}, "style"),
        ({"reference_temporal_scale_factor": "8"}, "style"),
        ({}, "ltx-2-19b-ic-lora-canny-control"),
    ],
)
def test_an_ic_lora_waits_for_a_reference_video(metadata, name):
    adapter = Adapter.of(pair(NAME), metadata, f"{name}.safetensors")
    assert adapter.about.needs_reference
    with pytest.raises(UserError, match="needs a reference video"):
        adapter.check("2.0")
    adapter.check("2.0", reference=True)
    assert not Adapter.of(pair(NAME), source="magic-lora.safetensors").needs_reference


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -float("inf")])
def test_a_strength_is_a_number(strength):
    with pytest.raises(
        UserError, match="strength of x must be from -100 to 100, such as 0.8"
    ):
        Files(loras=(("x", strength),)).check()
