"""Errors by who can fix them: ``UserError`` is bad input; anything else is a bug or a fault of the machine."""

import json
import re
import unicodedata
from typing import Mapping


class UserError(ValueError):
    """Bad input, in one sentence that names the value, the rule and a value that works."""


class DiskFullError(UserError):
    """A disk has no room for a file to write."""


class MissingFileError(UserError, FileNotFoundError):
    """A named file or folder does not exist."""


def field_error(error: Mapping) -> str:
    """A sentence on one of the errors that pydantic lists, with the field's name: "seed must be a valid integer; got 'x'."."""
    steps = [clip(str(step), 40) for step in error["loc"]]
    place = ".".join(steps[steps[:1] in (["body"], ["query"]) :]) or "It"
    match error["type"]:
        case "missing":
            return f"{place} is missing."
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"{place} is unknown."
        case "string_too_short":
            return f"The {place} is empty; try 'a red ball bounces on a blue floor'."
        case "json_invalid":
            return f"It is not JSON ({error['ctx']['error']})."
        case "union_tag_not_found":
            return f"{place} has no kind."
        case "union_tag_invalid":
            return f"{place}: its kind must be one of {error['ctx']['expected_tags']}."
        case "value_error":  # a sentence of ours
            return f"{place}: {error['ctx']['error']}"
    said = f"{place}: {error['msg']}"
    for theirs, ours in OUR_WORDS.items():
        said = re.sub(theirs, ours, said)
    return f"{clip(said, 200)}; got {clip(repr(error['input']), 60)}."


OUR_WORDS = {  # for pydantic's
    ": (Input|String|List|Dictionary) should": " must",
    "less than or equal to": "at most",
    "greater than or equal to": "at least",
}


def clip(text: object, most: int = 80) -> str:
    """``text``, or another value as JSON, cut to ``most`` characters for a message."""
    text = text if isinstance(text, str) else json.dumps(text, default=str)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def check_text(text: str, what: str) -> None:
    """Raise ``UserError`` if ``text`` holds control characters other than newline and tab, or broken characters."""
    kinds = {c: unicodedata.category(c) for c in text if not c.isprintable()}
    if "Cs" in kinds.values():
        raise UserError(f"{what} is not valid text; type it in UTF-8.")
    if strange := [c for c in kinds if c not in ALLOWED and kinds[c] in STEERING]:
        raise UserError(
            f"{what} holds a control character, {ascii(strange[0])}; leave it out."
        )


STEERING = ("Cc", "Cf", "Zl", "Zp")  # Unicode categories
ALLOWED = "\n\t\u200c\u200d"  # nevertheless; the last two join letters and emoji
