"""LoRAs of LTX-2.3 and 2.5: the official fusing, number by number, and every name of the real files."""

import json

import mlx.core as mx
import pytest

from mlx_video.errors import UserError
from mlx_video.lora import Adapter, fuse, layer_names
from mlx_video.models.ltx.config import ConnectorConfig, LTXModelConfig
from mlx_video.models.ltx.connector import TextConnectors
from mlx_video.models.ltx.ltx import LTXModel
from mlx_video.types import AV
from tests.models.ltx.dit import errors
from tests.models.ltx.test_newer_transformers import NEWER
from tests.reference import FIXTURES, MODULE_TOLERANCE, error, manifest, vectors

OFFICIAL = NEWER[0]  # LTX-2.3
FILE = FIXTURES / "ltx23_tiny/ltx-2.3-tiny-distilled-lora.safetensors"
SIGMA = mx.array(0.725)


def numbers() -> dict[str, mx.array]:
    return vectors("lora", "ltx23_tiny")


def fused(strength: float, dtype: mx.Dtype = mx.float32) -> LTXModel:
    model = OFFICIAL.new_model()
    model.set_dtype(dtype)
    adapter = Adapter.read(FILE)
    adapter.check("2.3.0")
    adapter.check_layers([model])
    adapter.check_distillation(model)
    report = fuse(model, adapter, strength)
    assert len(report.matched) == len(adapter.layers) and not report.skipped
    return model


@pytest.mark.parametrize(
    "strength, name", [pytest.param(1.0, "s10", marks=pytest.mark.slow), (0.5, "s05")]
)
def test_velocities_with_the_distilled_lora(strength, name):
    model = fused(strength)
    inputs = OFFICIAL.inputs(model, OFFICIAL.masks, sigmas=AV(SIGMA, SIGMA))
    expected = AV(*(numbers()[f"{name}.velocity_{m}"] for m in ("video", "audio")))
    assert errors(model(inputs), expected) < MODULE_TOLERANCE


def layer(model: LTXModel, key: str) -> mx.array:
    """The weight of that official name, less its prefix."""
    path = layer_names(model)[key.removesuffix(".weight").replace(".", "_")]
    return dict(model.named_modules())[path].weight


@pytest.mark.parametrize(
    "prefix, dtype, tolerance",
    # The official code rounds the change before it adds it; we round the sum alone.
    [("f32_s05.", mx.float32, 1e-6), ("bf16_s05.", mx.bfloat16, 2**-7)],
)
def test_weights_are_those_of_the_official_fusing(prefix, dtype, tolerance):
    model = fused(0.5, dtype)
    keys = [key for key in numbers() if key.startswith(prefix)]
    assert len(keys) == 4
    for key in keys:
        found = layer(model, key.removeprefix(prefix)).astype(mx.float32)
        assert error(found, numbers()[key]) < tolerance, key


REAL = {
    "2.3": ("ltx-2.3-22b", "ltx-2.3-22b-distilled-lora-384", 384),
    "2.5": ("ltx-2.5", "ltx-2.5-22b-distilled-lora-450", 450),
}


def real_block(release: str) -> dict:
    text = (FIXTURES / f"manifests/{REAL[release][0]}.config.json").read_text()
    found = json.loads(text)
    if release == "2.3":
        return found["config"]["transformer"]
    whole = next(value for key, value in found.items() if "diffusion_models" in key)
    return whole["metadata"]["config"]["transformer"]


@pytest.mark.slow
@pytest.mark.parametrize("release", REAL)
def test_the_real_distilled_lora_matches_every_layer_it_names(release):
    _, name, rank = REAL[release]
    shapes = manifest(name)
    adapter = Adapter.of({key: mx.zeros(shape) for key, shape in shapes.items()})
    model = LTXModel(LTXModelConfig.from_dict(real_block(release)))
    adapter.check_layers([model])
    report = fuse(model, adapter)
    assert len(report.matched) == len(shapes) // 2 and not report.skipped
    assert adapter.about.rank == rank


@pytest.mark.slow
@pytest.mark.parametrize("release", REAL)
def test_no_two_layers_share_a_name(release):
    block = real_block(release)
    model = LTXModel(LTXModelConfig.from_dict(block))
    linears = {path for path, m in model.named_modules() if "weight" in m and m.weight.ndim == 2}  # fmt: skip
    assert set(layer_names(model).values()) == linears
    connectors = TextConnectors(ConnectorConfig.from_dict(block))
    assert "video_aggregate_embed" in layer_names(connectors)
    assert "video_text_proj_in" in layer_names(connectors)


def test_a_lora_of_2_3_is_refused_by_2_0_for_its_layers(model_of_2_0):
    weights, _ = mx.load(str(FILE), return_metadata=True)
    with pytest.raises(UserError, match="which the model does not have"):
        Adapter.of(
            {k: v for k, v in weights.items() if "to_gate_logits" in k}
        ).check_layers([model_of_2_0])


@pytest.fixture
def model_of_2_0() -> LTXModel:
    config = json.loads((FIXTURES / "manifests/ltx-2-19b.config.json").read_text())
    return LTXModel(LTXModelConfig.from_dict(config["config"]["transformer"]))
