"""The still pictures of a finished clip."""

import numpy as np
from PIL import Image

from mlx_video import media
from mlx_video.media import COLUMNS, ROWS, SHEET_WIDTH, save_stills
from mlx_video.types import Clip, VideoPixelShape

SHAPE = VideoPixelShape(30, 192, 320, 24.0)


def brightening():
    """Frames that are as grey as they are late."""
    for place in range(SHAPE.frames):
        yield np.full((SHAPE.height, SHAPE.width, 3), 8 * place, np.uint8)


def test_a_sheet_goes_through_the_clip_and_one_still_stands_for_it(tmp_path):
    path = tmp_path / "clip.mp4"
    media.save(Clip(brightening(), SHAPE), path)
    save_stills(path)
    still = np.array(Image.open(tmp_path / "clip.webp").convert("L"), float)
    assert still.shape == (SHAPE.height, SHAPE.width)
    assert abs(still.mean() - 8 * (SHAPE.frames // 3)) < 6
    sheet = np.array(Image.open(tmp_path / "clip.sheet.webp").convert("L"), float)
    assert sheet.shape == (ROWS * SHAPE.height // 2, COLUMNS * SHEET_WIDTH)
    cells = sheet.reshape(ROWS, -1, COLUMNS, SHEET_WIDTH).mean(axis=(1, 3)).ravel()
    assert (np.diff(cells) > 15).all() and cells[0] < 8 and cells[-1] > 220
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "clip.mp4",
        "clip.sheet.webp",
        "clip.webp",
    ]
