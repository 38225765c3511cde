"""``python -m mlx_video.backend`` reports on the MLX backend, for bug reports; with a name such as cuda13 it installs that."""

import argparse
import platform
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

from mlx_video import __version__, backend
from mlx_video.backend import BACKENDS, SWITCH, version_of


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, 1 if the backend cannot run, or 2 if the request makes no sense here."""
    parser = argparse.ArgumentParser(
        prog=SWITCH,
        description="Show which MLX backend runs here, or install another in its place (Linux).",
        epilog="Further options go to the installer (pip or uv pip), such as --no-deps or --index-url.",
    )
    parser.add_argument("backend", nargs="?", choices=("cpu", "cuda12", "cuda13"))
    args, options = parser.parse_known_args(argv)
    if args.backend is None:
        return report()
    try:
        switch(args.backend, options)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{SWITCH}: {error}", file=sys.stderr)
        return 2 if isinstance(error, OSError) else 1
    return subprocess.call([sys.executable, "-m", "mlx_video.backend"])


def report() -> int:
    """Print versions, the library, the device and the BLAS; returns 1, and prints the reason, if MLX cannot run."""
    print(f"mlx_video    {__version__}, {platform.platform()}")
    print(f"python       {platform.python_version()}, {sys.executable}")
    packages = ("mlx", *BACKENDS.values(), *backend.OPENBLAS.values())
    found = (f"{name} {version}" for name in packages if (version := version_of(name)))
    print(f"packages     {', '.join(found)}")
    print(f"BLAS         {backend.load_blas() or 'the one in MLX'}")
    if path := backend.libmlx():  # CUDA's has the CPU's name and ten times its size
        print(f"library      {path} ({path.stat().st_size / 1e6:.0f} MB)")
    try:
        backend.require_backend()
        import mlx.core as mx

        print(f"device       {mx.default_device()}")
    except (ImportError, RuntimeError) as error:
        print(f"problem      {error}")
        return 1
    return 0


def switch(wanted: str, options: list[str]) -> None:
    """Make the ``wanted`` backend the only one installed, at the version of the installed mlx.

    The backends share files, so removing one damages another. Hence three steps: install the new one (a failed download
    changes nothing), remove the others, and reinstall the new one's files.
    """
    if sys.platform != "linux":
        raise OSError("on macOS MLX always runs on Metal: there is nothing to switch")
    package = f"{BACKENDS[wanted]}=={version_of('mlx')}"
    others = [BACKENDS[name] for name in backend.installed() if name != wanted]
    _pip("install", package, *options)
    if others:
        _pip("uninstall", *others)
    whole = [*options, *({"--no-deps"} - set(options))]
    _pip("install", "--force-reinstall", package, *whole)
    settings = Path(sys.prefix, "pyvenv.cfg")  # in which uv writes its version
    if wanted != "cpu" and settings.exists() and "\nuv = " in settings.read_text():
        print(
            "Note: `uv run` and `uv sync` put the locked CPU backend back. "
            "Use `uv run --no-sync`, or set UV_NO_SYNC=1.",
            file=sys.stderr,
        )


def _pip(command: str, *arguments: str) -> None:
    """Run a command of this interpreter's pip, or of `uv pip` in an environment without pip."""
    if util.find_spec("pip"):
        unasked = ["--yes"] if command == "uninstall" else []
        line = [sys.executable, "-m", "pip", command, *unasked, *arguments]
    elif uv := shutil.which("uv"):
        line = [uv, "pip", command, "--python", sys.executable, *arguments]
    else:
        raise OSError(
            "neither pip nor uv is installed: `python -m ensurepip` installs pip"
        )
    print("+", *line, file=sys.stderr)
    subprocess.run(line, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
