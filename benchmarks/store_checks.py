"""Write the numbers that `mlx-video check` compares with, computed by this machine's CPU: python benchmarks/store_checks.py

To be run again where a check is added or changed, or the demo model is.
"""

import json

import mlx.core as mx

import mlx_video  # noqa: F401  first, for its BLAS
from mlx_video.check import STORED, summary
from mlx_video.check.table import checks


def main() -> None:
    assert mx.default_device() == mx.cpu, "the numbers are a CPU's"
    mx.disable_compile()
    rows = (f"{json.dumps(c.name)}: {json.dumps(summary(c.compute()))}" for c in checks())  # fmt: skip
    STORED.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
