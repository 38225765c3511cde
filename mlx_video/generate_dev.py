"""Make video with the guided dev model, in one stage or two: ``python -m mlx_video.generate_dev``."""

from functools import partial
from pathlib import Path

from mlx_video import cli
from mlx_video.clip_settings import ClipSettings
from mlx_video.generate import generate_video
from mlx_video.names import *  # noqa: F401,F403  the names that users import from here


def generate_video_dev(
    prompt: str,
    output_path: str | Path = "output.mp4",
    *,
    steps: int | None = None,
    cfg_scale: float | None = None,
    two_stage: bool = False,
    **given,
) -> Path:
    """Write a clip of ``prompt`` to ``output_path`` (mp4) with the dev model; returns the path.

    cfg_scale  guidance strength of the video; 1 is off, ``None`` the checkpoint's default
    two_stage  whether to sample at half size, then refine with the distilled LoRA
    given      other arguments of ``generate_video``
    Raises as that does.
    """
    settings = ClipSettings("", "dev", steps=steps, cfg=cfg_scale, two_stage=two_stage)
    return generate_video(prompt, output_path, settings=settings, **given)


main = partial(cli.main, before=["generate"], variant="dev", audio=False)


if __name__ == "__main__":
    raise SystemExit(main())
