"""Make video with the distilled model, first at half size, then refined: ``python -m mlx_video.generate``."""

from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Sequence

from mlx_video import cli, recipes
from mlx_video.cli.progress import Downloads, Progress
from mlx_video.clip_settings import ClipSettings
from mlx_video.inputs import Image
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.names import *  # noqa: F401,F403  the names that users import from here
from mlx_video.output import Output
from mlx_video.record import Job
from mlx_video.run import Options, run


def generate_video(
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
    audio: bool = False,
    output_audio: str | Path | None = None,
    tiling: str = "auto",
    files: Files = Files(),
    overwrite: bool = False,
    quiet: bool = True,
    settings: ClipSettings = ClipSettings(""),
) -> Path:
    """Write a clip of ``prompt`` to ``output_path`` (mp4) with the distilled model; returns the path.

    negative_prompt  what to avoid; only guidance uses it, so the distilled model ignores it
    enhance_prompt   whether the text encoder rewrites the prompt first
    height, width    pixels; LTX-2 takes multiples of 64, or of 32 in one stage
    num_frames       frames, at ``fps`` per second; rounded to 1 + a multiple of 8 for LTX-2, with a warning
    audio            whether the clip has sound; ``output_audio`` names a wav file to write as well
    tiling           how the video is decoded, as in ``Request``
    files            the model, see ``Files``; ``None`` above means the model's default
    quiet            whether to show no progress on stderr
    settings         any other setting, such as another variant
    Raises ``UserError`` for bad input, ``HealthError`` for a result that is garbage.
    """
    settings = replace(
        settings,
        prompt=prompt,
        negative_prompt=negative_prompt,
        frames=num_frames,
        height=height,
        width=width,
        fps=fps,
        audio=audio,
        seed=seed,
        inputs=tuple(images),
        enhance=enhance_prompt,
        tiling=tiling,
    )
    sound = None if output_audio is None else Path(output_audio)
    output = Output(Path(output_path), sound, None, overwrite)
    return make(settings.job(files), output, quiet)


def make(job: Job, output: Output, quiet: bool) -> Path:
    """Run ``job``, showing its progress on stderr unless ``quiet``; returns the clip's path."""
    progress = Progress(quiet)
    options = Options(notify=Downloads(quiet))
    with closing(progress), closing(run(job, output, options)) as events:
        for event in events:
            progress.show(event)
    return Path(event.path)


main = partial(cli.main, before=["generate"], variant="distilled", audio=False)


if __name__ == "__main__":
    raise SystemExit(main())
