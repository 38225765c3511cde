"""An extension of mkdocstrings that shows the columns of a docstring, "name  meaning", as a list."""

import re
from typing import Iterator

from griffe import Extension

ROW = re.compile(r"^(\w+(?:, \w+)*) {2,}(\S.*)$")


class Columns(Extension):
    def on_object(self, *, obj, **_) -> None:
        if obj.docstring:
            obj.docstring.value = "\n".join(_listed(obj.docstring.value.splitlines()))


def _listed(lines: list[str]) -> Iterator[str]:
    inside = False
    for line in lines:
        row = ROW.match(line)
        if row:
            names = ", ".join(f"`{name}`" for name in row[1].split(", "))
            yield ("" if inside else "\n") + f"- {names}: {row[2]}"
        elif inside and line.startswith("  "):
            yield f"    {line.strip()}"
        else:
            yield f"\n{line}" if inside else line
        inside = bool(row) or inside and line.startswith("  ")
