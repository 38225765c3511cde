"""Convolution over video, (B, F, H, W, C), and its residual blocks. Knows padding and limits, not the order of blocks."""

from typing import Callable, Iterator, Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_video.errors import UserError
from mlx_video.models.ltx.vae_config import Padding
from mlx_video.models.ltx.video_vae.cell_kernels import plus_delayed, total, window
from mlx_video.models.ltx.video_vae.stream import FrameCache
from mlx_video.tensor_names import TensorNames

MAX_CONV_ELEMENTS = 1_500_000_000
"""The most elements that one convolution may read or write. Metal's kernels returned zeros near 2e9 (ml-explore/mlx#3979)."""

NARROW = 128 * 128  # input times output channels up to which ``by_product`` is faster
KERNEL = 3  # frames, rows and columns of a causal convolution

Triple = tuple[int, int, int]
Form = Callable[[mx.array, mx.array, tuple[int, int]], mx.array]


def conv3d(
    x: mx.array,
    weight: mx.array,
    bias: mx.array | None = None,
    *,
    padding: tuple[int, int] = (0, 0),
) -> mx.array:
    """Convolve (B, F, H, W, I) with (O, kF, kH, kW, I); ``padding`` is rows and columns of zeros, time has none.

    Every 3-D convolution of the package goes through here, in the form that suits the machine. One that would exceed
    ``MAX_CONV_ELEMENTS`` is computed in pieces over time that share input frames, with the same result. Raises
    ``UserError`` if a single output frame is too large.
    """
    # By volume needs the least: by product unfolds what it multiplies.
    for form in (preferred_form(weight.shape, x.dtype), by_volume):
        if size := _frames_per_call(x.shape, weight.shape, padding, form):
            break
    else:
        raise UserError(
            f"A convolution of {x.shape[3]}x{x.shape[2]} cells with {x.shape[-1]} -> {len(weight)} channels exceeds "
            f"{MAX_CONV_ELEMENTS:,} elements in a single frame. Use smaller spatial tiles, for example "
            "TilingConfig.default()."
        )
    more = weight.shape[1] - 1  # input frames beyond the output frames
    starts = range(0, x.shape[1] - more, size)
    pieces = [form(x[:, i : i + size + more], weight, padding) for i in starts]
    y = mx.concatenate(pieces, axis=1)
    return y if bias is None else total(y, bias)


def preferred_form(kernel: Sequence[int], dtype: mx.Dtype) -> Form:
    """The form for a kernel (O, kF, kH, kW, I) on this machine.

    Metal: by frames, since 2-D convolutions are 2 to 5 times faster than conv3d there (ml-explore/mlx#3625). CUDA: by
    volume; by frames a decoder takes 1.3 to 1.4 times as long. CPU: by product if the kernel is narrow, which saves a
    decoder a third of the memory, and time for large frames.
    """
    if mx.default_device() == mx.cpu:
        narrow = kernel[0] * kernel[-1] <= NARROW and min(kernel[2:4]) > 1
        return by_product if narrow and dtype == mx.float32 else by_volume
    return by_frames if mx.metal.is_available() else by_volume


def by_volume(x: mx.array, weight: mx.array, padding: tuple[int, int]) -> mx.array:
    """MLX's own 3-D convolution; shapes as in ``conv3d``."""
    return mx.conv3d(x, weight, padding=(0, *padding))


def by_frames(x: mx.array, weight: mx.array, padding: tuple[int, int]) -> mx.array:
    """The same as a sum of 2-D convolutions, one per frame of the kernel."""
    taps = weight.shape[1]
    B, frames = x.shape[0], x.shape[1] - taps + 1

    def one(tap: int) -> mx.array:
        images = x[:, tap : tap + frames].flatten(0, 1)
        return mx.conv2d(images, weight[:, tap], padding=padding)

    return mx.unflatten(total(*map(one, range(taps))), 0, (B, frames))


def by_product(x: mx.array, weight: mx.array, padding: tuple[int, int]) -> mx.array:
    """The same as one matrix product of the unfolded frames with all frames of the kernel."""
    _, taps, rows, columns, I = weight.shape
    x = mx.pad(x, [(0, 0), (0, 0), *((n, n) for n in padding), (0, 0)])
    B, all_frames, H, W, _ = x.shape
    frames, height, width = (n - k + 1 for n, k in zip(x.shape[1:4], weight.shape[1:4]))
    # Rows of cells are contiguous, so they are copied one at a time.
    around = mx.as_strided(
        x,
        (B, all_frames, height, width, rows, columns * I),
        (all_frames * H * W * I, H * W * I, W * I, I, W * I, 1),
    )
    products = around.flatten(-2) @ weight.swapaxes(0, 1).flatten(0, 1).flatten(1).T
    parts = mx.split(products, taps, axis=-1)
    return total(*(part[:, k : k + frames] for k, part in enumerate(parts)))


def _frames_per_call(
    x: Sequence[int], weight: Sequence[int], padding: tuple[int, int], form: Form
) -> int:
    """The most output frames for which no array exceeds ``MAX_CONV_ELEMENTS``; may be 0."""
    B, _, H, W, I = x
    O, *kernel, _ = weight
    rows, columns = (n + 2 * p - k + 1 for n, p, k in zip((H, W), padding, kernel[1:]))
    if form is by_product:  # its factors and terms have all input frames
        cell = max(I * kernel[1] * kernel[2], O * kernel[0])
        return max(0, MAX_CONV_ELEMENTS // (B * rows * columns * cell) - kernel[0] + 1)
    read = MAX_CONV_ELEMENTS // (B * H * W * I) - kernel[0] + 1
    return max(0, min(read, MAX_CONV_ELEMENTS // (B * rows * columns * O)))


class CausalConv3d(nn.Conv3d):
    """3x3x3 convolution that keeps the size, padded in time with the clip itself.

    ``padding_mode`` pads a frame with ``"zeros"`` or by ``"reflect"`` (mirrored about the outermost cell). Raises
    ``UserError`` for widths that are not positive and for frames too small to mirror.
    """

    def __init__(
        self, in_channels: int, out_channels: int, padding_mode: Padding = "zeros"
    ):
        if not (in_channels > 0 and out_channels > 0):
            raise UserError(
                f"A convolution from {in_channels} to {out_channels} channels: the config's widths and multipliers do not "
                "agree."
            )
        super().__init__(in_channels, out_channels, KERNEL)
        self.padding_mode = padding_mode

    def __call__(
        self, x: mx.array, cache: FrameCache, activate: bool = False
    ) -> mx.array:
        """(B, F, H, W, I) -> (B, F', H, W, O); ``activate`` norms ``x`` and applies SiLU first."""
        return total(self.linear(x, cache, activate), self.bias)

    def linear(
        self,
        x: mx.array,
        cache: FrameCache,
        activate: bool = False,
        bias: mx.array | None = None,
    ) -> mx.array:
        """As a call, but without its own bias, which the caller adds; ``bias`` (I,) is added to ``x`` first."""
        border, padding = 0, (1, 1)
        if self.padding_mode == "reflect":
            border, padding = 1, (0, 0)
            if min(x.shape[2:4]) < 2:
                raise UserError(
                    f"Reflect padding by 1 needs more than 1 cell on a side; got {min(x.shape[2:4])}. "
                    "Frames must be at least 2 latent cells high and wide."
                )
        kept, before, after = cache.around(self, KERNEL)
        known = int(kept is not None)
        if bias is not None:
            bias = bias.astype(x.dtype)  # as the kernel reads it
        x = window(x, kept, bias, known, before, after, border, int(activate))
        return conv3d(cache.keep(self, x, KERNEL), self.weight, padding=padding)


def within(module: nn.Module) -> list[CausalConv3d]:
    """All causal convolutions in ``module``."""
    return [part for part in module.modules() if isinstance(part, CausalConv3d)]


def widest(module: nn.Module) -> int:
    """The most channels that any convolution in ``module`` reads or writes."""
    shapes = [conv.weight.shape for conv in within(module)]
    return max(max(O, I) for O, *_, I in shapes)


# What the convolutional encoder and decoder share

_BLOCK_PARAMETERS = {"num_layers", "multiplier", "residual"}
_OFF = {"inject_noise"}  # parameters that no published checkpoint turns on
STATISTICS = {
    "per_channel_statistics.mean-of-means": "per_channel_statistics.mean",
    "per_channel_statistics.std-of-means": "per_channel_statistics.std",
    "per_channel_statistics.channel": None,  # not used
    "per_channel_statistics.mean-of-stds": None,
}
# Official files wrap each convolution in a module of its own.
CONVOLUTIONS = {"*.conv.weight": "*.weight", "*.conv.bias": "*.bias"}

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


def video_names(part: str, layers: Mapping[str, str] = CONVOLUTIONS) -> TensorNames:
    """Tensor names of the "encoder" or "decoder", in whole checkpoints and in files of the autoencoder alone."""
    alone = {f"{part}.": "", **STATISTICS}
    return TensorNames({f"vae.{k}": v for k, v in alone.items()} | alone, layers)


class ResnetBlock3D(nn.Module):
    """Twice norm, SiLU and 3x3x3 convolution, plus the input: (B, F, H, W, C) -> the same, but see ``FrameCache.delay``."""

    def __init__(self, channels: int, padding_mode: str):
        super().__init__()
        self.conv1 = CausalConv3d(channels, channels, padding_mode)
        self.conv2 = CausalConv3d(channels, channels, padding_mode)

    def __call__(self, x: mx.array, cache: FrameCache) -> mx.array:
        kept, x = cache.delay(self, x, 2)
        h = self.conv1.linear(x, cache, activate=True)
        h = self.conv2.linear(h, cache, activate=True, bias=self.conv1.bias)
        known = 0 if kept is None else kept.shape[1]
        return plus_delayed(h, kept, x, self.conv2.bias, known)


class MidBlock3D(nn.Module):
    """``num_layers`` residual blocks at one resolution, see ``ResnetBlock3D``."""

    def __init__(self, channels: int, num_layers: int, padding_mode: str):
        super().__init__()
        self.res_blocks = [
            ResnetBlock3D(channels, padding_mode) for _ in range(num_layers)
        ]

    def __call__(self, x: mx.array, cache: FrameCache) -> mx.array:
        for block in self.res_blocks:
            x = block(x, cache)
        return x


def layers_of(blocks: list[nn.Module]) -> list[nn.Module]:
    """The layers of ``blocks`` in order: a ``MidBlock3D`` is several."""
    return [
        layer for block in blocks for layer in getattr(block, "res_blocks", [block])
    ]
