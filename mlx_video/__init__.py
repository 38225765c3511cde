"""LTX-2 video and sound generation in MLX."""

from mlx_video.backend import prepare

prepare()  # before anything imports mlx.core

__version__ = "0.1.0"
