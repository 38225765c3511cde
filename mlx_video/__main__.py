"""``python -m mlx_video``: the ``mlx-video`` command."""

from mlx_video.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
