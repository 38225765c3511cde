"""What is fastest on a machine: timed once, remembered in a file, and never in the way."""

import json
import time

import mlx.core as mx
import pytest

from mlx_video import fastest as module
from mlx_video.fastest import fastest


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A cache folder of the test's own, of which nothing is remembered."""
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module._remembered.cache_clear()
    yield tmp_path / "mlx-video" / "fastest"
    module._remembered.cache_clear()


def ways(**seconds):
    """Ways that take so long, and the names of those that were tried."""
    tried = []

    def way(name):
        tried.append(name)
        time.sleep(seconds[name])
        return mx.zeros(1)

    return {name: lambda name=name: way(name) for name in seconds}, tried


def test_the_soonest_is_chosen_and_remembered(folder):
    answers, tried = ways(slow=0.02, quick=0.0)
    assert fastest("which?", answers) == "quick"
    assert tried.count("slow") == tried.count("quick") == 1 + module.REPEATS
    (file,) = folder.iterdir()
    assert json.loads(file.read_text()) == {"which?": "quick"}
    assert mx.__version__ in file.name
    module._remembered.cache_clear()
    assert (
        fastest("which?", ways(slow=0.0, quick=0.02)[0]) == "quick"
    )  # read, not timed


def test_an_answer_that_is_none_of_the_ways_is_asked_again(folder):
    assert fastest("which?", ways(old=0.0)[0]) == "old"
    assert fastest("which?", ways(slow=0.02, quick=0.0)[0]) == "quick"


@pytest.mark.parametrize("content", ["", "[1]", "no JSON"])
def test_a_file_that_means_nothing_is_written_anew(folder, content):
    folder.mkdir(parents=True)
    module._file().write_text(content)
    assert fastest("which?", ways(only=0.0)[0]) == "only"
    assert json.loads(module._file().read_text()) == {"which?": "only"}


def test_a_folder_that_cannot_be_written_is_no_error(folder):
    folder.parent.parent.mkdir(exist_ok=True)
    folder.parent.write_text("a file where the folder should be")
    assert fastest("which?", ways(slow=0.02, quick=0.0)[0]) == "quick"
