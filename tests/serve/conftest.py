"""All of this folder but ``QUICK`` is slow: FastAPI and the client take seconds to import. What is not wanted is not even
collected.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

QUICK = ("test_store.py",)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    wanted = collection_path.is_dir() or collection_path.name in QUICK
    return True if config.option.markexpr == "not slow" and not wanted else None


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.path.name not in QUICK:
        item.add_marker("slow")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator:
    from tests.serve.server import serving

    with serving(tmp_path_factory.mktemp("data")) as running:
        yield running
