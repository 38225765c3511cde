"""Make video with the guided dev model, in one stage or two: ``python -m mlx_video.generate_dev``."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Sequence

from mlx_video import cli, recipes
from mlx_video.checkpoint import Files
from mlx_video.generate import make, output_of
from mlx_video.inputs import Image
from mlx_video.names import *  # noqa: F401,F403  the names that users import from here
from mlx_video.sampling.guidance import Guidance
from mlx_video.types import AV
from mlx_video.wishes import Wishes


def generate_video_dev(
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
    steps: int | None = None,
    cfg_scale: float | None = None,
    guidance: AV[Guidance] | None = None,
    two_stage: bool = False,
    images: Sequence[Image] = (),
    audio: bool = False,
    output_audio: str | Path | None = None,
    tiling: str = "auto",
    files: Files = Files(),
    overwrite: bool = False,
    quiet: bool = True,
) -> Path:
    """Write a clip of ``prompt`` to ``output_path`` (mp4) with the dev model; returns the path.

    steps      denoising steps
    guidance   every strength, per modality
    cfg_scale  replaces ``guidance.video.cfg``; ``None`` keeps it
    two_stage  half size first, then refined with the distilled LoRA
    All other arguments, and what is raised, are as in ``generate_video``.
    """
    if guidance and cfg_scale is not None:
        guidance = AV(replace(guidance.video, cfg=cfg_scale), guidance.audio)
    wishes = Wishes(
        prompt,
        "dev",
        negative_prompt,
        num_frames,
        height=height,
        width=width,
        fps=fps,
        audio=audio,
        seed=seed,
        inputs=tuple(images),
        enhance=enhance_prompt,
        tiling=tiling,
        steps=steps,
        cfg=cfg_scale,
        guidance=guidance,
        two_stage=two_stage,
    )
    output = output_of(output_path, output_audio, overwrite)
    return make(wishes.job(files), output, quiet)


def main(argv: Sequence[str] | None = None) -> int:
    return cli.main(argv, "generate", variant="dev", audio=False)


if __name__ == "__main__":
    sys.exit(main())
