"""Two processes train one model: each on its own draws, by the mean of their gradients."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
import mlx.core as mx, mlx.nn as nn
from demo import training
training.WORK = Path(sys.argv[1])
group = training.together()
layer = nn.Linear(1, 1, bias=False)
layer.weight = mx.zeros((1, 1))
plan = training.Plan("together", 60, learning_rate=0.1, warmup=1, average=0.0, save_seconds=0.0)
slope = training.slope_of(layer, lambda y: mx.square(layer(mx.ones((1, 1))) - y).mean())
draw = lambda step: (1.0 + 2.0 * group.rank(),)
training.train(layer, slope, plan, draw=draw, on_pause=lambda: print("wrote", group.rank()))
print("weight", layer.weight.item())
"""


def test_two_processes_end_with_one_model_that_the_first_one_wrote(tmp_path):
    launch = Path(sys.executable).with_name("mlx.launch")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [launch, "-n", "2", "--backend", "ring", "--", sys.executable]
    run = subprocess.run(
        [*command, script, tmp_path],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.split("\n")
    one, other = (float(x.split()[1]) for x in lines if x.startswith("weight"))
    assert one == other == pytest.approx(2.0, abs=0.05)  # between 1 and 3
    assert "wrote 0" in run.stdout and "wrote 1" not in run.stdout
