"""Asks before opening files that only a record names, since a record may come from anywhere."""

import argparse
import os
import sys
from typing import Iterator

from mlx_video import hub
from mlx_video.cli.job import files_from
from mlx_video.cli.terminal import say
from mlx_video.disk import short
from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint.find import DEMO
from mlx_video.output import Output
from mlx_video.record import Job

OURS = (DEMO, hub.MODEL_REPO, hub.TEXT_ENCODER_REPO)  # what would be used anyway


def ask(job: Job, args: argparse.Namespace, output: Output) -> None:
    """Raise unless the user named every file that ``job`` opens or ``output`` writes elsewhere, or agrees to it.

    A repository that would be fetched for the first time has to be named by the user.
    """
    typed = files_from(args).named()
    names = [name for name in _opened(job) if name not in typed]
    for name in names:
        repo = "/".join(name.split("/")[:2])
        if not os.path.exists(name) and "/" in name and not hub.has(repo, "*"):
            raise UserError(
                f"The record names {short(name)}, which is not here. If you trust it, name it yourself, for example "
                f"with --model."
            )
    names += _written(output, args)
    if not names or args.yes:
        return
    listed = ", ".join(short(name) for name in names)
    if sys.stdin is None or not sys.stdin.isatty():
        raise UserError(
            f"The record names files that you did not: {listed}. Add --yes to open them, or name your own, for example "
            "with --model."
        )
    say(f"The record names files that you did not: {listed}.")
    if input("Open them? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("Not opened; name your own files, for example with --model.")


def _opened(job: Job) -> Iterator[str]:
    """Files, folders and repositories that ``job`` names, but for those that are used where nothing is named."""
    yield from (name for name in job.files.named() if name not in OURS)
    for given in job.request.inputs:
        yield from given.files


def _written(output: Output, args: argparse.Namespace) -> list[str]:
    """Files that only the record says to write, and not beside the clip."""
    typed, folder = (args.output_audio, args.save_frames), output.path.parent.resolve()
    paths = (path for path in (output.audio, output.frames) if path not in typed)
    return [str(path) for path in paths if path.resolve().parent != folder]
