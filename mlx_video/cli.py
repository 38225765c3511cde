"""The ``mlx-video`` command, and what every door does with a job: run it, write its files, answer for failures."""

import argparse
import os
import signal
import sys
import tempfile
import traceback
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Callable, Iterator, Sequence

import mlx.core as mx

from mlx_video import __version__, convert
from mlx_video.arguments import (
    add_generate_arguments,
    add_model_files,
    add_output_arguments,
    add_prompt,
    add_tiling,
    files_from,
    job_from,
)
from mlx_video.disk import file_errors
from mlx_video.errors import MissingFileError, UserError
from mlx_video.health import HealthError
from mlx_video.hub import MODEL_REPO, Plan
from mlx_video.job import Job, decoder_of, load_latents, open_components, save_latents
from mlx_video.models.ltx.describe import describe
from mlx_video.models.ltx.find import DEMO
from mlx_video.parser import Parser
from mlx_video.recipes import distilled
from mlx_video.report import Report, describe_text, plan_line, plan_text
from mlx_video.types import Clip, Sample, Step

DESCRIPTION = "Make video with sound from a sentence, with LTX-2, on your own machine."
FAULT, BAD_INPUT, BAD_OUTPUT, INTERRUPTED = 1, 2, 3, 130
OUR_FAULT = (
    "This is a fault of mlx-video, not of what you typed. Please report the lines above, the command and the output of "
    "`mlx-video info` to the project."
)
LONGEST_NAME = 200  # bytes of a file name, so that the files beside it can be named too
CACHE_LIMIT = 2 * 2**30  # bytes of freed memory that MLX may keep for reuse


@dataclass(frozen=True)
class Output:
    """The files that a run may write. The latents and the record lie beside the mp4."""

    path: Path
    audio: Path | None = None
    frames: Path | None = None
    overwrite: bool = False

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Output":
        return cls(
            args.output_path, args.output_audio, args.save_frames, args.overwrite
        )

    @property
    def record(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def latents(self) -> Path:
        return self.path.with_suffix(".latents.safetensors")

    def check(self, audio: bool) -> None:
        """Raise for what could not be written after a long run: a wrong suffix, folder or permission, a file in the way."""
        if self.audio and not audio:
            raise UserError(
                f"--output-audio {self.audio} asks for sound of a clip without; add --audio."
            )
        targets = ((self.path, ".mp4"), (self.record, ".json"), (self.audio, ".wav"))
        for path, suffix in targets:
            if path is not None:
                _check_target(path, suffix, self.overwrite)
        if self.frames and self.frames.exists() and not self.frames.is_dir():
            raise UserError(f"--save-frames {self.frames} is a file; name a folder.")
        if self.frames and any(self.frames.glob("*.png")) and not self.overwrite:
            raise UserError(
                f"{self.frames} holds PNG files; choose another --save-frames, or add --overwrite to replace them."
            )


def _check_target(path: Path, suffix: str, overwrite: bool) -> None:
    if path.suffix != suffix:
        raise UserError(
            f"{path} does not end in {suffix}; try {path.with_suffix(suffix)}."
        )
    folder = path.parent
    if folder.is_file():
        raise UserError(
            f"{folder} is a file, so {path.name} cannot lie in it; choose a folder."
        )
    if not folder.is_dir():
        raise MissingFileError(
            f"There is no folder {folder} to write {path.name} into; make it first."
        )
    with file_errors(folder, "written to"):
        tempfile.TemporaryFile(dir=folder).close()
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise UserError(
            f"{path.name[:40]}... is too long a name; use at most {LONGEST_NAME} bytes."
        )
    if path.is_dir():
        raise UserError(f"{path} is a folder; choose another --output-path.")
    if path.exists() and not overwrite:
        raise UserError(
            f"{path} exists; choose another name, or add --overwrite to replace it."
        )


def make(
    job: Job,
    output: Output,
    *,
    health: bool = True,
    batched: bool = False,
    quiet: bool = True,
    memory_limit: float | None = None,
) -> Path:
    """Run ``job`` and write its files; returns the mp4's path. The latents stay if anything fails after sampling.

    memory_limit  bytes to fit into, by default what the machine has; ``ValueError`` where that cannot be
    """
    job.check()
    output.check(job.request.audio)
    if output.latents.exists() and not output.overwrite:
        raise UserError(
            f"{output.latents} was left by a run that did not finish; decode it with "
            f"`mlx-video decode {output.latents}`, or add --overwrite to start anew."
        )
    foreseen = job.plan(
        batched=batched,
        limit=memory_limit,
        announce=lambda download: quiet or announce(download),
    ).check()
    if not quiet:
        print(plan_line(foreseen), file=sys.stderr)
    job = job.planned(foreseen)
    mx.set_cache_limit(min(CACHE_LIMIT, foreseen.spare))
    pipeline = job.pipeline(health=health, batched=batched, plan=foreseen)
    with _latents_named(output.latents), closing(Report(quiet)) as report:
        for event in pipeline.stream(job.request):
            if isinstance(event, Step):
                report.show(event)
                report.tell(map(str, pipeline.components.fusions))
            elif isinstance(event, Sample):
                if job.request.enhance and not quiet:
                    print(f"prompt: {event.prompt}", file=sys.stderr)
                job = job.with_prompt(event.prompt)
                _save_latents(output.latents, event, job)
                report.show(Step("decode", 0, job.request.shape.frames))
            else:
                write(event, output, job, report)
        output.latents.unlink(missing_ok=True)
    return output.path


def _save_latents(path: Path, sample: Sample, job: Job) -> None:
    """Go on without, where they cannot be saved: the clip may still be made."""
    try:
        save_latents(path, sample, job)
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)


@contextmanager
def _latents_named(latents: Path) -> Iterator[None]:
    """Note, on whatever ends a run here, that what was sampled is not lost."""
    try:
        yield
    except BaseException as error:
        if latents.exists():
            error.add_note(
                f"The latents are kept: finish with `mlx-video decode {latents}`."
            )
        raise


def write(clip: Clip, output: Output, job: Job, report: "Report") -> None:
    """Write the clip and its record."""
    from mlx_video import media  # with codecs, which only a finished clip needs

    total = clip.shape.frames
    if output.frames:
        frames = media.save_frames(
            clip.frames, output.frames, overwrite=output.overwrite
        )
        clip = replace(clip, frames=frames)
    record = job.record()
    media.save(
        clip,
        output.path,
        metadata={"mlx_video": record},
        overwrite=output.overwrite,
        on_frame=lambda count: report.show(Step("decode", count, total)),
    )
    if output.audio:
        media.save_wav(clip.audio, output.audio, overwrite=output.overwrite)
    with media.written_aside(output.record, output.overwrite) as aside:
        aside.write_text(record + "\n")


def door(
    description: str, variant: str, *, audio: bool, argv: Sequence[str] | None
) -> int:
    """The exit code of a generating door; the path of its clip goes to stdout."""
    parser = Parser(description=description, allow_abbrev=False)
    add_generate_arguments(parser, variant=variant, audio=audio)
    args = parser.read(argv)
    return guarded(lambda: generate(args, variant))


def main(argv: Sequence[str] | None = None) -> int:
    """The ``mlx-video`` command."""
    parser = Parser(prog="mlx-video", description=DESCRIPTION)
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {__version__}"
    )
    parser.set_defaults(run=lambda _: parser.print_help())
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, (add_arguments, run, about) in COMMANDS.items():
        command = commands.add_parser(
            name, help=about, description=about, allow_abbrev=False
        )
        add_arguments(command)
        command.set_defaults(run=run, command=command)
    args = parser.read(argv)
    return guarded(lambda: args.run(args))


def generate(args: argparse.Namespace, variant: str | None = None) -> None:
    job = job_from(args, variant)
    path = make(
        job,
        Output.of(args),
        health=args.health,
        batched=getattr(args, "batch_guidance", False),
        quiet=args.quiet,
        memory_limit=args.memory_limit,
    )
    print(path)


def plan(args: argparse.Namespace) -> None:
    """Say what a run would take, and whether it fits."""
    job = job_from(args, args.variant)
    job.check()
    foreseen = job.plan(
        batched=args.batch_guidance, limit=args.memory_limit, announce=announce
    )
    print(plan_text(foreseen))
    foreseen.check()


def decode(args: argparse.Namespace) -> None:
    """Finish a run from the latents it left."""
    latents = load_latents(args.latents)
    job = Job.from_record(args.latents)
    output = Output.of(args)
    if output.path is None:
        name = args.latents.name.removesuffix(".latents.safetensors")
        output = replace(output, path=args.latents.with_name(f"{name}.mp4"))
    output.check(job.request.audio)
    tiling = args.tiling or job.request.tiling
    pipeline = decoder_of(job, health=args.health, announce=announce)
    with closing(Report(args.quiet)) as report:
        report.show(Step("decode", 0, job.request.shape.frames))
        clip = pipeline.decode(latents, job.request.shape, tiling)
        write(clip, output, job, report)
    args.latents.unlink(missing_ok=True)
    print(output.path)


def enhance(args: argparse.Namespace) -> None:
    """Print the enhanced prompt as it is written."""
    if not (args.prompt or "").strip():
        raise UserError("Say what to start from: --prompt 'a fox in snow'.")
    # mlx-lm takes seconds to import.
    from mlx_video.models.ltx.enhance import enhance_i2v, enhance_t2v

    rewrite = enhance_i2v if args.image else enhance_t2v
    stream = partial(print, end="", flush=True) if sys.stdout.isatty() else None
    components = open_components(
        files_from(args), distilled(), ["text_encoder"], announce
    )
    with components.text_encoder() as encoder:
        text = rewrite(encoder, args.prompt, seed=args.seed, on_text=stream)
    print("" if stream else text)


def announce(plan: Plan) -> None:
    """Say what is about to be downloaded, and how large it is."""
    print(plan, file=sys.stderr)


def info(args: argparse.Namespace) -> None:
    print(describe_text(describe(args.path)))


def guarded(run: Callable[[], None]) -> int:
    """The exit code of ``run``: 0, 2 for bad input, 3 for garbage, 130 for Ctrl-C, each a sentence on stderr.

    1 is a fault of ours, which keeps its traceback. A request to terminate ends a run as Ctrl-C does. On a CPU nothing
    is compiled: MLX would call g++ for each fused piece, seconds at the first run, and a run is no faster for it.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if mx.default_device() == mx.cpu:
        mx.disable_compile()
    try:
        run()
    except UserError as error:
        return _failed(f"error: {error}", error, BAD_INPUT)
    except HealthError as error:
        return _failed(f"error: {error}", error, BAD_OUTPUT)
    except KeyboardInterrupt as error:
        return _failed("stopped", error, INTERRUPTED)
    except Exception:
        traceback.print_exc()
        print(OUR_FAULT, file=sys.stderr)
        return FAULT
    return 0


def _failed(sentence: str, error: BaseException, code: int) -> int:
    """Say what happened, and what the error carries along: where the work is kept."""
    print(sentence, *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
    return code


def _add_decode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("latents", type=Path, help="the .latents.safetensors of a run")
    add_tiling(parser, default=None)
    add_output_arguments(parser, default=None)


def _add_enhance(parser: argparse.ArgumentParser) -> None:
    add_prompt(parser)
    parser.add_argument(
        "--image", action="store_true", help="the clip begins with a picture"
    )
    add_model_files(parser, default=MODEL_REPO)


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        nargs="?",
        default=DEMO,
        help="file or folder (default: the demo model, where the package has it)",
    )


COMMANDS = {
    "generate": (
        lambda parser: add_generate_arguments(parser, variant=None, audio=None),
        generate,
        "make a clip from a prompt, with or without a picture, with or without sound",
    ),
    "plan": (
        lambda parser: add_generate_arguments(parser, variant=None, audio=None),
        plan,
        "say how much memory a run would take, without running it",
    ),
    "decode": (_add_decode, decode, "finish a run from the latents it left"),
    "enhance": (_add_enhance, enhance, "let the text encoder rewrite a prompt"),
    "convert": (
        convert.add_arguments,
        lambda args: print(convert.run(args)),
        "turn an official checkpoint into a folder, smaller if wanted",
    ),
    "info": (_add_info, info, "say what a file or folder holds and what is missing"),
}


if __name__ == "__main__":
    sys.exit(main())
