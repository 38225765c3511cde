"""A config as a file states it: kinds that are not mixed up, and numbers that are converted or refused."""

from dataclasses import dataclass

import pytest

from mlx_video.errors import UserError
from mlx_video.models.ltx.loading.schema import Config


@dataclass(frozen=True)
class Small(Config):
    heads: int = 1
    scale: float = 1.0
    gated: bool = False
    sizes: tuple[int, ...] = ()


def test_a_whole_number_is_a_float_and_a_list_a_tuple():
    found = Small.from_dict({"scale": 2, "sizes": [1, 2]})
    assert found == Small(scale=2.0, sizes=(1, 2)) and type(found.scale) is float


@pytest.mark.parametrize(
    "key, value",
    [
        ("heads", True),
        ("scale", False),
        ("sizes", [1, True]),
        ("gated", 1),
        ("heads", 2.0),
        ("heads", "2"),
        ("sizes", 2),
    ],
)
def test_a_value_of_another_kind_is_refused(key, value):
    with pytest.raises(UserError, match=f"^Small: {key} must be .*; got "):
        Small.from_dict({key: value})
