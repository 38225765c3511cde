"""The feature projection and the connectors against the official numbers, and the real checkpoint's names."""

import json
from dataclasses import replace

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_video.models.ltx.config import ConnectorConfig
from mlx_video.models.ltx.connector import (
    TextConnectors,
    embed_prompts,
    normalize_layers,
)
from mlx_video.types import AV, Modality, TextFeatures
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
def test_normalized_layers(prompt):
    v = official(prompt)
    actual = normalize_layers(v["gemma_hidden_states"], v["attention_mask"] > 0)
    assert error(actual, v["normed_concat"]) < MODULE_TOLERANCE


@PROMPTS
def test_features(connectors, prompt):
    v = official(prompt)
    actual = connectors.aggregate_embed(v["normed_concat"])
    assert error(actual, v["features"]) < MODULE_TOLERANCE


@PROMPTS
def test_registers_follow_the_prompt(connectors, prompt):
    v = official(prompt)
    length = v["attention_mask"].sum(axis=1)
    actual = connectors.video_embeddings_connector.fill_with_registers(
        v["features"], length, 32
    )
    assert mx.array_equal(actual, v["video_connector_input"])


@PROMPTS
def test_embeddings(connectors, prompt):
    v = official(prompt)
    context = connectors(v["gemma_hidden_states"], v["attention_mask"])
    assert error(context.video, v["video_embeds"]) < MODULE_TOLERANCE
    assert error(context.audio, v["audio_embeds"]) < MODULE_TOLERANCE


def test_rotary_tables_of_the_real_connector():
    connector = TextConnectors(real_config()).audio_embeddings_connector
    rows = mx.array([0, 1, 5, 1023])
    cos, sin = (table[:, :, rows] for table in connector.rope(1024))
    assert error(cos, vectors("rope")["real.connector_cos"]) < 1e-5
    assert error(sin, vectors("rope")["real.connector_sin"]) < 1e-5

    connector.config = replace(connector.config, positional_embedding_theta=100.0)
    assert error(connector.rope(1024)[0][:, :, rows], cos) > 0.1


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
    short = connectors(list(v["gemma_hidden_states"][:, :, -11:]), v["attention_mask"])
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
    model = TextConnectors(connectors.video_embeddings_connector.config)
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


# Weights


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
