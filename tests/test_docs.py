"""The pages of docs/ and the README agree with the package, and what they say to run runs."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from docs.options import options
from mlx_video import cli
from mlx_video.check.table import checks
from mlx_video.cli.commands import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [*PAGES, *sorted(ROOT.glob("*.md")), ROOT / "tiny/README.md"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def blocks(file: Path, language: str) -> list[str]:
    found = BLOCK.findall(file.read_text(encoding="utf-8"))
    return [text for kind, text in found if kind == language]


def test_the_page_of_options_has_every_command_and_option(capsys):
    page = "\n".join(options())
    for name in COMMANDS:
        assert f"\n## {name}\n" in page
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", capsys.readouterr().out))
        assert flags - {"--help"} <= set(re.findall(r"--[a-z][a-z-]+", page))
    assert "`--seed`, `-s` `SEED` | Random seed" in page


def test_every_page_is_in_the_contents():
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [p.name for p in PAGES if f": {p.name}\n" not in contents] == []


def test_links_lead_to_files():
    links = [
        (document.parent, link)
        for document in DOCUMENTS
        for link in LINK.findall(document.read_text(encoding="utf-8"))
    ]
    assert [f"{at / link}" for at, link in links if not (at / link).exists()] == []


@pytest.mark.slow
@pytest.mark.thorough
def test_the_commands_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = "".join(blocks(ROOT / "README.md", "sh")).splitlines()
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("mlx-video ")]  # fmt: skip
    commands = [words for words in commands if words[0] != "serve"]
    assert len(commands) >= 7
    for words in commands:
        assert cli.main(words) == 0, words
    assert {"ball.mp4", "rest.mp4", "next.mp4", "star.mp4", "again.mp4"} <= {
        file.name for file in tmp_path.iterdir()
    }


@pytest.mark.slow
@pytest.mark.thorough
def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(ROOT / "README.md", "python")
    exec(block, {})
    assert list(tmp_path.glob("*.mp4")) and list(tmp_path.glob("*.json"))


@pytest.mark.slow
@pytest.mark.thorough
def test_the_python_of_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (256, 256), "red").save("ball.png")
    *first, settings = blocks(ROOT / "docs/python.md", "python")
    names: dict = {}
    for block in first:
        exec(block, names)
    assert len(list((tmp_path / "balls").glob("*.mp4"))) == 4
    compile(settings, "python.md", "exec")


@pytest.mark.slow
def test_the_checks_that_the_page_on_metal_names_are_there():
    text = (ROOT / "docs/metal.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .*\|.*\| (.*) \|$", text, re.MULTILINE)
    named = re.findall(r"`([^`]+?)(?:, \.\.\.| \.\.\.)?`", " ".join(rows))
    names = [check.name for check in checks()]
    others = {"by volume", "device_info", "mlx-video plan"}
    assert len(named) > 20
    assert [n for n in named if n not in others and not any(x.startswith(n) for x in names)] == []  # fmt: skip
