"""The programs behind the published figures still run with the package as it is, at sizes that a CPU does in seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
RUNS = {
    "dit_forward.py": ("--only mlx --tiny --repeats 1", "guided step"),
    "job.py": ("--tiny --runs 1 --size 64x64x9 --previews every", "| stage 2 |"),
    "parts.py": ("--tiny", "| video_decoder | 64x64x9 |"),
}


def run(name: str, *options: str) -> str:
    command = [sys.executable, FOLDER / name, *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.thorough
@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_measures(name):
    options, row = RUNS[name]
    assert row in run(name, *options.split())


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [
        "cpu.py",
        "half.py",
        "low_memory.py",
        "plan.py",
        "serve.py",
        "serve_keep.py",
        "vae_decode.py",
    ],
)
def test_a_longer_benchmark_says_how_it_is_run(name):
    assert "usage:" in run(name, "--help")
