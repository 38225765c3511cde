"""``mlx-video serve``: its options, and the start of the server."""

import argparse
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from mlx_video import hub
from mlx_video.cli import server
from mlx_video.cli.options import byte_size, seconds
from mlx_video.cli.parser import Add, flag, group
from mlx_video.clip_settings import ClipSettings
from mlx_video.disk import GB, full_path, read_small, typed_path
from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.find import DEMO, default_model, located, named
from mlx_video.serve import Limits

NEEDED = ("fastapi", "uvicorn", "multipart")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the server listens, which models it offers, and what it may use."""
    add = group(parser, "address")
    about = "address to listen on; any but loopback needs a key"
    add("--host", about, server.LOOPBACK[0], metavar="ADDRESS")
    add("--port", "port to listen on", server.PORT, type=int)
    add("--api-key", "key that every client must send (default: none)")
    about = "file that holds the key (default: none)"
    add("--api-key-file", about, metavar="FILE")
    _add_models(group(parser, "models"))
    _add_running(group(parser, "running"))
    add = group(parser, "storage")
    share = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    about = "folder for clips and the queue"
    add("--data", about, f"{share}/mlx-video", metavar="FOLDER")
    about = f"space for clips on the disk (default: {Limits.disk // GB}GB)"
    add("--disk-budget", about, type=byte_size, metavar="GB")
    add("--queue", "number of clips that may wait", Limits.queue, type=int, metavar="N")


def _add_models(add: Add) -> None:
    about = (
        "model to offer, as in `generate`; repeatable, the first is the default "
        f"(default: {DEMO}, and LTX-2 where it is in the hub's cache)"
    )
    add("--model", about, action="append")
    about = "LoRA to offer under a name; repeatable (default: none)"
    add("--lora", about, (), action="append", metavar="NAME=FILE")


def _add_running(add: Add) -> None:
    about = "memory budget in GB (default: what the machine has)"
    add("--memory-limit", about, type=byte_size, metavar="GB")
    about = "keep models loaded between clips, where memory allows it (default: --keep)"
    add("--keep", about, True, action=argparse.BooleanOptionalAction)
    about = "unload models after this many seconds without a clip"
    add("--idle", about, Limits.idle, type=seconds, metavar="SECONDS")
    about = "do not show clips while they are sampled"
    flag(add, "--no-preview", about, True, dest="previews")


def serve(args: argparse.Namespace) -> None:
    """Make clips from a page in the browser, and answer the OpenAI Videos API."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UserError(
            f'The server needs {missing[0]}: pip install "mlx-video[serve]".'
        )
    key = _key(args)
    if args.host not in server.LOOPBACK and not key:
        raise UserError(
            f"Anyone who reaches {args.host} could use the server; give it a key with --api-key-file FILE, or listen on {server.LOOPBACK[0]}."
        )
    if args.queue < 1:
        raise UserError(
            f"--queue must be 1 or more, such as {Limits.queue}; got {args.queue}."
        )
    data = typed_path(args.data)
    settings = {name: vars(args)[name] for name in ("host", "port", "queue")}
    settings |= {"key": key, "data": str(data), "worker": _worker(args, data)}
    settings["disk"] = round(args.disk_budget or Limits.disk)
    # Replaces this process with one that does not import MLX.
    environment = {**os.environ, server.SETTINGS: json.dumps(settings)}
    sys.stderr.flush()
    command = [sys.executable, "-m", "mlx_video.cli.server"]
    os.execve(sys.executable, command, environment)


def _worker(args: argparse.Namespace, data: Path) -> list[str]:
    models = args.model or dict.fromkeys((DEMO, default_model(lambda text: None)))
    for model in models:
        _check(model)
    names = "memory_limit", "previews", "keep", "idle"
    settings = {name: vars(args)[name] for name in names}
    settings["models"] = {
        Path(model).name if Path(model).exists() else model: full_path(model)
        for model in models
    }
    settings["loras"] = dict(map(_lora, args.lora))
    settings["lock"] = str(data / "worker.lock")
    return [sys.executable, "-m", "mlx_video.serve.worker", json.dumps(settings)]


def _check(model: str) -> None:
    """Raise ``UserError`` if a local model can make no clips. The worker opens those on the hub."""
    if hub.local(located(named(model))):
        ClipSettings("a clip").job(Files(model))


def _lora(words: str) -> tuple[str, str]:
    name, _, file = words.partition("=")
    if not (name and file):
        raise UserError(
            f"--lora needs NAME=FILE; got {words!r}. For example: --lora sepia=sepia.safetensors."
        )
    hub.local(file, file=True)  # raises if it can only be a path
    return name, full_path(file)


def _key(args: argparse.Namespace) -> str:
    if args.api_key_file is None:
        return args.api_key or ""
    key = read_small(typed_path(args.api_key_file)).strip()
    if not key:
        raise UserError(f"{args.api_key_file} is empty; write the key into it.")
    return key
