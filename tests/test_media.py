"""Files in and out, looked at as a player or another program would."""

import os
import re
import subprocess
import sys
import wave
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from threading import Event, Timer

import av
import mlx.core as mx
import numpy as np
import pytest
from av.video.reformatter import ColorRange
from PIL import Image

from mlx_video import media
from mlx_video.errors import UserError
from mlx_video.media import COLUMNS, ROWS, SHEET_WIDTH, save_stills
from mlx_video.types import Clip, VideoPixelShape, Waveform
from tests.media_reading import read_clip

FRAMES, HEIGHT, WIDTH, RATE = 17, 64, 96, 24000
TONES = (440, 1000)


def tones(seconds: float) -> Waveform:
    """A different tone in each channel."""
    time = np.arange(round(seconds * RATE)) / RATE
    waves = [0.5 * np.sin(2 * np.pi * hertz * time) for hertz in TONES]
    return Waveform(mx.array(np.stack(waves), dtype=mx.float32), RATE)


def test_a_sound_lasts_as_long_as_its_samples():
    assert tones(1.5).seconds == 1.5


def pictures(count: int = FRAMES) -> list[np.ndarray]:
    """A gradient that brightens from frame to frame, so that each frame can be told from the others."""
    row, column = np.mgrid[0:HEIGHT, 0:WIDTH]
    base = np.stack([row * 2, column, 90 + 0 * row], axis=-1)
    return [(base + 5 * index).astype(np.uint8) for index in range(count)]


def clip(*, fps: float = 24, audio: Waveform | None = None) -> Clip:
    return Clip(iter(pictures()), VideoPixelShape(FRAMES, HEIGHT, WIDTH, fps), audio)


def loudest(samples: mx.array, sample_rate: int) -> float:
    """The frequency of the highest peak in a channel's spectrum, in Hz."""
    spectrum = np.abs(np.fft.rfft(np.array(samples) * np.hanning(samples.size)))
    return spectrum.argmax() * sample_rate / samples.size


# Clips


@pytest.mark.parametrize(
    "fps, rate",
    [
        (24, Fraction(24)),
        pytest.param(25, Fraction(25), marks=pytest.mark.slow),
        pytest.param(30000 / 1001, Fraction(30000, 1001), marks=pytest.mark.slow),
        (23.976, Fraction(24000, 1001)),
        (12.5, Fraction(25, 2)),
    ],
)
def test_clip_with_sound(tmp_path, fps, rate):
    path = tmp_path / "clip.mp4"
    media.save(clip(fps=fps, audio=tones(FRAMES / fps)), path)
    found = read_clip(path)
    assert found.fps == rate
    assert len(found.frames) == FRAMES
    np.testing.assert_allclose(found.frames, pictures(), atol=12)
    assert np.abs(np.array(found.frames, int) - pictures()).mean() < 2
    assert (found.audio.sample_rate, found.audio.samples.shape[0]) == (RATE, 2)
    for channel, hertz in zip(found.audio.samples, TONES):
        assert loudest(channel[2000:-2000], RATE) == pytest.approx(hertz, abs=3)


@pytest.mark.parametrize(
    "fps, seconds", [(24, 0.1), (24, 5.0), (12.5, 0.1), (30000 / 1001, 5.0)]
)
def test_sound_is_as_long_as_the_clip(tmp_path, fps, seconds):
    """To the sample: too little is followed by silence, too much is cut, and no frame is lost to it."""
    path = tmp_path / "clip.mp4"
    media.save(clip(fps=fps, audio=tones(seconds)), path)
    with av.open(str(path)) as container:
        video, sound = container.streams
        assert video.duration * video.time_base == FRAMES / video.average_rate
        assert sound.duration == round(FRAMES / fps * RATE)
        assert video.frames == FRAMES
    samples = read_clip(path).audio.samples
    silent = mx.abs(samples[:, round(0.2 * RATE) : -1024]).max() < 1e-3
    assert silent.item() == (seconds < 0.2)


def test_sound_starts_with_the_picture(tmp_path):
    """The delay that AAC encoding adds is not heard."""
    click = np.zeros((2, RATE), dtype=np.float32)
    click[:, 6000:6100] = 0.9
    media.save(clip(audio=Waveform(mx.array(click), RATE)), tmp_path / "clip.mp4")
    found = np.abs(np.array(read_clip(tmp_path / "clip.mp4").audio.samples[0]))
    heard = np.flatnonzero(found > 0.3)
    assert heard[0] == pytest.approx(6000, abs=30)
    assert heard[-1] == pytest.approx(6100, abs=30)


def test_mono_and_silent_clips(tmp_path):
    mono = Waveform(tones(1).samples[:1], RATE)
    media.save(clip(audio=mono), tmp_path / "mono.mp4")
    assert read_clip(tmp_path / "mono.mp4").audio.samples.shape[0] == 1
    media.save(clip(), tmp_path / "silent.mp4")
    assert read_clip(tmp_path / "silent.mp4").audio is None


def test_a_browser_plays_it(tmp_path):
    """H.264 4:2:0 and AAC, in BT.709 and saying so, with the index before the data."""
    path = tmp_path / "clip.mp4"
    shape = VideoPixelShape(1, 32, 32, 24)
    green = np.zeros((32, 32, 3), np.uint8)
    green[..., 1] = 255
    media.save(Clip(iter([green]), shape, tones(1)), path)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        assert [s.codec.canonical_name for s in container.streams] == ["h264", "aac"]
        codec = container.streams.video[0].codec_context
        assert codec.color_range == ColorRange.MPEG
        assert (codec.color_primaries, codec.color_trc) == (1, 1)
        frame = next(container.decode(video=0))
    assert (frame.format.name, frame.colorspace) == ("yuv420p", 1)
    luma = 16 + 219 * 0.7152
    assert frame.to_ndarray()[:32].mean() == pytest.approx(luma, abs=2)


def test_frames_are_taken_one_by_one(tmp_path):
    """A frame is on its way to the file, and counted, before the next is asked for."""
    written = []

    def frames():
        for index, frame in enumerate(pictures()):
            assert written == list(range(1, index + 1))
            yield frame

    lazy = replace(clip(), frames=frames())
    for count in media.saving(lazy, tmp_path / "clip.mp4", None, False):
        written.append(count)
    assert written == list(range(1, FRAMES + 1))


def test_frames_may_share_their_memory(tmp_path):
    """They are encoded in a thread, after the next one has taken the memory of the last."""

    def reused():
        memory = np.empty((HEIGHT, WIDTH, 3), np.uint8)
        for picture in pictures():
            memory[:] = picture
            yield memory

    for name, frames in (("apart.mp4", pictures()), ("shared.mp4", reused())):
        media.save(replace(clip(), frames=iter(frames)), tmp_path / name)
    apart, shared = (tmp_path / f"{name}.mp4" for name in ("apart", "shared"))
    assert apart.read_bytes() == shared.read_bytes()


@pytest.mark.parametrize("count", [1, FRAMES])
def test_what_ends_the_encoder_ends_the_save(tmp_path, monkeypatch, count):
    """Of the first frame, while others wait, and of the last, after which none comes."""
    add, encoded = media._add_video, []

    def failing(*args):
        encode = add(*args)

        def one(frame):
            encoded.append(frame)
            if len(encoded) == count:
                raise OSError(28, "No space left on device")
            return encode(frame)

        return one

    monkeypatch.setattr(media, "_add_video", failing)
    with pytest.raises((UserError, OSError), match="full|space"):
        media.save(clip(), tmp_path / "clip.mp4")
    assert not list(tmp_path.iterdir())


def test_metadata_survives(tmp_path):
    strings = {
        "mlx_video": '{\n "prompt": "Ein \\"Löwe\\"; 50 % = #1 \U0001f981"\n}'
        + 9000 * "x",
        "title": "a lion",
    }
    media.save(clip(), tmp_path / "clip.mp4", metadata=strings)
    found = media.metadata(tmp_path / "clip.mp4")
    assert {key: found[key] for key in strings} == strings


# Other files than mp4


@pytest.mark.parametrize("suffix", [".mov", ".webm", ".MP4", ".Mov"])
def test_films(tmp_path, suffix):
    """As in an mp4: pictures, sound, colours and strings."""
    path = tmp_path / f"clip{suffix}"
    media.save(clip(audio=tones(1)), path, metadata={"mlx_video": "{1}"})
    found = read_clip(path)
    assert len(found.frames) == FRAMES and found.fps == 24
    assert np.abs(np.array(found.frames, int) - pictures()).mean() < 2
    assert media.metadata(path)["mlx_video"] == "{1}"
    seconds = found.audio.samples.shape[1] / found.audio.sample_rate
    assert seconds == pytest.approx(FRAMES / 24, abs=1024 / RATE)
    for channel, hertz in zip(found.audio.samples, TONES):
        assert loudest(channel[2000:-2000], found.audio.sample_rate) == pytest.approx(
            hertz, abs=3
        )
    with av.open(str(path)) as container:
        codecs = [stream.codec.canonical_name for stream in container.streams]
        assert codecs == (["vp9", "opus"] if suffix == ".webm" else ["h264", "aac"])
        assert next(container.decode(video=0)).colorspace == 1


def test_webm_of_a_rate_that_opus_has_not(tmp_path):
    time = np.arange(44100) / 44100
    sound = Waveform(
        mx.array(np.sin(2 * np.pi * 440 * time)[None], dtype=mx.float32), 44100
    )
    media.save(clip(audio=sound), tmp_path / "a.webm")
    found = read_clip(tmp_path / "a.webm").audio
    assert loudest(found.samples[0, 2000:-2000], found.sample_rate) == pytest.approx(
        440, abs=3
    )


@pytest.mark.slow
@pytest.mark.parametrize("suffix, error", [(".gif", 3), (".webp", 3)])
def test_animations(tmp_path, suffix, error):
    """They repeat for ever, last as long as the clip, and hold no sound."""
    path = tmp_path / f"clip{suffix}"
    media.save(clip(audio=tones(1)), path, metadata={"mlx_video": "{1}"})
    with Image.open(path) as image:
        assert (image.n_frames, image.size) == (FRAMES, (WIDTH, HEIGHT))
        assert image.info["loop"] == 0
        milliseconds = 0
        for index, expected in enumerate(pictures()):
            image.seek(index)
            found = np.array(image.convert("RGB"), int)
            assert np.abs(found - expected).mean() < error
            milliseconds += image.info["duration"]
    assert milliseconds == pytest.approx(1000 * FRAMES / 24, abs=25)


def test_of_an_unknown_ending(tmp_path):
    with pytest.raises(
        UserError, match="clip.avi must end in .mp4, .mov, .webm, .gif or .webp"
    ):
        media.save(clip(), tmp_path / "clip.avi")
    assert os.listdir(tmp_path) == []


# What goes wrong


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_save_leaves_nothing(tmp_path, after, error):
    def frames():
        yield from pictures()[:after]
        raise error

    with pytest.raises(error):
        lazy = replace(clip(audio=tones(1)), frames=frames())
        media.save(lazy, tmp_path / "clip.mp4")
    assert os.listdir(tmp_path) == []


def test_a_stopped_save_encodes_no_frame_that_waits(tmp_path, monkeypatch):
    encoded, stopped, add = [], Event(), media._add_video

    def slow(*arguments):
        add(*arguments)

        def encode(frame):
            encoded.append(frame.pts)
            assert stopped.wait(timeout=10)
            return []

        return encode

    monkeypatch.setattr(media, "_add_video", slow)
    saving = media.saving(clip(), tmp_path / "clip.mp4", None, False)
    for _ in range(10):
        next(saving)
    Timer(0.2, stopped.set).start()
    saving.close()
    assert encoded == [0]
    assert os.listdir(tmp_path) == []


def test_a_disk_that_is_full_from_the_first_byte_is_a_sentence(tmp_path):
    """In a process of its own, which crashed."""
    code = (
        "import resource; from tests.test_media import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "for suffix in ('.mp4', '.webm'):\n"
        "    try: media.save(clip(audio=tones(1)), f'clip{suffix}')\n"
        "    except UserError as error: print(error)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        f"clip{suffix} cannot be written: file too large."
        for suffix in (".mp4", ".webm")
    ]
    assert done.returncode == 0 and os.listdir(tmp_path) == []


def test_an_interrupted_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_text("old")
    with pytest.raises(ValueError, match="should have 17 frames; got 3"):
        broken = replace(clip(), frames=iter(pictures(3)))
        media.save(broken, path, overwrite=True)
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    "frames, message",
    [
        (pictures(16), "should have 17 frames; got 16"),
        (pictures(18), "should have 17 frames; got more"),
        (
            [np.zeros((32, 96, 3), np.uint8)],
            "should be 96x64 pixels; frame 0 has 96x32",
        ),
    ],
)
def test_a_clip_that_breaks_its_promise(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        media.save(replace(clip(), frames=iter(frames)), tmp_path / "clip.mp4")
    assert os.listdir(tmp_path) == []


def test_nothing_is_overwritten_silently(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_text("old")
    for write in (
        lambda **options: media.save(clip(), path, **options),
        lambda **options: media.save_wav(tones(0.1), path, **options),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{path} exists")):
            write()
        assert path.read_text() == "old"
    write(overwrite=True)
    assert path.read_bytes().startswith(b"RIFF")


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere"):
        media.save(clip(), tmp_path / "nowhere" / "clip.mp4")


# Sound files


def test_wav(tmp_path):
    path = tmp_path / "sound.wav"
    media.save_wav(tones(0.5), path)
    with wave.open(str(path)) as wav:
        assert wav.getparams()[:4] == (2, 2, RATE, RATE // 2)
        samples = np.frombuffer(wav.readframes(RATE), "<i2").reshape(-1, 2).T / 32767
    assert np.abs(samples - np.array(tones(0.5).samples)).max() < 1e-4


def test_a_playlist_opens_nothing_else(tmp_path):
    """Which could be any file or address."""
    media.save_wav(tones(0.2), tmp_path / "secret.wav")
    playlist = (
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n"
    )
    concat = "ffconcat version 1.0\nfile secret.wav\n"
    for name, text in (("a.wav", playlist), ("b.m3u8", playlist), ("c.wav", concat)):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=f"{name} is not a readable media file"):
            media.metadata(tmp_path / name)
    with pytest.raises(UserError, match="is not a regular file"):
        media.metadata(tmp_path)


def test_what_is_no_media_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file .*lost.mp4"):
        media.metadata(tmp_path / "lost.mp4")
    (tmp_path / "text.mp4").write_text("not a clip")
    with pytest.raises(UserError, match="text.mp4 is not a rea.* or its .json"):
        media.metadata(tmp_path / "text.mp4")


# Frames


def test_save_frames_passes_them_on(tmp_path):
    folder = tmp_path / "a" / "frames"
    tee = media.save_frames(iter(pictures(3)), folder)
    np.testing.assert_array_equal(next(tee), pictures()[0])
    assert os.listdir(folder) == ["frame_0000.png"]
    assert len(list(tee)) == 2
    for index, frame in enumerate(pictures(3)):
        found = np.array(Image.open(folder / f"frame_{index:04d}.png"))
        np.testing.assert_array_equal(found, frame)
    with pytest.raises(UserError, match="frame_000[0-2].png exists; choose another"):
        next(media.save_frames(iter(pictures(1)), folder))
    assert len(os.listdir(folder)) == 3
    list(media.save_frames(iter(pictures(1)), folder, overwrite=True))
    assert os.listdir(folder) == ["frame_0000.png"]


# Stills


LARGE = VideoPixelShape(30, 192, 320, 24.0)


def brightening():
    """Frames that are as grey as they are late."""
    for place in range(LARGE.frames):
        yield np.full((LARGE.height, LARGE.width, 3), 8 * place, np.uint8)


def test_a_sheet_goes_through_the_clip_and_one_still_stands_for_it(tmp_path):
    path = tmp_path / "clip.mp4"
    media.save(Clip(brightening(), LARGE), path)
    save_stills(path)
    still = np.array(Image.open(tmp_path / "clip.webp").convert("L"), float)
    assert still.shape == (LARGE.height, LARGE.width)
    assert abs(still.mean() - 8 * (LARGE.frames // 3)) < 6
    sheet = np.array(Image.open(tmp_path / "clip.sheet.webp").convert("L"), float)
    assert sheet.shape == (ROWS * LARGE.height // 2, COLUMNS * SHEET_WIDTH)
    cells = sheet.reshape(ROWS, -1, COLUMNS, SHEET_WIDTH).mean(axis=(1, 3)).ravel()
    assert (np.diff(cells) > 15).all() and cells[0] < 8 and cells[-1] > 220
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "clip.mp4",
        "clip.sheet.webp",
        "clip.webp",
    ]
