"""Files in and out, looked at as a player or another program would."""

import os
import re
import wave
from dataclasses import replace
from fractions import Fraction

import av
import mlx.core as mx
import numpy as np
import pytest
from av.video.reformatter import ColorRange
from PIL import Image

from mlx_video import media
from mlx_video.types import Clip, VideoPixelShape, Waveform
from tests.media_reading import read_clip
from tests.reference import vectors

FRAMES, HEIGHT, WIDTH, RATE = 17, 64, 96, 24000
TONES = (440, 1000)


def tones(seconds: float) -> Waveform:
    """A different tone in each channel."""
    time = np.arange(round(seconds * RATE)) / RATE
    waves = [0.5 * np.sin(2 * np.pi * hertz * time) for hertz in TONES]
    return Waveform(mx.array(np.stack(waves), dtype=mx.float32), RATE)


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
        (25, Fraction(25)),
        (30000 / 1001, Fraction(30000, 1001)),
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


@pytest.mark.parametrize("seconds", [0.1, 5.0])
@pytest.mark.parametrize("fps", [24, 12.5, 30000 / 1001])
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
    """A frame is on its way to the file, and reported, before the next is asked for."""
    written = []

    def frames():
        for index, frame in enumerate(pictures()):
            assert written == list(range(1, index + 1))
            yield frame

    lazy = replace(clip(), frames=frames())
    media.save(lazy, tmp_path / "clip.mp4", on_frame=written.append)
    assert written == list(range(1, FRAMES + 1))


def test_crf(tmp_path):
    for crf in (5, 40):
        media.save(clip(), tmp_path / f"{crf}.mp4", crf=crf)
    sizes = [(tmp_path / f"{crf}.mp4").stat().st_size for crf in (5, 40)]
    assert sizes[0] > sizes[1]


def test_metadata_survives(tmp_path):
    strings = {
        "mlx_video": '{\n "prompt": "Ein \\"Löwe\\"; 50 % = #1 \U0001f981"\n}'
        + 9000 * "x",
        "title": "a lion",
    }
    media.save(clip(), tmp_path / "clip.mp4", metadata=strings)
    found = media.metadata(tmp_path / "clip.mp4")
    assert {key: found[key] for key in strings} == strings


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


def test_an_interrupted_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_text("old")
    with pytest.raises(ValueError, match="promised 17 frames; it gave 3"):
        broken = replace(clip(), frames=iter(pictures(3)))
        media.save(broken, path, overwrite=True)
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    "frames, message",
    [
        (pictures(16), "promised 17 frames; it gave 16"),
        (pictures(18), "promised 17 frames; it gave more"),
        ([np.zeros((32, 96, 3), np.uint8)], "promised 96x64 pixels; frame 0 has 96x32"),
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
        with pytest.raises(ValueError, match=re.escape(f"{path} already exists")):
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
    again = media.load_audio(path, RATE)
    assert mx.abs(again.samples - tones(0.5).samples).max() < 1e-4
    assert media.load_audio(path, 16000).samples.shape == (2, 8000)


@pytest.mark.parametrize("suffix", [".wav", ".mp4"])
@pytest.mark.parametrize("channels", [1, 2])
def test_load_audio(tmp_path, suffix, channels):
    """From another rate, another number of channels, and out of a clip."""
    path = tmp_path / f"sound{suffix}"
    sound = Waveform(tones(1).samples[:channels], RATE)
    if suffix == ".wav":
        media.save_wav(sound, path)
    else:
        media.save(clip(audio=sound), path)
    found = media.load_audio(path)
    assert found.sample_rate == 16000
    seconds = 1 if suffix == ".wav" else FRAMES / 24
    assert found.samples.shape[0] == 2 and found.samples.dtype == mx.float32
    assert found.seconds == pytest.approx(seconds, abs=1024 / RATE)
    for channel, hertz in zip(found.samples, (TONES * 2)[:: 3 - channels]):
        assert loudest(channel, 16000) == pytest.approx(hertz, abs=3)


def test_no_sound_to_load(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file .*lost.wav"):
        media.load_audio(tmp_path / "lost.wav")
    (tmp_path / "text.wav").write_text("not sound")
    with pytest.raises(ValueError, match="text.wav is not a media file"):
        media.load_audio(tmp_path / "text.wav")
    media.save(clip(), tmp_path / "silent.mp4")
    with pytest.raises(ValueError, match="silent.mp4 holds no sound; give a WAV"):
        media.load_audio(tmp_path / "silent.mp4")


# Pictures


def test_save_frames_passes_them_on(tmp_path):
    folder = tmp_path / "a" / "frames"
    tee = media.save_frames(iter(pictures(3)), folder)
    np.testing.assert_array_equal(next(tee), pictures()[0])
    assert os.listdir(folder) == ["frame_0000.png"]
    assert len(list(tee)) == 2
    for index, frame in enumerate(pictures(3)):
        found = media.load_image(folder / f"frame_{index:04d}.png")
        np.testing.assert_array_equal(found, frame)
    with pytest.raises(ValueError, match="already holds frames"):
        media.save_frames(iter(pictures(1)), folder)
    list(media.save_frames(iter(pictures(1)), folder, overwrite=True))
    assert os.listdir(folder) == ["frame_0000.png"]


def test_load_image_turns_it_upright(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    found = media.load_image(tmp_path / "photo.jpg")
    assert found.shape == (16, 8, 3) and found.dtype == np.uint8
    assert found[:6].min() > 240 and found[10:].max() < 15


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK", "1"])
def test_load_image_of_any_mode(tmp_path, mode):
    image = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    name = "image.tif" if mode == "CMYK" else "image.png"
    image.save(tmp_path / name)
    assert (media.load_image(tmp_path / name) == 255).all()


@pytest.mark.parametrize(
    "dtype, white, name",
    [
        (np.uint16, 65535, "ramp.png"),
        (np.uint16, 65535, "ramp.tif"),
        (np.int32, 65535, "ramp.tif"),
        (np.int32, 255, "ramp.tif"),
        (np.float32, 1, "ramp.tif"),
        (np.float32, 255, "ramp.tif"),
    ],
)
def test_load_image_scales_deep_greyscale(tmp_path, dtype, white, name):
    ramp = np.tile(np.linspace(0, white, 256).astype(dtype), (4, 1))
    Image.fromarray(ramp).save(tmp_path / name)
    expected = np.tile(np.arange(256)[:, None], (4, 1, 3))
    np.testing.assert_array_equal(media.load_image(tmp_path / name), expected)


def test_load_image_keeps_a_dark_16_bit_picture_dark(tmp_path):
    Image.fromarray(np.full((4, 4), 200, np.uint16)).save(tmp_path / "dark.png")
    assert media.load_image(tmp_path / "dark.png").max() == 1


def test_load_image_lays_transparency_on_black(tmp_path):
    Image.new("RGBA", (2, 2), (200, 100, 50, 128)).save(tmp_path / "a.png")
    expected = [[[100, 50, 25]] * 2] * 2
    np.testing.assert_allclose(media.load_image(tmp_path / "a.png"), expected, atol=1)


def test_no_image_to_load(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no image .*lost.png"):
        media.load_image(tmp_path / "lost.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.png")
    broken = {
        "text.png": b"text",
        "cut.png": (tmp_path / "whole.png").read_bytes()[:70],
    }
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name} is not an image.*PNG, JPEG"):
            media.load_image(tmp_path / name)


def test_compress_like_video():
    image = pictures()[0][:63, :95]
    mild, strong = (media.compress_like_video(image, crf) for crf in (18, 51))
    assert mild.shape == strong.shape == (62, 94, 3) and mild.dtype == np.uint8
    errors = [np.abs(x.astype(int) - image[:62, :94]).mean() for x in (mild, strong)]
    assert 0 < errors[0] < 2 < errors[1]
    np.testing.assert_array_equal(media.compress_like_video(image, 18), mild)


def test_compress_like_video_is_the_trip_through_a_file(tmp_path):
    path, image = tmp_path / "image.mp4", np.array(vectors("sampling")["image.in"])
    with av.open(str(path), "w") as mp4:
        options = {"crf": "33", "preset": "veryfast"}
        stream = mp4.add_stream("libx264", rate=1, options=options)
        stream.height, stream.width, stream.pix_fmt = *image.shape[:2], "yuv420p"
        mp4.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        mp4.mux(stream.encode(None))
    expected = read_clip(path).frames[0]
    np.testing.assert_array_equal(media.compress_like_video(image), expected)


def test_compress_needs_two_pixels_a_side():
    with pytest.raises(ValueError, match="is 1x5 pixels; it must be at least 2x2"):
        media.compress_like_video(np.zeros((5, 1, 3), np.uint8))


def test_fit_image_is_the_official_resize():
    v = vectors("sampling")
    actual = media.fit_image(np.array(v["image.in"]), 64, 96)
    assert actual.dtype == mx.float32
    assert mx.abs(actual - v["image.resized_64x96"]).max() < 1e-6


@pytest.mark.parametrize("rows, columns", [(200, 50), (50, 200), (7, 7)])
def test_fit_image_covers_and_centres(rows, columns):
    """A ramp from -1 to 1 along the longer side keeps its middle; nothing is stretched."""
    ramp = np.linspace(0, 255, max(rows, columns)).round().astype(np.uint8)
    ramp = ramp[:, None] if rows > columns else ramp[None]
    image = np.broadcast_to(ramp[..., None], (rows, columns, 3))
    fitted = media.fit_image(image, 64, 64)
    assert fitted.shape == (1, 3, 1, 64, 64)
    assert abs(fitted.mean().item()) < 0.02
    slope = (fitted.max() - fitted.min()).item()
    expected = 2 * min(rows, columns) / max(rows, columns)
    assert slope == pytest.approx(expected, rel=0.05)


def test_fit_image_of_its_own_size_is_exact():
    image = pictures()[3]
    fitted = np.array(media.fit_image(image, HEIGHT, WIDTH))[0, :, 0]
    np.testing.assert_allclose(fitted.transpose(1, 2, 0), image / 127.5 - 1, atol=1e-6)
