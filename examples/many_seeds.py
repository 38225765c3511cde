"""Two prompts with two seeds each, and the middle frames side by side: python examples/many_seeds.py"""

import numpy as np
from PIL import Image

import mlx_video

prompts = ["a purple moon rises at night", "a red arrow moves left and right"]
pipeline = mlx_video.load("ltx-2-tiny")
clips = pipeline(prompts, seed=range(2), frames=17, audio=False)
middles = []
for clip in clips:
    print(clip.save("seeds/"), "seed", clip.seed)
    frames = list(clip.frames)
    middles.append(frames[len(frames) // 2])
Image.fromarray(np.concatenate(middles, axis=1)).save("seeds/middles.png")
