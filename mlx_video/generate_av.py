"""Make video with sound, in one mp4, with the distilled model: ``python -m mlx_video.generate_av``."""

from functools import partial
from pathlib import Path

from mlx_video import cli
from mlx_video.generate import generate_video
from mlx_video.names import *  # noqa: F401,F403  the names that users import from here


def generate_video_with_audio(
    prompt: str, output_path: str | Path = "output.mp4", **given
) -> Path:
    """``generate_video`` with its ``audio`` on; ``given`` are its other arguments."""
    return generate_video(prompt, output_path, audio=True, **given)


main = partial(cli.main, before=["generate"], variant="distilled", audio=True)


if __name__ == "__main__":
    raise SystemExit(main())
