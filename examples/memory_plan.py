"""The largest clip that a memory budget allows, found without reading weights: python examples/memory_plan.py [GB]"""

import sys

import mlx_video
from mlx_video.errors import UserError
from mlx_video.record import Job

budget = float(sys.argv[1] if len(sys.argv) > 1 else 1.5) * 1e9
pipeline = mlx_video.load("ltx-2-tiny")
for side in (1024, 768, 512, 256):
    request = pipeline.request("a blue ball falls", height=side, width=side)
    plan = Job(request, pipeline.recipe, pipeline.files).plan(limit=budget)
    try:
        plan.check()
    except UserError as error:
        print(error)
        continue
    print(f"{side}x{side}: {plan.largest.peak / 1e9:.2f} GB, for {plan.largest.name}")
    break
