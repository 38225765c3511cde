"""What is fetched, what is announced, and what is said when it cannot be: against a cache laid out as the hub's."""

import json
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub as hf
import pytest
from huggingface_hub import constants, errors

from mlx_video import hub

REPO, COMMIT = "someone/ltx", "0" * 40
FILES = {
    "a.safetensors": 3_000_000_000,
    "b.safetensors": 500_000_000,
    "x/config.json": 2,
}


class Hub:
    """Stands for huggingface_hub: the real cache look-up, and a network that can fail."""

    def __init__(self, cache: Path):
        self.folder = cache / "models--someone--ltx" / "snapshots" / COMMIT
        self.error: Exception | None = None
        self.downloads = 0
        self.blobs = set()  # names of files that other revisions share
        self.look_up = hf.snapshot_download

    def cache(self, name: str, text: str = "") -> Path:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        ref = self.folder.parent.parent / "refs" / "main"
        ref.parent.mkdir(exist_ok=True)
        ref.write_text(COMMIT)
        return file

    def snapshot_download(
        self, repo, *, allow_patterns, local_files_only=False, dry_run=False
    ):
        if local_files_only:
            return self.look_up(
                repo, allow_patterns=allow_patterns, local_files_only=True
            )
        if self.error is not None:
            raise self.error
        chosen = [n for n in FILES if any(fnmatch(n, p) for p in allow_patterns)]
        if dry_run:
            return [
                SimpleNamespace(
                    filename=name,
                    file_size=FILES[name],
                    will_download=name not in self.blobs
                    and not (self.folder / name).is_file(),
                )
                for name in chosen
            ]
        for name in chosen:
            self.downloads += not (self.folder / name).is_file()
            self.cache(name)
        return str(self.folder)


@pytest.fixture
def remote(tmp_path, monkeypatch) -> Hub:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    remote = Hub(tmp_path)
    monkeypatch.setattr(hf, "snapshot_download", remote.snapshot_download)
    return remote


def http_error(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "403")
    return error


def test_a_plan_says_what_is_missing_and_how_large_it_is(remote):
    remote.cache("a.safetensors")
    plan = hub.plan(REPO, ["*.safetensors", "x/*"])
    assert plan.missing == {"b.safetensors": 500_000_000, "x/config.json": 2}
    assert plan.bytes == 500_000_002
    assert str(plan).startswith(
        "someone/ltx: 0.50 GB to download (b.safetensors 0.50 GB, x/config.json"
    )


def test_fetching_downloads_only_what_matches(remote):
    folder = hub.plan(REPO, ["b.safetensors"]).fetch()
    assert folder == remote.folder and remote.downloads == 1
    assert not (folder / "a.safetensors").exists()


def test_what_is_cached_needs_no_network(remote):
    remote.cache("a.safetensors")
    remote.error = errors.DryRunError("offline")
    plan = hub.plan(REPO, ["a.safetensors"])
    assert plan.missing == {} and "everything needed is in the cache" in str(plan)
    assert plan.fetch() == remote.folder


def test_a_file_of_another_revision_is_linked(remote):
    remote.cache("a.safetensors")
    remote.blobs.add("b.safetensors")
    plan = hub.plan(REPO, ["b.safetensors"])
    assert plan.missing == {} and (plan.fetch() / "b.safetensors").is_file()


def test_a_cache_that_lacks_a_shard_is_not_complete(remote):
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    remote.cache("a.safetensors")
    remote.cache("model.safetensors.index.json", json.dumps(index))
    assert hub.plan(REPO, ["*.json", "*.safetensors"]).missing == {
        "b.safetensors": 500_000_000,
        "x/config.json": 2,
    }
    assert hub.plan(REPO, ["*.safetensors"]).missing == {}


def test_a_broken_link_in_the_cache_is_missing(remote):
    remote.cache("x/config.json")
    (remote.folder / "a.safetensors").symlink_to("../../blobs/gone")
    assert "a.safetensors" in hub.plan(REPO, ["a.safetensors"]).missing


def test_resolve_takes_paths_as_they_are(remote, tmp_path):
    assert hub.resolve(tmp_path, ["x"]) == tmp_path
    assert hub.resolve_file(tmp_path) == tmp_path


def test_resolve_announces_before_it_downloads(remote):
    heard = []
    announce = lambda plan: heard.append((plan.bytes, remote.downloads))
    file = hub.resolve_file("someone/ltx/a.safetensors", announce)
    assert file == remote.folder / "a.safetensors" and file.is_file()
    assert heard == [(3_000_000_000, 0)]
    hub.resolve_file("someone/ltx/a.safetensors", announce)
    assert len(heard) == 1


@pytest.mark.parametrize(
    "error, kind, message",
    [
        (
            http_error(errors.GatedRepoError),
            ValueError,
            "someone/ltx is gated: accept its licence at https://huggingface.co/someone/ltx, then log in with `hf auth",
        ),
        (
            http_error(errors.RepositoryNotFoundError),
            FileNotFoundError,
            "There is no file or folder someone/ltx here, and no Hugging Face repository of that name",
        ),
        (
            errors.DryRunError("no"),
            FileNotFoundError,
            "someone/ltx is not here: the cache lacks a.safetensors, and Hugging Face cannot be reached",
        ),
        (
            errors.OfflineModeIsEnabled("no"),
            FileNotFoundError,
            "Connect and run again, or give the path of a file or folder",
        ),
    ],
)
def test_explains_what_stops_it(remote, error, kind, message):
    remote.error = error
    with pytest.raises(kind, match=message):
        hub.plan(REPO, ["a.safetensors"])


def test_the_cause_behind_an_error_is_what_counts(remote):
    remote.error = errors.DryRunError("no")
    remote.error.__cause__ = http_error(errors.GatedRepoError)
    with pytest.raises(ValueError, match="is gated"):
        hub.plan(REPO, ["a.safetensors"])


def test_a_download_that_breaks_off_is_explained(remote):
    plan = hub.plan(REPO, ["a.safetensors"])
    remote.error = ConnectionResetError("peer")
    with pytest.raises(FileNotFoundError, match="cannot be reached"):
        plan.fetch()


def test_names_files_that_a_repository_lacks(remote):
    with pytest.raises(
        FileNotFoundError, match="someone/ltx has no file c.safetensors"
    ):
        hub.plan(REPO, ["a.safetensors", "c.safetensors"])


@pytest.mark.parametrize("name", ["/no/such/path", "a/b/c", "two words"])
def test_a_name_that_cannot_be_a_repository(remote, monkeypatch, name):
    monkeypatch.setattr(hf, "snapshot_download", remote.look_up)
    with pytest.raises(
        FileNotFoundError, match=f"{name} is neither a local file or folder nor"
    ):
        hub.plan(name, ["x"])
