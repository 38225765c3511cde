"""LTX-2 video and sound generation in MLX."""

import sys
from importlib import import_module
from types import TracebackType


def _is_command() -> bool:
    """Whether this process is ``mlx-video``, or ``python -m`` with a module of this package."""
    program = "".join(sys.argv[:1])
    if program != "-m":  # Python's own name while it looks for the module to run
        return program.endswith("mlx-video")
    return any(word.split(".")[0] == "mlx_video" for word in sys.orig_argv)


def _stopped(kind: type, error: BaseException, trace: TracebackType | None) -> None:
    """Print one word for Ctrl-C while a command is still importing, as later."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("stopped\n")
    else:
        sys.__excepthook__(kind, error, trace)


if _is_command():  # the first of our files that a command runs
    sys.excepthook = _stopped

from mlx_video.backend import prepare

prepare()  # before anything imports mlx.core

__version__ = "0.1.0"
_HOMES = {
    "AV": "types",
    "Clip": "types",
    "Files": "models.ltx.checkpoint.files",
    "Image": "inputs",
    "LTXPipeline": "api",
    "Options": "run",
    "Pipeline": "pipeline",
    "Request": "request",
    "Step": "types",
    "VideoPixelShape": "clip_limits",
    "load": "api",
    "save": "media",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that ``import mlx_video`` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mlx_video' has no attribute '{name}'")
    return getattr(import_module(f"mlx_video.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
