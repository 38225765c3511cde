"""The suite runs as a user's machine does: MLX is set up by the package itself."""

import os
import random
import secrets
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

# In the background of a shell an interrupt is ignored, and so it would be here and in what the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Where bytecode may not be written beside the code it is kept here: else each process compiles every library anew.
if sys.dont_write_bytecode:
    sys.pycache_prefix = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
    sys.dont_write_bytecode = False
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Two processes share two cores (-n 2): a second BLAS thread would only wait for the other's.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MLX_ENABLE_TF32", "0")  # on CUDA, float32 means float32
os.environ["TERM"] = "xterm"  # a dumb one would have no bars

# Where there is one, before our BLAS, in whose batched products it would crash.
with suppress(ImportError):
    import torch  # noqa: F401

from mlx_video import backend  # first: its BLAS goes before mlx.core

# .ci/run has the networks compiled too, as they are on a GPU; on a CPU that takes g++ and minutes.
if os.environ.get("COMPILED"):
    backend.suit_cpu = lambda largest: None
backend.suit_cpu(0)

import mlx.core as mx


def pytest_collection_modifyitems(items):
    """What is thorough is slow too."""
    for item in items:
        if item.get_closest_marker("thorough"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def drawn_alike(monkeypatch):
    """What is drawn without a key, and the seed of a clip that names none, are the same whichever tests came before."""
    mx.random.seed(0)
    monkeypatch.setattr(secrets, "randbits", random.Random(0).getrandbits)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A folder with the tests' miniature of LTX-2."""
    from tests.checkpoints import tiny_folder

    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def remote(tmp_path):
    """An empty Hugging Face Hub in place of the real one, and an empty cache in tmp_path / "hf" / "hub"."""
    from tests.fake_hub import FakeHub, in_place_of_the_real_one

    with in_place_of_the_real_one(FakeHub(), tmp_path / "hf") as hub:
        yield hub


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The folder in which the test runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
