"""Write the numbers that `mlx-video check` compares with, computed by this machine's CPU: python benchmarks/store_checks.py

To be run again where a check is added or changed, or the demo model is.
"""

import json

from mlx_video.backend import suit_cpu
from mlx_video.check import STORED, summary
from mlx_video.check.table import checks


def main() -> None:
    suit_cpu(0)
    rows = (f"{json.dumps(c.name)}: {json.dumps(summary(c.compute()))}" for c in checks())  # fmt: skip
    STORED.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
