"""Tokenizer files that are damaged or another model's, prompts that are none, and words that a small model never saw."""

import json
import shutil

import numpy as np
import pytest

from mlx_video.errors import MissingFileError, UserError
from mlx_video.models.ltx.checkpoint.find import PACKAGED
from mlx_video.models.ltx.text_encoder import GemmaTextEncoder
from mlx_video.models.ltx.text_folder import KNOWS, Subjects
from mlx_video.models.ltx.tokenizer import PromptTokenizer, tokenizer_of
from tests.reference import FIXTURES
from tests.tiny_tokenizer import make_text_encoder_folder
from tiny.sentences import describe, words
from tiny.world import random_scene

SPIECE_FOLDER = FIXTURES / "spiece"
SPIECE = json.loads((SPIECE_FOLDER / "cases.json").read_text())


@pytest.fixture
def folder(tmp_path):
    return make_text_encoder_folder(tmp_path / "text_encoder", longest=131072)


@pytest.fixture(scope="module")
def small() -> PromptTokenizer:
    return PromptTokenizer.load(PACKAGED / "text_encoder")


# Files


def unlike_gemma(text: str) -> str:
    return text.replace("<bos>", "<start>")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "7",
        "null",
        "{}",
        '{"model": 3}',
        '{"model": {"type": "BPE", "vocab": [], "merges": {}}}',
        "version https://git-lfs.github.com/spec/v1",
        "[" * 100_000,
        "\x00\xff",
        unlike_gemma,
    ],
    ids=range(11),
)
def test_wrong_tokenizer_file_is_named(folder, content):
    file = folder / "tokenizer.json"
    text = content(file.read_text()) if callable(content) else content
    file.write_text(text)
    with pytest.raises(UserError, match="tokenizer") as caught:
        PromptTokenizer.load(folder)
    assert str(folder) in str(caught.value) and len(str(caught.value)) < 400


def test_sentencepiece_ids(spiece):
    texts = [case["text"] for case in SPIECE["cases"]]
    found = {text: spiece.encode(text).ids for text in texts}
    assert found == {case["text"]: case["ids"] for case in SPIECE["cases"]}


@pytest.fixture(scope="module")
def spiece():
    return tokenizer_of((SPIECE_FOLDER / "tokenizer.model").read_bytes())


def test_special_tokens_of_a_sentencepiece_model_are_heard(spiece):
    assert spiece.encode("<bos><start_of_turn>a").ids[:2] == [2, spiece.token_to_id("<start_of_turn>")]  # fmt: skip
    assert spiece.decode(spiece.encode("Zoë 日本").ids) == "Zoë 日本"


def test_a_folder_with_a_sentencepiece_model_alone(folder):
    (folder / "tokenizer.json").unlink()
    shutil.copy(SPIECE_FOLDER / "tokenizer.model", folder)
    (folder / "tokenizer_config.json").unlink()
    case = SPIECE["cases"][0]
    assert PromptTokenizer.load(folder).encode(case["text"]) == [2, *case["ids"]]


@pytest.mark.parametrize("cut", [0, 1, 100, 5000, "flipped"])
def test_wrong_sentencepiece_model_is_named(folder, cut):
    (folder / "tokenizer.json").unlink()
    data = (SPIECE_FOLDER / "tokenizer.model").read_bytes()
    data = bytes(b ^ 85 for b in data) if cut == "flipped" else data[:cut]
    (folder / "tokenizer.model").write_bytes(data)
    with pytest.raises(UserError, match="tokenizer.model|not a Gemma"):
        PromptTokenizer.load(folder)


def test_a_folder_in_the_tokenizers_place(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()
    with pytest.raises(UserError, match="tokenizer"):
        PromptTokenizer.load(folder)


def test_no_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(MissingFileError, match="No tokenizer.json or tokenizer.model"):
        PromptTokenizer.load(folder)


def test_a_larger_models_tokenizer_is_refused(folder):
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] += [[f"▁more{i}", -9.0] for i in range(50)]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="332 tokens and its model 300"):
        GemmaTextEncoder.load(folder)


# Prompts


@pytest.mark.parametrize(
    "prompt, sentence",
    [
        ("A" + " cat" * 2999, "3001 tokens, more than the limit of 1024"),
        ("x" * 100_001, "100,001 characters, more than the limit"),
        ("a cat \udcff", "The prompt is not valid text; type it in UTF-8"),
    ],
)  # fmt: skip
def test_a_prompt_that_cannot_be_read_is_refused_before_weights(
    folder, prompt, sentence
):
    (folder / "model.safetensors").unlink()
    PromptTokenizer.load(folder).tokenize(["a cat", ""])
    with pytest.raises(UserError, match=sentence) as caught:
        PromptTokenizer.load(folder).tokenize(["a cat", prompt])
    assert len(str(caught.value)) < 400


def test_begin_of_text_is_not_doubled(folder):
    tokenizer = PromptTokenizer.load(folder)
    tokenizer.backend.post_processor = None  # Gemma 4's adds none
    assert tokenizer.encode("A cat") == PromptTokenizer.load(folder).encode("A cat")


# Words


@pytest.mark.slow
def test_the_small_world_knows_its_own_words(small):
    assert small.unknown_words(" ".join(words())) == ()
    rng = np.random.default_rng(1)
    for _ in range(100):
        assert small.caution(describe(random_scene(rng), rng)) == ""


@pytest.mark.parametrize(
    "prompt, unknown",
    [
        ("a red ball bounces on a blue floor", ()),
        ("A Red Fox in the SNOW, a fox!", ("fox", "snow")),
        ("two balls and 3 stars", ("3",)),
        ("a café at night, 日本", ("café", "日本")),
        ("a star, e.g. a x", ()),
        ("", ()),
    ],
)
def test_unknown_words_are_named_once_in_order(small, prompt, unknown):
    assert small.unknown_words(prompt) == unknown


def test_what_is_said_of_them(small):
    draws = "It draws a ball, square, triangle, star, heart, ring, arrow, moon, cloud and tree in eight colours."
    assert small.caution("a ball and a fox in snow") == (
        f"ltx-2-tiny does not know: fox, snow. {draws}"
    )
    assert small.caution("a fox in snow") == (
        f"ltx-2-tiny finds nothing in this prompt that it can draw (it does not know: fox, snow). {draws}"
    )
    assert small.caution("the night sky") == (
        f"ltx-2-tiny finds nothing in this prompt that it can draw. {draws}"
    )
    assert (
        small.caution("two yellow moons") == "ltx-2-tiny draws one moon, not several."
    )
    assert small.caution("trees, 3 balls and a moon") == (
        f"ltx-2-tiny does not know: 3. {draws} It draws one tree and one ball, not several."
    )
    many = small.caution("a ball, lions, tigers, bears, apes, snakes")
    assert "lions, tigers, bears, apes and 1 more. It" in many


def test_a_large_model_knows_every_word(folder):
    large = PromptTokenizer.load(folder)
    assert large.unknown_words("zyzzyva") == () and large.caution("zyzzyva") == ""


def test_what_a_model_knows_goes_with_its_folder(tmp_path):
    copy = shutil.copytree(PACKAGED / "text_encoder", tmp_path / "other")
    known = json.loads((copy / KNOWS).read_text()) | {"name": "mine"}
    (copy / KNOWS).write_text(json.dumps(known))
    assert PromptTokenizer.load(copy).caution("fox").startswith("mine finds nothing")


@pytest.mark.parametrize(
    "content",
    [
        '{"name": "x"}',
        '{"name": 3, "draws": "a", "things": []}',
        '{"name": "x", "draws": "a", "things": "ball"}',
        '{"name": "x", "draws": "a", "things": [1]}',
        '["ball"]',
        "{",
    ],
)
def test_wrong_subjects_are_refused_by_name(tmp_path, content):
    (tmp_path / KNOWS).write_text(content)
    with pytest.raises(UserError, match=KNOWS):
        Subjects.read(tmp_path)
