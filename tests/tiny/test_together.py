"""Two processes train one model: each on its own draws, by the mean of their gradients, until one time."""

import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import sys, time
from pathlib import Path
import mlx.core as mx, mlx.nn as nn
from tiny import training
training.WORK = Path(sys.argv[1])
rank = training.together().rank()
layer = nn.Linear(1, 1, bias=False)
layer.weight = mx.zeros((1, 1))
limits = {"steps": 60} if sys.argv[2] == "steps" else {"steps": 10**6, "minutes": 0.02}
plan = training.Plan("together", **limits, learning_rate=0.1, warmup=1, average=0.0, save_seconds=0.0, say_every=10)
slope = training.slope_of(layer, lambda y: mx.square(layer(mx.ones((1, 1))) - y).mean())
def draw(step):
    time.sleep(0.004 * rank)
    return (1.0 + 2.0 * rank,)
steps = []
def counted(weights, y):
    steps.append(y)
    return slope(weights, y)
training.train(layer, counted, plan, draw=draw, on_pause=lambda: print("wrote", rank))
print("ended", layer.weight.item(), len(steps))
"""


def run(folder: Path, limit: str) -> list[str]:
    """What two processes print that train until a number of steps or a time."""
    launch = Path(sys.executable).with_name("mlx.launch")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [launch, "-n", "2", "--backend", "ring", "--starting-port", free_ports()]
    done = subprocess.run(
        [*command, "--", sys.executable, script, folder, limit],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "MLX_DISABLE_COMPILE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


def free_ports() -> str:
    """The first of two ports that follow each other, one for each process."""
    while True:
        with socket.socket() as one, socket.socket() as other, suppress(OSError):
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            other.bind(("127.0.0.1", port + 1))
            return str(port)


def ends(lines: list[str]) -> list[tuple[float, int]]:
    words = [line.split() for line in lines if line.startswith("ended")]
    return [(float(weight), int(steps)) for _, weight, steps in words]


@pytest.mark.thorough
def test_two_processes_end_with_one_model_that_the_first_one_wrote(tmp_path):
    lines = run(tmp_path, "steps")
    (one, steps), (other, also) = ends(lines)
    assert one == other == pytest.approx(2.0, abs=0.05)  # between 1 and 3
    assert steps == also == 60
    assert "wrote 0" in lines and "wrote 1" not in lines


@pytest.mark.thorough
def test_two_processes_end_at_one_step_when_the_time_is_over(tmp_path):
    (one, steps), (other, also) = ends(run(tmp_path, "minutes"))
    assert one == other and steps == also > 10
