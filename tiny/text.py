"""The text encoder's folder: a tokenizer of the small world's words with Gemma's special ids, and a Gemma 3 beside it.

Knows words, ids and files; not the grammar that joins the words, nor how the model is trained.
"""

import json
import shutil
import string
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    processors,
)

from mlx_video.models.ltx.gemma import Gemma3, language_model
from mlx_video.models.ltx.text_encoder import GemmaTextEncoder
from mlx_video.models.ltx.text_folder import KNOWS
from tiny.model import NAME, TEXT_ENCODER, TEXT_TOKENS, WORK
from tiny.sentences import NOUNS, words

FOLDER = WORK / "text_encoder"
PAD, EOS, BOS, UNKNOWN = 0, 1, 2, 3
SPECIAL = {
    PAD: "<pad>",
    EOS: "<eos>",
    BOS: "<bos>",
    UNKNOWN: "<unk>",
    105: "<start_of_turn>",
    106: "<end_of_turn>",
}
SPACE = "▁"  # stands before every word, as in Gemma's pieces
CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation + SPACE


def fresh_encoder(folder: Path = FOLDER) -> GemmaTextEncoder:
    """A text encoder with random weights, from files written into ``folder``."""
    store_encoder(language_model(TEXT_ENCODER), folder)
    return GemmaTextEncoder.load(folder)


def load_encoder() -> GemmaTextEncoder:
    """The text encoder as training left it. Raises ``FileNotFoundError`` where there is none."""
    return GemmaTextEncoder.load(FOLDER)


def store_encoder(model: Gemma3, folder: Path = FOLDER) -> None:
    """Write model, config and tokenizer as a Gemma 3 folder, whole or not at all; float32."""
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(aside / "model.safetensors"), weights, {"format": "mlx"})
    _write(aside / "config.json", TEXT_ENCODER)
    write_tokenizer(aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def write_tokenizer(folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``, and beside them what the model can draw."""
    build_tokenizer(words()).save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": TEXT_TOKENS,
        "pad_token": SPECIAL[PAD],
        "eos_token": SPECIAL[EOS],
        "bos_token": SPECIAL[BOS],
        "unk_token": SPECIAL[UNKNOWN],
    }
    _write(folder / "tokenizer_config.json", settings)
    *most, last = NOUNS
    things = sorted({noun.split()[-1] for nouns in NOUNS.values() for noun in nouns})
    draws = f"a {', '.join(most)} and {last} in eight colours"
    _write(folder / KNOWS, {"name": NAME, "draws": draws, "things": things})


def build_tokenizer(vocabulary: list[str]) -> Tokenizer:
    """Whole words where they are in ``vocabulary``, characters elsewhere; capitals and accents do not count."""
    tokenizer = Tokenizer(models.Unigram(pieces(vocabulary), unk_id=UNKNOWN))
    special = [AddedToken(s, special=True, normalized=False) for s in SPECIAL.values()]
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), SPACE),
            normalizers.Prepend(SPACE),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(SPACE, "always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[BOS]} $A", special_tokens=[(SPECIAL[BOS], BOS)]
    )
    return tokenizer


def pieces(vocabulary: list[str]) -> list[tuple[str, float]]:
    """(piece, log-probability) in the order of their ids. Raises ``ValueError`` where they are too many.

    A word is likelier than its characters; one that a longer word merely begins with helps to spell that ("balls").
    """
    known = [SPACE + word for word in vocabulary if word not in string.punctuation]
    ordered = [(c, -8.0) for c in CHARACTERS] + [(word, -2.0) for word in known]
    for number, piece in sorted(SPECIAL.items()):
        ordered.insert(number, (piece, -20.0))
    most = TEXT_ENCODER["vocab_size"]
    if len(ordered) > most:
        raise ValueError(
            f"The tokenizer may have {most} pieces and would have {len(ordered)}; take {len(ordered) - most} words "
            "out of the grammar."
        )
    return ordered


def _write(file: Path, data: dict) -> None:
    file.write_text(json.dumps(data, indent=2))
