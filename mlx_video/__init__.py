"""LTX-2 video and sound generation in MLX."""

from mlx_video.backend import prepare

prepare()  # before anything imports mlx.core

__version__ = "0.1.0"
__all__ = ["AV", "Clip", "Image", "Pipeline", "Request", "Step", "VideoPixelShape"] + [
    "load",
    "save",
]

_HOMES = {
    "AV": "types",
    "Clip": "types",
    "Step": "types",
    "VideoPixelShape": "types",
    "Image": "inputs",
    "Pipeline": "pipeline",
    "Request": "pipeline",
    "load": "pipeline",
    "save": "media",
}


def __getattr__(name: str):
    """Import a public name when it is first used, so that ``import mlx_video`` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mlx_video' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"mlx_video.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
