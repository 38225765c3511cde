"""What is fetched, what is announced, and what is said when it cannot be: of a hub that is served here."""

import fcntl
import json
import shutil
from collections import namedtuple
from pathlib import Path
from threading import Timer

import pytest
from huggingface_hub import constants

from mlx_video import hub
from mlx_video.cli import main
from mlx_video.errors import MissingFileError, UserError
from mlx_video.hub import download
from tests.fake_hub import ACCEPTED, KNOWN, Repo
from tests.reference import FIXTURES

NAME = "someone/ltx"
A, B = b"a" * 3_000_000, b"b" * 500_000
INDEX = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}


@pytest.fixture
def repo(remote) -> Repo:
    files = {"a.safetensors": A, "b.safetensors": B, "x/config.json": b"{}"}
    remote.repos[NAME] = Repo(files)
    return remote.repos[NAME]


def cache() -> Path:
    return Path(constants.HF_HUB_CACHE)


def unfinished() -> list[Path]:
    return [*cache().rglob("*.incomplete")]


def test_a_plan_says_what_is_missing_and_how_large_it_is(repo):
    hub.resolve(NAME, ["a.safetensors"])
    plan = hub.plan(NAME, ["*.safetensors", "x/*"])
    sizes = {name: file.bytes for name, file in plan.missing.items()}
    assert sizes == {"b.safetensors": 500_000, "x/config.json": 2}
    assert plan.bytes == 500_002
    told = "someone/ltx: 0.50 MB to download (b.safetensors 0.50 MB, x/config.json"
    assert str(plan).startswith(told)


def test_small_files_beside_others_are_counted():
    sizes = [24_000_000_000, 16_000_000_000, 10, 20]
    missing = {f"{n}.bin": hub.Missing(size, "0") for n, size in enumerate(sizes)}
    told = "40.00 GB to download (0.bin 24.00 GB, 1.bin 16.00 GB, 2 small files)"
    assert str(hub.DownloadPlan(NAME, ("*",), missing)) == f"{NAME}: {told}"


def test_fetching_downloads_only_what_matches(repo, remote):
    folder = hub.plan(NAME, ["b.safetensors"]).fetch()
    assert (folder / "b.safetensors").read_bytes() == B
    assert not (folder / "a.safetensors").exists()
    assert remote.sent == {"b.safetensors": [(0, len(B))]}
    assert not unfinished()


def test_nothing_is_asked_of_the_network_for_what_is_cached(repo, remote):
    folder = hub.resolve(NAME, ["a.safetensors", "x/*"])
    assert remote.sent["x/config.json"] == [(0, 2)]
    asked = len(remote.asked)
    plan = hub.plan(NAME, ["a.safetensors", "x/*"])
    assert plan.missing == {} and "everything needed is in the cache" in str(plan)
    assert plan.fetch() == folder == hub.resolve(NAME, ["a.safetensors"])
    assert len(remote.asked) == asked


def test_a_file_of_another_revision_is_linked(repo, remote):
    hub.resolve(NAME, ["a.safetensors"])
    repo.commit = "2" * 40
    hub.resolve(NAME, ["b.safetensors"])
    plan = hub.plan(NAME, ["*.safetensors"])
    assert plan.missing == {}
    assert (plan.fetch() / "a.safetensors").read_bytes() == A
    assert remote.bytes_sent("a.safetensors") == len(A)


def test_a_newer_revision_of_another_file_does_not_hide_what_is_cached(repo, remote):
    folder = hub.resolve(NAME, ["a.safetensors"])
    repo.commit = "2" * 40
    hub.resolve(NAME, ["b.safetensors"])
    remote.repos.clear()
    assert hub.resolve(NAME, ["a.safetensors"]) == folder


def test_a_file_is_found_in_an_older_snapshot(repo):
    hub.resolve(NAME, ["a.safetensors"])
    repo.commit = "2" * 40
    hub.resolve(NAME, ["b.safetensors"])
    for name in ("a.safetensors", "b.safetensors"):
        assert hub.cached(f"{NAME}/{name}").is_file()
    assert hub.cached(f"{NAME}/c.safetensors") is None


def test_a_cache_that_lacks_a_shard_is_not_complete(repo):
    repo.files["model.safetensors.index.json"] = json.dumps(INDEX).encode()
    hub.resolve(NAME, ["a.safetensors", "*.index.json"])
    shutil.rmtree(cache() / "models--someone--ltx" / "trees")
    wanted = ["*.json", "*.safetensors"]
    assert {*hub.plan(NAME, wanted).missing} == {"b.safetensors", "x/config.json"}
    assert hub.plan(NAME, ["a.safetensors"]).missing == {}


def test_a_broken_link_in_the_cache_is_missing(repo):
    file = hub.resolve(NAME, ["a.safetensors"]) / "a.safetensors"
    file.resolve().unlink()
    assert "a.safetensors" in hub.plan(NAME, ["a.safetensors"]).missing
    hub.resolve(NAME, ["a.safetensors"])
    assert file.read_bytes() == A


def test_resolve_takes_paths_as_they_are(remote, tmp_path):
    assert hub.resolve(tmp_path, ["x"]) == tmp_path
    assert hub.resolve_file(tmp_path) == tmp_path
    assert not remote.asked


def test_a_local_folder_goes_before_a_repository_of_its_name(repo, remote, here):
    (here / NAME).mkdir(parents=True)
    assert hub.resolve(NAME, ["a.safetensors"]) == Path(NAME)
    assert not remote.asked


def test_resolve_announces_before_it_downloads(repo, remote):
    heard = []
    notify = lambda plan: heard.append((plan.bytes, dict(remote.sent)))
    file = hub.resolve_file(f"{NAME}/a.safetensors", notify)
    assert file.read_bytes() == A and heard == [(len(A), {})]
    hub.resolve_file(f"{NAME}/a.safetensors", notify)
    assert len(heard) == 1


def test_a_file_in_a_folder_of_a_repository_goes_by_its_name(repo):
    assert hub.resolve_file(f"{NAME}/x/config.json").read_text() == "{}"


# How far it is, and going on


def test_says_how_far_a_download_is(repo, monkeypatch):
    monkeypatch.setattr(download, "SMALL", 1)
    heard = []

    def notify(what):
        if isinstance(what, hub.Download):
            heard.append((what.tenth, what.ended, what.done, str(what)))

    hub.resolve(NAME, ["a.safetensors"], notify)
    assert 9 <= sum(tenth and not ended for tenth, ended, *_ in heard) <= 10
    assert [ended for _, ended, *_ in heard] == [False] * (len(heard) - 1) + [True]
    assert heard[-1][2] == len(A)
    assert heard[0][3].startswith("someone/ltx: 0.00 of 3.00 MB, ")
    assert "MB/s, about " in heard[0][3] and heard[0][3].endswith(" s left")


def test_the_speed_of_a_download_is_told_in_megabytes_a_second(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(download.time, "monotonic", lambda: now[0])
    files = [hub.Missing(6 * 10**8, "0" * 64)]
    what = hub.Download("someone/ltx", files, lambda what: None)
    assert str(what) == "someone/ltx: 0.00 of 0.60 GB, 0.0 MB/s"
    now[0] += 20
    what.add(2 * 10**8)
    assert str(what) == "someone/ltx: 0.20 of 0.60 GB, 10.0 MB/s, about 40 s left"


@pytest.mark.slow
def test_a_connection_that_is_cut_is_taken_up_where_it_ended(repo, remote):
    remote.cuts = [1_000_000, 0, 700_000]
    file = hub.resolve_file(f"{NAME}/a.safetensors")
    assert file.read_bytes() == A
    firsts = [first for first, _ in remote.sent["a.safetensors"]]
    assert firsts == [0, 1_000_000, 1_000_000, 1_700_000]
    assert remote.bytes_sent("a.safetensors") == len(A)


def test_a_server_that_sends_no_ranges_sends_the_file_anew(repo, remote):
    remote.ranges, remote.cuts = False, [1_000_000]
    assert hub.resolve_file(f"{NAME}/a.safetensors").read_bytes() == A
    assert [first for first, _ in remote.sent["a.safetensors"]] == [0, 0]


def test_a_download_that_ends_is_kept_and_taken_up_by_the_next(
    repo, remote, monkeypatch
):
    monkeypatch.setattr(download, "TRIES", 0)
    remote.cuts = [1_000_000, 0]
    with pytest.raises(MissingFileError, match="cannot be reached. Connect") as caught:
        hub.resolve(NAME, ["a.safetensors"])
    (note,) = caught.value.__notes__
    assert note.startswith("1.00 MB of 3.00 MB of someone/ltx are kept; the next run")
    assert hub.unfinished_bytes(NAME) == 1_000_000
    assert ", 1.00 MB of it here already" in str(hub.plan(NAME, ["a.safetensors"]))
    file = hub.resolve_file(f"{NAME}/a.safetensors")
    assert file.read_bytes() == A and remote.bytes_sent("a.safetensors") == len(A)
    assert hub.unfinished_bytes(NAME) == 0


@pytest.mark.slow
def test_a_server_that_cannot_for_a_moment_is_asked_again(repo, remote):
    remote.statuses = [503]
    assert hub.resolve_file(f"{NAME}/a.safetensors").read_bytes() == A


def test_a_file_that_is_not_as_listed_is_removed(repo, remote):
    for remote.spoiled in ("content", "length"):
        with pytest.raises(
            UserError, match="did not match its checksum on Hugging"
        ) as caught:
            hub.resolve(NAME, ["a.safetensors"])
        assert not hasattr(caught.value, "__notes__")  # on what is kept
        assert not unfinished() and not hub.is_cached(NAME, ["a.safetensors"])
    remote.spoiled = ""
    assert hub.resolve_file(f"{NAME}/a.safetensors").read_bytes() == A


def test_a_damaged_beginning_is_not_gone_on_with(repo, remote, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 0)
    remote.cuts = [1_000_000, 0]
    with pytest.raises(MissingFileError):
        hub.resolve(NAME, ["a.safetensors"])
    (kept,) = unfinished()
    kept.write_bytes(bytes(1_000_000))
    with pytest.raises(UserError, match="did not match its checksum"):
        hub.resolve(NAME, ["a.safetensors"])
    assert hub.resolve_file(f"{NAME}/a.safetensors").read_bytes() == A


def test_a_disk_without_room_is_known_before(repo, remote, monkeypatch):
    usage = namedtuple("usage", "free")(2_000_000)
    monkeypatch.setattr(download, "disk_usage", lambda folder: usage)
    told = r"3.50 MB must be downloaded to .*, but its disk has 2.00 MB free. .*HF_HOME"
    with pytest.raises(UserError, match=told):
        hub.resolve(NAME, ["*.safetensors"])
    assert not remote.sent
    hub.resolve(NAME, ["b.safetensors"])


# What stops it


def test_a_gated_repository_says_what_to_do(repo, remote, monkeypatch):
    repo.gated = True
    page = "accept its licence at https://huggingface.co/someone/ltx"
    heard = []
    with pytest.raises(UserError, match=f"gated: {page}, then log in with `hf auth"):
        hub.resolve(NAME, ["a.safetensors"], heard.append)
    monkeypatch.setenv("HF_TOKEN", KNOWN)
    with pytest.raises(UserError, match=f"your token may not read it: {page} with the"):
        hub.resolve(NAME, ["a.safetensors"], heard.append)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="does not accept your token .*; log in with"):
        hub.resolve(NAME, ["a.safetensors"], heard.append)
    assert not heard and not remote.sent
    monkeypatch.setenv("HF_TOKEN", ACCEPTED)
    assert hub.resolve_file(f"{NAME}/a.safetensors").read_bytes() == A
    assert remote.tokens == []  # which other hosts must not see


@pytest.mark.parametrize("token", [None, ACCEPTED])
def test_a_repository_that_is_not_there(remote, monkeypatch, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(
        MissingFileError, match="no file or folder someone/ltx here, and"
    ):
        hub.plan(NAME, ["a.safetensors"])


def test_no_network(repo, monkeypatch):
    told = "someone/ltx is not here: the cache lacks a.safetensors, and Hugging Face cannot be reached"
    monkeypatch.setattr(hub.hf.hf_api.api, "endpoint", "http://127.0.0.1:9")
    with pytest.raises(MissingFileError, match=told):
        hub.plan(NAME, ["a.safetensors"])


def test_offline(repo, monkeypatch):
    hub.resolve(NAME, ["a.safetensors"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.resolve_file(f"{NAME}/a.safetensors").read_bytes() == A
    with pytest.raises(MissingFileError, match="lacks b.safetensors, and HF_HUB_OFF"):
        hub.plan(NAME, ["b.safetensors"])


@pytest.mark.parametrize(
    "status, told",
    [
        (403, "Your token may not read someone/ltx on Hugging Face; use another"),
        (404, "someone/ltx with status 404; try again later"),
        (503, "someone/ltx with status 503; try again later"),
    ],
)
def test_a_server_that_refuses(repo, remote, monkeypatch, status, told):
    monkeypatch.setattr(download, "TRIES", 0)
    remote.statuses = [status]
    with pytest.raises(UserError, match=told):
        hub.resolve(NAME, ["a.safetensors"])


def test_too_many_requests():
    told = hub._answered(NAME, 429)
    assert "too many requests from here" in told and "wait a few minutes" in told


def test_a_cache_that_cannot_be_written(repo, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="hub's cache .* cannot be used: .*HF_HOME"):
        hub.resolve(NAME, ["a.safetensors"])


def test_names_files_that_a_repository_lacks(repo):
    with pytest.raises(MissingFileError, match=f"{NAME} has no file c.safetensors"):
        hub.plan(NAME, ["a.safetensors", "c.safetensors"])


@pytest.mark.parametrize("name", ["/no/such/path", "a/b/c", "two words"])
def test_a_name_that_cannot_be_a_repository(remote, name):
    told = f"{name} is neither a local file or folder nor"
    with pytest.raises(MissingFileError, match=told):
        hub.plan(name, ["x"])
    assert not remote.asked


def test_a_wait_for_another_process_is_said(repo, monkeypatch):
    monkeypatch.setattr(download, "SMALL", 1)
    (file,) = hub.plan(NAME, ["a.safetensors"]).missing.values()
    locks = cache() / ".locks" / download.folder_of(NAME).name
    locks.mkdir(parents=True)
    (locks / f"{file.checksum}.lock").touch()
    other = (locks / f"{file.checksum}.lock").open()
    fcntl.flock(other, fcntl.LOCK_EX)
    Timer(
        5, other.close
    ).start()  # so that a fault fails here, and does not wait forever
    told = []

    def hear(what: object) -> None:
        told.append(str(what))
        if "waiting" in told[-1]:
            other.close()

    folder = hub.resolve(NAME, ["a.safetensors"], hear)
    assert (folder / "a.safetensors").read_bytes() == A
    waiting = "waiting for another process that downloads the same file"
    assert told[1] == f"{NAME}: {waiting}" and "MB/s" in told[-1]


def test_what_another_process_fetches_is_waited_for_and_not_fetched_again(repo):
    (file,) = hub.plan(NAME, ["a.safetensors"]).missing.values()
    blob, lock = download.blob_of(NAME, file), cache() / ".locks"
    lock = lock / download.folder_of(NAME).name / f"{file.checksum}.lock"
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        pieces = download.receive("http://127.0.0.1:1/", NAME, file)
        assert next(pieces) == 0

        def ends():
            blob.write_bytes(A)
            fcntl.flock(other, fcntl.LOCK_UN)

        Timer(0.2, ends).start()
        assert list(pieces) == [file.bytes]


def test_info_describes_what_the_cache_holds_of_a_repository(remote, capsys):
    lora, model = "loras/a.safetensors", "ltx-2.3-tiny.safetensors"
    tiny = FIXTURES / "ltx23_tiny"
    added = (tiny / "ltx-2.3-tiny-distilled-lora.safetensors").read_bytes()
    remote.repos[NAME] = Repo({model: (tiny / model).read_bytes(), lora: added})
    assert main(["info", NAME]) == 2
    assert f"There is no file or folder {NAME}" in capsys.readouterr().err
    hub.resolve(NAME, [model, lora])
    asked = len(remote.asked)
    assert main(["info", NAME]) == main(["info", f"{NAME}/{lora}"]) == 0
    told = capsys.readouterr().out
    assert "version     LTX-2.3" in told and "layout      LoRA" in told
    assert len(remote.asked) == asked
