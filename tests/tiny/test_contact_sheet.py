"""Frames stand above their sound, and a file's own sentence above them."""

import json
import sys

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_video import Clip, VideoPixelShape, media
from mlx_video.types import Waveform
from tiny import contact_sheet
from tiny.contact_sheet import CELL, GAP, MARGIN, SOUND, sheet, spectrogram

GREYS = [np.full((64, 64, 3), 4 * n, np.uint8) for n in range(48)]
RATE = 24000


def tone(hertz, seconds=2.0, begin=0.0):
    times = np.arange(round(seconds * RATE)) / RATE
    wave = 0.5 * np.sin(2 * np.pi * hertz * times) * (times >= begin)
    return Waveform(mx.array(np.stack([wave, wave]), dtype=mx.float32), RATE)


def test_frames_are_even_in_time_and_beside_each_other():
    picture = np.array(sheet(GREYS, None, "greys"))
    row = picture[picture.shape[0] // 2, MARGIN + CELL // 2 :: CELL + GAP, 0]
    assert row[:8].tolist() == [4 * n for n in (3, 9, 15, 21, 27, 33, 39, 45)]


def test_a_clip_of_few_frames_shows_each_once_and_sound_takes_room():
    mute, heard = (sheet(GREYS[:3], sound, "") for sound in (None, tone(440)))
    assert mute.width == 3 * (CELL + GAP) - GAP + 2 * MARGIN
    assert heard.height - mute.height == SOUND + GAP


def test_a_long_sentence_takes_more_lines_of_the_same_width():
    short, long = sheet(GREYS, None, "a"), sheet(GREYS, None, "a red ball " * 40)
    assert long.width == short.width
    assert long.height > short.height + 28


@pytest.mark.parametrize("hertz", [200, 1000])
def test_pitch_is_height(hertz):
    bright = spectrogram(tone(hertz), 2.0, 100, 200).sum((1, 2)).argmax()
    top, bottom = contact_sheet.HIGHEST, contact_sheet.LOWEST
    expected = 199 * np.log(top / hertz) / np.log(top / bottom)
    assert bright == pytest.approx(expected, abs=3)


def test_time_is_width_and_silence_dark_also_where_the_sound_is_over():
    picture = spectrogram(tone(500, seconds=1.5, begin=1.0), 2.0, 200, 50)
    light = picture.max(0).sum(-1) > 300
    assert light[106:144].all()
    assert not light[:94].any() and not light[156:].any()
    assert (picture[:, :94] == contact_sheet.MAP[0]).all()


@pytest.mark.slow
def test_the_command_reads_a_clip_with_its_sentence(tmp_path, monkeypatch):
    file, png = tmp_path / "a.mp4", tmp_path / "a.png"
    record = {"job": {"request": {"prompt": "a grey wall"}}}
    clip = Clip(iter(GREYS), VideoPixelShape(48, 64, 64, 24.0), tone(440))
    media.save(clip, file, metadata={"mlx_video": json.dumps(record)})
    frames, sound, sentence, fps = contact_sheet.read(file)
    assert (len(frames), sentence, fps) == (48, "a grey wall", 24)
    assert sound.samples.shape[1] / sound.sample_rate == pytest.approx(2, abs=0.1)
    monkeypatch.setattr(sys, "argv", ["contact_sheet", str(file), str(png)])
    contact_sheet.main()
    with Image.open(png) as picture:
        assert picture.size == sheet(frames, sound, sentence).size


def test_a_clip_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["contact_sheet", "no.mp4", "no.png"])
    with pytest.raises(SystemExit, match="2"):
        contact_sheet.main()
    assert "There is no clip no.mp4." in capsys.readouterr().err


def test_a_file_from_elsewhere_is_called_by_its_name(tmp_path):
    file = tmp_path / "mute.mp4"
    media.save(Clip(iter(GREYS[:9]), VideoPixelShape(9, 64, 64, 24.0)), file)
    _, sound, sentence, _ = contact_sheet.read(file)
    assert (sound, sentence) == (None, "mute.mp4")
