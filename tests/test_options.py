"""Options of the commands that change what a run does, but nothing that its record tells."""

import shutil
from pathlib import Path

import pytest

from mlx_video import cli, media
from mlx_video.disk import short
from mlx_video.pipeline import Pipeline

LATENTS = "output.latents.safetensors"
NAMED = ["-o", "output.mp4"]


def generate(model: Path, *words: str) -> int:
    size = ["-W", "128", "-H", "64", "-n", "9", "--no-audio"]
    made = [
        "generate",
        "-p",
        "a red ball",
        *size,
        "--model",
        str(model),
        *NAMED,
        *words,
    ]
    return cli.main(made)


def test_a_full_disk_is_said_with_what_is_needed_and_where_else_to_go(
    model, here, monkeypatch, capsys
):
    usage = shutil.disk_usage(here)._replace(free=10**7)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert generate(model) == cli.BAD_INPUT
    told = capsys.readouterr().err.splitlines()[-1]
    needs = f"{short(here)} has 0.01 GB free, and this run may write 0.02 GB there"
    assert told == f"error: {needs}. Free some space, or choose another folder."


@pytest.mark.slow
def test_decode_tiles_as_told_or_as_the_run_was(model, here, monkeypatch):
    def interrupted(clip, path, **options):
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        patch.setattr(media, "saving", interrupted)
        assert generate(model, "--tiling", "default") == cli.INTERRUPTED
    tilings, decoding = [], Pipeline.decoding

    def recorded(self, latents, request):
        tilings.append(request.tiling)
        return decoding(self, latents, request)

    monkeypatch.setattr(Pipeline, "decoding", recorded)
    shutil.copy(LATENTS, "again.safetensors")
    assert cli.main(["decode", LATENTS, "--yes"]) == 0
    words = ["again.safetensors", "-o", "b.mp4", "--tiling", "aggressive"]
    assert cli.main(["decode", *words, "--yes"]) == 0
    assert tilings == ["default", "aggressive"]
