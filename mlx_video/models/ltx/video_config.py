"""Hyper-parameters of the video autoencoders, read from block ``vae`` of the checkpoint's metadata."""

import math
from dataclasses import dataclass
from typing import ClassVar, Iterable, Literal, Mapping, Sequence

from mlx_video.errors import UserError
from mlx_video.models.ltx.schema import Config
from mlx_video.types import VideoScale

Block = tuple[str, int | dict]  # name, and parameters or a number of layers
Padding = Literal[
    "zeros", "reflect"
]  # around a frame; mirrored about the outermost cell

# Factors for frames, rows and columns by a block's name; the suffix "_res" adds a skip connection.
STRIDES = {
    "compress_time": (2, 1, 1),
    "compress_space": (1, 2, 2),
    "compress_all": (2, 2, 2),
}


@dataclass(frozen=True, kw_only=True)
class VideoEncoderConfig(Config):
    """The encoder's half of block ``vae``, of the convolutional and of the diffusion autoencoder.

    Blocks are (name, parameters) pairs from pixels to latents.
    """

    encoder_blocks: tuple[Block, ...]
    in_channels: int = 3
    latent_channels: int = 128
    patch_size: int = 4
    encoder_base_channels: int = 128
    latent_log_var: Literal["none", "uniform", "constant", "per_channel"] = "uniform"
    encoder_spatial_padding_mode: Padding = "zeros"

    FIXED: ClassVar = {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "norm_layer": "pixel_norm",
        "normalize_latent_channels": False,
        "scaling_factor": 1.0,
        "use_quant_conv": False,
    }
    UNUSED: ClassVar = frozenset(
        {
            "causal_decoder",
            "decoder_base_channels",
            "decoder_blocks",
            "decoder_spatial_padding_mode",
            "out_channels",
            "timestep_conditioning",
        }
    )

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "VideoEncoderConfig":
        """Read block ``vae`` of either kind of autoencoder. Raises ``UserError``."""
        if data.get("_class_name") == DiffusionDecoderConfig.CLASS_NAME:
            return super().from_dict(_diffusion_encoder(data))
        data = dict(data)
        if mode := data.pop("spatial_padding_mode", None):
            data.setdefault("encoder_spatial_padding_mode", mode)
            data.setdefault("decoder_spatial_padding_mode", mode)
        return super().from_dict(data)

    @property
    def encoder_scale(self) -> VideoScale:
        """Pixels per latent cell."""
        return _scale(
            (stride_of(name) for name, _ in self.encoder_blocks), self.patch_size
        )


def stride_of(name: str) -> tuple[int, int, int]:
    """The factor by which a block shrinks (encoder) or grows (decoder) frames, rows and columns."""
    return STRIDES.get(name.removesuffix("_res"), (1, 1, 1))


def _scale(strides: Iterable[Sequence[int]], patch_size: int) -> VideoScale:
    """Pixels per latent cell, after all ``strides``."""
    time, height, width = map(math.prod, zip((1, 1, 1), *strides))
    return VideoScale(time, height * patch_size, width * patch_size)


def _diffusion_encoder(data: Mapping[str, object]) -> dict[str, object]:
    """Block ``encoder`` of a diffusion autoencoder, with a convolutional one's keys."""
    names = {
        "blocks": "encoder_blocks",
        "base_channels": "encoder_base_channels",
        "out_channels": "latent_channels",
        "spatial_padding_mode": "encoder_spatial_padding_mode",
    }
    # Log-variances are not used at inference, and the outer block states the class.
    skipped = {"_class_name", "latent_log_var_value"}
    block = data.get("encoder", {})
    return {names.get(k, k): v for k, v in block.items() if k not in skipped}


@dataclass(frozen=True, kw_only=True)
class VideoVAEConfig(VideoEncoderConfig):
    """Convolutional video autoencoder: block ``vae``. The decoder's blocks are in encoder order too."""

    decoder_blocks: tuple[Block, ...]
    out_channels: int = 3
    decoder_base_channels: int = 128
    causal_decoder: bool = False
    decoder_spatial_padding_mode: Padding = "reflect"

    FIXED: ClassVar = VideoEncoderConfig.FIXED | {"timestep_conditioning": False}
    UNUSED: ClassVar = frozenset()

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "VideoVAEConfig":
        """Read block ``vae``. Raises ``UserError``, also if the decoder is conditioned on noise levels."""
        # The official default is a conditioned decoder.
        return super().from_dict({"timestep_conditioning": True} | dict(data))

    @property
    def decoder_scale(self) -> VideoScale:
        """Pixels per latent cell."""
        return _scale(
            (stride_of(name) for name, _ in self.decoder_blocks), self.patch_size
        )

    @property
    def least_cells(self) -> int:
        """Fewest cells on each side of a frame: mirroring needs two."""
        return 2 if self.decoder_spatial_padding_mode == "reflect" else 1


@dataclass(frozen=True, kw_only=True)
class DiffusionDecoderConfig(Config):
    """The decoder's half of block ``vae`` of a diffusion autoencoder (LTX-2.5): key ``decoder``, and keys beside it.

    Stages go from latents to pixels; the last is the diffusion stage. ``upsamples`` are ((frames, rows, columns), divisor
    of the channels), one between each two stages; kernels are windows in cells along the same axes.
    """

    stage_channels: tuple[int, ...]
    stage_depths: tuple[int, ...]
    stage_kernels: tuple[tuple[int, int, int], ...]
    upsamples: tuple[tuple[tuple[int, int, int], int], ...]
    head_dim: int
    in_channels: int = 128
    out_channels: int = 3
    patch_size: int = 4
    t_emb_dim: int = 384
    timestep_scale_multiplier: float = 1.0

    CLASS_NAME: ClassVar = "CausalDiffusionVAE"
    FIXED: ClassVar = {
        "_class_name": "NADiffusionDecoder",
        "default_num_inference_steps": 1,
        "dims": 3,
        "model_output_type": "x0",
        "resampler_kind": "linear",
    }
    # Nothing is padded: windows shift at the borders, or repeat the outermost column.
    UNUSED: ClassVar = frozenset({"spatial_padding_mode", "encoder"})
    # Official defaults that are not implemented here, so that a config without these keys is refused.
    ABSENT: ClassVar = {"model_output_type": "v", "default_num_inference_steps": 2}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "DiffusionDecoderConfig":
        """Read block ``vae``, where key ``decoder`` overrides others. Raises ``UserError``, also if stages do not match."""
        outer = {k: v for k, v in data.items() if k not in ("_class_name", "decoder")}
        data = cls.ABSENT | outer | data.get("decoder", {})
        if kernel := data.pop("stage5_kernel", None):
            data["stage_kernels"] = [*data.get("stage_kernels", [])[:-1], kernel]
        config = super().from_dict(data)
        each = config.stage_channels, config.stage_depths, config.stage_kernels
        counts = [*map(len, each), len(config.upsamples) + 1]
        if len(set(counts)) > 1:
            raise UserError(
                f"{cls.__name__}: stage_channels, stage_depths, stage_kernels and upsamples are of {counts} stages; they "
                "belong together."
            )
        return config

    least_cells: ClassVar = 1  # on each side of a frame

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.in_channels

    @property
    def decoder_scale(self) -> VideoScale:
        """Pixels per latent cell."""
        return _scale((stride for stride, _ in self.upsamples), self.patch_size)
