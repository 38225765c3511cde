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
    assert "the limit is" in refused and "GB, for stage 2" in fits


def test_a_clip_that_takes_too_long_is_stopped(here):
    with pytest.raises(TimeoutError):
        run("progress.py", "0")
    assert not list(here.iterdir())


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
    "name, made",
    [
        ("text_to_clip.py", ["ball.json", "ball.mp4"]),
        ("image_to_clip.py", ["star.0.png", "star.json", "star.mp4"]),
        ("guided.py", ["heart.json", "heart.mp4"]),
        ("progress.py", ["cloud.json", "cloud.mp4"]),
        ("many_seeds.py", ["seeds"]),
    ],
)
def test_it_makes_its_clip(name, made, here, capsys):
    run(name)
    assert sorted(file.name for file in here.iterdir()) == made
    assert made[-1] in capsys.readouterr().out
    if made == ["seeds"]:
        assert len(list((here / "seeds").glob("*.mp4"))) == 4
        assert (here / "seeds" / "middles.png").is_file()
