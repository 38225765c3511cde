"""``mlx-video models``: what has a name, how large it is, under which licence, and what of it is in the cache."""

import json
from dataclasses import replace

import pytest
from huggingface_hub import constants

from mlx_video import hub
from mlx_video.cli import main
from mlx_video.errors import MissingFileError
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.find import DEMO, model_of, named
from mlx_video.models.ltx.checkpoint.releases import (
    GEMMA_4,
    LTX_2,
    LTX_2_5,
    RELEASES,
    with_terms,
)

COMMIT = "0" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def cached(cache, repository: str, *files: str) -> None:
    folder = cache / f"models--{repository.replace('/', '--')}"
    for name in files:
        file = folder / "snapshots" / COMMIT / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(1000))
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs/main").write_text(COMMIT)


def listed(capsys) -> dict[str, dict]:
    assert main(["models", "--json"]) == 0
    return {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}


@pytest.mark.slow
def test_every_release_is_listed_and_nothing_is_in_an_empty_cache(cache, capsys):
    found = listed(capsys)
    assert set(found) == {DEMO, "ltx-2", "ltx-2.3", "ltx-2.5"}
    assert found[DEMO]["cached"]["distilled"]["complete"]
    for name in found.keys() - {DEMO}:
        held = found[name]["cached"].values()
        assert not any(part["bytes"] or part["complete"] for part in held)
    assert found["ltx-2.5"]["gated"] and not found["ltx-2.3"]["gated"]
    assert "26 GB" in found["ltx-2.5"]["size"] and "43 GB" in found["ltx-2"]["size"]


@pytest.mark.slow
def test_what_is_there_is_told_from_what_is_there_in_part(cache, capsys):
    distilled, *others = LTX_2_5.files("distilled")
    _, (text_file,) = hub.named(GEMMA_4.place)
    cached(cache, LTX_2_5.repository, distilled, text_file)
    blobs = cache / "models--Lightricks--LTX-2.5/blobs"
    blobs.mkdir()
    (blobs / f"abc{hub.UNFINISHED}").write_bytes(bytes(300))
    found = listed(capsys)["ltx-2.5"]
    assert found["cached"]["distilled"] == {"bytes": 1000, "complete": False}
    assert found["cached"]["text encoder"] == {"bytes": 1000, "complete": True}
    assert found["cached"]["dev"]["bytes"] == found["cached"]["upscaler"]["bytes"] == 0
    assert found["unfinished"] == 300
    cached(cache, LTX_2_5.repository, *others)
    assert listed(capsys)["ltx-2.5"]["cached"]["distilled"]["complete"]
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    assert "in the cache: distilled 0.00 MB" in said and "interrupted" in said
    assert "gated: accept it at https://huggingface.co/Lightricks/LTX-2.5" in said


def test_a_text_encoder_that_releases_share_is_in_each(cache, capsys):
    names = "config.json", "model.safetensors", "tokenizer.json"
    cached(cache, hub.TEXT_ENCODER_REPO, *names)
    found = listed(capsys)
    for name in ("ltx-2", "ltx-2.3"):
        held = found[name]["cached"]["text encoder"]
        assert held == {"bytes": 3000, "complete": True}


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_a_release_goes_by_its_name(release):
    names = release.name, release.name.lower(), release.repository.lower()
    for name in (*names, release.repository):
        assert model_of(Files(name)) == release.repository


@pytest.mark.parametrize("name", ["ltx-2.5", "LTX-2.5", "Lightricks/LTX-2.5"])
def test_info_describes_a_release_by_its_name(name, cache, capsys):
    cached(cache, LTX_2_5.repository, *LTX_2_5.files("distilled"))
    assert main(["info", name]) == 0
    told = capsys.readouterr().out
    assert "44 GB" in told and "gated" in told and "distilled 0.00 MB" in told
    assert main(["info", name, "--verify"]) == 2
    assert "--verify reads a file or folder" in capsys.readouterr().err


def test_a_folder_of_that_name_goes_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ltx-2").mkdir()
    assert named("ltx-2") == "ltx-2"


@pytest.mark.parametrize("typed, meant", [("ltx-2.6", "ltx-2"), ("ltx2.5", "ltx-2.5")])
def test_a_name_that_is_nearly_one_is_asked_about(typed, meant):
    with pytest.raises(MissingFileError, match=f"Did you mean {meant}"):
        named(typed)
    assert named("someone/ltx-2.5") == "someone/ltx-2.5"


def test_what_is_about_to_be_downloaded_is_said_with_the_licence():
    heard = []
    missing = {"x": hub.Missing(42_000_000_000, "0")}
    plan = hub.DownloadPlan(LTX_2_5.repository, ("x",), missing)
    with_terms(heard.append)(plan)
    assert "42.00 GB to download" in str(heard[0])
    assert "LTX-2.x Community License, gated: accept it" in str(heard[0])
    with_terms(heard.append)(replace(plan, repo=LTX_2.repository))
    assert str(heard[1]).endswith("LTX-2 Community License, open to all")
    with_terms(heard.append)(replace(plan, repo=hub.TEXT_ENCODER_REPO))
    assert "licen" not in str(heard[2]).lower()
