"""The files of a run: their names, what an unfinished run remembers of them, and which are never replaced."""

from pathlib import Path

import pytest

from mlx_video.errors import UserError
from mlx_video.inputs import Image
from mlx_video.output import Output, named_after
from mlx_video.pipeline import Request
from mlx_video.types import VideoPixelShape

SHAPE = VideoPixelShape(9, 64, 64, 24.0)


def test_clips_are_named_after_prompt_and_seed_and_never_in_the_way(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert named_after(Path(), "A red ball, rolling!", 7) == Path(
        "a-red-ball-rolling-7.mp4"
    )
    assert named_after(Path(), "...", 7) == Path("clip-7.mp4")
    assert named_after(Path(), "ü" * 90, 7).name == "ü" * 30 + "-7.mp4"
    assert named_after(Path(), "../../etc", 7) == Path("etc-7.mp4")
    for taken in ("a-7.mp4", "a-7-2.json", "a-7-3.latents.safetensors"):
        (tmp_path / taken).touch()
    assert named_after(Path(), "a", 7) == Path("a-7-4.mp4")


def test_a_record_shares_the_name_of_an_mp4_alone():
    assert Output(Path("a.mp4")).record == Path("a.json")
    assert Output(Path("a.gif")).record == Path("a.gif.json")


def test_what_is_left_remembers_its_output_wherever_the_folder_goes(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    output = Output(here / "a.webm", here / "sound" / "a.wav", tmp_path / "frames")
    words = output.remembered()
    assert Output.recalled(here / "a.state.safetensors", words) == Output(
        here / "a.webm", here / "sound/a.wav", here / "../frames"
    )
    moved = Output.recalled(there / "a.state.safetensors", words)
    assert moved.path == there / "a.webm" and moved.audio == there / "sound/a.wav"
    assert Output.recalled(here / "b.latents.safetensors", {}) == Output(here / "b.mp4")


def test_no_input_is_replaced(tmp_path):
    for name in ("frame_0003.png", "red.png"):
        (tmp_path / name).touch()
    output = Output(tmp_path / "a.mp4", frames=tmp_path, overwrite=True)
    output.check(Request("a", SHAPE, inputs=(Image(str(tmp_path / "red.png")),)))
    request = Request("a", SHAPE, inputs=(Image(str(tmp_path / "frame_0003.png")),))
    with pytest.raises(UserError, match="frame_0003.png is an input of this clip"):
        output.check(request)


def test_only_a_clip_with_sound_is_told_that_its_file_is_silent():
    assert "a.gif will be silent" in Output(Path("a.gif")).notices(audio=True)[0]
    assert not Output(Path("a.gif")).notices(audio=False)
    assert not Output(Path("a.mp4")).notices(audio=True)


@pytest.mark.parametrize("name", [".mp4", ".GIF"])
def test_a_suffix_alone_is_no_name(name, tmp_path):
    with pytest.raises(UserError, match=f"is a suffix without a name; try clip{name}"):
        Output(tmp_path / name).check(Request("a", SHAPE))
