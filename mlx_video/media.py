"""Clips and sound, in and out. Knows containers and codecs, not how a clip is made.

The only room with PyAV and Pillow. What it writes is written aside and renamed when it is complete.
"""

import math
import wave
from contextlib import contextmanager
from fractions import Fraction
from itertools import repeat
from pathlib import Path
from typing import Iterable, Iterator, Mapping

import av
import mlx.core as mx
import numpy as np
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc
from PIL import Image

from mlx_video.disk import is_there, short, typed_path, written_aside
from mlx_video.errors import MissingFileError, UserError
from mlx_video.postprocess import to_pcm16
from mlx_video.types import Clip, VideoPixelShape, Waveform

CRF = 18  # constant rate factor of libx264, 0 to 51: visually lossless
FRAME_PATTERN = "frame_*.png"
LAYOUTS = {1: "mono", 2: "stereo"}


# Writing


def save(
    clip: Clip,
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    crf: int = CRF,
    overwrite: bool = False,
) -> None:
    """Write ``clip`` as H.264 and AAC in one mp4, taking its frames one by one; the sound is cut or padded to fit.

    metadata  strings kept under their keys in the file; ``metadata(path)`` reads them back
    crf       libx264's constant rate factor: 0 lossless, 51 worst
    Raises ``UserError`` where the file exists, unless ``overwrite``, and where a frame is missing or of another size.
    """
    for _ in saving(clip, path, metadata=metadata, crf=crf, overwrite=overwrite):
        pass


def saving(
    clip: Clip,
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    crf: int = CRF,
    overwrite: bool = False,
) -> Iterator[int]:
    """The same frame by frame: yields how many are written. The file is there when this ends, not before."""
    options = {
        "movflags": "+faststart+use_metadata_tags",
        # Ticks a second of the file's own clock: a whole number for each frame, which its milliseconds are not.
        "movie_timescale": str(frame_rate(clip.fps).numerator),
    }
    with written_aside(path, overwrite) as partial:
        with av.open(str(partial), "w", format="mp4", container_options=options) as mp4:
            mp4.metadata.update(metadata or {})
            video = _add_video(mp4, clip.shape, crf)
            sound = clip.audio and _add_sound(mp4, clip.audio)
            pairs = zip(_checked_frames(clip), _sound_per_frame(clip))
            for count, (pixels, samples) in enumerate(pairs, start=1):
                mp4.mux(video.encode(_video_frame(pixels)))
                if sound:
                    mp4.mux(sound.encode(samples))
                yield count
            for stream in mp4.streams:
                mp4.mux(stream.encode(None))


def save_wav(waveform: Waveform, path: str | Path, *, overwrite: bool = False) -> None:
    """Write sound as 16-bit PCM. Raises ``FileExistsError`` unless ``overwrite``."""
    pcm = to_pcm16(waveform)
    with written_aside(path, overwrite) as partial:
        with wave.open(str(partial), "wb") as wav:
            wav.setnchannels(pcm.shape[1])
            wav.setsampwidth(pcm.itemsize)
            wav.setframerate(waveform.sample_rate)
            wav.writeframes(pcm.astype("<i2").tobytes())


def save_frames(
    frames: Iterable[np.ndarray], folder: str | Path, *, overwrite: bool = False
) -> Iterator[np.ndarray]:
    """Pass ``frames`` on, each written as ``folder``/frame_0000.png, frame_0001.png, ... when it is taken.

    Raises ``FileExistsError``, at once, if the folder already holds such frames; ``overwrite`` removes them first.
    """
    folder = Path(folder)
    if any(folder.glob(FRAME_PATTERN)) and not overwrite:
        raise UserError(
            f"{folder} already holds frames; choose another folder, or allow overwriting."
        )
    return _writing_frames(frames, folder)


def _writing_frames(frames: Iterable[np.ndarray], folder: Path) -> Iterator[np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(FRAME_PATTERN):
        old.unlink()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame_{index:04d}.png")
        yield frame


def frame_rate(fps: float) -> Fraction:
    """``fps`` as an exact fraction; 23.976, 29.97 and 59.94 stand for NTSC's 24000/1001, 30000/1001 and 60000/1001."""
    ntsc = Fraction(round(fps * 1.001) * 1000, 1001)
    if math.isclose(fps, ntsc, rel_tol=1e-5):
        return ntsc
    return Fraction(fps).limit_denominator(1001)


def _add_video(
    mp4: av.container.OutputContainer, shape: VideoPixelShape, crf: int
) -> av.VideoStream:
    """An H.264 stream in 4:2:0, with its colours marked as those of HD television (BT.709), as browsers expect."""
    stream = mp4.add_stream(
        "libx264", rate=frame_rate(shape.fps), options={"crf": str(crf)}
    )
    stream.width, stream.height, stream.pix_fmt = shape.width, shape.height, "yuv420p"
    codec = stream.codec_context
    codec.colorspace = Colorspace.ITU709
    codec.color_primaries = ColorPrimaries.BT709
    codec.color_trc = ColorTrc.BT709
    return stream


def _add_sound(mp4: av.container.OutputContainer, sound: Waveform) -> av.AudioStream:
    stream = mp4.add_stream("aac", rate=sound.sample_rate)
    stream.layout = LAYOUTS[sound.samples.shape[0]]
    return stream


def _checked_frames(clip: Clip) -> Iterator[np.ndarray]:
    """The clip's frames, whose size and number must be those it promises."""
    shape, count = clip.shape, 0
    for count, frame in enumerate(clip.frames, start=1):
        if count > shape.frames:
            break
        if frame.shape != (shape.height, shape.width, 3):
            raise UserError(
                f"The clip promised {shape.width}x{shape.height} pixels; frame {count - 1} has "
                f"{frame.shape[1]}x{frame.shape[0]}."
            )
        yield frame
    if count != shape.frames:
        given = "more" if count > shape.frames else count
        raise UserError(f"The clip promised {shape.frames} frames; it gave {given}.")


def _sound_per_frame(clip: Clip) -> Iterator[av.AudioFrame | None]:
    """For each picture the samples that sound while it shows: together exactly as long as the clip."""
    if clip.audio is None:
        yield from repeat(None, clip.shape.frames)
        return
    rate = clip.audio.sample_rate / frame_rate(clip.fps)
    edges = [round(frame * rate) for frame in range(clip.shape.frames + 1)]
    samples = np.array(clip.audio.samples.astype(mx.float32))[:, : edges[-1]]
    samples = np.pad(samples, ((0, 0), (0, edges[-1] - samples.shape[1])))
    for start, end in zip(edges, edges[1:]):
        yield _audio_frame(samples[:, start:end], start, clip.audio.sample_rate)


def _video_frame(pixels: np.ndarray) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)


def _audio_frame(samples: np.ndarray, start: int, sample_rate: int) -> av.AudioFrame:
    """With its time, without which the encoder's delay of 1,024 samples is heard as one."""
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(samples), format="fltp", layout=LAYOUTS[len(samples)]
    )
    frame.sample_rate, frame.pts = sample_rate, start
    frame.time_base = Fraction(1, sample_rate)
    return frame


# Reading


def metadata(path: str | Path) -> dict[str, str]:
    """The strings that ``save`` put into a media file, and what else it says of itself."""
    with _opened(path) as container:
        return dict(container.metadata)


def load_audio(path: str | Path, sample_rate: int = 16000) -> Waveform:
    """The first sound track of a file, made stereo and resampled to ``sample_rate`` Hz.

    Raises ``FileNotFoundError``, or ``ValueError`` if there is no sound in it.
    """
    with _opened(path) as container:
        if not container.streams.audio:
            raise UserError(
                f"{path} holds no sound; give a WAV, FLAC, MP3, M4A or MP4 file with sound."
            )
        resampler = av.AudioResampler("fltp", "stereo", sample_rate)
        pieces = [
            piece.to_ndarray()
            for frame in (*container.decode(audio=0), None)
            for piece in resampler.resample(frame)
        ]
    samples = np.concatenate(pieces, axis=1) if pieces else np.zeros((2, 0))
    return Waveform(mx.array(samples, dtype=mx.float32), sample_rate)


@contextmanager
def _opened(path: str | Path) -> Iterator[av.container.InputContainer]:
    if not is_there(typed_path(path)):
        raise MissingFileError(f"There is no file {short(path)}.")
    try:
        with av.open(str(path)) as container:
            yield container
    except av.FFmpegError as error:
        raise UserError(
            f"{path} is not a media file that can be read ({error.strerror})."
        ) from None
