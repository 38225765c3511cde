"""All of this folder is slow: FastAPI and the client take seconds to import. What is not wanted is not even collected."""

import pytest


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return True if config.option.markexpr == "not slow" else None


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker("slow")
