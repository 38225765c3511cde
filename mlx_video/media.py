"""Writes clips, sound and pictures to files, completely or not at all; reads metadata. Knows containers and codecs."""

import wave
from fractions import Fraction
from itertools import pairwise, repeat
from operator import methodcaller
from pathlib import Path
from typing import Callable, Iterable, Iterator, Mapping, NamedTuple

import av
import mlx.core as mx
import numpy as np
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc
from PIL import Image

from mlx_video import disk
from mlx_video.background import Background
from mlx_video.errors import UserError
from mlx_video.postprocess import to_pcm16
from mlx_video.types import CLIP_SUFFIXES, FRAME_FILES, Clip, VideoPixelShape, Waveform

READABLE = "mov,matroska,webm,avi,asf,mpeg,mpegts,gif"
LAYOUTS = {1: "mono", 2: "stereo"}
WIDTH, SHEET_WIDTH = 640, 160  # pixels of a still, and of each picture on the sheet
COLUMNS, ROWS = 5, 2  # of the sheet


# Writing


def save(
    clip: Clip,
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write ``clip`` in the format that the suffix names, frame by frame; the sound is cut or padded to fit.

    .mp4 and .mov have H.264 and AAC, .webm has VP9 and Opus; .gif and .webp are animations without sound.

    metadata  strings to store in the file (not .gif or .webp); ``metadata(path)`` reads them
    Raises ``UserError`` if the file exists, unless ``overwrite``, or a frame is missing or of another size.
    """
    for _ in saving(clip, path, metadata, overwrite):
        pass


def saving(
    clip: Clip, path: str | Path, metadata: Mapping[str, str] | None, overwrite: bool
) -> Iterator[int]:
    """``save`` as a generator of how many frames were handed to the encoder; the file appears when it ends."""
    kind = ENCODINGS.get(Path(path).suffix.lower())
    if kind is None:
        raise UserError(f"{disk.short(path)} must end in {disk.any_of(CLIP_SUFFIXES)}.")
    options = _file_options(kind, clip.shape)
    with disk.written_aside(path, overwrite) as partial:
        with av.open(str(partial), "w", kind.format, container_options=options) as file:
            file.metadata.update(metadata or {} if kind.sound else {})
            video = _add_video(file, clip.shape, kind)
            sound = kind.sound and clip.audio and _add_sound(file, clip.audio, kind)
            file.start_encoding()  # a frame after a header that failed would crash

            def write(picture: av.VideoFrame, samples: av.AudioFrame | None) -> None:
                file.mux(video(picture))
                if sound:
                    file.mux(sound.encode(samples))

            frames = zip(_pictures(clip), _sound_per_frame(clip))
            with Background() as thread:  # encodes while the next frames are decoded
                for count, frame in enumerate(frames, start=1):
                    thread(write, *frame)
                    yield count
            for stream in file.streams:
                file.mux(stream.encode(None))


def _file_options(kind: "Encoding", shape: VideoPixelShape) -> dict[str, str]:
    if not kind.sound:
        return {"loop": "0"}  # forever
    if kind.format == "webm":
        return {}
    # Ticks per second, so that each frame lasts a whole number of them.
    ticks = str(shape.rate.numerator)
    return {"movflags": "+faststart+use_metadata_tags", "movie_timescale": ticks}


class Encoding(NamedTuple):
    """How a file is written: container, codecs (``None`` = no sound), pixel format, codec options."""

    format: str
    video: str
    sound: str | None
    pixels: str
    options: Mapping[str, str]


# Visually lossless. For real footage, veryfast takes a third of the time of libx264's default preset and makes a smaller
# file with 0.3 dB less. A bit rate of 0 means constant quality.
H264 = {"crf": "18", "preset": "veryfast"}
VP9 = {"crf": "24", "b": "0", "row-mt": "1", "cpu-used": "4"}
ENCODINGS = {
    ".mp4": Encoding("mp4", "libx264", "aac", "yuv420p", H264),
    ".mov": Encoding("mov", "libx264", "aac", "yuv420p", H264),
    ".webm": Encoding("webm", "libvpx-vp9", "libopus", "yuv420p", VP9),
    ".gif": Encoding("gif", "gif", None, "pal8", {}),
    ".webp": Encoding("webp", "libwebp_anim", None, "bgra", {"quality": "82"}),
}
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)


def save_wav(waveform: Waveform, path: str | Path, *, overwrite: bool = False) -> None:
    """Write sound as 16-bit PCM. Raises ``UserError`` if the file exists, unless ``overwrite``."""
    pcm = to_pcm16(waveform)
    with disk.written_aside(path, overwrite) as partial:
        with wave.open(str(partial), "wb") as wav:
            wav.setnchannels(pcm.shape[1])
            wav.setsampwidth(pcm.itemsize)
            wav.setframerate(waveform.sample_rate)
            wav.writeframes(pcm.astype("<i2").tobytes())


def save_frames(
    frames: Iterable[np.ndarray], folder: str | Path, *, overwrite: bool = False
) -> Iterator[np.ndarray]:
    """Yield ``frames`` unchanged, writing each to ``folder`` as frame_0000.png, frame_0001.png, ...

    Raises ``UserError`` at the first frame if the folder already holds such files; ``overwrite`` removes them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(FRAME_FILES):
        disk.check_free(old, overwrite)
        old.unlink()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame_{index:04d}.png")
        yield frame


def _add_video(
    file: av.container.OutputContainer, shape: VideoPixelShape, kind: Encoding
) -> Callable[[av.VideoFrame], list[av.Packet]]:
    """Add a video stream; returns the function that encodes a frame."""
    stream = file.add_stream(kind.video, rate=shape.rate, options=dict(kind.options))
    stream.width, stream.height, stream.pix_fmt = shape.width, shape.height, kind.pixels
    matrix = None
    if kind.pixels == "yuv420p":
        # Marked as HD television's colours (BT.709), as browsers expect.
        codec, matrix = stream.codec_context, Colorspace.ITU709
        codec.colorspace = matrix
        codec.color_primaries = ColorPrimaries.BT709
        codec.color_trc = ColorTrc.BT709
    usual = methodcaller("reformat", format=kind.pixels, dst_colorspace=matrix)
    converted = _palettes(shape) if kind.pixels == "pal8" else usual
    return lambda frame: stream.encode(converted(frame))


def _palettes(shape: VideoPixelShape) -> Callable[[av.VideoFrame], av.VideoFrame]:
    """A function that reduces a frame to its best 256 colours, dithered."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=shape.width, height=shape.height, format="rgb24", time_base=1 / shape.rate
    )
    split, sink = graph.add("split"), graph.add("buffersink")
    palette = graph.add("palettegen", "stats_mode=single")
    use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
    graph.link_nodes(source, split, use, sink)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    graph.configure()

    def reduced(frame: av.VideoFrame) -> av.VideoFrame:
        graph.push(frame)
        return graph.pull()

    return reduced


def _add_sound(
    file: av.container.OutputContainer, sound: Waveform, kind: Encoding
) -> av.AudioStream:
    rate = sound.sample_rate
    if kind.sound == "libopus" and rate not in OPUS_RATES:
        rate = OPUS_RATES[-1]  # PyAV resamples to it
    stream = file.add_stream(kind.sound, rate=rate)
    stream.layout = LAYOUTS[sound.samples.shape[0]]
    return stream


def _pictures(clip: Clip) -> Iterator[av.VideoFrame]:
    """Copies of the frames, so that their memory may be reused. Raises ``UserError`` unless number and sizes fit the clip."""
    shape, count = clip.shape, 0
    for count, pixels in enumerate(clip.frames, start=1):
        if count > shape.frames:
            break
        if pixels.shape != (shape.height, shape.width, 3):
            raise UserError(
                f"The clip should be {shape.width}x{shape.height} pixels; frame {count - 1} has "
                f"{pixels.shape[1]}x{pixels.shape[0]}."
            )
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = count - 1, 1 / shape.rate
        yield frame
    if count != shape.frames:
        given = "more" if count > shape.frames else count
        raise UserError(f"The clip should have {shape.frames} frames; got {given}.")


def _sound_per_frame(clip: Clip) -> Iterator[av.AudioFrame | None]:
    """The samples to play during each frame; together exactly as long as the clip."""
    if clip.audio is None:
        yield from repeat(None, clip.shape.frames)
        return
    rate = clip.audio.sample_rate / clip.shape.rate
    edges = [round(frame * rate) for frame in range(clip.shape.frames + 1)]
    samples = np.array(clip.audio.samples.astype(mx.float32))[:, : edges[-1]]
    samples = np.pad(samples, ((0, 0), (0, edges[-1] - samples.shape[1])))
    layout = LAYOUTS[len(samples)]
    for start, end in pairwise(edges):
        part = samples[:, start:end]
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
        frame.sample_rate = clip.audio.sample_rate
        # Without a time stamp the encoder's delay of 1,024 samples would be audible.
        frame.pts, frame.time_base = start, Fraction(1, frame.sample_rate)
        yield frame


# Still pictures of a finished clip: one to show before it plays, and a contact sheet


def save_stills(clip: Path) -> None:
    """Write NAME.webp and NAME.sheet.webp beside NAME.mp4, each completely or not at all; replaces older ones."""
    small: dict[int, Image.Image] = {}
    with av.open(str(clip)) as file:
        count = file.streams.video[0].frames
        places = np.linspace(0, count - 1, COLUMNS * ROWS).round().astype(int).tolist()
        for place, frame in enumerate(file.decode(video=0)):
            if place in places:
                small[place] = _small(frame.to_image(), SHEET_WIDTH)
            if place == count // 3:
                _save(_small(frame.to_image(), WIDTH), clip.with_suffix(".webp"))
    width, height = small[0].size
    sheet = Image.new("RGB", (COLUMNS * width, ROWS * height))
    for number, place in enumerate(places):
        row, column = divmod(number, COLUMNS)
        sheet.paste(small[place], (column * width, row * height))
    _save(sheet, clip.with_suffix(".sheet.webp"))


def save_still(pixels: np.ndarray, path: Path) -> None:
    """Write a frame, uint8 RGB (H, W, 3), as a picture at most 640 pixels wide, in the format of its suffix; replaces files."""
    _save(_small(Image.fromarray(pixels), WIDTH), path)


def _small(image: Image.Image, width: int) -> Image.Image:
    """``image`` at most ``width`` wide."""
    if image.width <= width:
        return image
    return image.resize((width, max(1, round(image.height * width / image.width))))


def _save(image: Image.Image, path: Path) -> None:
    with disk.written_aside(path, overwrite=True) as aside:
        image.save(aside, quality=82)


# Reading


def metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a media file: the strings that ``save`` stored, and any others."""
    path = disk.typed_path(path)
    disk.file_size(path)  # raises if it is not a file
    # No playlists, which could refer to other files and addresses.
    options = {"protocol_whitelist": "file", "format_whitelist": READABLE}
    try:
        with av.open(str(path), options=options) as container:
            found = dict(container.metadata)
            # Matroska, hence WebM, has all keys in capitals.
            capitals = "matroska" in container.format.name
            return {k.lower(): v for k, v in found.items()} if capitals else found
    except av.FFmpegError:
        raise UserError(
            f"{disk.short(path)} is not a readable media file: it is another kind of file, damaged or cut short. Give the "
            ".mp4 of a clip, or its .json."
        ) from None
