"""A release by its name, from an empty cache to a clip, as a user has it: against a hub that is served here."""

import os
import pty
import signal
import subprocess
import sys
import termios
import time

import pytest
from huggingface_hub import constants

import mlx_video
from mlx_video import hub
from mlx_video.cli import main
from mlx_video.clip_settings import ClipSettings
from mlx_video.convert import convert
from mlx_video.errors import UserError
from mlx_video.hub import download
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.releases import LTX_2, LTX_2_3, LTX_2_5
from tests.checkpoints import tiny_folder
from tests.fake_hub import ACCEPTED, KNOWN, FakeHub, Repo, folder_files, official

SMALL = "-n 9 -W 64 -H 64 --seed 1 --no-health-check -o a.mp4 --overwrite".split()
BIG = os.urandom(12_000_000)

pytestmark = pytest.mark.slow


@pytest.fixture
def remote(remote, here) -> FakeHub:
    remote.repos |= official()
    return remote


def said(capsys, *words: str, ends: int = 0) -> str:
    """What ``mlx-video "a red ball"`` says on stderr before the run begins."""
    assert main(["a red ball", *words, *SMALL]) == ends
    return capsys.readouterr().err.split("\nmaking")[0]


def opened(model: str | None) -> list[str]:
    """What is announced until the files of a run are here."""
    told = []
    job = ClipSettings("a red ball").job(Files(model))
    job.components(lambda what: told.append(str(what)))
    return told


def test_a_release_is_announced_fetched_and_not_fetched_again(
    remote, capsys, monkeypatch
):
    model, upscaler = LTX_2.transformers["distilled"], LTX_2.upsampler
    assert said(capsys, "--model", "ltx-2").splitlines() == [
        f"Lightricks/LTX-2: 4.68 MB to download ({model} 3.93 MB, {upscaler} 0.74 MB); LTX-2 Community License, open to all",
        f"{hub.TEXT_ENCODER_REPO}: 0.38 MB to download (4 small files)",
    ]
    files = [model, upscaler, *remote.repos[hub.TEXT_ENCODER_REPO].files]
    assert sorted(remote.sent) == sorted(files)
    asked = len(remote.asked)
    assert not opened("ltx-2")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not opened(None)  # the one that is cached
    assert len(remote.asked) == asked


@pytest.mark.parametrize(
    "release", [LTX_2_3, LTX_2_5], ids=lambda release: release.name
)
def test_newer_releases_come_the_same_way(release, remote, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", ACCEPTED)
    told = opened(release.name.lower())
    assert told[0].startswith(f"{release.repository}: ") and release.terms in told[0]
    asked = len(remote.asked)
    assert not opened(release.name)
    assert len(remote.asked) == asked and remote.tokens == []


def test_a_converted_repository_is_fetched_as_far_as_needed(remote, tmp_path):
    model = tiny_folder(tmp_path / "model")
    remote.repos["someone/ltx"] = Repo(folder_files(convert(model, "mlx")))
    told = opened("someone/ltx")
    assert [line[:13] for line in told] == ["someone/ltx: "]  # its configs came before
    folders = {file.rpartition("/")[0] for file in remote.sent if "-of-" in file}
    assert "vocoder" in folders and "audio_encoder" not in folders
    asked = len(remote.asked)
    assert not opened("someone/ltx") and len(remote.asked) == asked


@pytest.mark.parametrize("token", [None, KNOWN])
def test_a_gated_release_is_one_sentence(remote, capsys, monkeypatch, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    told = said(capsys, "--model", "ltx-2.5", ends=2)
    assert (
        told.startswith("error: Lightricks/LTX-2.5 is gated") and told.count("\n") == 1
    )
    assert "accept its licence at https://huggingface.co/Lightricks/LTX-2.5" in told
    with pytest.raises(UserError, match="Lightricks/LTX-2.5 is gated"):
        mlx_video.load("ltx-2.5")("a red ball", frames=9, height=64, width=64)
    assert not remote.sent


@pytest.mark.parametrize(
    "named, told",
    [
        ("Lightricks/LTX-2.3/none.safetensors", "LTX-2.3 has no file none.safetensors"),
        ("no/body/none.safetensors", "There is no file or folder no/body here, and no"),
        ("no/such.safetensors", "There is no file no/such.safetensors. For a file"),
    ],
)
def test_a_lora_that_is_not_there_is_known_before_the_model_is_fetched(
    remote, capsys, named, told
):
    assert told in said(capsys, "--model", "ltx-2", "--lora", named, ends=2)
    assert not remote.sent


def test_python_hears_what_is_downloaded(remote, caplog, monkeypatch):
    monkeypatch.setattr(download, "SMALL", 1)
    pipeline = mlx_video.load("ltx-2")
    assert not remote.sent
    with caplog.at_level("WARNING"):
        pipeline("a red ball", frames=9, height=64, width=64)
    told = [record.getMessage() for record in caplog.records]
    assert "4.68 MB to download" in told[0] and "0.38 MB to download" in told[1]
    assert told[2].startswith("Lightricks/LTX-2: 0.")


# Interrupted, in a process of its own


def begun(remote: FakeHub, terminal: bool) -> tuple[subprocess.Popen, int]:
    """A download of ``BIG`` that is some megabytes far, and where to read what it says."""
    remote.repos["someone/big"] = Repo({"big.safetensors": BIG})
    remote.pace = 4e6
    reading, writing = pty.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(writing, (24, 100))
    words = "-m mlx_video generate a --model someone/big/big.safetensors".split()
    process = subprocess.Popen([sys.executable, *words], stdin=writing, stderr=writing)
    os.close(writing)
    end = time.monotonic() + 60
    while hub.unfinished_bytes("someone/big") < 3e6 and time.monotonic() < end:
        time.sleep(0.02)
    return process, reading


def read(descriptor: int) -> str:
    """All that was said, once nobody can say more."""
    found = b""
    try:
        while more := os.read(descriptor, 2**16):
            found += more
    except OSError:  # how a terminal ends
        pass
    os.close(descriptor)
    return found.decode()


def ended(remote: FakeHub, capsys) -> str:
    """What is said while the download goes on to its end: what comes is no model."""
    kept = hub.unfinished_bytes("someone/big")
    remote.pace = 0
    assert main(["generate", "a", "--model", "someone/big/big.safetensors"]) == 2
    *_, (first, count) = remote.sent["big.safetensors"]
    assert (first, count) == (kept, len(BIG) - kept) and 3e6 <= kept < len(BIG)
    assert hub.cached_bytes("someone/big", ["*"]) == len(BIG)
    assert hub.unfinished_bytes("someone/big") == 0
    return capsys.readouterr().err


def test_an_interrupt_at_a_terminal_keeps_what_came(remote, capsys):
    process, reading = begun(remote, terminal=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    told = read(reading)
    assert "someone/big: 0.01 GB to download (big.safetensors 0.01 GB)" in told
    assert "MB/s, about " in told and "█" in told and "Traceback" not in told
    assert (
        "stopped" in told and "of someone/big are kept; the next run continues" in told
    )
    assert "of it here already" in ended(remote, capsys)


def test_what_a_killed_run_received_is_not_fetched_again(remote, capsys):
    process, reading = begun(remote, terminal=False)
    process.kill()
    process.wait()
    lines = read(reading).splitlines()
    assert lines[0] == "someone/big: 0.01 GB to download (big.safetensors 0.01 GB)"
    assert 2 <= len(lines) <= 4 and all("MB/s, about " in line for line in lines[1:])
    assert "█" not in ended(remote, capsys)
