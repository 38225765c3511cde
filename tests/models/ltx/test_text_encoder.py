"""Gemma against the official hidden states, under every layout its folders come in, and what it does with text."""

import json
import shutil

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_video import weights
from mlx_video.errors import UserError
from mlx_video.linear import QuantizedLinear
from mlx_video.models.ltx.gemma import (
    Gemma3,
    attention_mask,
    hidden_states,
    language_model,
)
from mlx_video.models.ltx.gemma_config import GemmaConfig
from mlx_video.models.ltx.text_encoder import GemmaTextEncoder
from mlx_video.models.ltx.text_folder import MAX_TOKENS
from tests.reference import MODULE_TOLERANCE, error, manifest, vectors
from tests.tiny_tokenizer import (
    BOS,
    END_OF_TURN,
    EOS,
    START_OF_TURN,
    build_tokenizer,
    make_text_encoder_folder,
)

# google/gemma-3-12b-it states only this; the rest is transformers' defaults.
GEMMA_3_12B = {
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "model_type": "gemma3_text",
        "num_attention_heads": 16,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text_encoder")
    return make_text_encoder_folder(folder, longest=131072)


@pytest.fixture(scope="module")
def encoder(folder) -> GemmaTextEncoder:
    return GemmaTextEncoder.load(folder, dtype=mx.float32)


def stacked(encoder, ids, mask) -> mx.array:
    return mx.stack([*hidden_states(encoder.model, ids, mask)])


def official_error(encoder, prompt="a") -> float:
    """Of the valid rows of one of the official prompts; the others are anyone's guess."""
    tokens = vectors("text")
    ids, mask = tokens[f"{prompt}.input_ids"], tokens[f"{prompt}.attention_mask"]
    valid = mask.sum().item()
    expected = tokens[f"{prompt}.gemma_hidden_states"][:, :, -valid:]
    return error(stacked(encoder, ids, mask)[:, :, -valid:], expected)


# Hidden states


@pytest.mark.parametrize("prompt", ["a", "b", "c"])
def test_official_hidden_states(encoder, prompt):
    assert official_error(encoder, prompt) < MODULE_TOLERANCE


def test_batch_of_unequal_prompts(encoder):
    tokens = vectors("text")
    ids, mask = (
        mx.concatenate([tokens[f"{p}.{name}"] for p in "abc"])
        for name in ("input_ids", "attention_mask")
    )
    states = stacked(encoder, ids, mask)
    assert mx.isfinite(states).all().item()
    for row, prompt in enumerate("abc"):
        valid = mask[row].sum().item()
        expected = tokens[f"{prompt}.gemma_hidden_states"][:, 0, -valid:]
        assert error(states[:, row, -valid:], expected) < MODULE_TOLERANCE


@pytest.mark.slow
def test_padding_need_not_be_computed(encoder):
    ids, mask = encoder.tokenizer.tokenize(["A cat walks slowly to the sea at night."])
    valid = len(encoder.tokenizer.encode("A cat walks slowly to the sea at night."))
    whole = stacked(encoder, ids, mask)[:, :, -valid:]
    trimmed = encoder.features(["A cat walks slowly to the sea at night."])
    assert trimmed.hidden_states.shape[2] == valid < MAX_TOKENS
    # RoPE is relative; angles near position 1,000 only have fewer float32 digits.
    assert error(trimmed.hidden_states, whole) < 1e-5


def test_features_of_a_batch_are_as_long_as_the_longest(encoder):
    features = encoder.features(["A cat.", "A cat walks.", ""], max_length=32)
    assert features.hidden_states.shape == (8, 3, 5, 48)
    assert features.mask.shape == (3, 32)
    assert features.mask.sum(axis=1).tolist() == [4, 5, 1]


def test_bfloat16_rounds_the_embedding_scale(folder):
    encoder = GemmaTextEncoder.load(folder)
    states = stacked(encoder, *encoder.tokenizer.tokenize(["A cat", ""], max_length=8))
    assert states.shape == (8, 2, 8, 48) and states.dtype == mx.bfloat16
    embedding = encoder.model.model.embed_tokens.weight[BOS]
    assert mx.array_equal(states[0, 0, 5], embedding * 6.9375)  # not sqrt(48) = 6.9282


def test_who_sees_whom():
    full = attention_mask(mx.array([[0, 1, 1, 1]]))[0, 0]
    assert full.astype(mx.int32).tolist() == [
        [1, 0, 0, 0],  # padding sees itself alone, and nobody else sees it
        [0, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 1, 1, 1],
    ]
    sliding = attention_mask(mx.array([[0, 1, 1, 1]]), window=2)[0, 0]
    assert sliding[-1].tolist() == [False, False, True, True]


# Folders


def rewritten(folder, target, rename=lambda key: key, config=lambda config: config):
    """A copy of ``folder`` with other tensor names and another config."""
    shutil.copytree(folder, target)
    tensors, _ = weights.read(folder)
    tensors = {rename(key): value for key, value in tensors.items()}
    tensors |= {"vision_tower.patch.weight": mx.zeros((4, 4))}
    tensors |= {"model.multi_modal_projector.weight": mx.zeros((4, 4))}
    tensors |= {"lm_head.weight": mx.zeros((300, 48))}
    (target / "model.safetensors").unlink()
    shards = [dict(list(tensors.items())[i::2]) for i in range(2)]
    names = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
    for name, shard in zip(names, shards):
        mx.save_safetensors(str(target / name), shard)
    index = {key: name for name, shard in zip(names, shards) for key in shard}
    (target / weights.INDEX).write_text(json.dumps({"weight_map": index}))
    data = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config(data)))
    return target


@pytest.mark.parametrize(
    "prefix",
    ["language_model.model.", "model.language_model.", "model."],
    ids=["hub and mlx-lm", "transformers 5", "text only"],
)
def test_every_naming_in_shards(folder, tmp_path, prefix):
    other = rewritten(
        folder,
        tmp_path / "other",
        rename=lambda key: key.replace("language_model.model.", prefix),
        config=lambda c: c["text_config"] if prefix == "model." else c,
    )
    assert official_error(GemmaTextEncoder.load(other, mx.float32)) < MODULE_TOLERANCE


def test_config_as_transformers_5_writes_it(folder, tmp_path):
    def modern(config):
        text = config["text_config"]
        for key in ("sliding_window_pattern", "rope_local_base_freq", "rope_scaling"):
            del text[key]
        layers = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
        ropes = {
            "full_attention": {
                "rope_type": "linear",
                "factor": 8.0,
                "rope_theta": text.pop("rope_theta"),
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }
        return config | {
            "text_config": text | {"layer_types": layers, "rope_parameters": ropes}
        }

    other = rewritten(folder, tmp_path / "other", config=modern)
    assert official_error(GemmaTextEncoder.load(other, mx.float32)) < MODULE_TOLERANCE


@pytest.mark.parametrize("mode", ["affine", "mxfp8"])
def test_quantized_folder(folder, tmp_path, mode):
    """As mlx-lm writes it: packed weights, and a config that says so. Widths 64 and 96 can hold groups of 32."""
    encoder = GemmaTextEncoder.load(folder)
    model = encoder.model
    nn.quantize(
        model,
        bits=8,
        group_size=32,
        mode=mode,
        class_predicate=lambda path, m: hasattr(m, "to_quantized")
        and m.weight.shape[-1] % 32 == 0,
    )
    target = shutil.copytree(folder, tmp_path / "quantized")
    tensors = dict(tree_flatten(model.parameters()))
    tensors = {f"language_model.{key}": value for key, value in tensors.items()}
    mx.save_safetensors(str(target / "model.safetensors"), tensors)
    config = json.loads((target / "config.json").read_text())
    config["quantization"] = {"bits": 8, "group_size": 32, "mode": mode}
    (target / "config.json").write_text(json.dumps(config))

    quantized = GemmaTextEncoder.load(target, mx.float32)
    layer = quantized.model.model.layers[0]
    assert (layer.self_attn.o_proj.bits, layer.self_attn.o_proj.group_size) == (8, 32)
    assert isinstance(layer.self_attn.o_proj, QuantizedLinear)  # fast when long
    assert 1e-5 < official_error(quantized) < 0.1


@pytest.mark.parametrize(
    "stated", [[8], 3, "8", {"mode": 7}, {"mode": []}, {"mode": "x"}]
)
def test_wrong_quantization_is_named(folder, tmp_path, stated):
    target = shutil.copytree(folder, tmp_path / "quantized")
    config = json.loads((target / "config.json").read_text())
    config["quantization"] = stated
    (target / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="quantization must be an object whose mode"):
        GemmaTextEncoder.load(target)


def test_tokenizer_beside_the_folder(folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "text_encoder")
    (tmp_path / "tokenizer").mkdir()
    for file in model.glob("tokenizer*"):
        file.rename(tmp_path / "tokenizer" / file.name)
    assert len(GemmaTextEncoder.load(model).tokenizer.encode("A cat")) == 3


def test_no_tokenizer_is_an_error(folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "text_encoder")
    for file in model.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="No tokenizer.json .*gemma-3-12b-it"):
        GemmaTextEncoder.load(model)


def test_missing_tensor_is_an_error(folder, tmp_path):
    def misname(key):
        return key.replace("layers.3.mlp.up_proj", "layers.3.mlp.sideways")

    other = rewritten(folder, tmp_path / "other", rename=misname)
    with pytest.raises(ValueError, match="layers.3.mlp.up_proj"):
        GemmaTextEncoder.load(other)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_type": "llama"}, "must be a Gemma 3 or a Gemma 4; .* .llama."),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
    ],
)
def test_other_models_are_refused(change, words):
    text = GEMMA_3_12B["text_config"] | change
    with pytest.raises(ValueError, match=words):
        GemmaConfig.from_dict(text)


def test_absent_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder .*nowhere"):
        GemmaTextEncoder.load(tmp_path / "nowhere")


def test_full_size_takes_every_language_tensor_of_the_real_file():
    tensors = {
        key: mx.zeros(shape) for key, shape in manifest("gemma-3-12b-it").items()
    }
    model = language_model(GEMMA_3_12B)
    given = {key: value.shape for key, value in Gemma3.sanitize(tensors).items()}
    ours = dict(tree_flatten(model.parameters()))
    assert given == {key: value.shape for key, value in ours.items()}
    assert sum(value.size for value in ours.values()) == 11_766_034_176
    assert Gemma3.sanitize(Gemma3.sanitize(tensors)).keys() == given.keys()
    encoder = GemmaTextEncoder(model, None)
    assert {encoder.model.NAMES.official(key) for key in given} < tensors.keys()
    sliding = [layer.self_attn.is_sliding for layer in model.layers]
    assert [i for i, local in enumerate(sliding) if not local] == list(range(5, 48, 6))


# Text


def test_tokens_are_stripped_begun_and_padded_on_the_left(encoder):
    ids, mask = encoder.tokenizer.tokenize(["  A cat \n", ""], max_length=5)
    tokenizer = build_tokenizer()
    A, cat = tokenizer.token_to_id("A"), tokenizer.token_to_id("▁cat")
    assert ids.tolist() == [[0, 0, BOS, A, cat], [0, 0, 0, 0, BOS]]
    assert mask.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]]


def test_prompt_of_the_longest_length_is_taken_and_one_more_refused(encoder):
    fits = "A" + " cat" * (MAX_TOKENS - 2)
    assert len(encoder.tokenizer.encode(fits)) == MAX_TOKENS
    assert encoder.tokenizer.tokenize([fits])[1].sum().item() == MAX_TOKENS
    with pytest.raises(ValueError, match="1025 tokens, more than the limit of 1024"):
        encoder.tokenizer.tokenize([fits + " cat"])


@pytest.mark.slow
def test_turn_in_gemmas_format(encoder):
    ids = encoder._turn("Be kind.", "a cat")
    assert ids[:2] == [BOS, START_OF_TURN]
    assert encoder.tokenizer.chat.decode(ids) == (
        "<bos><start_of_turn>user\nBe kind.\n\na cat<end_of_turn>\n<start_of_turn>model\n"
    )


@pytest.mark.slow
def test_turn_follows_the_folders_chat_template(folder, tmp_path):
    target = shutil.copytree(folder, tmp_path / "text_encoder")
    (target / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>{% endif %}"
    )
    encoder = GemmaTextEncoder.load(target)
    assert encoder.tokenizer.chat.decode(encoder._turn("Be kind.", "a cat")) == (
        "<bos>system: Be kind.\nuser: a cat\n<start_of_turn>"
    )


def write(encoder, temperature=0.7, seed=1, max_tokens=12):
    return "".join(
        encoder.generate(
            "Be kind.",
            "a cat",
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )
    )


@pytest.mark.slow
def test_temperature_zero_takes_the_likeliest(encoder):
    assert write(encoder, 0, seed=1) == write(encoder, 0, seed=2) != ""
    assert write(encoder, 0, seed=1) == write(encoder, 1e-4, seed=1)
    assert write(encoder, 1, seed=1) != write(encoder, 1, seed=2)


@pytest.mark.slow
def test_writing_does_not_touch_the_global_seed(encoder):
    mx.random.seed(0)
    expected = mx.random.uniform(shape=(4,))
    mx.random.seed(0)
    write(encoder)
    assert mx.array_equal(mx.random.uniform(shape=(4,)), expected)


@pytest.mark.slow
def test_writing_stops_at_the_end_of_the_turn(encoder):
    assert {EOS, END_OF_TURN} <= encoder.tokenizer.chat.eos_token_ids
    long = write(encoder, seed=4, max_tokens=100)
    assert long == write(encoder, seed=4, max_tokens=120)
    assert "<end_of_turn>" not in long
