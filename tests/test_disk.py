"""Paths as people type them, and the system's refusals, in sentences."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_video import cli, disk, hub, pictures, weights
from mlx_video.disk import (
    check_space,
    file_errors,
    folder_aside,
    is_there,
    locked,
    owned,
    short,
    typed_path,
    written_aside,
)
from mlx_video.errors import DiskFullError, MissingFileError, UserError
from mlx_video.models.ltx.checkpoint.find import DEMO, default_model
from mlx_video.output import Output
from mlx_video.request import Request
from mlx_video.types import VideoPixelShape


@pytest.mark.parametrize(
    "typed, sentence",
    [
        ("", "A path is empty"),
        ("a\0b", "holds a zero byte"),
        ("~nosuchuser/x", "There is no user nosuchuser here"),
        ("x" * 5000, "is too long; use at most 255 bytes"),
        ("ä" * 128, "is too long"),
    ],
)
def test_what_can_name_nothing_is_refused(typed, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        typed_path(typed)
    assert len(str(caught.value)) < 400


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert typed_path("~/x") == tmp_path / "x"


@pytest.mark.parametrize(
    "error, sentence",
    [
        (PermissionError(13, "Permission denied"), "a.txt cannot be read: permission"),
        (OSError(28, "No space left on device"), "a.txt cannot be read: no space left"),
        (FileNotFoundError(2, "No such file"), "There is no file or folder a.txt."),
    ],
)
def test_what_the_system_says_becomes_a_sentence(error, sentence):
    with pytest.raises(UserError, match=sentence) as caught, file_errors("a.txt"):
        raise error
    assert "Errno" not in str(caught.value)
    assert isinstance(caught.value, MissingFileError) == (error.errno == 2)


def refused(*_, **__):
    raise PermissionError(13, "Permission denied")


def test_no_reader_shows_the_systems_own_words(tmp_path, monkeypatch):
    file = tmp_path / "file.json"
    file.write_text("{}")
    monkeypatch.setattr("builtins.open", refused)
    monkeypatch.setattr("io.open", refused)
    monkeypatch.setattr("pathlib.Path.read_text", refused)
    for read in (weights.read_header, weights.read_json, pictures.read_picture):
        with pytest.raises(UserError, match="file.json cannot be read: permission"):
            read(file)
    monkeypatch.setattr("pathlib.Path.exists", refused)
    with pytest.raises(UserError, match="closed cannot be read: permission denied"):
        is_there(tmp_path / "closed")


def test_a_cache_that_may_not_be_read_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", refused)
    with pytest.raises(UserError, match="cache .* cannot be used: .*HF_HOME"):
        hub.plan("someone/ltx", ["a.safetensors"])


def test_a_cache_that_may_not_be_read_holds_nothing_for_who_needs_nothing_of_it(
    monkeypatch,
):
    monkeypatch.setattr("pathlib.Path.stat", refused)
    assert hub.cached_bytes(hub.MODEL_REPO, ["*"]) == 0
    assert hub.unfinished_bytes(hub.MODEL_REPO) == 0
    monkeypatch.undo()
    monkeypatch.setattr(hub, "_found", lambda *_: [])
    assert default_model(lambda notice: None) == DEMO


def test_a_folder_is_whole_or_not_there(tmp_path):
    folder = tmp_path / "net-2.5"
    with pytest.raises(KeyboardInterrupt), folder_aside(folder) as scratch:
        (scratch / "a").touch()
        with pytest.raises(UserError, match="Another run is writing"):
            with folder_aside(folder):
                pass
        with folder_aside(tmp_path / "net-2.3"):
            pass
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["net-2.3"]
    (tmp_path / ".net-2.5.mlx-video.lock").touch()  # of a process that was killed
    (tmp_path / ".net-2.5.partial-0123").mkdir()
    with folder_aside(folder) as scratch:
        (scratch / "a").touch()
    assert sorted(os.listdir(tmp_path)) == ["net-2.3", "net-2.5"]
    assert os.listdir(folder) == ["a"]


def test_what_dead_runs_left_is_removed_and_a_live_run_keeps_its_own(tmp_path):
    for name in ("live", "dead"):
        (tmp_path / f".{name}.mlx-video.lock").touch()
        (tmp_path / f".{name}.mp4.partial-0123.mp4").touch()
    live = locked(tmp_path / ".live.mlx-video.lock")
    with owned(tmp_path / "ours.mp4"):
        left = [".live.mlx-video.lock", ".live.mp4.partial-0123.mp4"]
        assert sorted(os.listdir(tmp_path)) == left + [".ours.mlx-video.lock"]
    assert sorted(os.listdir(tmp_path)) == left
    os.close(live)


def test_a_lock_is_not_taken_through_a_link(tmp_path):
    """Else who plants one in a shared folder makes a run create files wherever the link leads."""
    (tmp_path / ".a.mlx-video.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="cannot be written to"):
        with owned(tmp_path / "a.mp4"):
            pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("[write] Unable to write 5 bytes to file.")

    monkeypatch.setattr("mlx_video.weights.mx.save_safetensors", full)
    with pytest.raises(UserError, match="cannot be written: the disk is full"):
        weights.save_folder(tmp_path / "new/net", {"a": mx.zeros(1)}, {})
    assert os.listdir(tmp_path) == []  # not even the folder above


@pytest.mark.parametrize("linked", [True, False])
def test_a_file_aside_has_the_usual_rights_and_takes_no_name(
    linked, tmp_path, monkeypatch
):
    if not linked:  # a file system without hard links
        monkeypatch.setattr("os.link", refused)
    path = tmp_path / "a.txt"
    with written_aside(path) as aside:
        assert aside.parent == tmp_path and aside.suffix == ".txt"
        aside.write_text("a")
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    with pytest.raises(UserError, match="a.txt exists"):
        with written_aside(path):
            pass
    with pytest.raises(UserError, match="own result is in .*b-2.txt"):
        with written_aside(tmp_path / "b.txt") as aside:
            aside.write_text("b")
            (tmp_path / "b.txt").write_text("another's")
    assert (tmp_path / "b-2.txt").read_text() == "b"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b-2.txt", "b.txt", "plain"]


def test_room_is_taken_and_given_back(tmp_path):
    with disk.reserved(tmp_path / "x.latents.safetensors", 3 * 2**20 + 5) as room:
        assert room.stat().st_size == 3 * 2**20 + 5
        assert disk.ASIDE in room.name  # so that a dead run's is removed
        room.unlink()
    assert not list(tmp_path.iterdir())


def test_room_that_is_not_there_is_a_sentence(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mlx_video.disk.os.fsync", full)
    with pytest.raises(
        DiskFullError, match="x cannot be written: no space left on device"
    ):
        with disk.reserved(tmp_path / "x", 5):
            pytest.fail("there was room")
    assert not list(tmp_path.iterdir())


def test_room_is_reckoned_by_disk(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    check_space([(tmp_path, 4 * 10**8), (tmp_path, 5 * 10**8)])
    said = f"{short(tmp_path)} has 1.00 GB free.*may write 1.20 GB.*Free some space"
    with pytest.raises(DiskFullError, match=said):
        check_space([(tmp_path, 4 * 10**8), (tmp_path, 8 * 10**8)])


def test_a_run_needs_room_for_its_latents_twice(tmp_path, monkeypatch):
    """The state before, until the one after is written."""
    usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    output, shape = Output(tmp_path / "x.mp4"), VideoPixelShape(9, 64, 64, 24.0)
    output.check_space(shape, 4 * 10**8)
    with pytest.raises(DiskFullError, match="has 1.00 GB free"):
        output.check_space(shape, 5 * 10**8)


def test_long_words_are_cut():
    assert short("a" * 9) == "a" * 9
    assert short("b" + "a" * 200, 10) == "...aaaaaaa"


def test_bad_input_exits_2_and_a_fault_of_ours_1_with_its_traceback(capsys):
    def bad():
        raise UserError("seed must be from 0.")

    def fault():
        error = ValueError("[addmm] Last dimension of first input")
        error.add_note("The latents are kept: finish with `mlx-video decode x`.")
        raise error

    assert cli.guarded(bad) == 2
    assert capsys.readouterr().err == "error: seed must be from 0.\n"
    assert cli.guarded(fault) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told and "[addmm]" in told
    assert "The latents are kept" in told and "Please report" in told


@pytest.fixture
def nobody():
    """A folder of somebody without rights, as whom the test runs; root may read everything."""
    with tempfile.TemporaryDirectory() as folder:
        own = os.getresuid()
        if os.geteuid() == 0:
            os.chmod(folder, 0o777)
            os.setresuid(65534, 65534, 0)
        yield Path(folder)
        os.setresuid(*own)


def test_a_closed_folder_is_a_sentence(nobody, capsys):
    closed = nobody / "closed"
    closed.mkdir(mode=0)
    with pytest.raises(UserError, match="cannot be read: permission denied"):
        is_there(closed / "x")
    with pytest.raises(UserError, match="closed is not writable: permission denied"):
        Output(closed / "x.mp4").check(
            Request("a ball", VideoPixelShape(9, 64, 64, 24.0))
        )
    assert cli.main(["info", str(closed)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {closed}") and "permission denied" in told


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_folder_that_takes_no_files_is_not_said_to_be_missing(model, capsys):
    words = ["-p", "a", "-H", "64", "-W", "64", "-n", "9", "--model", str(model)]
    assert cli.main(["generate", *words, "-o", "/proc/x.mp4"]) == 2
    assert "/proc cannot be written to" in capsys.readouterr().err
