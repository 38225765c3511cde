"""Hyper-parameters of the transformer and of the upsamplers, read from the checkpoint's own metadata."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Mapping

from mlx_video.errors import UserError
from mlx_video.models.ltx.kinds import short
from mlx_video.models.ltx.schema import Config
from mlx_video.types import AV, Modality


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


PRECISIONS = "float64", "float32"
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
        return self.heads * self.head_dim


@dataclass(frozen=True)
class LTXModelConfig(Config):
    """The diffusion transformer: block ``transformer`` of the metadata. Without arguments it is that of LTX-2 (19B).

    apply_gated_attention          every attention scales its heads (LTX-2.3)
    cross_attention_adaln          the noise level modulates the text attention too (LTX-2.3) ...
    use_prompt_adaln_single        ... and the text it reads; otherwise only the blocks' own tables modulate that
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
    # What a checkpoint means that is silent: the official code's defaults, where they are not the 19B's values.
    SILENT: ClassVar = {
        "av_ca_timestep_scale_multiplier": 1.0,
        "rope_type": "interleaved",
        "double_precision_rope": False,
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
        data = cls.SILENT | dict(data, model_type=model_type)
        data |= rope_precision(data.pop("frequencies_precision", None))
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


def rope_precision(stated: object) -> dict[str, bool]:
    """What ``frequencies_precision`` means, where a file states it; raises ``UserError`` for an unknown one."""
    if stated is not None and stated not in PRECISIONS:
        raise UserError(
            f"LTXModelConfig: frequencies_precision must be {' or '.join(PRECISIONS)}; got {short(stated)}."
        )
    return {} if stated is None else {"double_precision_rope": stated == PRECISIONS[0]}


def _check_caption_projection(data: dict[str, object]) -> None:
    """Remove the two keys that repeat how the text is projected: by two layers here, or by none."""
    inside = not data.get("caption_proj_before_connector", False)
    for layer in ("first", "second"):
        key = f"caption_projection_{layer}_linear"
        if data.pop(key, inside) != inside:
            raise UserError(
                f"LTXModelConfig: {key} = {not inside} is not implemented by this version of mlx-video beside "
                f"caption_proj_before_connector = {not inside}. The checkpoint may need a newer mlx-video."
            )


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
