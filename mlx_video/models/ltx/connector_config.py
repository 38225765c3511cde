"""Hyper-parameters of the text connectors, read from block ``transformer`` of the checkpoint's metadata."""

from dataclasses import dataclass, fields
from typing import ClassVar, Mapping

from mlx_video.errors import UserError
from mlx_video.models.ltx.config import LTXRopeType, rope_precision
from mlx_video.models.ltx.kinds import short
from mlx_video.models.ltx.schema import Config
from mlx_video.types import AV


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

    FIXED: ClassVar = {
        "connector_norm_output": True,
        "use_embeddings_connector": True,
        "caption_proj_input_norm": False,
    }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "ConnectorConfig":
        names = {field.name for field in fields(cls)} | cls.FIXED.keys()
        data = dict(data) | rope_precision(data.get("frequencies_precision"))
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
        """The ``text_encoder_norm_type`` that this implies; LTX-2 does not state it."""
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
