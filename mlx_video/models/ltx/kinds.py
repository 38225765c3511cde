"""Checks a config's values against its fields' annotations, and against sizes that no model has."""

import math
from enum import Enum
from reprlib import Repr
from types import NoneType, UnionType
from typing import Mapping, Union, get_args, get_origin

from mlx_video.errors import UserError

LARGEST = 2**20  # of any whole number in a config; widths and rates stay far below
MOST = 1024  # layers, blocks or heads, and entries of a list
COUNTS = ("num_", "layers", "depth", "multiplier")  # in the names of such numbers

LONGEST = 120  # letters of a value in a message

WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "an object",
    tuple: "a list",
    NoneType: "null",
}
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlevel = 3


def conform(owner: str, key: str, value: object, kind: type) -> object:
    """``value`` of key ``key``, converted to ``kind``.

    Raises ``UserError`` naming the key if it is of another kind, or so large that building it would hang.
    """
    try:
        found = _of_kind(value, kind)
    except TypeError:
        raise UserError(
            f"{owner}: {key} must be {_words(kind)}; got {short(value)}."
        ) from None
    _check_size(owner, key, found)
    return found


def short(value: object) -> str:
    """A value from a file, for a message: escaped, and cut if it is long."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of more than 70 digits"
    text = _SHORT.repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _of_kind(value: object, kind: type) -> object:
    origin, kinds = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return _first_of(value, kinds)
    if origin is tuple:
        return _items(value, kinds)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _member(value, kind)
    if kind is float and type(value) is int:
        return float(value) if abs(value) <= LARGEST else value
    if not isinstance(value, origin) or isinstance(value, bool) and kind is not bool:
        raise TypeError
    return value


def _first_of(value: object, kinds: tuple[type, ...]) -> object:
    for kind in kinds:
        try:
            return _of_kind(value, kind)
        except TypeError:
            continue
    raise TypeError


def _items(value: object, kinds: tuple[type, ...]) -> tuple:
    """A list as a tuple: of any items, of one kind (``tuple[int, ...]``), or of one kind each."""
    if not isinstance(value, (list, tuple)):
        raise TypeError
    if not kinds:
        return tuple(_items(v, ()) if isinstance(v, list) else v for v in value)
    if kinds[-1] is ...:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise TypeError
    return tuple(map(_of_kind, value, kinds))


def _member(value: object, kind: type[Enum]) -> Enum:
    for member in kind:
        if value is member or value == member.value:
            return member
    raise TypeError


def _words(kind: type) -> str:
    origin, kinds = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, kinds))
    if origin is tuple and kinds[-1:] == (...,):
        return f"a list of values, each {_words(kinds[0])}"
    if origin is tuple and kinds:
        return f"a list of {len(kinds)} values ({', '.join(map(_words, kinds))})"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " or ".join(str(member.value) for member in kind)
    return WORDS.get(origin, "an object")


def _check_size(owner: str, key: str, value: object) -> None:
    """Raise ``UserError`` for a number or a list that would take forever to build, at any depth."""
    if isinstance(value, Mapping):
        for inner, each in value.items():
            _check_size(owner, f"{key}.{inner}", each)
    elif isinstance(value, tuple):
        _check_number(owner, f"the length of {key}", len(value), 0, MOST)
        for each in value:
            _check_size(owner, key, each)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{owner}: {key} must be a finite number; got {value}.")
    elif isinstance(value, int) and not isinstance(value, bool):
        counted = any(word in key.rpartition(".")[2] for word in COUNTS)
        least, most = (0, MOST) if counted else (1, LARGEST)
        _check_number(owner, key, value, least, most)


def _check_number(owner: str, name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise UserError(
            f"{owner}: {name} must be from {least} to {most:,}; got {short(value)}. The file may be damaged."
        )
