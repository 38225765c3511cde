"""The feature projection and the connectors against the official numbers, and the real checkpoint's names."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_video.errors import UserError
from mlx_video.models.ltx.config import ConnectorConfig
from mlx_video.models.ltx.connector import (
    PromptProjection,
    TextConnectors,
    embed_prompts,
)
from mlx_video.types import AV, Modality, TextFeatures
from mlx_video.weights import load_into, read_config
from tests.reference import (
    FIXTURES,
    MODULE_TOLERANCE,
    checkpoint,
    error,
    manifest,
    vectors,
)

PROMPTS = pytest.mark.parametrize("prompt", ["a", "b", "c"])


@pytest.fixture(scope="module")
def connectors() -> TextConnectors:
    tensors, config = checkpoint()
    config = ConnectorConfig.from_dict(config["transformer"])
    model = TextConnectors(TextConnectors.fit(config, tensors))
    model.load_weights(list(TextConnectors.sanitize(tensors).items()))
    return model


def official(prompt: str) -> dict[str, mx.array]:
    """The vectors of one prompt; of the hidden states, what padding holds is replaced by large nonsense."""
    found = {
        key.removeprefix(f"{prompt}."): value
        for key, value in vectors("text").items()
        if key.startswith(f"{prompt}.")
    }
    valid = found["attention_mask"][None, :, :, None] > 0
    states = found["gemma_hidden_states"]
    nonsense = mx.where(states > 0, 1e6, -1e6)
    return found | {"gemma_hidden_states": mx.where(valid, states, nonsense)}


def real_config() -> ConnectorConfig:
    header = json.loads((FIXTURES / "manifests/ltx-2-19b.config.json").read_text())
    return ConnectorConfig.from_dict(header["config"]["transformer"])


# Official numbers


@PROMPTS
def test_normalized_layers(connectors, prompt):
    v = official(prompt)
    projection = PromptProjection(connectors.video.config)
    projection.aggregate_embed.weight = mx.eye(v["normed_concat"].shape[-1])
    actual = projection(v["gemma_hidden_states"], v["attention_mask"] > 0).video
    assert error(actual, v["normed_concat"]) < MODULE_TOLERANCE


@PROMPTS
def test_features(connectors, prompt):
    v = official(prompt)
    actual = connectors.projection.aggregate_embed(v["normed_concat"])
    assert error(actual, v["features"]) < MODULE_TOLERANCE


@PROMPTS
def test_registers_follow_the_prompt(connectors, prompt):
    v = official(prompt)
    length = v["attention_mask"].sum(axis=1)
    actual = connectors.video.fill_with_registers(v["features"], length, 32)
    assert mx.array_equal(actual, v["video_connector_input"])


@PROMPTS
def test_embeddings(connectors, prompt):
    v = official(prompt)
    context = connectors(v["gemma_hidden_states"], v["attention_mask"])
    assert error(context.video, v["video_embeds"]) < MODULE_TOLERANCE
    assert error(context.audio, v["audio_embeds"]) < MODULE_TOLERANCE


def test_rotary_tables_of_the_real_connector():
    connector = TextConnectors(real_config()).audio
    rows = mx.array([0, 1, 5, 1023])
    cos, sin = (table[:, rows].swapaxes(1, 2) for table in connector.rope(1024))
    assert error(cos, vectors("rope")["real.connector_cos"]) < 1e-5
    assert error(sin, vectors("rope")["real.connector_sin"]) < 1e-5

    connector.config = replace(connector.config, positional_embedding_theta=100.0)
    assert error(connector.rope(1024)[0][:, rows].swapaxes(1, 2), cos) > 0.1


# Equivalences


def test_batch_equals_its_prompts(connectors):
    batch = [official(prompt) for prompt in "abc"]
    states, mask = (
        mx.concatenate([v[name] for v in batch], axis=axis)
        for name, axis in (("gemma_hidden_states", 1), ("attention_mask", 0))
    )
    context = connectors(states, mask)
    for row, v in enumerate(batch):
        assert error(context.video[row : row + 1], v["video_embeds"]) < MODULE_TOLERANCE
        assert error(context.audio[row : row + 1], v["audio_embeds"]) < MODULE_TOLERANCE


def test_columns_of_padding_may_be_left_out(connectors):
    v = official("a")
    whole = connectors(v["gemma_hidden_states"], v["attention_mask"])
    short = connectors(v["gemma_hidden_states"][:, :, -11:], v["attention_mask"])
    assert error(short.video, whole.video) < 2e-6
    assert error(short.audio, whole.audio) < 2e-6


@pytest.mark.parametrize("modality", Modality)
def test_one_modality(connectors, modality):
    v = official("a")
    context = connectors(v["gemma_hidden_states"], v["attention_mask"], (modality,))
    assert context.present == (modality,)
    name = f"{modality.value}_embeds"
    assert error(context[modality], v[name]) < MODULE_TOLERANCE


def test_prompt_and_negative_prompt(connectors):
    a, c = official("a"), official("c")
    states = mx.concatenate([v["gemma_hidden_states"] for v in (a, c)], axis=1)
    mask = mx.concatenate([v["attention_mask"] for v in (a, c)])
    both = embed_prompts(connectors, TextFeatures(states, mask))
    assert error(both.positive.audio, a["audio_embeds"]) < MODULE_TOLERANCE
    assert error(both.negative.audio, c["audio_embeds"]) < MODULE_TOLERANCE
    alone = embed_prompts(
        connectors, TextFeatures(states[:, :1], mask[:1]), (Modality.VIDEO,)
    )
    assert alone.negative is None and alone.positive.audio is None
    assert error(alone.positive.video, a["video_embeds"]) < MODULE_TOLERANCE


def test_bfloat16_and_batch_of_two(connectors):
    model = TextConnectors(connectors.video.config)
    model.set_dtype(mx.bfloat16)
    states = mx.random.normal((8, 2, 5, 48), key=mx.random.key(0))
    mask = mx.array([[0] * 13 + [1] * 3, [0] * 11 + [1] * 5])
    context = model(states.astype(mx.bfloat16), mask)
    assert context.map(lambda x: (x.shape, x.dtype)) == AV(
        ((2, 16, 48), mx.bfloat16), ((2, 16, 48), mx.bfloat16)
    )
    assert mx.isfinite(context.video).all().item()


@pytest.mark.parametrize("length, nearest", [(30, 32), (3, 8)])
def test_length_must_suit_the_registers(connectors, length, nearest):
    states, mask = mx.zeros((8, 1, 2, 48)), mx.ones((1, length))
    with pytest.raises(
        ValueError, match=f"multiple of 8 .* got {length}. Nearest: {nearest}"
    ):
        connectors(states, mask)


# LTX-2.3 and 2.5: a projection for each stream, gated connectors of two widths

TINY_23 = FIXTURES / "ltx23_tiny" / "ltx-2.3-tiny.safetensors"
TINY_25 = [
    FIXTURES / "ltx25_tiny" / f"ltx-2.5-tiny-{name}-bf16.safetensors"
    for name in ("transformer", "gemma4-with-proj")
]


def newer(*files: Path) -> tuple[TextConnectors, dict[str, mx.array]]:
    """Connectors from the first file's config and the tensors of all, in float32; and those tensors."""
    tensors = {k: v for file in files for k, v in mx.load(str(file)).items()}
    config = ConnectorConfig.from_dict(read_config(files[0])["transformer"])
    model = TextConnectors(TextConnectors.fit(config, tensors))
    load_into(model, TextConnectors.sanitize(tensors), dtype=mx.float32)
    return model, tensors


@pytest.fixture(scope="module")
def connectors_23() -> TextConnectors:
    return newer(TINY_23)[0]


@pytest.fixture(scope="module")
def connectors_25() -> TextConnectors:
    return newer(*TINY_25)[0]


def official_23(prompt: str) -> dict[str, mx.array]:
    names = vectors("text", "ltx23_tiny").items()
    return {k.removeprefix(f"{prompt}."): v for k, v in names if k[0] == prompt}


@PROMPTS
def test_newer_projections(connectors_23, prompt):
    v = official_23(prompt)
    valid = v["attention_mask"] > 0
    states = mx.where(valid[None, :, :, None], v["gemma_hidden_states"], 1e6)
    features = connectors_23.projection(states, valid)
    assert error(features.video, v["video_features"]) < MODULE_TOLERANCE
    assert error(features.audio, v["audio_features"]) < MODULE_TOLERANCE


@PROMPTS
def test_newer_first_blocks(connectors_23, prompt):
    v = official_23(prompt)
    lengths, positions = v["attention_mask"].sum(axis=1), v["attention_mask"].shape[1]
    for connector, stream in ((connectors_23.video, "video"), (connectors_23.audio, "audio")):  # fmt: skip
        x = connector.fill_with_registers(v[f"{stream}_features"], lengths, positions)
        block = connector.transformer_1d_blocks[0]
        if stream == "video":
            assert mx.array_equal(x, v["video_connector_in"])
            gate = block.attn1.to_gate_logits(mx.fast.rms_norm(x, None, 1e-6))
            assert error(gate, v["video_connector_gate0"]) < MODULE_TOLERANCE
        after = block(x, connector.rope(positions))
        assert error(after, v[f"{stream}_connector_block0"]) < MODULE_TOLERANCE


@PROMPTS
def test_newer_embeddings(connectors_23, prompt):
    v = official_23(prompt)
    context = connectors_23(v["gemma_hidden_states"], v["attention_mask"])
    assert error(context.video, v["video_embeds"]) < MODULE_TOLERANCE
    assert error(context.audio, v["audio_embeds"]) < MODULE_TOLERANCE


@pytest.mark.slow
@PROMPTS
def test_connectors_from_two_files(connectors_25, prompt):
    """LTX-2.5 keeps the projection in the text encoder's file, and has the official 128 registers."""
    v = vectors("text", "ltx25_tiny")
    states, mask = v[f"{prompt}.hidden_states"], v[f"{prompt}.attention_mask"]
    features = connectors_25.projection(states, mx.ones(states.shape[1:3]) > 0)
    assert error(features.video, v[f"{prompt}.video_features"]) < MODULE_TOLERANCE
    assert error(features.audio, v[f"{prompt}.audio_features"]) < MODULE_TOLERANCE
    context = connectors_25(states, mask)
    for stream in ("video", "audio"):
        name = f"{prompt}.{stream}_embeds"
        expected = v[name] if name in v else v[f"{name}_head"]
        rows = getattr(context, stream)[:, : expected.shape[1]]
        assert error(rows, expected) < MODULE_TOLERANCE


@pytest.mark.parametrize("files", [[TINY_23], TINY_25], ids=["2.3", "2.5"])
def test_newer_names_there_and_back(files):
    _, tensors = newer(*files)
    ours = TextConnectors.sanitize(tensors)
    official = {TextConnectors.NAMES.official(key) for key in ours}
    assert official == {k for k in tensors if "_connector." in k or "_aggregate_" in k}
    assert TextConnectors.sanitize(ours) is ours


def real_newer(config: str, *manifests: str) -> tuple[ConnectorConfig, dict]:
    header = json.loads((FIXTURES / f"manifests/{config}.config.json").read_text())
    if config == "ltx-2.5":  # the files' headers, one by one
        header = next(v["metadata"] for k, v in header.items() if "transformer" in k)
    tensors = {
        key: mx.zeros([abs(n) for n in shape])
        for name in manifests
        for key, shape in manifest(name).items()
    }
    return ConnectorConfig.from_dict(header["config"]["transformer"]), tensors


@pytest.mark.parametrize(
    "config, manifests",
    [
        ("ltx-2.3-22b", ["ltx-2.3-22b"]),
        ("ltx-2.5", ["ltx-2.5-22b-transformer", "ltx-2.5-gemma4-text-encoder"]),
    ],
)
def test_full_size_takes_every_tensor_of_the_newer_files(config, manifests):
    config, tensors = real_newer(config, *manifests)
    assert TextConnectors.fit(config, tensors) == config
    given = TextConnectors.sanitize(tensors)
    ours = dict(tree_flatten(TextConnectors(config).parameters()))
    assert {k: v.shape for k, v in given.items()} == {
        k: v.shape for k, v in ours.items()
    }
    assert len(ours) == 258 + 4
    assert sum(v.size for v in ours.values()) == 3_172_227_584


@pytest.mark.parametrize(
    "change, words",
    [
        ({"text_encoder_norm_type": None}, None),
        ({"text_encoder_norm_type": "PER_TOKEN_RMS"}, None),
        ({"text_encoder_norm_type": "layer"}, "text_encoder_norm_type = 'layer'"),
        ({"caption_proj_before_connector": False}, "text_encoder_norm_type = 'per_t"),
        ({"caption_proj_input_norm": True}, "caption_proj_input_norm = True"),
        ({"audio_connector_num_layers": 5}, None),
    ],
)
def test_what_a_newer_config_may_say(change, words):
    block = read_config(TINY_23)["transformer"] | change
    if words:
        with pytest.raises(UserError, match=words):
            ConnectorConfig.from_dict(block)
    else:
        layers = ConnectorConfig.from_dict(block).streams.audio.layers
        assert layers == change.get("audio_connector_num_layers", 3)


@pytest.mark.parametrize(
    "absent, state",
    [
        ("text_embedding_projection.video_aggregate_embed.weight", "missing"),
        ("model.diffusion_model.video_embeddings_connector.learnable_registers", "of shape (0,)"),
    ],
)  # fmt: skip
def test_absent_tensor_is_named(absent, state):
    tensors = dict(mx.load(str(TINY_23)))
    config = ConnectorConfig.from_dict(read_config(TINY_23)["transformer"])
    if state == "missing":
        del tensors[absent]
    else:
        tensors[absent] = mx.zeros((0,))
    with pytest.raises(UserError) as caught:
        TextConnectors.fit(config, tensors)
    assert f"{absent}, which is {state}" in str(caught.value)
    assert len(str(caught.value)) < 400


# Weights


def test_names_of_earlier_folders():
    tensors, _ = checkpoint()
    ours = TextConnectors.sanitize(tensors)
    prefixes = {"projection.": "", "video.": "video_embeddings_connector.", "audio.": "audio_embeddings_connector."}  # fmt: skip
    earlier = {
        prefixes[key.split(".")[0] + "."] + key.split(".", 1)[1]: value
        for key, value in ours.items()
    }
    assert "aggregate_embed.weight" in earlier
    assert TextConnectors.sanitize(earlier).keys() == ours.keys()
    assert {TextConnectors.NAMES.official(key) for key in ours} == {
        k for k in tensors if "_connector." in k or "aggregate_embed" in k
    }


def test_full_size_takes_every_tensor_of_the_real_file():
    tensors = {key: mx.zeros(shape) for key, shape in manifest("ltx-2-19b").items()}
    config = real_config()
    assert TextConnectors.fit(config, tensors) == config

    given = TextConnectors.sanitize(tensors)
    ours = dict(tree_flatten(TextConnectors(config).parameters()))
    assert {key: value.shape for key, value in given.items()} == {
        key: value.shape for key, value in ours.items()
    }
    assert len(ours) == 1 + 2 * 29
    assert TextConnectors.sanitize(given) is given


def test_projection_tells_the_number_of_text_layers():
    tensors, config = checkpoint()
    config = ConnectorConfig.from_dict(config["transformer"])
    fitted = replace(config, text_layers=7)
    assert TextConnectors.fit(config, tensors) == fitted
    assert TextConnectors.fit(config, TextConnectors.sanitize(tensors)) == fitted
