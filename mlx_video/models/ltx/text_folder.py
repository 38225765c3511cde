"""What a text encoder's folder states: where its tokenizer is, the longest prompt, and what a small model can draw."""

from pathlib import Path
from typing import NamedTuple

from mlx_video.errors import UserError
from mlx_video.weights import read_json

TOKENIZER_CONFIG = "tokenizer_config.json"
MAX_TOKENS = 1024  # of a prompt, including BOS: the context that LTX-2 was trained with
KNOWS = "knows.json"


def tokenizer_folder(text_encoder: Path) -> Path | None:
    """The folder of the tokenizer: Gemma's, or ``tokenizer`` beside it."""
    names = ("tokenizer.json", "tokenizer.model")
    folders = (text_encoder, text_encoder.parent / "tokenizer")
    return next((f for f in folders if any((f / n).exists() for n in names)), None)


def max_tokens(text_encoder: Path) -> int:
    """The most tokens of a prompt, and positions of its context: 1024, or fewer if the tokenizer says so."""
    file = (tokenizer_folder(text_encoder) or text_encoder) / TOKENIZER_CONFIG
    stated = read_json(file).get("model_max_length")
    stated = MAX_TOKENS if stated is None else stated
    if type(stated) not in (int, float) or not stated >= 1:  # true is no number
        raise UserError(
            f"{file}: model_max_length must be a number of tokens, such as {MAX_TOKENS}; got {stated!r}."
        )
    return int(min(MAX_TOKENS, stated))


class Subjects(NamedTuple):
    """What a model that was trained on few things can draw.

    name    of the model
    draws   what it can draw, in words
    things  the words for those things, each of which a clip shows at most once
    """

    name: str
    draws: str
    things: frozenset[str]

    @classmethod
    def read(cls, text_encoder: Path) -> "Subjects | None":
        """From a text encoder's folder; ``None`` if it has no such file, as for large models."""
        if not (data := read_json(text_encoder / KNOWS)):
            return None
        name, draws, things = map(data.get, cls._fields)
        words = isinstance(things, list) and all(isinstance(t, str) for t in things)
        if not words or not isinstance(name, str) or not isinstance(draws, str):
            raise UserError(
                f'{text_encoder / KNOWS} must hold two texts, "name" and "draws", and "things", a list of words.'
            )
        return cls(name, draws, frozenset(things))
