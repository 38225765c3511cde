"""Hyper-parameters of the autoencoders and vocoders: blocks ``vae``, ``audio_vae`` and ``vocoder`` of the metadata."""

import math
from dataclasses import dataclass
from typing import ClassVar, Iterable, Iterator, Literal, Mapping, Sequence

from mlx_video.errors import UserError
from mlx_video.models.ltx.loading.schema import Config, short_repr
from mlx_video.types import VideoScale

MEL_BINS = 64  # of each channel that a vocoder reads; its config does not state them
Block = tuple[str, int | dict]  # name, and parameters or a number of layers
Padding = Literal["zeros", "reflect"]
"""What is around a frame; the latter mirrors it about the outermost cell."""

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
    UNUSED: ClassVar = {
        "causal_decoder",
        "decoder_base_channels",
        "decoder_blocks",
        "decoder_spatial_padding_mode",
        "out_channels",
        "timestep_conditioning",
    }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "VideoEncoderConfig":
        """Read block ``vae`` of either kind of autoencoder. Raises ``UserError``."""
        if DiffusionDecoderConfig.fits(data):
            return super().from_dict(_diffusion_encoder(data))
        data = dict(data)
        if mode := data.pop("spatial_padding_mode", None):
            data.setdefault("encoder_spatial_padding_mode", mode)
            data.setdefault("decoder_spatial_padding_mode", mode)
        return super().from_dict(data)

    @property
    def encoder_scale(self) -> VideoScale:
        """Pixels per latent cell."""
        return _scale(_strides(self.encoder_blocks), self.patch_size)


def _strides(blocks: Iterable[Block]) -> Iterator[tuple[int, int, int]]:
    """The factors by which each block changes frames, rows and columns."""
    return (STRIDES.get(name.removesuffix("_res"), (1, 1, 1)) for name, _ in blocks)


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
    SILENT: ClassVar = {"timestep_conditioning": True}
    UNUSED: ClassVar = set()

    @property
    def decoder_scale(self) -> VideoScale:
        """Pixels per latent cell."""
        return _scale(_strides(self.decoder_blocks), self.patch_size)

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

    FIXED: ClassVar = {
        "_class_name": "NADiffusionDecoder",
        "default_num_inference_steps": 1,
        "dims": 3,
        "model_output_type": "x0",
        "resampler_kind": "linear",
    }
    # Nothing is padded: windows shift at the borders, or repeat the outermost column.
    UNUSED: ClassVar = {"spatial_padding_mode", "encoder"}
    SILENT: ClassVar = {"model_output_type": "v", "default_num_inference_steps": 2}

    @classmethod
    def fits(cls, block: Mapping[str, object]) -> bool:
        """Whether block ``vae`` is a diffusion autoencoder's."""
        return block.get("_class_name") == "CausalDiffusionVAE"

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "DiffusionDecoderConfig":
        """Read block ``vae``, where key ``decoder`` overrides others. Raises ``UserError``."""
        outer = {k: v for k, v in data.items() if k not in ("_class_name", "decoder")}
        data = outer | data.get("decoder", {})
        if kernel := data.pop("stage5_kernel", None):
            data["stage_kernels"] = [*data.get("stage_kernels", [])[:-1], kernel]
        return super().from_dict(data)

    def __post_init__(self):
        each = self.stage_channels, self.stage_depths, self.stage_kernels
        counts = [*map(len, each), len(self.upsamples) + 1]
        if len(set(counts)) > 1:
            raise UserError(
                f"{type(self).__name__}: stage_channels, stage_depths, stage_kernels and upsamples have {counts} stages; "
                "they must have equally many."
            )

    least_cells: ClassVar = 1  # on each side of a frame

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.in_channels

    @property
    def decoder_scale(self) -> VideoScale:
        """Pixels per latent cell."""
        return _scale((stride for stride, _ in self.upsamples), self.patch_size)


@dataclass(frozen=True)
class AudioVAEConfig(Config):
    """Audio autoencoder and its mel front end: block ``audio_vae``, flattened. Rates in Hz, lengths in samples."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    in_channels: int
    out_ch: int
    mel_bins: int
    sampling_rate: int
    filter_length: int
    hop_length: int
    win_length: int
    mel_fmin: float
    mel_fmax: float

    FIXED: ClassVar = {
        "attn_resolutions": [],
        "causal": True,
        "causality_axis": "height",
        "double_z": True,
        "downsample_time": False,
        "mid_block_add_attention": False,
        "norm_type": "pixel",
        "stereo": True,
    }
    UNUSED: ClassVar = {
        "causal_padding",
        "dropout",
        "duration",
        "embed_dim",
        "max_wav_value",
        "n_mel_channels",
        "resolution",
    }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "AudioVAEConfig":
        """Read block ``audio_vae``, whatever its nesting. Raises ``UserError``."""
        return super().from_dict(_flatten(data))

    def __post_init__(self):
        if not self.ch_mult:
            raise UserError(
                "AudioVAEConfig: ch_mult must name at least one resolution; got []."
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution, highest first."""
        return tuple(self.ch * multiplier for multiplier in self.ch_mult)

    @property
    def time_factor(self) -> int:
        """Mel frames per latent frame: each resolution after the first halves them."""
        return 1 << (len(self.ch_mult) - 1)

    @property
    def latent_bins(self) -> int:
        """Mel bins of a latent frame: each resolution after the first halves them."""
        return self.mel_bins >> (len(self.ch_mult) - 1)


def _flatten(block: Mapping[str, object]) -> dict[str, object]:
    """The values of nested blocks by their own keys; raises ``UserError`` if a key has two values."""
    flat = {}
    for key, value in block.items():
        found = _flatten(value) if isinstance(value, Mapping) else {key: value}
        for name in found.keys() & flat.keys():
            if found[name] != flat[name]:
                raise UserError(
                    f"AudioVAEConfig: {name} has two values, {short_repr(flat[name])} and {short_repr(found[name])}. "
                    "The checkpoint may be damaged."
                )
        flat |= found
    return flat


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(Config):
    """What both kinds of vocoder share: block ``vocoder``."""

    upsample_initial_channel: int
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    stereo: bool = True

    def __post_init__(self):
        for one, other in (
            ("upsample_rates", "upsample_kernel_sizes"),
            ("resblock_kernel_sizes", "resblock_dilation_sizes"),
        ):
            first, second = len(getattr(self, one)), len(getattr(self, other))
            if first != second:
                raise UserError(
                    f"{type(self).__name__}: {one} has {first} entries and {other} {second}; they must have equally many."
                )
        if self.last_width < 1:
            raise UserError(
                f"{type(self).__name__}: upsample_initial_channel {self.upsample_initial_channel} cannot be halved "
                f"{len(self.upsample_rates)} times. The file may be damaged."
            )

    @property
    def hop(self) -> int:
        """Samples per mel frame."""
        return math.prod(self.upsample_rates)

    @property
    def last_width(self) -> int:
        """Channels after the last upsampling, each of which halves them."""
        return self.upsample_initial_channel >> len(self.upsample_rates)


@dataclass(frozen=True, kw_only=True)
class VocoderConfig(GeneratorConfig):
    """HiFi-GAN vocoder: block ``vocoder``."""

    output_sample_rate: int = 24000

    FIXED: ClassVar = {"resblock": "1", "vocoder": None, "bwe": None}


@dataclass(frozen=True, kw_only=True)
class BigVGANConfig(GeneratorConfig):
    """One BigVGAN generator: block ``vocoder.vocoder``. Absent keys have the official defaults."""

    use_tanh_at_final: bool = True
    use_bias_at_final: bool = True
    apply_final_activation: bool = True

    FIXED: ClassVar = {"resblock": "AMP1", "activation": "snakebeta"}


@dataclass(frozen=True, kw_only=True)
class BandwidthExtensionConfig(BigVGANConfig):
    """The bandwidth extension, another generator, and its mel front end: block ``vocoder.bwe``; rates in Hz."""

    input_sampling_rate: int
    output_sampling_rate: int
    hop_length: int
    n_fft: int
    num_mels: int

    UNUSED: ClassVar = {"win_size"}  # the stored Fourier basis includes it


@dataclass(frozen=True)
class BigVGANVocoderConfig(Config):
    """BigVGAN and the bandwidth extension behind it: block ``vocoder`` of LTX-2.3 and 2.5."""

    vocoder: BigVGANConfig
    bwe: BandwidthExtensionConfig

    @classmethod
    def fits(cls, block: Mapping[str, object]) -> bool:
        """Whether block ``vocoder`` has both generators."""
        return {"vocoder", "bwe"} <= block.keys()

    def __post_init__(self):
        rate, bwe = self.bwe.input_sampling_rate, self.bwe
        if rate * bwe.hop != bwe.output_sampling_rate * bwe.hop_length:
            raise UserError(
                f"{type(self).__name__}: {bwe.hop} samples for every {bwe.hop_length} do not make "
                f"{bwe.output_sampling_rate} Hz of {rate} Hz. The checkpoint may be damaged."
            )

    @property
    def hop(self) -> int:
        """Samples of the waveform per mel frame."""
        bwe = self.bwe
        return self.vocoder.hop * bwe.output_sampling_rate // bwe.input_sampling_rate

    @property
    def output_sample_rate(self) -> int:
        """Sample rate of the waveform, in Hz."""
        return self.bwe.output_sampling_rate
