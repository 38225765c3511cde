"""Hyper-parameters of every LTX-2 part, read from the checkpoint's own metadata.

Knows what each key of the official ``config`` JSON means to this build: a field that is used, a value that is fixed,
or a key that says nothing at inference. Any other key, and any other value of a fixed one, stops the load by name.
"""

import math
from dataclasses import MISSING, Field, dataclass, fields
from enum import Enum
from functools import cache
from typing import ClassVar, Mapping, get_type_hints

from mlx_video.errors import UserError
from mlx_video.models.ltx.kinds import conform, short
from mlx_video.types import AV, Modality, VideoScale


class LTXModelType(Enum):
    """Which streams of the transformer are built."""

    VideoOnly = "VideoOnly"
    AudioOnly = "AudioOnly"
    AudioVideo = "AudioVideo"

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return {
            LTXModelType.VideoOnly: (Modality.VIDEO,),
            LTXModelType.AudioOnly: (Modality.AUDIO,),
            LTXModelType.AudioVideo: (Modality.VIDEO, Modality.AUDIO),
        }[self]


class LTXRopeType(Enum):
    """How rotary pairs are laid out in a head: halves (split) or neighbours (interleaved)."""

    SPLIT = "split"
    INTERLEAVED = "interleaved"


@dataclass(frozen=True)
class Config:
    """Base of every part's configuration.

    ``FIXED`` names keys of which this build implements one value; ``UNUSED`` names keys that mean nothing to the part.
    """

    FIXED: ClassVar[Mapping[str, object]] = {}
    UNUSED: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Config":
        """Build from the official JSON block; raises ``UserError`` naming each key it cannot honour, or value of the
        wrong kind or size."""
        kinds = _kinds(cls)
        for key, value in data.items():
            if key in cls.FIXED and value != cls.FIXED[key]:
                raise UserError(
                    f"{cls.__name__}: {key} = {short(value)} is not implemented by this version of mlx-video, "
                    f"which knows only {cls.FIXED[key]!r}. The checkpoint may need a newer mlx-video."
                )
        if unknown := sorted(
            data.keys() - kinds.keys() - cls.FIXED.keys() - cls.UNUSED
        ):
            raise UserError(
                f"{cls.__name__}: unknown keys {', '.join(map(_plain, unknown[:5]))}; this version of mlx-video cannot tell what they "
                "change. The checkpoint may need a newer mlx-video."
            )
        if absent := [f.name for f in fields(cls) if _required(f, data)]:
            raise UserError(f"{cls.__name__}: the config lacks {', '.join(absent)}.")
        stated = [key for key in kinds if key in data]
        return cls(**{k: conform(cls.__name__, k, data[k], kinds[k]) for k in stated})


@cache
def _kinds(config: type["Config"]) -> Mapping[str, type]:
    """The annotation of each field."""
    hints = get_type_hints(config)
    return {field.name: hints[field.name] for field in fields(config)}


def _plain(key: str) -> str:
    """A key out of a file, for a message."""
    return key if key.isidentifier() and len(key) < 60 else short(key)


def _required(field: Field, data: Mapping[str, object]) -> bool:
    return (
        field.name not in data
        and field.default is MISSING
        and field.default_factory is MISSING
    )


_CONNECTOR_KEYS = frozenset(
    {
        "connector_attention_head_dim",
        "connector_num_attention_heads",
        "connector_num_layers",
        "connector_num_learnable_registers",
        "connector_positional_embedding_max_pos",
        "connector_norm_output",
        "connector_apply_gated_attention",
        "connector_learnable_registers_std",
        "connector_ff_bias",
        "audio_connector_attention_head_dim",
        "audio_connector_num_attention_heads",
        "audio_connector_num_layers",
        "use_embeddings_connector",
    }
)


@dataclass(frozen=True)
class StreamConfig:
    """One stream of the transformer, whichever modality it carries. Its width is heads x head dimension."""

    heads: int
    head_dim: int
    in_channels: int
    out_channels: int
    context_dim: int
    max_pos: tuple[int, ...]
    ff_bias: bool
    marks_keyframes: bool = False

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True)
class LTXModelConfig(Config):
    """The diffusion transformer: block ``transformer`` of the metadata.

    apply_gated_attention          every attention scales its heads (LTX-2.3)
    cross_attention_adaln          the noise level modulates the text attention too (LTX-2.3) ...
    use_prompt_adaln_single        ... and the text it reads; otherwise only the blocks' own tables modulate that
    caption_proj_before_connector  the text comes in the width of its stream (LTX-2.3)
    ff_bias                        of the video stream; audio's is ``audio_ff_bias`` (LTX-2.5: none)
    use_keyframes_abs_pos_embedding  marked tokens get an embedding (LTX-2.5)
    """

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    cross_attention_dim: int
    audio_num_attention_heads: int = 32
    audio_attention_head_dim: int = 64
    audio_cross_attention_dim: int = 2048
    in_channels: int = 128
    out_channels: int = 128
    audio_in_channels: int = 128
    audio_out_channels: int = 128
    caption_channels: int = 3840
    norm_eps: float = 1e-6
    positional_embedding_theta: float = 10000.0
    positional_embedding_max_pos: tuple[int, ...] = (20, 2048, 2048)
    audio_positional_embedding_max_pos: tuple[int, ...] = (20,)
    use_middle_indices_grid: bool = True
    timestep_scale_multiplier: float = 1000.0
    av_ca_timestep_scale_multiplier: float = 1.0
    rope_type: LTXRopeType = LTXRopeType.INTERLEAVED
    double_precision_rope: bool = False
    apply_gated_attention: bool = False
    cross_attention_adaln: bool = False
    use_prompt_adaln_single: bool = True
    caption_proj_before_connector: bool = False
    ff_bias: bool = True
    audio_ff_bias: bool = True
    use_keyframes_abs_pos_embedding: bool = False
    model_type: LTXModelType = LTXModelType.AudioVideo

    FIXED: ClassVar = {
        "_class_name": "AVTransformer3DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_type": "default",
        "av_cross_ada_norm": True,
        "causal_temporal_positioning": True,
        "double_self_attention": False,
        "norm_elementwise_affine": False,
        "only_cross_attention": False,
        "positional_embedding_type": "rope",
        "qk_norm": "rms_norm",
        "share_ff": False,
        "standardization_norm": "rms_norm",
        "upcast_attention": False,
        "use_audio_video_cross_attention": True,
        "caption_proj_input_norm": False,
    }
    UNUSED: ClassVar = _CONNECTOR_KEYS | {
        "_diffusers_version",
        "cross_attention_norm",
        "dropout",
        "norm_num_groups",
        "num_embeds_ada_norm",
        "num_vector_embeds",
        "text_encoder_norm_type",
        "use_linear_projection",
    }

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, object],
        model_type: LTXModelType = LTXModelType.AudioVideo,
    ) -> "LTXModelConfig":
        """Read the ``transformer`` block; ``model_type`` says which of the checkpoint's streams to build."""
        data = dict(data, model_type=model_type)
        if "frequencies_precision" in data:
            data["double_precision_rope"] = (
                data.pop("frequencies_precision") == "float64"
            )
        _check_caption_projection(data)
        return super().from_dict(data)

    @property
    def streams(self) -> AV[StreamConfig]:
        """The streams that ``model_type`` names."""
        video = StreamConfig(
            self.num_attention_heads,
            self.attention_head_dim,
            self.in_channels,
            self.out_channels,
            self.cross_attention_dim,
            self.positional_embedding_max_pos,
            self.ff_bias,
            self.use_keyframes_abs_pos_embedding,
        )
        audio = StreamConfig(
            self.audio_num_attention_heads,
            self.audio_attention_head_dim,
            self.audio_in_channels,
            self.audio_out_channels,
            self.audio_cross_attention_dim,
            self.audio_positional_embedding_max_pos,
            self.audio_ff_bias,
        )
        both = {Modality.VIDEO: video, Modality.AUDIO: audio}
        return AV(**{m.value: both[m] for m in self.model_type.modalities})


def _check_caption_projection(data: dict[str, object]) -> None:
    """Take out what says again how the text is projected: by two layers here, or by none."""
    inside = not data.get("caption_proj_before_connector", False)
    for layer in ("first", "second"):
        key = f"caption_projection_{layer}_linear"
        if data.pop(key, inside) != inside:
            raise UserError(
                f"LTXModelConfig: {key} = {not inside} is not implemented by this version of mlx-video beside "
                f"caption_proj_before_connector = {not inside}. The checkpoint may need a newer mlx-video."
            )


@dataclass(frozen=True)
class ConnectorStream:
    """One stream's connector. Its width is heads x head dimension."""

    layers: int
    heads: int
    head_dim: int

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True)
class ConnectorConfig(Config):
    """The text connectors: the ``connector_*`` keys of block ``transformer``.

    Audio's sizes are those of video where they are ``None``. ``caption_channels`` is the language model's width, and
    ``caption_proj_before_connector`` says that each stream has a projection of its own (LTX-2.3). No checkpoint states
    ``text_layers``, how many layers the language model has; the width of the projection does (``TextConnectors.fit``).
    """

    connector_num_layers: int
    connector_num_attention_heads: int
    connector_attention_head_dim: int
    connector_num_learnable_registers: int = 128
    audio_connector_num_layers: int | None = None
    audio_connector_num_attention_heads: int | None = None
    audio_connector_attention_head_dim: int | None = None
    connector_positional_embedding_max_pos: tuple[int, ...] = (4096,)
    connector_apply_gated_attention: bool = False
    connector_ff_bias: bool = True
    caption_channels: int = 3840
    caption_proj_before_connector: bool = False
    text_layers: int = 48
    norm_eps: float = 1e-6
    positional_embedding_theta: float = 10000.0
    rope_type: LTXRopeType = LTXRopeType.INTERLEAVED
    double_precision_rope: bool = False

    FIXED: ClassVar = {
        "connector_norm_output": True,
        "use_embeddings_connector": True,
        "caption_proj_input_norm": False,
    }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "ConnectorConfig":
        names = {field.name for field in fields(cls)} | cls.FIXED.keys()
        data = dict(data)
        if "frequencies_precision" in data:
            data["double_precision_rope"] = data["frequencies_precision"] == "float64"
        # The rest of the block is the transformer's, which checks it.
        config = super().from_dict({key: data[key] for key in names & data.keys()})
        _check_connectors(config)
        stated = str(data.get("text_encoder_norm_type") or config.norm_type).lower()
        if stated != config.norm_type:
            raise UserError(
                f"ConnectorConfig: text_encoder_norm_type = {short(stated)} is not implemented by this version of mlx-video "
                f"beside caption_proj_before_connector = {config.caption_proj_before_connector}, only "
                f"{config.norm_type!r}. The checkpoint may need a newer mlx-video."
            )
        return config

    @property
    def norm_type(self) -> str:
        """What ``text_encoder_norm_type`` calls the way hidden states are scaled; LTX-2 leaves it unsaid."""
        return "per_token_rms" if self.caption_proj_before_connector else "none"

    @property
    def streams(self) -> AV[ConnectorStream]:
        video = (
            self.connector_num_layers,
            self.connector_num_attention_heads,
            self.connector_attention_head_dim,
        )
        audio = (
            self.audio_connector_num_layers,
            self.audio_connector_num_attention_heads,
            self.audio_connector_attention_head_dim,
        )
        audio = [v if a is None else a for v, a in zip(video, audio)]
        return AV(ConnectorStream(*video), ConnectorStream(*audio))


def _check_connectors(config: ConnectorConfig) -> None:
    empty = [s for s in config.streams.values if min(s.layers, s.heads) < 1]
    if empty or not config.norm_eps > 0:
        raise UserError(
            "ConnectorConfig: the connectors need at least one layer, one head and a norm_eps above 0; got "
            f"{config.streams.video}, {config.streams.audio} and {config.norm_eps}. The file may be damaged."
        )


Block = tuple[str, int | dict]  # name, and parameters or a number of layers


@dataclass(frozen=True, kw_only=True)
class VideoEncoderConfig(Config):
    """The encoder's half of block ``vae``, as the convolutional and as the diffusion autoencoder state it.

    Blocks are (name, parameters) pairs from pixels to latents.
    """

    encoder_blocks: tuple[Block, ...]
    in_channels: int = 3
    latent_channels: int = 128
    patch_size: int = 4
    encoder_base_channels: int = 128
    latent_log_var: str = "uniform"
    encoder_spatial_padding_mode: str = "zeros"

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
        return _scale(self.encoder_blocks, self.patch_size)


def _scale(blocks: tuple, patch_size: int) -> VideoScale:
    # The networks that know the strides of blocks import this room.
    from mlx_video.models.ltx.video_vae.base import compression

    return compression(blocks, patch_size)


def _diffusion_encoder(data: Mapping[str, object]) -> dict[str, object]:
    """Block ``encoder`` of a diffusion autoencoder, in the words of a convolutional one."""
    names = {
        "blocks": "encoder_blocks",
        "base_channels": "encoder_base_channels",
        "out_channels": "latent_channels",
        "spatial_padding_mode": "encoder_spatial_padding_mode",
    }
    # A log-variance says nothing at inference, and the class is told by the block around.
    skipped = {"_class_name", "latent_log_var_value"}
    block = data.get("encoder", {})
    return {names.get(k, k): v for k, v in block.items() if k not in skipped}


@dataclass(frozen=True, kw_only=True)
class VideoVAEConfig(VideoEncoderConfig):
    """Convolutional video autoencoder: block ``vae``. The decoder's blocks too are in encoder order."""

    decoder_blocks: tuple[Block, ...]
    out_channels: int = 3
    decoder_base_channels: int = 128
    causal_decoder: bool = False
    decoder_spatial_padding_mode: str = "reflect"

    FIXED: ClassVar = VideoEncoderConfig.FIXED | {"timestep_conditioning": False}
    UNUSED: ClassVar = frozenset()

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "VideoVAEConfig":
        # Where the key is absent, the official decoder is conditioned.
        return super().from_dict({"timestep_conditioning": True} | dict(data))

    @property
    def decoder_scale(self) -> VideoScale:
        """Pixels per latent cell."""
        return _scale(self.decoder_blocks, self.patch_size)


@dataclass(frozen=True, kw_only=True)
class DiffusionDecoderConfig(Config):
    """The decoder's half of block ``vae`` of a diffusion autoencoder (LTX-2.5): its keys ``decoder`` and beside it.

    The stages go from latents to pixels; the last is the diffusion stage. ``upsamples`` are ((frames, rows, columns),
    divisor of the channels), one between two stages; kernels are windows in cells along the same axes.
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
    # What an absent key means to the official code, where that is not what this build knows.
    ABSENT: ClassVar = {"model_output_type": "v", "default_num_inference_steps": 2}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "DiffusionDecoderConfig":
        outer = {k: v for k, v in data.items() if k not in ("_class_name", "decoder")}
        data = cls.ABSENT | outer | data.get("decoder", {})
        if kernel := data.pop("stage5_kernel", None):
            data["stage_kernels"] = [*data.get("stage_kernels", [])[:-1], kernel]
        return super().from_dict(data)

    @property
    def latent_channels(self) -> int:
        return self.in_channels

    @property
    def decoder_scale(self) -> VideoScale:
        """Pixels per latent cell."""
        strides = [stride for stride, _ in self.upsamples]
        time, height, width = (math.prod(axis) for axis in zip(*strides))
        return VideoScale(time, height * self.patch_size, width * self.patch_size)


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
        return super().from_dict(_flatten(data))

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
    """The values of nested blocks by their own keys; raises ``UserError`` where a key has two values."""
    flat = {}
    for key, value in block.items():
        found = _flatten(value) if isinstance(value, Mapping) else {key: value}
        for name in found.keys() & flat.keys():
            if found[name] != flat[name]:
                raise UserError(
                    f"AudioVAEConfig: {name} has two values, {short(flat[name])} and {short(found[name])}. "
                    "The checkpoint may be damaged."
                )
        flat |= found
    return flat


@dataclass(frozen=True)
class VocoderConfig(Config):
    """HiFi-GAN vocoder: block ``vocoder``. Its hop is the product of ``upsample_rates``, in samples per mel frame."""

    upsample_initial_channel: int
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    stereo: bool = True
    output_sample_rate: int = 24000

    FIXED: ClassVar = {"resblock": "1", "vocoder": None, "bwe": None}

    @property
    def hop(self) -> int:
        """Samples of the waveform per mel frame."""
        return math.prod(self.upsample_rates)


@dataclass(frozen=True)
class BigVGANConfig(Config):
    """One BigVGAN generator: block ``vocoder.vocoder``. What is absent has the official default, not the usual value."""

    upsample_initial_channel: int
    upsample_rates: tuple[int, ...]
    upsample_kernel_sizes: tuple[int, ...]
    resblock_kernel_sizes: tuple[int, ...]
    resblock_dilation_sizes: tuple[tuple[int, ...], ...]
    stereo: bool = True
    use_tanh_at_final: bool = True
    use_bias_at_final: bool = True
    apply_final_activation: bool = True

    FIXED: ClassVar = {"resblock": "AMP1", "activation": "snakebeta"}

    @property
    def channels(self) -> int:
        return 2 if self.stereo else 1

    @property
    def hop(self) -> int:
        """Samples of a mel frame."""
        return math.prod(self.upsample_rates)


@dataclass(frozen=True, kw_only=True)
class BandwidthExtensionConfig(BigVGANConfig):
    """The generator that doubles as bandwidth extension, and its mel front end: block ``vocoder.bwe``; rates in Hz."""

    input_sampling_rate: int
    output_sampling_rate: int
    hop_length: int
    n_fft: int
    num_mels: int

    UNUSED: ClassVar = frozenset({"win_size"})  # it is in the stored Fourier basis


@dataclass(frozen=True)
class BigVGANVocoderConfig(Config):
    """BigVGAN and the bandwidth extension behind it: block ``vocoder`` of LTX-2.3 and 2.5."""

    vocoder: BigVGANConfig
    bwe: BandwidthExtensionConfig

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "BigVGANVocoderConfig":
        blocks = {"vocoder": BigVGANConfig, "bwe": BandwidthExtensionConfig}
        read = {
            key: block.from_dict(data[key])
            for key, block in blocks.items()
            if isinstance(data.get(key), Mapping)
        }
        config = super().from_dict(dict(data) | read)
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
        return self.bwe.output_sampling_rate


@dataclass(frozen=True)
class UpsamplerConfig(Config):
    """Latent upsampler: the flat config of its own file."""

    in_channels: int
    mid_channels: int
    num_blocks_per_stage: int
    spatial_upsample: bool
    temporal_upsample: bool
    spatial_scale: float = 2.0
    rational_resampler: bool = False

    FIXED: ClassVar = {"_class_name": "LatentUpsampler", "dims": 3}
