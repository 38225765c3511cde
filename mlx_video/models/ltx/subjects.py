"""What a small model can draw, as its text encoder's folder states. Knows no tokenizer."""

from pathlib import Path
from typing import NamedTuple

from mlx_video.errors import UserError
from mlx_video.weights import read_json

FILE = "knows.json"  # in the text encoder's folder


class Subjects(NamedTuple):
    """What a model that was trained on few things can draw.

    name    of the model
    draws   what it can draw, in words
    things  the words for those things
    """

    name: str
    draws: str
    things: frozenset[str]

    @classmethod
    def read(cls, text_encoder: Path) -> "Subjects | None":
        """From a text encoder's folder; ``None`` if it has no such file, as for large models."""
        if not (data := read_json(text_encoder / FILE)):
            return None
        name, draws, things = map(data.get, cls._fields)
        words = isinstance(things, list) and all(isinstance(t, str) for t in things)
        if not words or not isinstance(name, str) or not isinstance(draws, str):
            raise UserError(
                f'{text_encoder / FILE} must hold two texts, "name" and "draws", and "things", a list of words.'
            )
        return cls(name, draws, frozenset(things))
