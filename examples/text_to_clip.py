"""A sentence becomes a clip with sound: python examples/text_to_clip.py"""

import mlx_video

pipeline = mlx_video.load("ltx-2-tiny")  # "ltx-2" for LTX-2 itself
clip = pipeline("a red ball bounces on a blue floor", seed=7)
print(clip.save("clips/"))
