"""How argparse reads a command line, and what is said about words that make no sense. Does not know which options exist.

Options default to ``None``, so that what was typed is known; the real defaults are filled in after.
"""

import argparse
import difflib
import re
from functools import partial
from typing import Callable, Iterable, NoReturn, Sequence

from mlx_video.errors import UserError

# What argparse says of an option and its value -> what we say; the first names the option alone.
OUR_WORDS = {
    r"^argument ([^:/ ]+)[^:]*: ": r"\1: ",
    r"^(\S+): (must .*)": r"\1 \2.",
    r"^(\S+): invalid int value: (.*)": r"\1 takes a whole number; got \2.",
    r"^(\S+): invalid float value: (.*)": r"\1 takes a number; got \2.",
    r"^(\S+): expected .*argument.*": r"\1 needs a value after it; see --help.",
    r"^the following arguments are required: (.*)": r"\1 is missing; see --help.",
}
# An option of other ports of LTX-2 that is gone -> what to do.
GONE = {
    "--image-strength": "the strength follows the frame, as in --image cat.png 0 0.8.",
    "--image-frame-idx": "the frame follows the picture, as in --image cat.png 8.",
    "--stream": "every clip is written while it is decoded; leave it out.",
    "--max-tokens": "Gemma ends an enhanced prompt itself; leave it out.",
    "--temperature": "another --seed gives another enhanced prompt; leave it out.",
}
Add = Callable[..., None]  # ``option``, of one group
NEAR = 0.75  # how alike a word must be to what may have been meant


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are ``UserError``s of one sentence."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise ``UserError`` for what argparse says of a mistake, in our words."""
        for theirs, ours in OUR_WORDS.items():
            message = re.sub(theirs, ours, message)
        raise UserError(message)

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The arguments in ``words``; ``typed`` maps those that were typed to their option.

        A word that nothing takes is reported by the parser of the subcommand, which the arguments hold as ``command``.
        """
        args, unknown = self.parse_known_args(words)
        command = getattr(args, "command", self)
        # A positional argument would take the value after a mistyped option, and that would be reported instead.
        if getattr(args, "prompt", "") is None and [*map(_says, unknown)] == [True]:
            args.prompt = unknown.pop()
        if unknown:
            options = [word for word in unknown if word.startswith("-")]
            command.error(command._about([*options, *unknown][0]))
        args.typed = {}
        for action in command._actions:
            if getattr(args, action.dest, None) is not None and action.option_strings:
                args.typed[action.dest] = action.option_strings[0]
            elif action.dest in args and hasattr(action, "real"):
                setattr(args, action.dest, action.real)
        return args

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Raise ``UserError`` for a value that is not among the choices; names the nearest."""
        if action.choices is None or value in action.choices:
            return
        choices = list(map(str, action.choices))
        otherwise = f"choose from {', '.join(choices)}."
        if isinstance(action, argparse._SubParsersAction):
            if _says(value):
                otherwise += f" Or is it a prompt? `mlx-video generate {value}`."
            hint = _hint(value, choices, otherwise)
            self.error(f"There is no command {value!r}; {hint}")
        hint = _hint(str(value), choices, otherwise)
        what = [*action.option_strings, action.dest][0]
        self.error(f"{what} cannot be {str(value)!r}; {hint}")

    def _about(self, word: str) -> str:
        """The error for a word that nothing takes."""
        options = self._option_string_actions  # argparse has no public list of them
        if not word.startswith("-"):
            told = "--prompt" in options
            hint = "Put a prompt in quotes after --prompt" if told else "See --help"
            return f"Unexpected word {word!r}. {hint}."
        flag = word.partition("=")[0]
        if flag in GONE and "--prompt" in options:
            return f"There is no option {flag} any more: {GONE[flag]}"
        return f"There is no option {flag}; {_hint(flag, options, 'see --help.')}"


def group(parser: argparse.ArgumentParser, title="", about: str | None = None) -> Add:
    """What adds to a new group of options, as ``option`` does; without a title, to those of the parser itself."""
    return partial(option, parser.add_argument_group(title, about) if title else parser)


def option(
    to: argparse._ActionsContainer, names: str, about: str, real=None, **how
) -> None:
    """Add an option with the default ``real``, which ``Parser.read`` fills in and help shows, if it is a word or a number.

    ``names`` are its flags, spaces between; ``how`` goes to argparse.
    """
    if isinstance(real, str | int | float) and not isinstance(real, bool):
        about += f" (default: {real})"
    to.add_argument(*names.split(), default=None, help=about, **how).real = real


def flag(add: Add, names: str, about: str, real: bool = False, **how) -> None:
    """Have ``add`` add an option without a value: ``real`` unless it is typed, and then the opposite."""
    add(names, about, real, action=f"store_{str(not real).lower()}", **how)


def _says(word: str) -> bool:
    """Whether a word that stands alone may be a prompt: a sentence in quotes or a plain word, no option, number or file."""
    return word[:1] != "-" and (" " in word or word.isalpha() or not word)


def _hint(word: str, choices: Iterable[str], otherwise: str) -> str:
    """Which of ``choices`` may have been meant by ``word``."""
    near = difflib.get_close_matches(word, choices, n=1, cutoff=NEAR)
    return f"did you mean {near[0]}?" if near else otherwise
