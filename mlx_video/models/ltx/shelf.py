"""Where parts stay loaded between runs. Knows when a part is the same one, not what is worth keeping."""

from typing import Mapping

import mlx.core as mx

from mlx_video.models.ltx.network import Network

Mark = object
"""All that a part was made of: where it lies, how it is kept, what was fused into it. Equal marks, equal weights."""


class Shelf:
    """Holds at most one part of each name; whatever is taken down and not used is freed."""

    def __init__(self):
        self._parts: dict[str, tuple[Mark, Network]] = {}

    def take(self, name: str, mark: Mark) -> Network | None:
        """The part ``name``, if it is the one that ``mark`` describes; another of that name is freed."""
        found, part = self._parts.pop(name, (None, None))
        if part is not None and found != mark:
            _free(part)
            return None
        return part

    def put(self, name: str, mark: Mark, part: Network) -> None:
        self._parts[name] = mark, part

    def clear(self, but: Mapping[str, Mark] = {}) -> None:
        """Free all parts but these."""
        for name in list(self._parts):
            if self._parts[name][0] != but.get(name):
                _free(self._parts.pop(name)[1])

    @property
    def names(self) -> set[str]:
        return set(self._parts)


def _free(part: Network) -> None:
    """The module is empty afterwards, whoever still holds it."""
    part.network.clear()
    mx.clear_cache()
