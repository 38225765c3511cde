"""What the convolutional encoder and decoder share: lists of blocks, residual blocks and tensor names."""

from typing import Iterator, Mapping

import mlx.core as mx
import mlx.nn as nn

from mlx_video.errors import UserError
from mlx_video.models.ltx.video_vae.cells import plus_delayed
from mlx_video.models.ltx.video_vae.convolution import CausalConv3d
from mlx_video.models.ltx.video_vae.stream import FrameCache
from mlx_video.tensor_names import TensorNames

_BLOCK_PARAMETERS = {"num_layers", "multiplier", "residual"}
_OFF = {"inject_noise"}  # parameters that no published checkpoint turns on
# Official name of a latent statistic -> ours; ``None`` = not used.
STATISTICS = {
    "mean-of-means": "mean",
    "std-of-means": "std",
    "channel": None,
    "mean-of-stds": None,
}

Block = tuple[str, dict[str, int | bool]]


def read_blocks(blocks: tuple) -> Iterator[Block]:
    """(name, parameters) from the config's block list, in which a bare number means ``num_layers``.

    Raises ``UserError`` for a parameter that is not implemented.
    """
    for name, parameters in blocks:
        if isinstance(parameters, int):
            parameters = {"num_layers": parameters}
        off = {key for key in _OFF if not parameters.get(key)}
        if unknown := sorted(parameters.keys() - _BLOCK_PARAMETERS - off):
            raise UserError(
                f"Video VAE block {name!r}: unknown parameters {', '.join(unknown)}. "
                "The checkpoint may need a newer mlx-video."
            )
        yield name, parameters


def video_names(part: str, *tables: Mapping[str, str]) -> TensorNames:
    """Tensor names of the "encoder" or "decoder", in whole checkpoints and in files of the autoencoder alone."""
    prefixes: dict[str, str | None] = {}
    for file in ("vae.", ""):
        prefixes[f"{file}{part}."] = ""
        for statistic, ours in STATISTICS.items():
            name = f"{file}per_channel_statistics.{statistic}"
            prefixes[name] = ours and f"per_channel_statistics.{ours}"
    return TensorNames(prefixes, *tables)


# Official files wrap each convolution in a module of its own.
CONVOLUTIONS = {"*.conv.weight": "*.weight", "*.conv.bias": "*.bias"}


class ResnetBlock3D(nn.Module):
    """Twice norm, SiLU and 3x3x3 convolution, plus the input: (B, F, H, W, C) -> the same, but see ``FrameCache.delay``."""

    def __init__(self, channels: int, padding_mode: str):
        super().__init__()
        self.conv1 = CausalConv3d(channels, channels, padding_mode)
        self.conv2 = CausalConv3d(channels, channels, padding_mode)

    def __call__(self, x: mx.array, cache: FrameCache) -> mx.array:
        """(B, F, H, W, C) -> (B, F', H, W, C); the last frames may wait in ``cache``."""
        kept, x = cache.delay(self, x, 2)
        h = self.conv1.linear(x, cache, activate=True)
        h = self.conv2.linear(h, cache, activate=True, bias=self.conv1.bias)
        known = 0 if kept is None else kept.shape[1]
        return plus_delayed(h, kept, x, self.conv2.bias, known)


class MidBlock3D(nn.Module):
    """``num_layers`` residual blocks at one resolution."""

    def __init__(self, channels: int, num_layers: int, padding_mode: str):
        super().__init__()
        self.res_blocks = [
            ResnetBlock3D(channels, padding_mode) for _ in range(num_layers)
        ]

    def __call__(self, x: mx.array, cache: FrameCache) -> mx.array:
        """(B, F, H, W, C) -> (B, F', H, W, C), see ``ResnetBlock3D``."""
        for block in self.res_blocks:
            x = block(x, cache)
        return x


def layers(blocks: list[nn.Module]) -> list[nn.Module]:
    """The layers of ``blocks`` in order: a ``MidBlock3D`` is several."""
    return [
        layer
        for block in blocks
        for layer in (block.res_blocks if isinstance(block, MidBlock3D) else [block])
    ]
