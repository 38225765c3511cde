"""Make video with the guided dev model, in one stage or two: ``python -m mlx_video.generate_dev``."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Sequence

from mlx_video import cli, recipes
from mlx_video.job import Files, Job
from mlx_video.names import *  # noqa: F401,F403  the names that users import from here
from mlx_video.pipeline import Image, Request
from mlx_video.sampling.guidance import Guidance
from mlx_video.types import AV, VideoPixelShape


def generate_video_dev(
    prompt: str,
    output_path: str | Path = "output.mp4",
    *,
    negative_prompt: str = recipes.DEFAULT_NEGATIVE_PROMPT,
    height: int = recipes.HEIGHT,
    width: int = recipes.WIDTH,
    num_frames: int = recipes.FRAMES,
    fps: float = recipes.FPS,
    seed: int = recipes.SEED,
    steps: int = recipes.STEPS,
    cfg_scale: float = recipes.VIDEO_GUIDANCE.cfg,
    guidance: AV[Guidance] = AV(recipes.VIDEO_GUIDANCE, recipes.AUDIO_GUIDANCE),
    two_stage: bool = False,
    images: Sequence[Image] = (),
    audio: bool = False,
    tiling: str = "auto",
    files: Files = Files(),
    overwrite: bool = False,
) -> Path:
    """Write a clip of ``prompt`` to ``output_path`` (mp4) with the dev model; returns the path.

    height, width  pixels, multiples of 32, of 64 in two stages
    num_frames     1 + a multiple of 8, at ``fps`` per second
    cfg_scale      of the video; ``guidance`` has every other strength
    two_stage      half size first, then refined with the distilled LoRA
    Raises ``ValueError`` or ``OSError`` for what cannot be done, ``HealthError`` for a result that is garbage.
    """
    request = Request(
        prompt,
        VideoPixelShape(num_frames, height, width, fps),
        negative_prompt=negative_prompt,
        seed=seed,
        images=tuple(images),
        audio=audio,
        tiling=tiling,
    )
    guidance = AV(replace(guidance.video, cfg=cfg_scale), guidance.audio)
    job = Job(request, recipes.dev(steps, guidance, two_stage), files)
    return cli.make(job, cli.Output(Path(output_path), overwrite=overwrite))


def main(argv: Sequence[str] | None = None) -> int:
    return cli.door(__doc__, "dev", audio=False, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
