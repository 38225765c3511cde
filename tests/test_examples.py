"""The scripts of examples/ run as they stand, and make what they say."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *words])
        runpy.run_path(str(EXAMPLES / name))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_is_tested():
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{script.name}"' in source for script in EXAMPLES.glob("*.py"))


@pytest.mark.slow
def test_memory_plan(capsys):
    run("memory_plan.py", "1")
    refused, fits = capsys.readouterr().out.strip().splitlines()[-2:]
    assert "the limit is" in refused and "GB, for decode video" in fits


def test_a_clip_that_takes_too_long_is_stopped(here):
    with pytest.raises(TimeoutError):
        run("progress.py", "0")
    assert not list(here.iterdir())


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
    "name, runs, folder, clips",
    [
        ("text_to_clip.py", 1, "clips", 1),
        ("image_to_clip.py", 1, "clips", 1),
        ("guided.py", 1, "clips", 1),
        ("progress.py", 2, "clips", 2),  # a second run is not in its own way
        ("many_seeds.py", 1, "seeds", 4),
    ],
)
def test_it_makes_its_clips(name, runs, folder, clips, here, capsys):
    for _ in range(runs):
        run(name)
    assert [file.name for file in here.iterdir()] == [folder]
    assert len(list((here / folder).glob("*.mp4"))) == clips
    assert len(list((here / folder).glob("*.json"))) == clips
    assert folder in capsys.readouterr().out
    assert (here / "seeds" / "middles.png").is_file() == (name == "many_seeds.py")
