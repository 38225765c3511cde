"""A picture begins to move: python examples/image_to_clip.py [PICTURE]"""

import sys

import mlx_video

pipeline = mlx_video.load("ltx-2-tiny")
if len(sys.argv) > 1:
    picture = sys.argv[1]
else:  # without one, the last frame of another clip
    *_, picture = pipeline("a yellow star rises", seed=1, audio=False).frames
clip = pipeline("a yellow star spins slowly", image=picture, seed=2)
print(clip.save("clips/"))
