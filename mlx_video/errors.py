"""Errors by who can fix them: bad input is a ``UserError``; anything else is a bug here or a fault of the machine."""

import unicodedata


class UserError(ValueError):
    """Bad input, in one sentence that names the value, the rule and a value that works."""


class DiskFullError(UserError):
    """A disk has no room for what is to be written there."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that was named is not there."""


def check_text(text: str, what: str) -> None:
    """Raise ``UserError`` where ``text`` holds terminal controls, other than newline and tab, or broken characters."""
    kinds = {c: unicodedata.category(c) for c in text if not c.isprintable()}
    if "Cs" in kinds.values():
        raise UserError(f"{what} is not valid text; type it in UTF-8.")
    if strange := [c for c in kinds if c not in ALLOWED and kinds[c] in STEERING]:
        raise UserError(
            f"{what} holds a control character, {ascii(strange[0])}; leave it out."
        )


STEERING = ("Cc", "Cf", "Zl", "Zp")  # Unicode categories
ALLOWED = "\n\t\u200c\u200d"  # in spite of them; the last two join letters and emoji
