"""The dev model, guided more strongly than usual: python examples/guided.py

Guidance steps away from the negative prompt, and the dev model takes more steps than the distilled one.
"""

import mlx_video

pipeline = mlx_video.load("ltx-2-tiny", variant="dev")
pipeline.recipe = pipeline.defaults.given(steps=12, cfg=5.0).recipe("dev")
clip = pipeline("a green heart grows", negative_prompt="night", frames=25, seed=3)
print(clip.save("clips/"))
