"""Reads a command line with argparse, and explains wrong words. Does not know which options exist."""

import argparse
import difflib
import re
import shlex
from functools import partial
from itertools import takewhile
from typing import Callable, Iterable, NoReturn, Sequence

from mlx_video.errors import UserError, clip

# argparse's errors -> ours; the first reduces an option to its first name.
OUR_WORDS = {
    r"^argument ([^:/ ]+)[^:]*: ": r"\1: ",
    r"^(\S+): (must .*)": r"\1 \2.",
    r"^(\S+): invalid int value: (.*)": r"\1 takes a whole number; got \2.",
    r"^(\S+): invalid float value: (.*)": r"\1 takes a number; got \2.",
    r"^(\S+): expected .*argument.*": r"\1 needs a value after it; see --help.",
    r"^the following arguments are required: (.*)": r"\1 is missing; see --help.",
}
# Options of other ports of LTX-2 that do not exist here -> what to do.
GONE = {
    "--image-strength": "the strength follows the frame, as in --image cat.png 0 0.8.",
    "--image-frame-idx": "the frame follows the picture, as in --image cat.png 8.",
    "--stream": "every clip is written while it is decoded; leave it out.",
    "--max-tokens": "Gemma ends an enhanced prompt itself; leave it out.",
    "--temperature": "another --seed gives another enhanced prompt; leave it out.",
}
# Options of diffusers -> ours.
CALLED = {"--guidance-scale": "--cfg-scale", "--num-inference-steps": "--steps"}
Add = Callable[..., None]  # ``option`` for one group
NEAR = 0.75  # similarity from which a word is suggested


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ``UserError``s with one sentence."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise argparse's error as a ``UserError`` in our words."""
        for theirs, ours in OUR_WORDS.items():
            message = re.sub(theirs, ours, message)
        raise UserError(message)

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The arguments in ``words``; ``typed`` maps those that were typed to their option."""
        self.words = words
        args, unknown = self.parse_known_args(words)
        command = getattr(args, "command", self)
        # A positional argument would take the value after a mistyped option, and that would be reported instead.
        quoted = [word for word in unknown if _says(word) and " " in word][:1]
        may_be = quoted or unknown
        if getattr(args, "prompt", "") is None and [*map(_says, may_be)] == [True]:
            args.prompt = may_be[0]
            unknown.remove(args.prompt)
        if unknown:
            options = [word for word in unknown if word.startswith("-")]
            prompt = getattr(args, "prompt", None)
            command.error(command._about([*options, *unknown][0], prompt))
        args.typed = {}
        for action in command._actions:
            if getattr(args, action.dest, None) is not None and action.option_strings:
                args.typed[action.dest] = action.option_strings[0]
            elif action.dest in args and hasattr(action, "real"):
                setattr(args, action.dest, action.real)
        return args

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Raise ``UserError``, naming the nearest choice, for a value that is not a choice."""
        if action.choices is None or value in action.choices:
            return
        choices = list(map(str, action.choices))
        otherwise = f"choose from {', '.join(choices)}."
        said = f"{[*action.option_strings, action.dest][0]} cannot be"
        if isinstance(action, argparse._SubParsersAction):
            said = "There is no command"
            if _says(value):
                words = " ".join(takewhile(lambda w: w[:1] != "-", self.words))
                otherwise += (
                    f" Or is it a prompt? `mlx-video generate {shlex.quote(words)}`."
                )
        value = str(value)
        self.error(f"{said} {value!r}; {_hint(value, choices, otherwise)}")

    def _about(self, word: str, prompt: str | None) -> str:
        """The error for a word that no option takes."""
        options = self._option_string_actions  # argparse has no public list of them
        if not word.startswith("-"):
            told = "--prompt" in options and not re.search(r"\w[./]\w", word)  # a file
            hint = "Put a prompt in quotes after --prompt" if told else "See --help"
            if prompt and told:
                another = ", or leave one out" if " " in word else ""
                hint = f"The prompt is {clip(prompt, 40)!r}; put all of it in one pair of quotes{another}"
            return f"Unexpected word {word!r}. {hint}."
        flag = word.partition("=")[0]
        if flag in GONE and "--prompt" in options:
            return f"There is no option {flag} any more: {GONE[flag]}"
        if CALLED.get(flag) in options:
            return f"There is no option {flag}; ours is {CALLED[flag]}."
        return f"There is no option {flag}; {_hint(flag, options, 'see --help.')}"


def group(parser: argparse.ArgumentParser, title="", about: str | None = None) -> Add:
    """A function like ``option`` for a new group of options, or without a title for the parser itself."""
    return partial(option, parser.add_argument_group(title, about) if title else parser)


def option(
    to: argparse._ActionsContainer, names: str, about: str, real=None, **how
) -> None:
    """Add an option with ``names`` such as "--output -o" and the default ``real``; ``how`` goes to argparse.

    For argparse the default is ``None``, so that ``Parser.read`` knows what was typed before it fills in ``real``.
    """
    if isinstance(real, str | int | float) and not isinstance(real, bool):
        about += f" (default: {real})"
    to.add_argument(*names.split(), default=None, help=about, **how).real = real


def flag(add: Add, names: str, about: str, real: bool = False, **how) -> None:
    """Add an option without a value: ``real`` by default, and the opposite if it is typed."""
    add(names, about, real, action=f"store_{str(not real).lower()}", **how)


def _says(word: str) -> bool:
    """Whether a single word may be a prompt: a quoted sentence or a plain word, but not an option, number or file."""
    return word[:1] != "-" and (" " in word or word.isalpha() or not word)


def _hint(word: str, choices: Iterable[str], otherwise: str) -> str:
    """A suggestion from ``choices`` for ``word``, also for its beginning; or ``otherwise``."""
    near = difflib.get_close_matches(word, choices, n=1, cutoff=NEAR)
    if not near and len(word) > 2:  # "in" begins a prompt
        near = [choice for choice in choices if choice.startswith(word)]
    near = near if len(near) == 1 else []
    return f"did you mean {near[0]}?" if near else otherwise
