"""The base of every config: what each key of the official ``config`` JSON means here.

A key is a field that is used, has a fixed value, or means nothing at inference. Any other key, any other value of a fixed
one, and a value that does not fit the field's annotation, stop the load by name.
"""

from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from typing import ClassVar, Mapping, get_type_hints

from mlx_video.errors import UserError
from mlx_video.models.ltx.kinds import conform, short


@dataclass(frozen=True)
class Config:
    """Base of every part's configuration.

    ``FIXED`` names keys with the one value that is implemented, ``UNUSED`` keys that mean nothing to the part, and
    ``REQUIRED`` those that a file must state though the field has a default.
    """

    FIXED: ClassVar[Mapping[str, object]] = {}
    UNUSED: ClassVar[frozenset[str]] = frozenset()
    REQUIRED: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Config":
        """Build from the official JSON block; raises ``UserError`` naming keys that are unknown, missing or of a wrong value."""
        kinds = _kinds(cls)
        for key, value in data.items():
            if key in cls.FIXED and value != cls.FIXED[key]:
                raise UserError(
                    f"{cls.__name__}: {key} = {short(value)} is not implemented by this version of mlx-video, "
                    f"which knows only {cls.FIXED[key]!r}. The checkpoint may need a newer mlx-video."
                )
        if unknown := sorted(
            data.keys() - kinds.keys() - cls.FIXED.keys() - cls.UNUSED
        ):
            raise UserError(
                f"{cls.__name__}: unknown keys {', '.join(map(_plain, unknown[:5]))}; this version of mlx-video cannot tell what they "
                "change. The checkpoint may need a newer mlx-video."
            )
        required = [f.name for f in fields(cls) if f.name in cls.REQUIRED or _needed(f)]
        if absent := [name for name in required if name not in data]:
            raise UserError(f"{cls.__name__}: the config lacks {', '.join(absent)}.")
        stated = [key for key in kinds if key in data]
        return cls(**{k: conform(cls.__name__, k, data[k], kinds[k]) for k in stated})


@cache
def _kinds(config: type["Config"]) -> Mapping[str, type]:
    """The annotation of each field."""
    hints = get_type_hints(config)
    return {field.name: hints[field.name] for field in fields(config)}


def _plain(key: str) -> str:
    """A key from a file, for a message."""
    return key if key.isidentifier() and len(key) < 60 else short(key)


def _needed(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
