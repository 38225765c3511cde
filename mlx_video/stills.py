"""The still pictures of a finished clip: one to show before it plays, and a sheet to leaf through."""

from pathlib import Path
from typing import Iterator

import av
import numpy as np
from PIL import Image

from mlx_video.disk import written_aside

WIDTH, SHEET_WIDTH = 640, 160  # pixels, of the one and of each on the sheet
COLUMNS, ROWS = 5, 2


def save_stills(clip: Path) -> None:
    """Write NAME.webp and NAME.sheet.webp beside the clip, each whole or not at all; older ones are replaced."""
    count = sum(1 for _ in _frames(clip))
    places = np.linspace(0, count - 1, COLUMNS * ROWS).round().astype(int).tolist()
    shown = count // 3
    small: dict[int, Image.Image] = {}
    for place, frame in enumerate(_frames(clip)):
        if place in places:
            small[place] = _small(frame.to_image(), SHEET_WIDTH)
        if place == shown:
            _save(_small(frame.to_image(), WIDTH), clip.with_suffix(".webp"))
    width, height = small[0].size
    sheet = Image.new("RGB", (COLUMNS * width, ROWS * height))
    for number, place in enumerate(places):
        row, column = divmod(number, COLUMNS)
        sheet.paste(small[place], (column * width, row * height))
    _save(sheet, clip.with_suffix(".sheet.webp"))


def save_still(pixels: np.ndarray, path: Path) -> None:
    """Write a frame, uint8 RGB (H, W, 3), as a picture at most 640 pixels wide, in the format of its ending; an older one is replaced."""
    _save(_small(Image.fromarray(pixels), WIDTH), path)


def _frames(clip: Path) -> Iterator[av.VideoFrame]:
    with av.open(str(clip)) as container:
        yield from container.decode(video=0)


def _small(image: Image.Image, width: int) -> Image.Image:
    """``image`` at most ``width`` wide."""
    if image.width <= width:
        return image
    return image.resize((width, max(1, round(image.height * width / image.width))))


def _save(image: Image.Image, path: Path) -> None:
    with written_aside(path, overwrite=True) as aside:
        image.save(aside, quality=82)
