"""The commands: each reads its options, lets the package do the work, and shows the result."""

import argparse
import json
import logging
import os
import re
import sys
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Callable, Iterator, Sequence

from mlx_video import __version__
from mlx_video.backend import load_blas
from mlx_video.background import Background
from mlx_video.cli import FAULT, jobs, options, serve
from mlx_video.cli.parser import Parser, flag, group
from mlx_video.cli.progress import Downloads, Progress
from mlx_video.cli.terminal import say, tell
from mlx_video.cli.texts import catalog_text, describe_text, plan_json, plan_text
from mlx_video.disk import file_errors, short, typed_path
from mlx_video.errors import UserError
from mlx_video.events import Event, Planned
from mlx_video.hub import MODEL_REPO
from mlx_video.models.ltx.checkpoint.describe import catalog, describe, entry
from mlx_video.models.ltx.checkpoint.files import DTYPES
from mlx_video.models.ltx.checkpoint.find import DEMO
from mlx_video.models.ltx.checkpoint.layouts import VARIANTS
from mlx_video.models.ltx.checkpoint.standins import stood_in
from mlx_video.models.ltx.loading.components import Components
from mlx_video.previews import Preview
from mlx_video.recipes import SEED
from mlx_video.record import Job, read_from
from mlx_video.run import finish
from mlx_video.run import run as run_job
from mlx_video.verify import verify

DESCRIPTION = (
    "Make video with sound from a sentence, with LTX-2, on your own machine. "
    'mlx-video "a prompt" is short for mlx-video generate --prompt "a prompt".'
)

# What shtab's scripts lack: (what it writes, what is wanted).
ADAPTED = {
    "bash": [("complete -o bashdefault", "complete -o default")],
    "zsh": [
        # On macOS zsh starts without completion. The first line has to stay the first.
        (
            "#compdef mlx-video\n",
            "#compdef mlx-video\nautoload -U +X compinit; (( $+functions[compdef] )) || compinit -i\n",
        ),
        ("[-1] == eval", "[-1] == (eval|file)"),  # a script may also be sourced
        ("_options ;;", "_options '*:file:_files' ;;"),  # options after a prompt, too
    ],
    "fish": [],
}


def run(words: Sequence[str], **usual) -> None:
    """Run the command in ``words``; ``usual`` as in ``main_parser``."""
    args = main_parser(**usual).read(meant(words))
    if getattr(args, "verbose", False):
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.run(args)


def meant(words: Sequence[str]) -> Sequence[str]:
    """``words`` completed: a prompt alone is for ``generate``, and help and version are options."""
    # argparse has no optional commands.
    match words:
        case ["help", *command]:
            return [*command, "--help"]
        case ["version"]:
            return ["--version"]
        case [first, *_] if (
            not first or " " in first or re.match("-(?!h$|-help$|-version$)", first)
        ):
            return ["generate", *words]
    return words


def main_parser(**usual) -> Parser:
    """Every command and option of ``mlx-video``; ``usual`` are the defaults of ``add_generate``."""
    parser = Parser(prog="mlx-video", description=DESCRIPTION)
    about = "say what runs here, and exit"
    say_version = {"action": "store_const", "const": version, "dest": "run"}
    parser.add_argument("--version", help=about, **say_version)
    parser.set_defaults(run=lambda _: parser.print_help(), main=parser)
    commands = parser.commands = parser.add_subparsers(metavar="COMMAND")
    for name, (add_arguments, run) in COMMANDS.items():
        first = run.__doc__.partition(".\n")[0].rstrip(".")
        about = first[0].lower() + first[1:]
        command = commands.add_parser(name, help=about, description=about)
        add_arguments(command, **(usual if run is generate else {}))
        command.set_defaults(run=run, command=command)
    return parser


def version(args: argparse.Namespace) -> None:
    """Print our version, MLX's, the device and the BLAS."""
    import mlx.core as mx

    tell(f"mlx-video {__version__}")
    tell(f"mlx       {mx.__version__}, {mx.default_device()}")
    tell(f"BLAS      {load_blas() or 'the one in MLX'}")


# Commands; --help shows the first sentence of each docstring


def generate(args: argparse.Namespace) -> None:
    """Make a clip from a prompt, with or without a picture, with or without sound."""

    def check(job: Job) -> None:
        job.check()
        jobs.output_from(args, job).check(job.request)

    job = jobs.job_from(args, check)
    output = jobs.output_from(args, job, args.resume)
    if record := args.from_record or args.resume:
        jobs.ask(job, args, output)
    if args.preview:
        with file_errors(args.preview, "made"):
            args.preview.mkdir(parents=True, exist_ok=True)
    with read_from(record):
        _listen(args, run_job(job, output, jobs.options_from(args)))


def decode(args: argparse.Namespace) -> None:
    """Finish a run from the latents it left."""
    latents = typed_path(args.latents)
    job = jobs.moved(Job.from_record(latents), args)
    output = jobs.output_from(args, job, latents)
    jobs.ask(job, args, output)
    if args.tiling:
        job = replace(job, request=replace(job.request, tiling=args.tiling))
    with read_from(latents):
        _listen(args, finish(job, latents, output, jobs.options_from(args)))


def _listen(args: argparse.Namespace, events: Iterator[Event]) -> None:
    """Show the events of a run, then its path, or JSON for --json."""
    progress = Progress(args.quiet, args.verbose)
    with closing(events), closing(progress), Background() as background:
        for event in events:
            if isinstance(event, Planned):
                job, path = event.job, Path(event.path)
            if isinstance(event, Preview):
                background(_save_preview, event, args.preview / path.stem)
            progress.show(event)
    made = json.dumps(event._asdict() | {"seed": job.request.seed}, ensure_ascii=False)
    tell(made if args.json else event.path)


def _save_preview(preview: Preview, base: Path) -> None:
    """Write a picture under a name that begins with ``base``; if that fails, the run continues."""
    from mlx_video.media import save_still  # imports codecs, which few commands need

    name = f"{base.name}.stage-{preview.stage}-step-{preview.step:02}.jpg"
    try:
        save_still(preview.picture, base.with_name(name))
    except UserError as error:
        say(f"warning: {error}")


def plan(args: argparse.Namespace) -> None:
    """Say how much memory a run would take, without running it."""
    job = jobs.job_from(args)
    with read_from(args.from_record or args.resume):
        job.check()
    with stood_in(job.files, job.recipe.variant) as files:
        if files != job.files:
            say(
                f"{job.files.model} is not downloaded yet; planned from its published tables."
            )
        job = replace(job, files=files)
        foreseen = job.plan(limit=args.memory_limit, notify=Downloads())
        if not args.json:
            tell(plan_text(foreseen))
        job.pipeline(foreseen.check()).check(job.request)
        if args.json:
            tell(plan_json(foreseen))


def enhance(args: argparse.Namespace) -> None:
    """Let the text encoder rewrite a prompt.

    On a terminal it is printed as it is written.
    """
    if not (args.prompt or "").strip():
        raise UserError("Give a prompt to enhance: --prompt 'a fox in snow'.")
    # mlx-lm takes seconds to import.
    from mlx_video.models.ltx.enhance import enhance_i2v, enhance_t2v

    rewrite = enhance_i2v if args.image else enhance_t2v
    stream = partial(tell, end="") if sys.stdout and sys.stdout.isatty() else None
    needs = {"variant": "distilled", "needs": ["text_encoder"]}
    components = Components.open(jobs.files_from(args), **needs, notify=Downloads())
    with components.lend("text_encoder") as encoder:
        text = rewrite(encoder, args.prompt, seed=args.seed, on_text=stream)
    tell("" if stream else text)


def convert(args: argparse.Namespace) -> None:
    """Convert a checkpoint to an MLX folder, quantized if wanted."""
    import mlx.core as mx

    from mlx_video.convert import convert  # imports networks, which only it needs

    if args.typed.keys() & {"q_bits", "q_group_size"} and not args.quantize:
        raise UserError(
            "--q-bits and --q-group-size have no effect without -q; add -q."
        )
    downloads = Downloads()

    def notify(what: object) -> None:
        say(f"converting {what}") if isinstance(what, str) else downloads(what)

    names = "hf_path", "mlx_path", "quantize", "q_bits", "q_group_size", "variant"
    given = {name: vars(args)[name] for name in names}
    dtype = args.dtype and getattr(mx, args.dtype)
    tell(convert(**given, dtype=dtype, notify=notify))


def models(args: argparse.Namespace) -> None:
    """List the models that --model knows by name, with sizes, licences and what is in the cache."""
    entries = catalog()
    listed = json.dumps([asdict(entry) for entry in entries], indent=1)
    tell(listed if args.json else catalog_text(entries))


def info(args: argparse.Namespace) -> None:
    """Say what a file or folder holds and what is missing.

    Raises ``UserError`` at the end if it is unusable or damaged.
    """
    if release := entry(args.path):
        if args.verify:
            raise UserError(f"--verify reads a file or folder; {args.path} is a name.")
        return tell(catalog_text([release]))
    found = describe(args.path)
    tell(describe_text(found))
    damaged = noted = False
    for finding in verify(found.layout.files) if args.verify else ():
        damaged, noted = damaged or finding.certain, True
        tell(f"{'damaged' if finding.certain else 'note':<12}{finding.text}")
    if args.verify and not noted:
        tell("verified    nothing is wrong")
    if found.refusals or damaged:
        raise UserError(f"{short(found.layout.path)} cannot be used; see above.")


def check(args: argparse.Namespace) -> None:
    """Test this machine's MLX, and write a report to attach to an issue.

    The report is rewritten after each check. Exits with 1 if a result is wrong.
    """
    os.environ.setdefault("MLX_ENABLE_TF32", "0")  # full float32, like a CPU
    from mlx_video import check
    from mlx_video.check.table import checks

    path, outcomes = typed_path(args.output), []
    check.write(path, outcomes)
    tell(check.HEAD)
    for outcome in check.run(checks()):
        outcomes.append(outcome)
        tell(outcome)
        check.write(path, outcomes)
    check.write(path, outcomes, finished=True)
    wrong = [outcome for outcome in outcomes if not outcome.ok]
    if wrong:
        say(f"{len(wrong)} of {len(outcomes)} checks failed. Please attach {path} to an issue.")  # fmt: skip
        sys.exit(FAULT)
    say(f"All {len(outcomes)} checks passed. The report is in {path}.")


def completion(args: argparse.Namespace) -> None:
    """Print a completion script for bash, zsh or fish."""
    import shtab  # only for this command

    for command in args.main.commands.choices.values():
        for action in command._actions:
            # bash completes files anyway if nothing else fits.
            if args.shell != "bash" and action.nargs != 0 and not action.choices:
                action.complete = shtab.FILE
    script = shtab.complete(args.main, args.shell)
    for written, wanted in ADAPTED[args.shell]:
        script = script.replace(written, wanted)
    tell(script)


def _add_decode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("latents", help="the .latents.safetensors of a run")
    options.add_video_vae(options.add_model_files(parser))
    options.add_decoding(group(parser, "memory"))
    options.add_output(parser, "named after LATENTS")


def _add_enhance(parser: argparse.ArgumentParser) -> None:
    options.add_prompt(parser, SEED)
    flag(group(parser), "--image", "the clip begins with a picture")
    options.add_model_files(parser, default=MODEL_REPO)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    add = group(parser)  # the names of mlx-lm's convert
    about = "official .safetensors, folder with one, or hub repository"
    add("--hf-path", about, MODEL_REPO)
    add("--mlx-path", "folder to write, which must not exist yet", "mlx_model")
    about = "checkpoint to convert if there are several (default: the only one; distilled on the hub)"
    add("--variant", about, choices=VARIANTS)
    add("--dtype", "dtype of the weights (default: as stored)", choices=DTYPES)
    about = "quantize the blocks of the transformer and the text encoder"
    flag(add, "-q --quantize", about)
    about = "bits per weight: 8 costs no visible quality, 4 some"
    add("--q-bits", about, 8, type=int)
    add("--q-group-size", "number of weights that share a scale", 64, type=int)


def _add_info(parser: argparse.ArgumentParser) -> None:
    about = "file, folder or repository in the hub's cache, or the name of a release (default: the demo model, where the package has it)"
    parser.add_argument("path", nargs="?", default=DEMO, help=about)
    about = "read all of it: compare with the hub's checksums, and look for tensors that cannot be right"
    flag(group(parser), "--verify", about)


def _add_check(parser: argparse.ArgumentParser) -> None:
    report = "mlx-video-check.json"
    group(parser)("--output -o", "JSON report to write", report, metavar="FILE")


def _add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.epilog = (
        'In ~/.bashrc or ~/.zshrc: eval "$(mlx-video completion bash)", or zsh. '
        "In fish: mlx-video completion fish | source."
    )


COMMANDS: dict[str, tuple[Callable, Callable]] = {
    "generate": (options.add_generate, generate),
    "plan": (options.add_generate, plan),
    "decode": (_add_decode, decode),
    "enhance": (_add_enhance, enhance),
    "convert": (_add_convert, convert),
    "serve": (serve.add_arguments, serve.serve),
    "models": (lambda to: flag(group(to), "--json", "as JSON"), models),
    "info": (_add_info, info),
    "check": (_add_check, check),
    "completion": (_add_completion, completion),
}
