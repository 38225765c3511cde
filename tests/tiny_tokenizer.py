"""A tokenizer for the tiny Gemma, whose fixture has none: Gemma's special ids and conventions in 282 pieces.

Pieces are whole words of film language and the printable ASCII characters; anything else is the unknown token.
"""

import json
import shutil
import string
from functools import cache
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    processors,
)

from tests.reference import TINY

PAD, EOS, BOS, UNKNOWN, START_OF_TURN, END_OF_TURN = 0, 1, 2, 3, 105, 106
SPECIAL = {
    PAD: "<pad>",
    EOS: "<eos>",
    BOS: "<bos>",
    UNKNOWN: "<unk>",
    START_OF_TURN: "<start_of_turn>",
    END_OF_TURN: "<end_of_turn>",
}
WORDS = """
a above across after air all along and around at away back background beach begins behind below bird black blue boat
body bright brown by calm camera car cat chair child city clear close cloud cold color comes cool dark day deep dog door
down drifts dust early edge evening eyes face falls far field film fire floor flows fog follows for forest frame from
front gentle glass glow golden grass gray green ground hair hand hands head hear her high hill his holds hum in inside
into is it its land large leaves left lens light lights long looks low man mist moon morning motion mountain moves music
near night of off old on one open orange out over pans path people person plays quiet rain red right rises river road
rock room run sand scene sea shadow she shot sky slow slowly small smoke snow soft softly sound stands stone street sun
table tall the their through to toward tree turns two under up voice walks wall warm water waves white wide wind window
with woman wood young
""".split()


def make_text_encoder_folder(target: Path, longest: int = 384) -> Path:
    """Write the fixture's Gemma and a tokenizer for it into the folder ``target``; returns ``target``.

    ``longest`` has room for the default negative prompt; runs are cheaper than with 1024 tokens, which enhancing takes.
    """
    shutil.copytree(TINY / "text_encoder", target, dirs_exist_ok=True)
    write_tokenizer(target, longest)
    return target


def write_tokenizer(folder: Path, longest: int = 131072) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``. It has no chat template."""
    (folder / "tokenizer.json").write_text(_written(), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": longest,
        "pad_token": SPECIAL[PAD],
        "eos_token": SPECIAL[EOS],
        "bos_token": SPECIAL[BOS],
        "unk_token": SPECIAL[UNKNOWN],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


@cache
def _written() -> str:
    return build_tokenizer().to_str(pretty=True)


def build_tokenizer() -> Tokenizer:
    """As Gemma's: spaces become U+2581, text begins with BOS, pieces are joined without cleaning."""
    tokenizer = Tokenizer(models.Unigram(_vocabulary(), unk_id=UNKNOWN))
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in SPECIAL.values()
        ]
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[BOS]} $A", special_tokens=[(SPECIAL[BOS], BOS)]
    )
    return tokenizer


def _vocabulary() -> list[tuple[str, float]]:
    """(piece, log-probability) in id order: a whole word is likelier than its characters."""
    characters = string.ascii_letters + string.digits + string.punctuation + "\n▁"
    pieces = [(c, -8.0) for c in characters] + [("▁" + word, -2.0) for word in WORDS]
    ordered = iter(pieces)
    return [
        (SPECIAL[i], -20.0) if i in SPECIAL else next(ordered)
        for i in range(len(SPECIAL) + len(pieces))
    ]
