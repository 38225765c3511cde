"""Hyper-parameters of the audio autoencoder and the vocoders, read from blocks ``audio_vae`` and ``vocoder``."""

import math
from dataclasses import dataclass
from typing import ClassVar, Mapping

from mlx_video.errors import UserError
from mlx_video.models.ltx.schema import Config, short_repr

MEL_BINS = 64  # of each channel that a vocoder reads; its config does not state them


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
    UNUSED: ClassVar = frozenset(
        {
            "causal_padding",
            "dropout",
            "duration",
            "embed_dim",
            "max_wav_value",
            "n_mel_channels",
            "resolution",
        }
    )

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "AudioVAEConfig":
        """Read block ``audio_vae``, whatever its nesting. Raises ``UserError``."""
        config = super().from_dict(_flatten(data))
        if not config.ch_mult:
            raise UserError(
                "AudioVAEConfig: ch_mult must name at least one resolution; got []."
            )
        return config

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

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "GeneratorConfig":
        """As in ``Config``; also raises ``UserError`` if lists do not match or the width cannot be halved that often."""
        config = super().from_dict(data)
        for pair in ("upsample_rates", "upsample_kernel_sizes"), (
            "resblock_kernel_sizes",
            "resblock_dilation_sizes",
        ):
            first, second = (len(getattr(config, name)) for name in pair)
            if first != second:
                raise UserError(
                    f"{cls.__name__}: {pair[0]} has {first} entries and {pair[1]} {second}; they belong together."
                )
        if config.last_width < 1:
            raise UserError(
                f"{cls.__name__}: upsample_initial_channel {config.upsample_initial_channel} cannot be halved "
                f"{len(config.upsample_rates)} times. The file may be damaged."
            )
        return config

    @property
    def channels(self) -> int:
        """Channels of the sound."""
        return 2 if self.stereo else 1

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

    UNUSED: ClassVar = frozenset({"win_size"})  # the stored Fourier basis includes it


@dataclass(frozen=True)
class BigVGANVocoderConfig(Config):
    """BigVGAN and the bandwidth extension behind it: block ``vocoder`` of LTX-2.3 and 2.5."""

    vocoder: BigVGANConfig
    bwe: BandwidthExtensionConfig

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "BigVGANVocoderConfig":
        """As in ``Config``; also raises ``UserError`` if the rates of the two generators contradict each other."""
        config = super().from_dict(data)
        rate, bwe = config.bwe.input_sampling_rate, config.bwe
        if rate * bwe.hop != bwe.output_sampling_rate * bwe.hop_length:
            raise UserError(
                f"{cls.__name__}: {bwe.hop} samples for every {bwe.hop_length} do not make "
                f"{bwe.output_sampling_rate} Hz of {rate} Hz. The checkpoint may be damaged."
            )
        return config

    @property
    def hop(self) -> int:
        """Samples of the waveform per mel frame."""
        bwe = self.bwe
        return self.vocoder.hop * bwe.output_sampling_rate // bwe.input_sampling_rate

    @property
    def output_sample_rate(self) -> int:
        """Sample rate of the waveform, in Hz."""
        return self.bwe.output_sampling_rate
