"""How a command line is read, and what is said of words that make no sense there; not which options there are."""

import argparse
import difflib
import sys
from typing import NoReturn, Sequence


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistake with one sentence and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")

    def read(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """The arguments in ``argv``, by default the process's, with the options among its words as ``typed``.

        Of a word that nothing takes, the parser speaks that the arguments hold as ``command``, if there is one.
        """
        words = sys.argv[1:] if argv is None else argv
        args, unknown = self.parse_known_args(words)
        if unknown:
            command = getattr(args, "command", self)
            command.error(command._about(unknown[0]))
        flags = (word.partition("=")[0] for word in words if word.startswith("-"))
        args.typed = frozenset(f if f.startswith("--") else f[:2] for f in flags)
        return args

    def _about(self, word: str) -> str:
        """What to say of a word that nothing takes."""
        options = self._option_string_actions  # argparse has no public list of them
        if not word.startswith("-"):
            told = "--prompt" in options
            hint = "a prompt comes after --prompt, in quotes" if told else "see --help"
            return f"{word!r} belongs to no option; {hint}."
        flag = word.partition("=")[0]
        near = difflib.get_close_matches(flag, options, n=1)
        hint = f"did you mean {near[0]}?" if near else "see --help."
        return f"There is no option {flag}; {hint}"
