"""``python -m mlx_video``: the ``mlx-video`` command."""

import sys

from mlx_video.cli import main

if __name__ == "__main__":
    sys.exit(main())
