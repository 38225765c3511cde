"""The base of every config, which reads the official ``config`` JSON: unknown keys and unsupported values raise."""

import math
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from functools import cache, partial
from reprlib import Repr
from types import NoneType, UnionType
from typing import (
    AbstractSet,
    ClassVar,
    Literal,
    Mapping,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from mlx_video.errors import UserError

LARGEST = 2**20  # whole number in a config; widths and rates stay far below
MOST = 1024  # layers, blocks or heads, and entries of a list
COUNTS = ("num_", "layers", "depth", "multiplier")  # parts of the names of such counts

LONGEST = 120  # characters of a value in a message

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


@dataclass(frozen=True)
class Config:
    """Base of every part's configuration.

    ``FIXED`` names keys with the only value that is implemented, ``UNUSED`` keys that the part ignores, and ``REQUIRED``
    keys that a file must state although the field has a default. ``SILENT`` has what the official code assumes for keys
    that a file leaves out, where our default differs. ``POSITIVE`` = no number may be 0 or less, and no list empty.
    """

    FIXED: ClassVar[Mapping[str, object]] = {}
    SILENT: ClassVar[Mapping[str, object]] = {}
    UNUSED: ClassVar[AbstractSet[str]] = set()
    REQUIRED: ClassVar[tuple[str, ...]] = ()
    POSITIVE: ClassVar[bool] = False

    @classmethod
    def fits(cls, block: Mapping[str, object]) -> bool:
        """Whether ``block`` is a config of this kind; the last of a part's kinds fits any."""
        return True

    @classmethod
    def from_dict(
        cls, data: Mapping[str, object], fixed: Mapping[str, object] = {}
    ) -> "Config":
        """Build from the official JSON block; raises ``UserError`` naming keys that are unknown, missing or wrong.

        ``fixed`` adds keys to ``FIXED`` whose value depends on other keys.
        """
        data = {**cls.SILENT, **data}
        kinds, fixed = _kinds(cls), {**cls.FIXED, **fixed}
        for key, value in data.items():
            if key in fixed and value != fixed[key]:
                raise UserError(
                    f"{cls.__name__}: {key} = {short_repr(value)} is not implemented by this version of mlx-video, "
                    f"which knows only {fixed[key]!r}. The checkpoint may need a newer mlx-video."
                )
        if unknown := sorted(data.keys() - kinds.keys() - fixed.keys() - cls.UNUSED):
            raise UserError(
                f"{cls.__name__}: unknown keys {', '.join(map(_plain, unknown[:5]))}; this version of mlx-video does not know what they "
                "change. The checkpoint may need a newer mlx-video."
            )
        needed = {f.name for f in fields(cls) if f.default is MISSING} | {*cls.REQUIRED}
        if absent := [key for key in kinds if key in needed - data.keys()]:
            raise UserError(f"{cls.__name__}: the config lacks {', '.join(absent)}.")
        read = partial(read_value, cls.__name__, cls.POSITIVE)
        return cls(
            **{k: read(k, data[k], kind) for k, kind in kinds.items() if k in data}
        )


def read_value(
    owner: str, positive: bool, key: str, value: object, kind: type
) -> object:
    """``value`` as ``kind``. Raises ``UserError`` if it is of another kind or out of range."""
    try:
        found = _of_kind(value, kind)
    except UserError:  # of a block within
        raise
    except (TypeError, ValueError):
        raise UserError(
            f"{owner}: {key} must be {_words(kind)}; got {short_repr(value)}."
        ) from None
    if problem := _outside(key, found, positive):
        raise UserError(f"{owner}: {problem}. The file may be damaged.")
    return found


@cache
def _kinds(config: type[Config]) -> Mapping[str, type]:
    hints = get_type_hints(config)
    return {field.name: hints[field.name] for field in fields(config)}


def _plain(key: str) -> str:
    """A key from a file, for a message."""
    return key if key.isidentifier() and len(key) < 60 else short_repr(key)


def short_repr(value: object) -> str:
    """A value from a file, for a message: escaped, and cut if it is long."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of more than 70 digits"
    text = _SHORT.repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _of_kind(value: object, kind: type) -> object:
    """``value``, converted to ``kind``; raises ``TypeError`` or ``ValueError`` if it is of another kind."""
    origin, kinds = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        for each in kinds:
            with suppress(TypeError, ValueError):
                return _of_kind(value, each)
        raise TypeError
    if origin is tuple:
        return _items(value, kinds)
    if origin is Literal:
        return kinds[kinds.index(value)]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if issubclass(origin, Config) and isinstance(value, Mapping):
        return kind.from_dict(value)
    if kind is float and type(value) is int:
        return float(value) if abs(value) <= LARGEST else value
    if not isinstance(value, origin) or isinstance(value, bool) and kind is not bool:
        raise TypeError
    return value


def _items(value: object, kinds: tuple[type, ...]) -> tuple:
    """A list as a tuple: of any items, of one kind (``tuple[int, ...]``), or of one kind each."""
    if not isinstance(value, (list, tuple)):
        raise TypeError
    if not kinds:
        return tuple(_items(v, ()) if isinstance(v, list) else v for v in value)
    if kinds[-1] is ...:
        kinds = kinds[:1] * len(value)
    return tuple(_of_kind(v, kind) for v, kind in zip(value, kinds, strict=True))


def _words(kind: type) -> str:
    origin, kinds = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, kinds))
    if origin is tuple and kinds[-1:] == (...,):
        return f"a list of values, each {_words(kinds[0])}"
    if origin is tuple and kinds:
        return f"a list of {len(kinds)} values ({', '.join(map(_words, kinds))})"
    if isinstance(kind, type) and issubclass(kind, Enum):
        kinds = [member.value for member in kind]
    return WORDS.get(origin) or " or ".join(kinds) or "an object"


def _outside(key: str, value: object, positive: bool) -> str:
    """What is out of range in ``value``, at any depth; empty if nothing is. Huge sizes would take forever to build."""
    if isinstance(value, Mapping):
        inner = (_outside(f"{key}.{k}", v, positive) for k, v in value.items())
        return next(filter(None, inner), "")
    if isinstance(value, tuple):
        inner = (_outside(key, each, positive) for each in value)
        length = _beyond(f"the length of {key}", len(value), int(positive), MOST)
        return length or next(filter(None, inner), "")
    if isinstance(value, float) and not math.isfinite(value):
        return f"{key} must be a finite number; got {value}"
    if isinstance(value, float) and positive and value <= 0:
        return f"{key} must be above 0; got {value}"
    if isinstance(value, int) and not isinstance(value, bool):
        counted = any(word in key.rpartition(".")[2] for word in COUNTS)
        least = 0 if counted and not positive else 1
        return _beyond(key, value, least, MOST if counted else LARGEST)
    return ""


def _beyond(name: str, value: int, least: int, most: int) -> str:
    if least <= value <= most:
        return ""
    return f"{name} must be from {least} to {most:,}; got {short_repr(value)}"
