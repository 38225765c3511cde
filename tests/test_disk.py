"""Paths as people type them, and the system's refusals, in sentences."""

import os

import pytest

from mlx_video import cli, hub, pictures, weights
from mlx_video.disk import file_errors, is_there, short, typed_path
from mlx_video.errors import MissingFileError, UserError


@pytest.mark.parametrize(
    "typed, sentence",
    [
        ("", "A path is empty"),
        ("a\0b", "holds a zero byte"),
        ("~nosuchuser/x", "There is no user nosuchuser here"),
        ("x" * 5000, "is too long a name; at most 255 bytes"),
        ("ä" * 128, "is too long a name"),
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
    for read in (weights.read_header, weights.read_json, pictures.load_image):
        with pytest.raises(UserError, match="file.json cannot be read: permission"):
            read(file)
    monkeypatch.setattr("pathlib.Path.exists", refused)
    with pytest.raises(UserError, match="closed cannot be read: permission denied"):
        is_there(tmp_path / "closed")


def test_a_cache_that_may_not_be_read_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", refused)
    with pytest.raises(UserError, match="cache .* cannot be used: .*HF_HOME"):
        hub.plan("someone/ltx", ["a.safetensors"])


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_closed_folder_is_a_sentence(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    with pytest.raises(UserError, match="cannot be read: permission denied"):
        is_there(closed / "x")
