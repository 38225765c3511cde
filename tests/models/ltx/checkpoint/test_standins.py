"""A plan before anything is fetched: stand-ins for Lightricks' files, and what comes of them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from mlx_video import cli, hub
from mlx_video.formats.safetensors import read_header
from mlx_video.models.ltx.checkpoint import standins
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.releases import RELEASES
from mlx_video.models.ltx.checkpoint.standins import headers, stood_in
from mlx_video.models.ltx.loading import memory_table
from tests import published

ROOT = Path(__file__).parents[4]
GIGABYTE = 10**9


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


def planned(capsys, *words: str) -> float:
    """The peak in GB, on a machine with enough memory."""
    asked = ["plan", "-p", "a cat", "--dtype", "bfloat16", "--memory-limit", "200GB"]
    assert cli.main([*asked, *words]) == 0
    out, err = capsys.readouterr()
    assert "is not downloaded yet; planned from its published tables" in err
    return float(re.search(r"at most ([\d.]+) GB", out)[1])


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_what_is_packed_is_what_the_manifests_say(release):
    """If not: python -m benchmarks.store_headers."""
    packed = {file: [*header] for file, header in headers(release.name).items()}
    stated = json.loads(json.dumps(published.headers(release)))
    assert packed == stated


@pytest.mark.slow
@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_stand_ins_are_as_long_as_the_files_and_take_no_room(release):
    with stood_in(Files(release.repository), "distilled") as files:
        model = Path(files.model)
        assert model.name == Path(release.transformers["distilled"]).name
        others = 1.9 if release.others else 0  # GB, of the autoencoders' files
        size = model.stat().st_size / GIGABYTE + others
        assert size == pytest.approx(release.gigabytes, rel=0.01)
        assert model.stat().st_blocks * 512 < 2 * 2**20
        assert len(read_header(model).tensors) > 4000
    assert not model.exists()


def test_what_was_named_or_is_here_needs_none(monkeypatch):
    mine = Files("Lightricks/LTX-2", upsampler="mine.safetensors")
    with stood_in(mine, "dev") as files:
        assert files.upsampler == "mine.safetensors" != files.text_encoder
    with stood_in(Files("x.safetensors"), "dev") as files:
        assert files == Files("x.safetensors")
    newer = replace(RELEASES[0], name="LTX-9")
    monkeypatch.setattr(standins, "published", lambda model: newer)
    with stood_in(mine, "dev") as files:
        assert files == mine  # nothing is known of its files
    monkeypatch.undo()
    monkeypatch.setattr(hub, "is_cached", lambda *_: True)
    with stood_in(mine, "dev") as files:
        assert files == mine


@pytest.mark.thorough
def test_every_release_is_planned_before_it_is_here(capsys):
    peaks = [planned(capsys, "--model", r.name) for r in RELEASES]
    assert all(35 < peak < 60 for peak in peaks)
    rounds = planned(capsys, "--model", "ltx-2.5", "--dfr", "1", "-n", "65")
    assert rounds < planned(capsys, "--model", "ltx-2.5", "--dfr", "1", "-n", "121")


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", [0, *(pytest.param(n, marks=pytest.mark.thorough) for n in (1, 2)), 3]
)
def test_the_peaks_of_the_readme_are_those_of_the_plan(row, capsys, monkeypatch):
    """To a gigabyte, as on a GPU."""
    monkeypatch.setattr(memory_table, "live", lambda *_: memory_table.GPU)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| Mac with .*? \| (?:none|`(.*?)`.*?) \| (?:about )?([\d.]+) GB", text, re.M)  # fmt: skip
    assert len(rows) == 4
    options, stated = rows[row]
    peak = planned(capsys, "--model", "ltx-2", *options.split())
    assert peak == pytest.approx(float(stated), abs=1), options
