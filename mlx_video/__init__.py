"""LTX-2 video and sound generation in MLX."""

__version__ = "0.1.0"
