"""Make video with sound, in one mp4, with the distilled model: ``python -m mlx_video.generate_av``."""

import sys
from pathlib import Path
from typing import Sequence

from mlx_video import cli, recipes
from mlx_video.checkpoint import Files
from mlx_video.generate import generate_video
from mlx_video.inputs import Image
from mlx_video.names import *  # noqa: F401,F403  the names that users import from here


def generate_video_with_audio(
    prompt: str,
    output_path: str | Path = "output.mp4",
    *,
    negative_prompt: str | None = None,
    enhance_prompt: bool = False,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    seed: int = recipes.SEED,
    images: Sequence[Image] = (),
    output_audio: str | Path | None = None,
    tiling: str = "auto",
    files: Files = Files(),
    overwrite: bool = False,
    quiet: bool = True,
) -> Path:
    """Write a clip of ``prompt`` with sound to ``output_path`` (mp4); returns the path.

    All arguments are as in ``generate_video``, whose ``audio`` is on.
    """
    return generate_video(
        prompt,
        output_path,
        negative_prompt=negative_prompt,
        enhance_prompt=enhance_prompt,
        height=height,
        width=width,
        num_frames=num_frames,
        fps=fps,
        seed=seed,
        images=images,
        audio=True,
        output_audio=output_audio,
        tiling=tiling,
        files=files,
        overwrite=overwrite,
        quiet=quiet,
    )


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(argv, "generate", variant="distilled", audio=True)


if __name__ == "__main__":
    sys.exit(main())
