"""LTX-2.3 and LTX-2.5 from what a user types to a clip with sound: their files, parts, plan and recipe together."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from mlx_video import cli
from tests.media_reading import read_clip
from tests.models.ltx.loading.test_parts import TINY_2_3, TINY_2_5, split_checkpoint
from tests.reference import TINY

PROMPT = ["-p", "a cat on a mat", "--no-health-check", "--quiet"]
DEV = ["--variant", "dev", "--steps", "1", "--stg-blocks", "1"]
MORE = partial(pytest.param, marks=pytest.mark.thorough)
SIZE = ["-W", "64", "-H", "64"]


def model_2_3(folder: Path) -> list[str]:
    upscaler = TINY_2_3.with_name("ltx-2.3-tiny-spatial-upscaler-x2.safetensors")
    gemma = TINY / "text_encoder"
    return [str(TINY_2_3), "--upsampler", str(upscaler), "--text-encoder", str(gemma)]


def model_2_5(folder: Path) -> list[str]:
    root = split_checkpoint(folder)
    (root / "latent_upscale_models").mkdir()
    (upscaler,) = TINY_2_5.glob("*spatial-upscaler-x2*")
    shutil.copy(upscaler, root / "latent_upscale_models")
    return [str(root)]


RELEASES = {"LTX-2.3": model_2_3, "LTX-2.5": model_2_5}


@pytest.mark.slow
@pytest.mark.parametrize(
    "release, recipe, frames",
    [
        ("LTX-2.3", DEV, 1),
        MORE("LTX-2.5", DEV, 1),  # as in test_newer_releases.py
        MORE("LTX-2.3", [], 9),
        MORE("LTX-2.5", [], 9),
    ],
)
def test_a_release_makes_a_clip_with_sound(
    release, recipe, frames, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["--model", *RELEASES[release](tmp_path / "model"), *recipe, "-n", frames]
    assert cli.main(["generate", *PROMPT, *SIZE, *map(str, words), "-o", "x.mp4"]) == 0
    clip = read_clip(tmp_path / "x.mp4")
    assert [frame.shape for frame in clip.frames] == [(64, 64, 3)] * frames
    assert clip.audio.sample_rate == 48000


@pytest.mark.slow
@pytest.mark.parametrize("release", RELEASES)
def test_a_release_is_planned(release, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--model", *RELEASES[release](tmp_path / "model")]
    assert cli.main(["plan", *PROMPT[:2], *SIZE, "-n", "9", *words]) == 0
    assert "decode sound" in capsys.readouterr().out
