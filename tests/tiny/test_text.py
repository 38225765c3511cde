"""The text encoder's folder and its training, on a few sentences."""

import json

import numpy as np
import pytest

import tiny
from mlx_video.models.ltx.text_encoder import GemmaTextEncoder
from tiny import text
from tiny.model import TEXT_ENCODER, TEXT_TOKENS
from tiny.sentences import describe, words
from tiny.train_text import next_token_loss, sentences, tokens, typo
from tiny.training import Plan, slope_of, train
from tiny.world import random_scene


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return text.fresh_encoder(tmp_path_factory.mktemp("work") / "text_encoder")


def pieces(encoder, sentence):
    return [
        encoder.tokenizer.backend.id_to_token(i)
        for i in encoder.tokenizer.encode(sentence)
    ]


def test_ids_are_gemmas(encoder):
    assert [
        encoder.tokenizer.backend.token_to_id(s) for s in text.SPECIAL.values()
    ] == [0, 1, 2, 3, 105, 106]
    assert encoder.tokenizer.encode("") == [2]


def test_words_are_whole_and_everything_else_is_spelled(encoder):
    assert pieces(encoder, "A Red ball,\n bouncing.") == [
        "<bos>",
        "▁a",
        "▁red",
        "▁ball",
        ",",
        "▁bouncing",
        ".",
    ]
    assert pieces(encoder, "balls café")[1:] == ["▁ball", "s", "▁", "c", "a", "f", "e"]


def test_every_word_of_the_grammar_is_one_token(encoder):
    for word in filter(str.isalnum, words()):
        assert len(encoder.tokenizer.encode(word)) == 2, word


@pytest.mark.slow
def test_sentences_fit_and_hold_nothing_unknown(encoder):
    rng = np.random.default_rng(0)
    for _ in range(200):
        sentence = describe(random_scene(rng), rng)
        ids = encoder.tokenizer.encode(sentence)
        assert len(ids) < TEXT_TOKENS and text.UNKNOWN not in ids
        assert encoder.tokenizer.backend.decode(ids).strip() == sentence.lower()


def test_the_folder_says_how_long_a_prompt_may_be(encoder):
    assert encoder.tokenizer.max_tokens == TEXT_TOKENS


def test_a_tokenizer_of_too_many_words_is_refused():
    many = [f"word{i}" for i in range(TEXT_ENCODER["vocab_size"])]
    with pytest.raises(ValueError, match="take .* words out of the grammar"):
        text.pieces(many)


def test_padding_does_not_change_the_loss(encoder):
    texts = ["a red ball", "we see a blue star that is spinning above a green floor"]
    ids, mask = tokens(encoder, texts)
    alone = [next_token_loss(encoder, *tokens(encoder, [one])).item() for one in texts]
    counts = (mask.sum(axis=1) - 1).tolist()
    together = next_token_loss(encoder, ids, mask).item()
    assert together == pytest.approx(np.average(alone, weights=counts), rel=1e-4)


def test_every_sentence_ends(encoder):
    ids, mask = tokens(encoder, ["a red ball", "a star"])
    assert ids[:, -1].tolist() == [text.EOS] * 2
    assert mask.sum(axis=1).tolist() == [5, 4]


def test_a_typo_takes_one_character():
    rng = np.random.default_rng(0)
    assert sorted({typo("ab", rng) for _ in range(20)}) == ["a", "b"]
    spelled = sentences(np.random.default_rng(0), 20, typos=0)
    wrong = sentences(np.random.default_rng(0), 20, typos=1)
    assert all(len(b) == len(a) - 1 for a, b in zip(spelled[:1], wrong[:1]))


@pytest.mark.thorough
def test_training_makes_it_a_language_model_and_is_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny.training, "WORK", tmp_path)
    encoder = text.fresh_encoder(tmp_path / "text_encoder")
    ids, mask = tokens(encoder, sentences(np.random.default_rng(0), 16))
    before = next_token_loss(encoder, ids, mask).item()
    plan = Plan("text", steps=8, learning_rate=3e-3, warmup=1, average=0.0)
    train(
        encoder.model,
        slope_of(encoder.model, lambda step: next_token_loss(encoder, ids, mask)),
        plan,
    )
    after = next_token_loss(encoder, ids, mask).item()
    assert after < before - 1
    text.store_encoder(encoder.model, tmp_path / "text_encoder")
    again = GemmaTextEncoder.load(tmp_path / "text_encoder")
    assert next_token_loss(again, ids, mask).item() == pytest.approx(after, rel=1e-5)
    assert (
        json.loads((tmp_path / "text_encoder" / "config.json").read_text())
        == TEXT_ENCODER
    )
