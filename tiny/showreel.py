"""The moving picture in the README: eight clips of the packaged model side by side, as one animated WebP.

python -m tiny.showreel docs/showreel.webp
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import mlx_video
from mlx_video.models.ltx.checkpoint.find import DEMO

SENTENCES = (
    "a red ball bounces on a blue floor",
    "a yellow star spins on a meadow",
    "an orange moon rises over the grass at night",
    "a purple heart grows in front of a sunset",
    "a green arrow moves left and right, plain wall",
    "a pink cloud moves left and right over the grass",
    "a cyan tree falls, plain wall",
    "a blue triangle moves in a circle in front of a sunset",
)
COLUMNS = 4
SIDE, GAP = 190, 6  # pixels of a clip in the picture, and between two
EVERY = 2  # frames of a clip that become one of the picture
QUALITY = 85  # of WebP, of 100


def frames(sentence: str, seed: int) -> list[np.ndarray]:
    """Every other frame of a clip, uint8 (SIDE, SIDE, 3)."""
    pipeline = mlx_video.load(DEMO)
    taken = list(pipeline(sentence, seed=seed, audio=False).frames)[::EVERY]
    return [
        np.array(Image.fromarray(f).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
        for f in taken
    ]


def tiled(clips: list[list[np.ndarray]]) -> list[Image.Image]:
    """The clips' frames side by side, on white."""
    rows = -(-len(clips) // COLUMNS)
    size = (COLUMNS * (SIDE + GAP) - GAP, rows * (SIDE + GAP) - GAP)
    pictures = []
    for at in zip(*clips):
        picture = Image.new("RGB", size, "white")
        for place, frame in enumerate(at):
            row, column = divmod(place, COLUMNS)
            picture.paste(
                Image.fromarray(frame), (column * (SIDE + GAP), row * (SIDE + GAP))
            )
        pictures.append(picture)
    return pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="the .webp to write")
    parser.add_argument(
        "--seed",
        type=int,
        default=10,
        help="of the first clip; each next one takes the next (default: %(default)s)",
    )
    arguments = parser.parse_args()
    seeds = enumerate(SENTENCES, start=arguments.seed)
    first, *rest = tiled([frames(sentence, seed) for seed, sentence in seeds])
    first.save(
        arguments.path,
        save_all=True,
        append_images=rest,
        duration=round(1000 * EVERY / 24),
        loop=0,
        quality=QUALITY,
        method=4,
    )


if __name__ == "__main__":
    main()
