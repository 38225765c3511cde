"""A clip as one picture: frames in a row, the sound's spectrogram under them on the same axis of time, the sentence above.

Knows layout and colours; not how clips are made or judged.
"""

import argparse
import json
from pathlib import Path
from typing import Sequence

import av
import mlx.core as mx
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mlx_video.errors import UserError
from mlx_video.record import read_record
from mlx_video.types import Waveform

COLUMNS = 8  # frames shown
CELL, GAP, MARGIN = 160, 6, 28  # pixels
SOUND, TICKS = 132, 30  # heights of the spectrogram and of the axis under it, pixels
PAPER, INK, FAINT = (252, 251, 248), (40, 42, 54), (140, 140, 148)
LOWEST, HIGHEST = 80.0, 6000.0  # Hz, on a logarithmic axis
WINDOW = 1024  # samples of a spectrum
DECIBELS = 65.0  # from the loudest that is shown down to the ground
FULL = 125.0  # magnitude of a spectrum that is shown at its brightest: a tone at half of full scale
# From silence to loud: night blue, violet, rose, amber, cream.
MAP = np.array(
    [[24, 22, 44], [74, 44, 122], [184, 64, 118], [244, 150, 84], [255, 240, 190]],
    float,
)


def sheet(
    frames: Sequence[np.ndarray], waveform: Waveform | None, caption: str, fps=24.0
) -> Image.Image:
    """A contact sheet of frames, uint8 RGB (H, W, 3), and their sound; without sound the spectrogram is left out.

    Each frame stands above the stretch of sound in whose middle it is seen.
    """
    shown = [frames[index] for index in _evenly(len(frames), COLUMNS)]
    height = round(CELL * shown[0].shape[0] / shown[0].shape[1])
    width = len(shown) * (CELL + GAP) - GAP
    lines = _wrapped(caption, _font(20), width)
    top = MARGIN + 28 * len(lines) + 8
    below = TICKS + (0 if waveform is None else SOUND + GAP)
    paper = Image.new("RGB", (width + 2 * MARGIN, top + height + below + MARGIN), PAPER)
    draw = ImageDraw.Draw(paper)
    for row, line in enumerate(lines):
        draw.text((MARGIN, MARGIN - 6 + 28 * row), line, INK, _font(20))
    for column, frame in enumerate(shown):
        picture = Image.fromarray(frame).resize((CELL, height), Image.LANCZOS)
        paper.paste(picture, (MARGIN + column * (CELL + GAP), top))
    bottom, seconds = top + height, len(frames) / fps
    if waveform is not None:
        picture = Image.fromarray(spectrogram(waveform, seconds, width, SOUND))
        paper.paste(picture, (MARGIN, bottom + GAP))
        bottom += GAP + SOUND
    _axis(draw, MARGIN, bottom, width, seconds)
    return paper


def spectrogram(
    waveform: Waveform, seconds: float, width: int, height: int
) -> np.ndarray:
    """Loudness over ``seconds`` and over pitch, high above low, of both channels together: uint8 (height, width, 3)."""
    rate, sound = waveform.sample_rate, np.array(waveform.samples, np.float64)
    length = max(WINDOW, round(seconds * rate))
    sound = np.pad(sound, ((0, 0), (0, max(0, length - sound.shape[1]))))
    starts = (np.arange(width) + 0.5) / width * length - WINDOW / 2
    starts = np.clip(starts, 0, length - WINDOW).astype(int)  # whole windows only
    pieces = sound[:, starts[:, None] + np.arange(WINDOW)] * np.hanning(WINDOW)
    spectra = np.sqrt((np.abs(np.fft.rfft(pieces)) ** 2).mean(axis=0))
    pitches = np.geomspace(HIGHEST, LOWEST, height) * WINDOW / rate
    rows = np.stack([np.interp(pitches, np.arange(len(s)), s) for s in spectra], axis=1)
    level = 1 + 20 * np.log10(np.maximum(rows / FULL, 1e-9)) / DECIBELS
    at = np.clip(level, 0, 1) * (len(MAP) - 1)
    colours = [np.interp(at, np.arange(len(MAP)), MAP[:, c]) for c in range(3)]
    return np.stack(colours, axis=-1).astype(np.uint8)


def read(path: Path) -> tuple[list[np.ndarray], Waveform | None, str, float]:
    """Frames, sound, sentence and frames per second of an mp4 that ``mlx-video`` wrote; other files have no sentence."""
    with av.open(str(path)) as container:
        has_sound, video = bool(container.streams.audio), container.streams.video[0]
        fps = float(video.average_rate)
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video)]
    sound = read_sound(path) if has_sound else None
    try:
        caption = json.loads(read_record(path))["job"]["request"]["prompt"]
    except UserError:
        caption = path.name
    return frames, sound, caption, fps


def read_sound(path: Path, sample_rate: int = 24000) -> Waveform:
    """The first audio track of a file, in stereo at ``sample_rate`` Hz."""
    resampler = av.AudioResampler("fltp", "stereo", sample_rate)
    with av.open(str(path)) as container:
        decoded = (*container.decode(audio=0), None)
        pieces = [piece for frame in decoded for piece in resampler.resample(frame)]
    samples = np.concatenate([piece.to_ndarray() for piece in pieces], axis=1)
    return Waveform(mx.array(samples), sample_rate)


def _evenly(total: int, count: int) -> list[int]:
    """The frames in the middle of ``count`` equal stretches of ``total``."""
    count = min(count, total)
    return [int((column + 0.5) * total / count) for column in range(count)]


def _axis(draw: ImageDraw.ImageDraw, left: int, top: int, width: int, seconds: float):
    step = next(s for s in (0.25, 0.5, 1, 2, 5, 10, 60) if seconds / s <= 10)
    for tick in np.arange(0, seconds + 1e-6, step):
        x = left + min(round(tick / seconds * width), width - 1)
        draw.line((x, top + 4, x, top + 9), FAINT)
        label = f"{tick:g} s" if tick else "0"
        draw.text((x, top + 11), label, FAINT, _font(13), anchor="ma")


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tiny.contact_sheet")
    parser.add_argument("clip", type=Path, help="mp4")
    parser.add_argument("picture", type=Path, help="png to write")
    arguments = parser.parse_args()
    if not arguments.clip.is_file():
        parser.error(f"There is no clip {arguments.clip}.")
    sheet(*read(arguments.clip)).save(arguments.picture)


if __name__ == "__main__":
    main()
