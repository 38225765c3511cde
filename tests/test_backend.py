"""The backend is found, explained, switched, and given a fast BLAS; each case in an interpreter of its own.

A machine without a backend is one without site-packages (`python -S`) and with the packages that the case plants.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_video import backend
from mlx_video.backend import THREADS

ROOT = Path(__file__).parent.parent
LINUX_CPU = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="the BLAS is Linux's",
)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="macOS has Metal only")
LIBRARY = "libmlx.dylib" if sys.platform == "darwin" else "libmlx.so"
SPEED = """
import time, mlx.core as mx
a = mx.random.normal((768, 768)); mx.eval(a @ a)
best = float("inf")
for _ in range(3):
    start = time.perf_counter(); mx.eval(a @ a); best = min(best, time.perf_counter() - start)
print(2 * 768**3 / best / 1e9)
"""


def python(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess:
    """Run Python in the repository; with `path`, only the standard library and the packages planted there exist."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    bare = []
    if path is not None:
        bare = ["-S"]
        environment |= {"PYTHONPATH": f"{path}:{ROOT}", "PATH": f"{path}/bin"}
    return subprocess.run(
        [sys.executable, *bare, *arguments],
        env=environment,
        cwd=path or ROOT,
        capture_output=True,
        text=True,
    )


def plant(path: Path, *packages: str, library: bool = True) -> Path:
    """Pretend that these packages, and mlx with its library, are installed under `path`."""
    for package in ("mlx", *packages):
        folder = path / f"{package.replace('-', '_')}-0.32.4.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {package}\nVersion: 0.32.4\n")
    (path / "mlx" / "lib").mkdir(parents=True)
    if library:
        (path / "mlx" / "lib" / LIBRARY).write_bytes(b"no library")
    return path


def plant_installer(path: Path, name: str, status: int = 0) -> Path:
    """A pip or uv that writes down what it is asked for."""
    log = path / "asked"
    if name == "pip":
        (path / "pip").mkdir()
        (path / "pip" / "__main__.py").write_text(
            f"import sys; print(*sys.argv[1:], file=open({str(log)!r}, 'a')); sys.exit({status})"
        )
    else:
        (path / "bin").mkdir()
        (path / "bin" / "uv").write_text(f'#!/bin/sh\necho "$@" >> "{log}"\n')
        (path / "bin" / "uv").chmod(0o755)
    return log


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


class TestImport:
    def test_without_a_backend_says_what_to_install(self, tmp_path):
        done = python("-c", "import mlx_video", path=plant(tmp_path, library=False))
        message = last_line(done.stderr)
        assert message.startswith("ImportError: MLX has no backend here: install")
        assert (
            "mlx-metal" if sys.platform == "darwin" else "mlx_video.backend cpu"
        ) in message

    def test_with_two_backends_says_which_to_keep(self, tmp_path):
        plant(tmp_path, "mlx-cpu", "mlx-cuda-13")
        done = python("-c", "import mlx_video", path=tmp_path)
        assert last_line(done.stderr) == (
            "ImportError: mlx-cpu and mlx-cuda-13 are installed together and overwrite each other's files: "
            "keep one with `python -m mlx_video.backend cuda13` (or cpu)."
        )

    @LINUX
    def test_cuda_that_cannot_load_says_what_is_missing(self, tmp_path):
        plant(tmp_path, "mlx-cuda-12")
        done = python("-c", "import mlx_video", path=tmp_path)
        message = last_line(done.stderr)
        assert message.startswith("ImportError: mlx-cuda-12 cannot load (")
        assert message.endswith(
            "install NVIDIA's libraries with `python -m mlx_video.backend cuda12`, "
            "or go back to the CPU with `python -m mlx_video.backend cpu`."
        )


@LINUX_CPU
class TestBlas:
    @pytest.mark.slow
    def test_multiplies_many_times_faster(self):
        with_blas = python("-c", "import mlx_video" + SPEED)
        without = python("-c", SPEED)
        assert float(with_blas.stdout) > 3 * float(without.stdout)  # 30 times when idle

    @pytest.mark.parametrize(
        "asked, small, large", [({}, "1", "all"), ({"OMP_NUM_THREADS": "1"}, "1", "1")]
    )
    def test_small_products_take_one_thread_unless_asked_otherwise(
        self, monkeypatch, asked, small, large
    ):
        for name in THREADS:
            monkeypatch.delenv(name, raising=False)
        for name, count in asked.items():
            monkeypatch.setenv(name, count)
        done = python(
            "-c",
            "import ctypes; from mlx_video.backend import SHARED, suit_cpu\n"
            "blas = ctypes.CDLL(None)\n"
            "for largest in (SHARED - 1, SHARED):\n"
            "    suit_cpu(largest); print(blas.openblas_get_num_threads())\n"
            "print(blas.openblas_get_num_procs())",
        )
        *found, every = done.stdout.split()
        assert found == [small, every if large == "all" else large]

    def test_too_late_is_said_once(self):
        done = python("-c", "import mlx.core, mlx_video, mlx_video.types")
        assert done.returncode == 0
        assert done.stderr.count("import mlx_video before it") == 1

    def test_missing_is_said_once_and_the_run_goes_on(self, tmp_path):
        plant(tmp_path, "mlx-cpu")
        done = python(
            "-c",
            "import mlx_video; from mlx_video.backend import load_blas; print(load_blas())",
            path=tmp_path,
        )
        assert done.stdout.strip() == "None"
        assert done.stderr.count("Float32 is 20 to 40 times slower") == 1
        assert "pip install" in done.stderr and "openblas" in done.stderr

    def test_a_blas_loaded_before_is_kept(self):
        done = python(
            "-c",
            "from mlx_video.backend import load_blas\n"
            "load_blas.cache_clear(); print(load_blas())",
        )
        assert done.stdout.strip() == "one loaded before mlx_video"

    def test_libgfortran_is_lent_by_the_wheel(self):
        """Also where the system has one, so that the machine does not decide what is tested."""
        done = python(
            "-c",
            "import ctypes\nfrom mlx_video.backend import _lend_libgfortran\n"
            "_lend_libgfortran(); ctypes.CDLL('libgfortran.so.5')\n"
            "print('memfd:libgfortran.so.5' in open('/proc/self/maps').read())",
        )
        assert done.stdout.strip() == "True", done.stderr


class TestReport:
    def test_names_the_library_in_use(self):
        done = python("-m", "mlx_video.backend")
        lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
        assert done.returncode == 0 and done.stderr == ""
        assert f"mlx/lib/{LIBRARY} (" in lines["library"]
        assert lines["device"].startswith("Device(")

    def test_tells_the_problem_where_the_package_cannot_be_imported(self, tmp_path):
        done = python(
            "-m", "mlx_video.backend", path=plant(tmp_path, "mlx-cpu", library=False)
        )
        assert done.returncode == 1
        assert last_line(done.stdout).startswith("problem      MLX has no backend here")


@LINUX
class TestSwitch:
    def switch(self, path: Path, *arguments: str) -> subprocess.CompletedProcess:
        return python("-m", "mlx_video.backend", *arguments, path=path)

    def test_installs_then_removes_the_other_then_makes_whole(self, tmp_path):
        log = plant_installer(plant(tmp_path, "mlx-cpu"), "pip")
        self.switch(tmp_path, "cuda13", "--index-url", "there")
        assert log.read_text().splitlines() == [
            "install mlx-cuda-13==0.32.4 --index-url there",
            "uninstall --yes mlx-cpu",
            "install --force-reinstall mlx-cuda-13==0.32.4 --index-url there --no-deps",
        ]

    def test_uses_uv_where_there_is_no_pip(self, tmp_path):
        log = plant_installer(plant(tmp_path, "mlx-cuda-13"), "uv")
        self.switch(tmp_path, "cpu", "--no-deps")
        here = f"--python {sys.executable}"
        assert log.read_text().splitlines() == [
            f"pip install {here} mlx-cpu==0.32.4 --no-deps",
            f"pip uninstall {here} mlx-cuda-13",
            f"pip install {here} --force-reinstall mlx-cpu==0.32.4 --no-deps",
        ]

    def test_a_failed_download_changes_nothing(self, tmp_path):
        log = plant_installer(plant(tmp_path, "mlx-cpu"), "pip", status=1)
        done = self.switch(tmp_path, "cuda12")
        assert done.returncode == 1
        assert log.read_text().splitlines() == ["install mlx-cuda-12==0.32.4"]
        assert "returned non-zero exit status 1" in last_line(done.stderr)

    def test_says_when_nothing_can_install(self, tmp_path):
        done = self.switch(plant(tmp_path, "mlx-cpu"), "cuda13")
        assert done.returncode == 2
        assert "neither pip nor uv is installed" in last_line(done.stderr)

    def test_refuses_an_unknown_backend(self, tmp_path):
        done = self.switch(plant(tmp_path), "rocm")
        assert done.returncode == 2
        assert "choose from" in last_line(done.stderr)


def test_a_package_that_does_not_list_its_files_is_passed_over(tmp_path, monkeypatch):
    plant(tmp_path, "ngsolve-openblas")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert [*backend._libraries(["ngsolve-openblas"], "*.so*")] == []
