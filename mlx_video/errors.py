"""Errors by who can fix them: ``UserError`` is bad input; anything else is a bug or a fault of the machine."""

import json
import re
import unicodedata
from contextlib import contextmanager
from typing import Iterator, Mapping


class UserError(ValueError):
    """Bad input, in one sentence that names the value, the rule and a value that works."""

    place: tuple[str, ...] = ()  # of a record's field, outermost first

    def at(self, *place: object) -> "UserError":
        """The error itself, with ``place`` before its own."""
        self.place = (*map(str, place), *self.place)
        return self


class DiskFullError(UserError):
    """A disk has no room for a file to write."""


class MissingFileError(UserError, FileNotFoundError):
    """A named file or folder does not exist."""


@contextmanager
def at(*place: object) -> Iterator[None]:
    """Put ``place`` before that of a ``UserError`` that is raised within."""
    try:
        yield
    except UserError as error:
        raise error.at(*place)


def field_error(error: Mapping) -> str:
    """A sentence on one of the errors that pydantic lists, with the field's name: "seed must be a valid integer; got 'x'."."""
    steps = [clip(str(step), 40) for step in error["loc"]]
    place = ".".join(steps[steps[:1] in (["body"], ["query"]) :]) or "It"
    if sentence := SENTENCES.get(error["type"]):
        return sentence.format(place=place, **error.get("ctx", {}))
    said = f"{place}: {error['msg']}"
    for theirs, ours in OUR_WORDS.items():
        said = re.sub(theirs, ours, said)
    given = error["input"]
    got = clip(repr(given) if isinstance(given, str) else given, 60)  # null, not None
    return f"{clip(said, 200)}; got {got}."


SENTENCES = {  # for pydantic's types of errors
    "missing": "{place} is missing.",
    "unexpected_keyword_argument": "{place} is unknown.",
    "extra_forbidden": "{place} is unknown.",
    "string_too_short": "The {place} is empty; try 'a red ball bounces on a blue floor'.",
    "json_invalid": "It is not JSON ({error}).",
    "union_tag_not_found": "{place} has no kind.",
    "union_tag_invalid": "{place}: its kind must be one of {expected_tags}.",
    "value_error": "{place}: {error}",  # a sentence of ours
}
OUR_WORDS = {  # for pydantic's
    ": (Input|String|List|Dictionary) should": " must",
    "less than or equal to": "at most",
    "greater than or equal to": "at least",
}


def clip(text: object, most: int = 80) -> str:
    """``text``, or another value as JSON, cut to ``most`` characters for a message."""
    text = text if isinstance(text, str) else json.dumps(text, default=str)
    return text if len(text) <= most else f"{text[: most - 3]}..."


JOINERS = "\u200c\u200d"  # of letters and emoji
ALLOWED = f"\n\t{JOINERS}"  # control characters that texts may hold
STEERING = ("Cc", "Cf", "Zl", "Zp")  # Unicode categories


def check_text(text: str, what: str, allowed: str = ALLOWED) -> None:
    """Raise ``UserError`` if ``text`` holds control characters that are not ``allowed``, or broken characters."""
    kinds = {c: unicodedata.category(c) for c in text if not c.isprintable()}
    if "Cs" in kinds.values():
        raise UserError(f"{what} is not valid text; type it in UTF-8.")
    if strange := [c for c in kinds if c not in allowed and kinds[c] in STEERING]:
        raise UserError(
            f"{what} holds a control character, {ascii(strange[0])}; leave it out."
        )


def check_name(name: str, what: str) -> None:
    """Raise ``UserError`` if ``name``, of a file or a repository, is empty or cannot be shown in one line."""
    if not name:
        raise UserError(f"{what} is empty; give the name of a file or folder.")
    check_text(name, what, allowed=JOINERS)
