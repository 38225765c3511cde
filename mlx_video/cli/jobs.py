"""From arguments to a run's job, files and options; asks before opening files that only a record names."""

import argparse
import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Callable, Sequence

from mlx_video import hub
from mlx_video.cli.progress import Downloads, Progress
from mlx_video.cli.terminal import say
from mlx_video.clip_settings import ClipSettings
from mlx_video.disk import short
from mlx_video.errors import UserError
from mlx_video.events import Warned
from mlx_video.inputs import Input
from mlx_video.models.ltx.checkpoint.files import BESIDE, Files
from mlx_video.models.ltx.checkpoint.find import DEMO
from mlx_video.output import Output, clip_path
from mlx_video.record import Job
from mlx_video.resume import load_tensors
from mlx_video.run import Options


def job_from(args: argparse.Namespace, check: Callable[[Job], None] = Job.check) -> Job:
    """The job for the arguments of ``generate``. Shows downloads, and after ``check`` notices and warnings."""
    if args.from_record or args.resume:
        return _job_again(args)
    kinds = [item for item in Input.kinds.items() if item[1].option]
    inputs = [kind.typed(words) for name, kind in kinds for words in vars(args)[name]]
    if args.prompt is None:  # as where it was taken for a word of an input
        raise UserError("Give a prompt: --prompt 'a cat on a red sofa'.")
    settings = ClipSettings(**_said(args, ClipSettings), inputs=tuple(inputs))
    notices, downloads = [], Downloads(args.quiet)

    def notify(what: object) -> None:
        notices.append(what) if isinstance(what, str) else downloads(what)

    def warn(text: str) -> None:
        notices.append(Warned(text))

    job = settings.job(files_from(args), notify, warn, called=args.typed)
    check(job)  # so that what is wrong is said alone
    for notice in notices:
        Progress(args.quiet).show(notice)
    return job


# Options allowed with a record: where its files are now, and those that do not change the clip.
_WITH_RECORD = frozenset(("model", *BESIDE, "loras"))
_BESIDE_RECORD = frozenset(
    "from_record resume output_path output_audio save_frames overwrite health quiet verbose json yes memory_limit "
    "save_every preview".split()
)


def _job_again(args: argparse.Namespace) -> Job:
    """The job of a record, with typed files instead of its own."""
    if args.from_record and args.resume:
        raise UserError(
            "--resume continues a clip and --from-record starts it again; leave out one of them."
        )
    others = args.typed.keys() - _WITH_RECORD - _BESIDE_RECORD
    if others:
        names = ", ".join(flag for dest, flag in args.typed.items() if dest in others)
        which = "--resume" if args.resume else "--from-record"
        raise UserError(f"{which} uses the settings in the record; leave out {names}.")
    return moved(Job.from_record(args.from_record or args.resume), args)


def moved(job: Job, args: argparse.Namespace) -> Job:
    """``job`` with typed files instead of its own."""
    typed = files_from(args)
    typed.check()  # here, so that no record is blamed
    found = {name: getattr(typed, name) for name in args.typed.keys() & _WITH_RECORD}
    return replace(job, files=replace(job.files, **found))


def files_from(args: argparse.Namespace) -> Files:
    """The files that a command's arguments name; existing ones by their full path, for the record."""
    loras = tuple(map(_lora_from, getattr(args, "loras", ())))
    return Files(**{**_said(args, Files), "loras": loras}).resolved()


def _said(args: argparse.Namespace, kind: type) -> dict[str, object]:
    """The arguments that are fields of the dataclass ``kind``."""
    return {f.name: getattr(args, f.name) for f in fields(kind) if f.name in args}


def _lora_from(words: Sequence[str]) -> tuple[str, float]:
    try:
        path, strength = words if len(words) > 1 else (*words, 1)
        return path, float(strength)
    except ValueError:
        raise UserError(
            f"--lora needs PATH [STRENGTH]; got '{' '.join(words)}'. For example: --lora style.safetensors 0.8."
        ) from None


def output_from(args: argparse.Namespace, job: Job, left: Path | None = None) -> Output:
    """The files to write: those named, else those of the run that ``left`` latents or a state, else named after the prompt."""
    usual = Output(Path())
    if left is not None:
        usual = Output.recalled(left, load_tensors(left)[1])
    audio, frames = args.output_audio or usual.audio, args.save_frames or usual.frames
    path = usual.path
    if left is None or args.output_path is not None:
        typed = "." if args.output_path is None else args.output_path
        path = clip_path(typed, job.request.prompt, job.request.seed)
    if frames is True:
        frames = path.with_name(f"{path.stem}_frames")
    return Output(path, audio, frames, args.overwrite)


def options_from(args: argparse.Namespace) -> Options:
    """The options of the run."""
    previews = getattr(args, "preview", None) is not None
    downloads = Downloads(args.quiet)
    return Options(**_said(args, Options), previews=previews, notify=downloads)


# A record may come from anywhere

OURS = (DEMO, hub.MODEL_REPO, hub.TEXT_ENCODER_REPO)  # used anyway


def ask(job: Job, args: argparse.Namespace, output: Output) -> None:
    """Raise unless the user named, or agrees to, every file that ``job`` opens or ``output`` writes elsewhere.

    The user must name a repository that would be fetched for the first time.
    """
    typed = files_from(args).named()
    names = [name for name in job.files.named() if name not in OURS]
    names += [name for given in job.request.inputs for name in given.files]
    names = [name for name in names if name not in typed]
    for name in names:
        repo = "/".join(name.split("/")[:2])
        absent = not os.path.exists(name) and "/" in name
        if absent and not hub.cached_bytes(repo, ["*"]):
            raise UserError(
                f"The record names {short(name)}, which is not here. If you trust it, name it yourself, for example "
                "with --model."
            )
    # What only the record says to write, and not beside the clip.
    given, folder = (args.output_audio, args.save_frames), output.path.parent.resolve()
    paths = (path for path in (output.audio, output.frames) if path not in given)
    names += [str(path) for path in paths if path.resolve().parent != folder]
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
