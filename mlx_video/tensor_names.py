"""Names of a network's tensors in official files and here: one table, read in both directions. Knows no tensors."""

import re
from functools import cache
from typing import Mapping, TypeVar

X = TypeVar("X")


class TensorNames:
    """The official names of a network's tensors, and ours.

    prefixes  official prefix -> ours, which may be empty; ``None`` marks tensors of other networks. The longest matching
              prefix applies; of several official ones for one of ours, the first.
    tables    official pattern -> ours, for the rest of a name. ``*`` is any text, the same on both sides and as short as
              possible. Each table applies its first pattern that matches the whole name; tables apply in order, or in
              reverse towards the official name.
    """

    def __init__(self, prefixes: Mapping[str, str | None], *tables: Mapping[str, str]):
        pairs = reversed(prefixes.items())  # so that of several, the first stays
        inverse = {ours: official for official, ours in pairs if ours is not None}
        self._to_ours, self._to_official = prefixes, inverse
        self._forward = [[_rule(*pair) for pair in t.items()] for t in tables]
        self._backward = [[_rule(b, a) for a, b in t.items()] for t in reversed(tables)]

    @cache
    def ours(self, official: str) -> str | None:
        """Our name for an official one; ``None`` if the tensor belongs to another network."""
        return _translated(official, self._to_ours, self._forward)

    @cache
    def official(self, ours: str) -> str:
        """The official name for one of ours."""
        found = _translated(ours, self._to_official, self._backward)
        if found is None:
            raise KeyError(f"{ours} is not a name of this network")
        return found

    def take(self, weights: Mapping[str, X]) -> dict[str, X] | None:
        """The values of this network in official ``weights``, under our names; ``None`` if they have those already."""
        if not any(key.startswith(tuple(self._to_ours)) for key in weights):
            return None
        named = ((self.ours(key), value) for key, value in weights.items())
        return {key: value for key, value in named if key is not None}


Rule = tuple[re.Pattern, str]


def _rule(old: str, new: str) -> Rule:
    """Pattern and template that turn ``old`` into ``new``; both have one ``*`` per piece of text that stays."""
    if old.count("*") != new.count("*"):
        raise ValueError(f"{old!r} and {new!r} must have as many * as each other")
    pattern = re.escape(old).replace(r"\*", "(.*?)")
    template = new.replace("*", "{}")
    return re.compile(pattern), template


def _translated(
    name: str, prefixes: Mapping[str, str | None], tables: list[list[Rule]]
) -> str | None:
    """``name`` with its prefix replaced and its rest renamed; ``None`` if it has none of ``prefixes``."""
    prefix = max(filter(name.startswith, prefixes), key=len, default="")
    if (start := prefixes.get(prefix)) is None:
        return None
    name = name.removeprefix(prefix)
    for table in tables:
        for pattern, template in table:
            if found := pattern.fullmatch(name):
                name = template.format(*found.groups())
                break
    return start + name
