"""Hyper-parameters of the transformer, the text connectors, the upsamplers and the duration head, from the checkpoint."""

from dataclasses import dataclass, fields
from enum import Enum
from typing import ClassVar, Mapping

from mlx_video.errors import UserError
from mlx_video.models.ltx.loading.schema import Config, short_repr
from mlx_video.types import AV, Modality


class LTXModelType(Enum):
    """Which streams of the transformer are built."""

    VideoOnly = (Modality.VIDEO,)
    AudioOnly = (Modality.AUDIO,)
    AudioVideo = (Modality.VIDEO, Modality.AUDIO)


class LTXRopeType(Enum):
    """How rotary pairs are laid out in a head: halves (split) or neighbours (interleaved)."""

    SPLIT = "split"
    INTERLEAVED = "interleaved"


PRECISIONS = "float64", "float32"
PROJECTION_KEYS = "caption_projection_first_linear", "caption_projection_second_linear"
NORM_TYPE = "text_encoder_norm_type"


def rope_precision(stated: object) -> dict[str, bool]:
    """``frequencies_precision``, if stated, as our field; raises ``UserError`` for an unknown one."""
    if stated is not None and stated not in PRECISIONS:
        raise UserError(
            f"LTXModelConfig: frequencies_precision must be {' or '.join(PRECISIONS)}; got {short_repr(stated)}."
        )
    return {} if stated is None else {"double_precision_rope": stated == PRECISIONS[0]}


@dataclass(frozen=True)
class ConnectorStream:
    """One stream's connector. Its width is heads x head dimension."""

    layers: int
    heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """Of its tokens."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class ConnectorConfig(Config):
    """The text connectors: the ``connector_*`` keys of block ``transformer``.

    Audio sizes that are ``None`` equal video's. ``caption_channels`` is the language model's width, and
    ``caption_proj_before_connector`` means that each stream has its own projection (LTX-2.3). No checkpoint states
    ``text_layers``, the number of the language model's layers; ``TextConnectors.fit`` takes it from the projection's width.
    """

    connector_num_layers: int
    connector_num_attention_heads: int
    connector_attention_head_dim: int
    connector_num_learnable_registers: int = 128
    audio_connector_num_layers: int | None = None
    audio_connector_num_attention_heads: int | None = None
    audio_connector_attention_head_dim: int | None = None
    connector_positional_embedding_max_pos: tuple[int] = (4096,)
    connector_apply_gated_attention: bool = False
    connector_ff_bias: bool = True
    caption_channels: int = 3840
    caption_proj_before_connector: bool = False
    text_layers: int = 48
    norm_eps: float = 1e-6
    positional_embedding_theta: float = 10000.0
    rope_type: LTXRopeType = LTXRopeType.INTERLEAVED
    double_precision_rope: bool = False

    POSITIVE: ClassVar = True
    FIXED: ClassVar = {
        "connector_norm_output": True,
        "use_embeddings_connector": True,
        "caption_proj_input_norm": False,
    }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "ConnectorConfig":
        """Read the connectors' keys of block ``transformer``. Raises ``UserError``."""
        data = dict(data) | rope_precision(data.get("frequencies_precision"))
        # A projection per stream reads normalised text. LTX-2's single one does not, and its config does not say so.
        norm = "per_token_rms" if data.get("caption_proj_before_connector") else "none"
        stated = str(data.get(NORM_TYPE) or norm).lower()
        # The rest of the block is the transformer's, which checks it.
        known = {key: data[key] for key in cls.keys() & data.keys()}
        return super().from_dict(known | {NORM_TYPE: stated}, {NORM_TYPE: norm})

    @classmethod
    def keys(cls) -> set[str]:
        """The keys that it reads."""
        return {field.name for field in fields(cls)} | cls.FIXED.keys()

    @property
    def streams(self) -> AV[ConnectorStream]:
        """The sizes of each stream's connector."""
        keys = ("num_layers", "num_attention_heads", "attention_head_dim")
        video = [getattr(self, f"connector_{key}") for key in keys]
        audio = [getattr(self, f"audio_connector_{key}") for key in keys]
        audio = [v if a is None else a for v, a in zip(video, audio)]
        return AV(ConnectorStream(*video), ConnectorStream(*audio))


@dataclass(frozen=True)
class StreamConfig:
    """One stream of the transformer, of either modality. Its width is heads x head dimension."""

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
        """Of its tokens, D."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class LTXModelConfig(Config):
    """The diffusion transformer: block ``transformer`` of the metadata. Without arguments it is that of LTX-2 (19B).

    apply_gated_attention          every attention gates its heads (LTX-2.3)
    cross_attention_adaln          the noise level modulates the text attention too (LTX-2.3) ...
    use_prompt_adaln_single        ... and the text it reads; otherwise only the blocks' own tables modulate the text
    caption_proj_before_connector  the text already has the stream's width (LTX-2.3)
    ff_bias                        for the video stream; ``audio_ff_bias`` for audio (LTX-2.5: none)
    use_keyframes_abs_pos_embedding  marked tokens get an embedding (LTX-2.5)
    """

    num_layers: int = 48
    num_attention_heads: int = 32
    attention_head_dim: int = 128
    cross_attention_dim: int = 4096
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
    positional_embedding_max_pos: tuple[int, int, int] = (20, 2048, 2048)
    audio_positional_embedding_max_pos: tuple[int] = (20,)
    use_middle_indices_grid: bool = True
    timestep_scale_multiplier: float = 1000.0
    av_ca_timestep_scale_multiplier: float = 1000.0
    rope_type: LTXRopeType = LTXRopeType.SPLIT
    double_precision_rope: bool = True
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
    REQUIRED: ClassVar = (
        "num_layers",
        "num_attention_heads",
        "attention_head_dim",
        "cross_attention_dim",
    )
    SILENT: ClassVar = {
        "av_ca_timestep_scale_multiplier": 1.0,
        "rope_type": "interleaved",
        "double_precision_rope": False,
    }
    UNUSED: ClassVar = {k for k in ConnectorConfig.keys() if "connector" in k} | {
        "_diffusers_version",
        "connector_learnable_registers_std",
        "cross_attention_norm",
        "dropout",
        "norm_num_groups",
        "num_embeds_ada_norm",
        "num_vector_embeds",
        NORM_TYPE,
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
        data |= rope_precision(data.pop("frequencies_precision", None))
        # Two more keys repeat whether text is projected here.
        inside = not data.get("caption_proj_before_connector", False)
        return super().from_dict(data, dict.fromkeys(PROJECTION_KEYS, inside))

    @property
    def streams(self) -> AV[StreamConfig]:
        """The streams that ``model_type`` names."""
        keys = (
            *("num_attention_heads", "attention_head_dim", "in_channels"),
            *("out_channels", "cross_attention_dim", "positional_embedding_max_pos"),
            "ff_bias",
        )
        video, audio = (
            [getattr(self, f"{own}{k}") for k in keys] for own in ("", "audio_")
        )
        video = StreamConfig(*video, self.use_keyframes_abs_pos_embedding)
        both = AV(video, StreamConfig(*audio))
        return AV(**{m.value: both[m] for m in self.model_type.value})


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


@dataclass(frozen=True)
class DurationConfig(Config):
    """Widths of the two contexts, and sizes of the head; the defaults are the official ones."""

    cross_attention_dim: int = 4096
    audio_cross_attention_dim: int = 2048
    pooler_hidden_dim: int = 256
    num_queries: int = 1
    num_pooler_heads: int = 4
    mlp_hidden: int = 256

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "DurationConfig":
        """From a file's whole config: block ``duration_head``, and the widths from block ``transformer``.

        Raises ``UserError`` if either is missing.
        """
        widths, head = data.get("transformer"), data.get("duration_head")
        if not isinstance(widths, Mapping) or not isinstance(head, Mapping):
            raise UserError(
                'A duration head\'s config must hold the blocks "transformer" and "duration_head"; this one holds '
                f"{', '.join(sorted(data)) or 'nothing'}."
            )
        names = ("cross_attention_dim", "audio_cross_attention_dim")
        own = {k: widths[k] for k in names if k in widths}
        return super().from_dict({**head, **own})
