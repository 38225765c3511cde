"""Gemma 4, the text encoder of LTX-2.5, against the official tokens and hidden states, packed and in folders."""

import copy
import json
import random
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_video import weights
from mlx_video.errors import UserError
from mlx_video.linear import QuantizedLinear
from mlx_video.models.ltx.checkpoint.checks import check_gemma
from mlx_video.models.ltx.config import ConnectorConfig
from mlx_video.models.ltx.connector import TextConnectors, embed_prompts
from mlx_video.models.ltx.duration import DurationConfig, DurationHead
from mlx_video.models.ltx.gemma import Gemma4, hidden_states, language_model
from mlx_video.models.ltx.gemma_config import (
    GemmaConfig,
    inferred,
    read_gemma_config,
)
from mlx_video.models.ltx.text_encoder import GemmaTextEncoder
from mlx_video.models.ltx.tokenizer import PromptTokenizer
from mlx_video.types import AV
from tests.models.ltx.test_text_encoder import GEMMA_3_12B
from tests.published import GEMMA_4_12B
from tests.reference import FIXTURES, MODULE_TOLERANCE, error, manifest, vectors
from tests.tiny_tokenizer import make_text_encoder_folder

PACKED = "tokenizer_json"  # the tensor of bytes in Lightricks' packed file
FOLDER = FIXTURES / "ltx25_tiny"
TEXT_FILE = FOLDER / "ltx-2.5-tiny-gemma4-with-proj-bf16.safetensors"
DURATION = FOLDER / "ltx-2.5-tiny-duration-head-bf16.safetensors"
TRANSFORMER = FOLDER / "ltx-2.5-tiny-transformer-bf16.safetensors"
CASES = json.loads((FOLDER / "tokenizer_cases.json").read_text())["cases"]
PROMPTS = pytest.mark.parametrize("prompt", ["a", "b", "c"])


@pytest.fixture(scope="module")
def encoder() -> GemmaTextEncoder:
    return GemmaTextEncoder.load(TEXT_FILE, dtype=mx.float32)


def official(prompt: str) -> dict[str, mx.array]:
    named = vectors("text", "ltx25_tiny").items()
    return {k.removeprefix(f"{prompt}."): v for k, v in named if k[0] == prompt}


def text_of(vectors: dict[str, mx.array]) -> str:
    return bytes(memoryview(vectors["prompt_utf8"])).decode()


# Tokens


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_official_tokens(encoder, case):
    piece, times = case["text_repeat"] or (case["text"], 1)
    text = piece * times
    ids = encoder.tokenizer.encode(text)
    assert (
        ids[: encoder.tokenizer.max_tokens] == case["ids"]
    )  # officially longer ones are cut
    if len(ids) <= encoder.tokenizer.max_tokens:
        assert encoder.tokenizer.tokenize([text])[0].tolist() == [[0] * case["pads"] + case["ids"]]  # fmt: skip
    else:
        with pytest.raises(
            UserError, match=f"{len(ids)} tokens, more than the limit of 1024"
        ):
            encoder.tokenizer.tokenize([text])


# Hidden states


@PROMPTS
def test_official_hidden_states(encoder, prompt):
    v = official(prompt)
    ids, mask = encoder.tokenizer.tokenize([text_of(v)])
    assert mx.array_equal(ids, v["input_ids"])
    assert mx.array_equal(mask, v["attention_mask"])
    features = encoder.features([text_of(v)])
    assert error(features.hidden_states, v["hidden_states"]) < MODULE_TOLERANCE


def test_a_batch_of_unequal_prompts_in_their_padding(encoder):
    prompts = [official(p) for p in "abc"]
    features = encoder.features([text_of(v) for v in prompts])
    for row, v in enumerate(prompts):
        valid = v["hidden_states"].shape[2]
        states = features.hidden_states[:, row : row + 1, -valid:]
        assert error(states, v["hidden_states"]) < MODULE_TOLERANCE
    assert mx.isfinite(features.hidden_states).all().item()


@PROMPTS
def test_from_prompt_to_context(encoder, prompt):
    """The whole way, with the connectors of the transformer's file and the projection of the text encoder's; and on to
    how long the clip should be."""
    tensors = dict(mx.load(str(TRANSFORMER))) | dict(mx.load(str(TEXT_FILE)))
    config = weights.read_config(TRANSFORMER)["transformer"]
    config = TextConnectors.fit(ConnectorConfig.from_dict(config), tensors)
    connectors = TextConnectors(config)
    weights.load_into(connectors, TextConnectors.sanitize(tensors), dtype=mx.float32)
    v = official(prompt)
    context = embed_prompts(connectors, encoder.features([text_of(v)])).positive
    for stream in ("video", "audio"):
        expected = v.get(f"{stream}_embeds", v.get(f"{stream}_embeds_head"))
        actual = getattr(context, stream)[:, : expected.shape[1]]
        assert error(actual, expected) < MODULE_TOLERANCE

    head = DurationHead(DurationConfig.from_dict(weights.read_config(DURATION)))
    weights.load_into(head, DurationHead.sanitize(weights.read(DURATION)[0]), dtype=mx.float32)  # fmt: skip
    expected = vectors("duration", "ltx25_tiny")
    for streams, part in (
        ("", context),
        ("_video_only", AV(video=context.video)),
        ("_audio_only", AV(audio=context.audio)),
    ):
        seconds = head(part)
        assert error(seconds, expected[f"{prompt}.seconds{streams}"]) < MODULE_TOLERANCE


def test_bfloat16(encoder):
    half = GemmaTextEncoder.load(TEXT_FILE)
    states = half.features(["A cat."]).hidden_states
    assert states.dtype == mx.bfloat16
    assert error(states, encoder.features(["A cat."]).hidden_states) < 0.1


def test_full_size_takes_every_tensor_of_the_real_file():
    tensors = {
        key: mx.zeros([abs(n) for n in shape])
        for key, shape in manifest("ltx-2.5-gemma4-text-encoder").items()
    }
    model = language_model(GEMMA_4_12B)
    given = {k: v.shape for k, v in Gemma4.sanitize(tensors).items()}
    ours = dict(tree_flatten(model.parameters()))
    assert given == {k: v.shape for k, v in ours.items()}
    assert len(given) == 40 * 14 + 8 * 13 + 2
    official = {model.NAMES.official(key) for key in given}
    assert official < tensors.keys()
    connectors = TextConnectors.sanitize(tensors)
    unused = set(tensors) - set(given) - {TextConnectors.NAMES.official(k) for k in connectors}  # fmt: skip
    assert len(unused) == 11 + 5  # of other modalities, and the packed files
    full = [i for i, layer in enumerate(model.layers) if not layer.self_attn.is_sliding]
    assert full == list(range(5, 48, 6))


# Folders of others


def as_folder(target: Path, prefix: str, quantize: bool = False) -> Path:
    """The packed file as transformers or mlx-lm would store the same model."""
    tensors, _ = weights.read(TEXT_FILE)
    target.mkdir()
    for name in (PACKED, "hf_asset__tokenizer_config.json"):
        file = name.removeprefix("hf_asset__").replace("_json", ".json")
        (target / file).write_bytes(bytes(memoryview(tensors[name])))
    config = read_gemma_config(TEXT_FILE)
    del config["gemma_version"]
    model = language_model(config)
    weights.load_into(model, model.sanitize(tensors))
    if quantize:
        wide = lambda path, m: hasattr(m, "to_quantized") and m.weight.shape[-1] % 32 == 0  # fmt: skip
        nn.quantize(model, bits=8, group_size=32, class_predicate=wide)
        config["quantization"] = {"bits": 8, "group_size": 32}
    named = {prefix + k: v for k, v in tree_flatten(model.parameters())}
    named |= {"vision_tower.x": mx.zeros(2), "embed_vision.x": mx.zeros(2)}
    mx.save_safetensors(str(target / "model.safetensors"), named)
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize("quantize", [False, True], ids=["dense", "8 bits"])
def test_mlx_folder(tmp_path, quantize):
    folder = as_folder(tmp_path / "gemma", "language_model.", quantize)
    other = GemmaTextEncoder.load(folder, mx.float32)
    v = official("a")
    found = error(other.features([text_of(v)]).hidden_states, v["hidden_states"])
    assert (0.01 < found < 0.3) if quantize else found < MODULE_TOLERANCE
    o_proj = other.model.layers[0].self_attn.o_proj
    assert isinstance(o_proj, QuantizedLinear) == quantize


@pytest.mark.slow
def test_a_folder_can_write_and_the_packed_file_cannot(tmp_path, encoder):
    folder = as_folder(tmp_path / "gemma", "language_model.")
    (folder / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    other = GemmaTextEncoder.load(folder, mx.float32)
    short = {"max_tokens": 12, "temperature": 0.0, "seed": 1}
    text = "".join(other.generate("Be kind.", "a cat", **short))
    assert text == "".join(other.generate("Be kind.", "a cat", **short)) != ""
    # What it writes first is what the states say.
    ids = mx.array([other._turn("Be kind.", "a cat")])
    *_, last = hidden_states(other.model, ids, mx.ones_like(ids))
    last = last[:, -1]
    logits = other.model.model.embed_tokens.as_linear(last)[..., : len(other.tokenizer)]
    first = other.tokenizer.chat.decode([logits.argmax().item()])
    assert text.strip().startswith(first.strip())
    with pytest.raises(UserError, match="but not write .*mlx-video enhance"):
        next(encoder.generate("Be kind.", "a cat", **short))


# Files of ComfyUI, which state no config: the shapes of the tensors tell


def test_configs_of_the_real_files_are_told_by_their_shapes():
    shapes = manifest("ltx-2.5-gemma4-text-encoder")
    assert GemmaConfig.from_dict(inferred(shapes)) == GemmaConfig.from_dict(GEMMA_4_12B)
    prefix = "language_model."
    shapes = {k.removeprefix(prefix): s for k, s in manifest("gemma-3-12b-it").items()}
    assert GemmaConfig.from_dict(inferred(shapes)) == GemmaConfig.from_dict(GEMMA_3_12B)
    assert inferred(manifest("ltx-2.5-22b-transformer")) == {}


def test_comfyui_file_with_fp8_weights_and_a_sentencepiece_model(tmp_path):
    """As in ComfyUI's repositories: bare names, no metadata, scaled fp8, the tokenizer as bytes. None was at hand."""
    folder = make_text_encoder_folder(tmp_path / "gemma")
    whole = GemmaTextEncoder.load(folder, mx.float32)
    tensors = {}
    for key, value in tree_flatten(whole.model.parameters()):
        if "proj" in key:
            scale = mx.abs(value).max() / 448
            tensors[f"{key}_scale"] = scale.reshape(1)
            value = mx.to_fp8(value / scale)
        tensors[key] = value
    model = (FIXTURES / "spiece" / "tokenizer.model").read_bytes()
    tensors["spiece_model"] = mx.array(list(model), mx.uint8)
    tensors["vision_model.x"] = tensors["multi_modal_projector.x"] = mx.zeros(2)
    tensors["model.embed_tokens.weight"] = mx.pad(tensors["model.embed_tokens.weight"], ((0, 400), (0, 0)))  # fmt: skip
    file = tmp_path / "gemma_3_12B_it_fp8_scaled.safetensors"
    mx.save_safetensors(str(file), tensors)
    encoder = GemmaTextEncoder.load(file, mx.float32)
    assert encoder.tokenizer.encode("A cat")[0] == 2
    # A window of 1024 and the rate of the 12B's positions are not this one's: compare what they do not touch.
    ids = mx.array([[2]])
    states = [
        mx.stack([*hidden_states(e.model, ids, mx.ones_like(ids))])
        for e in (encoder, whole)
    ]
    assert 1e-4 < error(*states) < 0.2


# What does not fit


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_kv_shared_layers": 20}, "num_kv_shared_layers = 20"),
        ({"hidden_size_per_layer_input": 256}, "hidden_size_per_layer_input = 256"),
        ({"enable_moe_block": True}, "enable_moe_block = True"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention = 'all'"),
        ({"model_type": "gemma2"}, "must be a Gemma 3 or a Gemma 4"),
        ({"model_type": None}, "describes no language model"),
        ({"model_type": ["gemma4_text"]}, "must be a Gemma 3 or a Gemma 4"),
    ],
)
def test_other_gemmas_are_refused(change, words):
    config = read_gemma_config(TEXT_FILE)
    config["text_config"] |= change
    with pytest.raises(UserError, match=words) as caught:
        GemmaConfig.from_dict(config)
    assert len(str(caught.value)) < 400


WRONG = (None, 0, -1, 2**70, float("nan"), 0.5, True, "x", [], [1], {}, {"a": 1})


def altered(config: dict, draw: random.Random) -> dict:
    """A copy of which one value, however deep, is another."""
    config = node = copy.deepcopy(config)
    while True:
        key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not isinstance(node[key], (dict, list)) or not node[key]:
            node[key] = copy.deepcopy(draw.choice(WRONG))
            return config
        node = node[key]


@pytest.mark.parametrize(
    "seeds", [range(24), pytest.param(range(24, 120), marks=pytest.mark.slow)]
)
def test_a_config_is_built_or_refused_in_a_sentence(seeds):
    gemma_3 = json.loads((FIXTURES / "ltx2_tiny/text_encoder/config.json").read_text())
    configs = read_gemma_config(TEXT_FILE), gemma_3
    for seed in seeds:
        config = altered(configs[seed % 2], random.Random(seed))
        try:
            model = language_model(config)
        except UserError as error:
            assert 20 < len(str(error)) < 400, seed
        else:
            assert len(model.layers) == model.args.num_hidden_layers, seed


def fitted(**changes) -> ConnectorConfig:
    block = weights.read_config(TRANSFORMER)["transformer"]
    return ConnectorConfig.from_dict(block | {"text_layers": 12} | changes)


STATED = weights.read_header(TRANSFORMER).metadata
LTX_2 = {"caption_proj_before_connector": False, "text_encoder_norm_type": None}
GEMMA_3 = {"model_type": "gemma3_text", "hidden_size": 40, "num_hidden_layers": 12}


@pytest.mark.parametrize(
    "gemma, connectors, metadata, words",
    [
        ({}, {}, STATED, None),
        ({}, {"caption_channels": 3840}, STATED, "has 40 channels .* read 3840"),
        ({}, {"text_layers": 48}, STATED, "has 12 layers .* read 48"),
        ({"gemma_version": "gemma4-27b"}, {}, STATED, "gemma4-12b-ltx-v1, but .*'gemma4-27b'"),
        ({"gemma_version": ""}, {}, STATED, None),
        (GEMMA_3, {}, STATED, "trained with Gemma 4, but the text encoder is a Gemma 3"),
        (GEMMA_3, {}, {}, None),
        ({}, {}, {}, None),
        ({}, LTX_2, {}, "trained with Gemma 3, but the text encoder is a Gemma 4"),
        ({}, LTX_2, {"model_version": "9" * 5000}, None),
        (GEMMA_3, {}, {"model_version": "2.3.0"}, None),
        ({}, {}, {"model_version": "2.3-rc1"}, "trained with Gemma 3, but .* a Gemma 4"),
        (GEMMA_3, {}, {"model_version": "2-5-0"}, "trained with Gemma 4, but"),
        ({}, {}, {"gemma_source_checkpoint": "[[["}, "metadata is not valid JSON"),
    ],
)  # fmt: skip
def test_a_gemma_that_does_not_suit_is_refused(gemma, connectors, metadata, words):
    config = read_gemma_config(TEXT_FILE) | gemma
    config = gemma if gemma is GEMMA_3 else config
    check = lambda: check_gemma(
        GemmaConfig.from_dict(config), fitted(**connectors), metadata
    )
    if words is None:
        return check()
    with pytest.raises(UserError, match=words) as caught:
        check()
    assert len(str(caught.value)) < 400


def test_a_gemma_that_does_not_state_its_version_is_used_with_a_warning(caplog):
    config = read_gemma_config(TEXT_FILE) | {"gemma_version": ""}
    check_gemma(GemmaConfig.from_dict(config), fitted(), STATED)
    assert "does not say whether it is gemma4-12b-ltx-v1" in caplog.text


def test_layers_are_only_compared_where_they_are_known():
    gemma = GemmaConfig.from_dict(read_gemma_config(TEXT_FILE))
    check_gemma(gemma, fitted(text_layers=48), STATED, fitted=False)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b"\xff\xfe", b"3"])
def test_packed_file_without_a_tokenizer(tmp_path, content):
    tensors, metadata = weights.read(TEXT_FILE)
    del tensors[PACKED]
    if content is not None:
        tensors[PACKED] = mx.array(list(content), mx.uint8)
    file = tmp_path / "gemma.safetensors"
    mx.save_safetensors(str(file), tensors, metadata)
    with pytest.raises(UserError, match=r"gemma\.safetensors .*tokenizer"):
        PromptTokenizer.load(file)


def test_copied_file_needs_nothing_else(tmp_path, encoder):
    file = Path(shutil.copy(TEXT_FILE, tmp_path / "alone.safetensors"))
    alone = PromptTokenizer.load(file)
    assert alone.encode("A cat.") == encoder.tokenizer.encode("A cat.")
