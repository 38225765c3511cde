"""Which MLX backend is installed, and a fast BLAS for it. Knows packages and shared libraries, not arrays.

On Linux `mlx` has no backend of its own: `mlx-cpu`, `mlx-cuda-12` and `mlx-cuda-13` all contain the same file,
`mlx/lib/libmlx.so`, so exactly one of them may be installed. `python -m mlx_video.backend` reports and switches.
"""

import ctypes
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import util
from pathlib import Path

BACKENDS = {
    "cpu": "mlx-cpu",
    "cuda12": "mlx-cuda-12",
    "cuda13": "mlx-cuda-13",
    "metal": "mlx-metal",
}
OPENBLAS = {"x86_64": "ngsolve-openblas", "aarch64": "cmeel-openblas"}
SWITCH = "python -m mlx_video.backend"
THREADS = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
SHARED = 8 * 2**20  # bytes of a weight from which products use several threads

log = logging.getLogger(__name__)
eager = False  # whether operations may run at once: on a CPU, after ``suit_cpu``


def prepare() -> None:
    """Make sure that `import mlx.core` finds one complete backend, and on Linux a fast BLAS; `mlx_video` calls it first.

    Raises ImportError saying what to install, except in the switch itself, which must start without a backend.
    """
    if "mlx_video.backend" in sys.orig_argv:
        return
    load_blas()
    require_backend()


def suit_cpu(largest: int) -> None:
    """Set MLX up for products with weights of up to ``largest`` bytes, if it computes on a CPU.

    Turns compilation off: MLX would call g++ for each fused function, twenty seconds at first, and gain nothing. Small
    products use one thread: on a busy machine several wait for each other, a time slice each. A thread count in the
    environment takes precedence.

    Called for every loan of a part: the threads depend on its weights, and the default device may change after import,
    which does not load MLX.

    This affects the whole process and is not undone, since MLX cannot report the previous setting. So the last bits of a
    network called outside ``Components.lend`` may change with the first loan; clips are always computed within one.
    """
    import mlx.core as mx

    global eager
    eager = mx.default_device() == mx.cpu
    if not eager:
        return
    mx.disable_compile()
    blas = ctypes.CDLL(None)
    if hasattr(blas, "openblas_set_num_threads") and not os.environ.keys() & {*THREADS}:
        cores = blas.openblas_get_num_procs()
        blas.openblas_set_num_threads(cores if largest >= SHARED else 1)


def blas_threads() -> str:
    """How many threads compute products on a CPU, which affects the last bits of a clip; empty = unknown."""
    blas = ctypes.CDLL(None)
    if not hasattr(blas, "openblas_get_num_threads"):
        return ""
    if os.environ.keys() & {*THREADS}:
        return str(blas.openblas_get_num_threads())
    return f"1, or {blas.openblas_get_num_procs()} for large weights"


def on_cuda() -> bool:
    """Whether MLX computes on an NVIDIA GPU."""
    import mlx.core as mx

    return mx.cuda.is_available() and mx.default_device() == mx.gpu


def installed() -> list[str]:
    """The installed backends, by their names in `BACKENDS`; more than one is an error."""
    return [name for name, package in BACKENDS.items() if version_of(package)]


def require_backend() -> None:
    """Raise ImportError, with one sentence, unless exactly one backend is installed and can be loaded."""
    names = installed()
    if len(names) > 1:
        packages = " and ".join(BACKENDS[name] for name in names)
        raise ImportError(
            f"{packages} are installed together and overwrite each other's files: "
            f"keep one with `{SWITCH} {names[-1]}` (or {names[0]})."
        )
    library = libmlx()
    if library is None:
        _require_core()
    elif names and names[0].startswith("cuda"):
        _require_cuda(names[0], library)


def libmlx() -> Path | None:
    """MLX's shared library beside the installed `mlx`, found without importing it."""
    spec = util.find_spec("mlx")
    folders = spec.submodule_search_locations if spec else []
    suffix = "dylib" if sys.platform == "darwin" else "so"
    paths = (Path(folder, "lib", f"libmlx.{suffix}") for folder in folders or [])
    return next((path for path in paths if path.exists()), None)


def _require_core() -> None:
    """Import MLX: a build from source may have its library anywhere."""
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        remedy = (
            "install it with `python -m pip install --force-reinstall mlx mlx-metal`"
            if sys.platform == "darwin"
            else f"install mlx-cpu with `{SWITCH} cpu`, or for an NVIDIA GPU "
            f"mlx-cuda-13 or mlx-cuda-12 with `{SWITCH} cuda13` or `cuda12`"
        )
        raise ImportError(f"MLX has no backend here: {remedy}.") from error


def _require_cuda(name: str, library: Path) -> None:
    """Load CUDA's library before mlx.core does, to report a missing driver in a sentence."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        remedy = (
            "install the NVIDIA driver"
            if "libcuda.so" in str(error)
            else f"install NVIDIA's libraries with `{SWITCH} {name}`"
        )
        raise ImportError(
            f"{BACKENDS[name]} cannot load ({error}): {remedy}, "
            f"or go back to the CPU with `{SWITCH} cpu`."
        ) from error


@cache
def load_blas() -> str | None:
    """On Linux, load OpenBLAS before MLX; returns its path, or None if MLX keeps its own BLAS.

    MLX's Linux wheels contain the reference BLAS, 20 to 40 times slower in float32, and bind its functions by their plain
    names, so a library loaded globally before `mlx.core` replaces it. CUDA's wheels do the same for operations on the CPU,
    but only a CPU backend warns when OpenBLAS is missing.
    """
    if sys.platform != "linux":
        return None
    if hasattr(ctypes.CDLL(None), "cblas_sgemm"):
        return "one loaded before mlx_video"
    try:
        if "mlx.core" in sys.modules:
            raise OSError("mlx came first, import mlx_video before it")
        return _load_openblas()
    except OSError as error:
        if installed() == ["cpu"]:
            log.warning("Float32 is 20 to 40 times slower than it could be: %s.", error)
        return None


def _load_openblas() -> str:
    """Load OpenBLAS globally from the first package that has it; the OSError says what to install."""
    path = next(_libraries(OPENBLAS.values(), "libopenblas*.so*"), None)
    if path is None:
        package = OPENBLAS.get(os.uname().machine, "an OpenBLAS with plain symbols")
        raise OSError(f"pip install {package}")
    try:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        if "libgfortran" not in str(error):
            raise
        _lend_libgfortran()
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    return str(path)


def _libraries(packages: Iterable[str], pattern: str) -> Iterator[Path]:
    """Shared libraries that match ``pattern`` in those of ``packages`` that are installed; imports none."""
    for info in filter(None, map(_info, packages)):
        record = info / "RECORD"  # some packagers leave it out
        files = record.read_text().splitlines() if record.exists() else ()
        paths = (info.parent / file.split(",")[0] for file in files)
        yield from (path for path in paths if path.match(pattern))


def _lend_libgfortran() -> None:
    """Load the libgfortran of MLX's wheel under the name that OpenBLAS asks for, libgfortran.so.5.

    Wheels rename their libraries, and the loader goes by the name inside the file, so a copy in memory gets the usual name
    back. Raises OSError if there is no such library.
    """
    library = next(_libraries(BACKENDS.values(), "libgfortran-*.so*"), None)
    if library is None:
        raise OSError("OpenBLAS needs the system package libgfortran5")
    for helper in _libraries(BACKENDS.values(), "libquadmath-*.so*"):
        ctypes.CDLL(str(helper))
    ours = library.name.encode() + b"\0"
    plain = b"libgfortran.so.5".ljust(len(ours), b"\0")
    copy = os.memfd_create("libgfortran.so.5")  # stays open: its path is its identity
    os.write(copy, library.read_bytes().replace(ours, plain))
    ctypes.CDLL(f"/proc/self/fd/{copy}")


def version_of(package: str) -> str | None:
    """The version of an installed package; ``None`` = it is not installed."""
    info = _info(package)
    return info and info.stem.split("-")[1]


def _info(package: str) -> Path | None:
    """The NAME-VERSION.dist-info of an installed package; importlib.metadata would add 40 ms to every start."""
    name = f"{package.replace('-', '_')}-*.dist-info"
    return next((info for place in sys.path for info in Path(place).glob(name)), None)
