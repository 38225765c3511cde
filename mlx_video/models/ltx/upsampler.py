"""The latent upsampler: a clip's latents on a finer grid in space or time. Knows no pixels."""

from functools import partial
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_video.cpu_ops import silu
from mlx_video.errors import UserError
from mlx_video.models.ltx.config import UpsamplerConfig
from mlx_video.models.ltx.loading import memory_table
from mlx_video.models.ltx.loading.parts import Network
from mlx_video.models.ltx.pacing import end_piece
from mlx_video.models.ltx.statistics import PerChannelStatistics
from mlx_video.models.ltx.video_vae.convolution import conv3d
from mlx_video.models.ltx.video_vae.sampling import depth_to_space
from mlx_video.tensor_names import TensorNames
from mlx_video.weights import Weights

# Its statistics are over the whole clip, summed in float32.
group_norm = partial(nn.GroupNorm, 32, eps=1e-5, pytorch_compatible=True)


def upsample_normalized(
    upsampler: "LatentUpsampler", statistics: PerChannelStatistics, latent: mx.array
) -> mx.array:
    """Upsample latents (B, C, F, H, W) that are normalised by ``statistics``, as the transformer's are."""
    return statistics.normalize(upsampler(statistics.un_normalize(latent)))


class LatentUpsampler(Network):
    """Residual blocks on the coarse grid, a ``Resample`` to the fine one, and as many there. All take (B, F, H, W, C)."""

    CONFIG: ClassVar = UpsamplerConfig
    NAMES: ClassVar = TensorNames(
        {
            "initial_conv.": "conv_in.",
            "initial_norm.": "norm_in.",
            "res_blocks.": "coarse_blocks.",
            "upsampler.0.": "resample.conv.",
            "upsampler.conv.": "resample.expand.",
            "upsampler.blur_down.": "resample.blur.",
            "post_upsample_res_blocks.": "fine_blocks.",
            "final_conv.": "conv_out.",
        }
    )

    def __init__(self, config: UpsamplerConfig):
        super().__init__()
        channels, count = config.mid_channels, config.num_blocks_per_stage
        self.conv_in = Conv3d(config.in_channels, channels)
        self.norm_in = group_norm(channels)
        self.coarse_blocks = [ResBlock(channels) for _ in range(count)]
        self.resample = Resample(config)
        self.fine_blocks = [ResBlock(channels) for _ in range(count)]
        self.conv_out = Conv3d(channels, config.in_channels)

    def activation_bytes(self, cells: int) -> float:
        """The most bytes that upsampling to ``cells`` of the fine grid needs besides the weights."""
        weight = self.conv_in.weight
        live = memory_table.live(weight.dtype)
        each = cells * weight.shape[0] * weight.dtype.size
        queued = min(memory_table.QUEUED_FINER, live.finer * each)
        # The resampling convolution, and one to either side of it.
        weights = (value for _, value in tree_flatten(self.parameters()))
        copies = memory_table.copied_bytes(weights, 3)
        return max(live.upsample * each, queued) + copies

    def __call__(self, latent: mx.array) -> mx.array:
        """Un-normalised latents (B, C, F, H, W) -> the same on the fine grid; in time, F becomes 2F - 1."""
        x = mx.moveaxis(latent, 1, -1).astype(self.conv_in.weight.dtype)
        x = silu(self.norm_in(self.conv_in(x)))
        for block in self.coarse_blocks:
            x = block(x)
        x = end_piece(self.resample(x))  # frees the coarse grid before the fine blocks
        for block in self.fine_blocks:
            x = block(x)
        return mx.moveaxis(self.conv_out(x), -1, 1)

    @classmethod
    def sanitize(cls, weights: Weights) -> Weights:
        """As in ``Network``, but strict: the file holds nothing else."""
        if "resample.blur.kernel" in weights:
            # Before 0.1.0 a rational upsampler's tensors had a plain one's names.
            old, new = "resample.conv.", "resample.expand."
            return {key.replace(old, new): value for key, value in weights.items()}
        taken = super().sanitize(weights)
        unknown = [key for key in weights if cls.NAMES.ours(key) is None]
        if unknown and taken is not weights:
            raise UserError(f"LatentUpsampler: unknown tensor {unknown[0]!r}.")
        return taken


class Conv3d(nn.Conv3d):
    """3x3x3 convolution (B, F, H, W, I) -> (B, F, H, W, O), with zeros around the clip on all sides."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3)

    def __call__(self, x: mx.array) -> mx.array:
        x = mx.pad(x, [(0, 0), (1, 1), (0, 0), (0, 0), (0, 0)])
        return conv3d(x, self.weight, self.bias, padding=(1, 1))


class ResBlock(nn.Module):
    """Convolution, group norm, SiLU, convolution, group norm; SiLU again after the input (B, F, H, W, C) is added."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = Conv3d(channels, channels)
        self.norm1 = group_norm(channels)
        self.conv2 = Conv3d(channels, channels)
        self.norm2 = group_norm(channels)

    def __call__(self, x: mx.array) -> mx.array:
        # A convolution at a time: a GPU kept the padded and unnormed arrays of both.
        h = end_piece(silu(self.norm1(self.conv1(x))))
        return end_piece(silu(x + self.norm2(self.conv2(h))))


class FrameConv(nn.Conv2d):
    """3x3 convolution of each frame, (B, F, H, W, I) -> (B, F, H, W, O), with zeros around it."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3)

    def __call__(self, x: mx.array) -> mx.array:
        return conv3d(x, self.weight[:, None], self.bias, padding=(1, 1))


class Resample(nn.Module):
    """The step to the fine grid: a convolution that makes the channels of its cells, a shuffle, and perhaps a blur.

    Makes twice the frames, without the first, which precedes the clip; or twice the rows and columns; or, if rational, the
    numerator of the factor as many, of which the blur keeps one in the denominator.
    Raises ``UserError`` for a combination that no LTX-2 checkpoint uses.
    """

    def __init__(self, config: UpsamplerConfig):
        super().__init__()
        channels, rational = config.mid_channels, config.rational_resampler
        space, time = config.spatial_upsample, config.temporal_upsample
        if time and not space:
            self.stride, self.conv = (2, 1, 1), Conv3d(channels, 2 * channels)
            return
        known = (1.5, 2.0) if rational else (2.0,)
        if not space or time or config.spatial_scale not in known:
            raise UserError(
                f"LatentUpsampler: spatial_upsample = {space}, temporal_upsample = {time}, "
                f"spatial_scale = {config.spatial_scale}, rational_resampler = {rational} "
                "is not implemented; known are x2 and rational x1.5 in space, and x2 in time."
            )
        up, down = config.spatial_scale.as_integer_ratio()
        self.stride, conv = (1, up, up), FrameConv(channels, up**2 * channels)
        if rational:
            self.expand, self.blur = conv, Blur(down)  # the x2 file has its kernel too
        else:
            self.conv = conv

    def __call__(self, x: mx.array) -> mx.array:
        """(B, F, H, W, C) -> the same on the fine grid."""
        conv = self.expand if "expand" in self else self.conv
        x = depth_to_space(conv(x), self.stride)[:, self.stride[0] - 1 :]
        return self.blur(x) if "blur" in self else x


class Blur(nn.Module):
    """Blur each channel of each frame with a 5x5 binomial kernel and keep every ``stride``-th cell: (B, F, H, W, C)."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride
        row = mx.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        self.kernel = (row[:, None] * row)[None, ..., None]

    def __call__(self, x: mx.array) -> mx.array:
        if self.stride == 1:
            return x
        C = x.shape[-1]
        kernel = mx.broadcast_to(self.kernel, (C, 5, 5, 1)).astype(x.dtype)
        y = x.flatten(0, 1)
        y = mx.conv2d(y, kernel, stride=self.stride, padding=2, groups=C)
        return mx.unflatten(y, 0, x.shape[:2])
