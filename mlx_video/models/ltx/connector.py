"""From a language model's hidden states to each stream's text context: a projection, then a connector. Knows no prompts."""

from dataclasses import replace
from typing import ClassVar, Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_video.errors import UserError
from mlx_video.models.ltx.attention import Attention, FeedForward
from mlx_video.models.ltx.checkpoint import foreign_names
from mlx_video.models.ltx.config import ConnectorConfig, ConnectorStream
from mlx_video.models.ltx.loading import memory_table
from mlx_video.models.ltx.loading.parts import Network
from mlx_video.models.ltx.rope import Rope, precompute_freqs_cis
from mlx_video.tensor_names import TensorNames
from mlx_video.types import AV, Modality, PromptEmbeddings, TextFeatures
from mlx_video.weights import Weights


class TextConnectors(Network):
    """Projects the states of all layers of the language model to one, then refines it for video and for audio."""

    CONFIG: ClassVar = ConnectorConfig
    WIDE: ClassVar = True
    LORAS: ClassVar = (foreign_names.DIFFUSERS_CONNECTORS,)
    NAMES: ClassVar = TensorNames(
        {
            foreign_names.PROJECTION: "projection.",  # LTX-2.5: in the text encoder's file
            f"{foreign_names.PROJECTION}aggregate_embed.": "projection.aggregate_embed.",
            f"{foreign_names.DIT}video_embeddings_connector.": "video.",
            f"{foreign_names.DIT}audio_embeddings_connector.": "audio.",
            # In folders converted before LTX-2.3:
            "aggregate_embed.": "projection.aggregate_embed.",
            "video_embeddings_connector.": "video.",
            "audio_embeddings_connector.": "audio.",
        },
        foreign_names.MLX_LAYERS,
    )

    def __init__(self, config: ConnectorConfig):
        super().__init__()
        self.config = config
        each = config.caption_proj_before_connector
        self.projection = (TokenProjection if each else PromptProjection)(config)
        self.video = Connector(config, config.streams.video)
        self.audio = Connector(config, config.streams.audio)

    def __call__(
        self,
        hidden_states: mx.array,
        mask: mx.array,
        modalities: Sequence[Modality] = tuple(Modality),
    ) -> AV[mx.array]:
        """Hidden states (layers + 1, B, T, D) and their mask (B, L), see ``TextFeatures`` -> context (B, L, D) each.

        Only the connectors of ``modalities`` run. All L positions are to be attended to: those past the prompt hold
        registers. Raises ``UserError`` if L is not a multiple of the number of registers.
        """
        valid = mask[:, -hidden_states.shape[2] :] > 0
        lengths, L = valid.sum(axis=1), mask.shape[1]
        features = self.projection(hidden_states, valid)
        wanted = AV(**{m.value: features[m] for m in modalities})
        connectors = AV(self.video, self.audio)
        return wanted.map(lambda x, own: own(x, lengths, L), connectors)

    def activation_bytes(self, rows: int, prompts: int, positions: int) -> float:
        """The most bytes for ``prompts`` with ``rows`` tokens in total and a context of ``positions`` each."""
        config, dtype = self.config, self.video.learnable_registers.dtype
        live, itemsize = memory_table.live(dtype), dtype.size
        inputs = (config.text_layers + 1) * config.caption_channels
        # Both connectors' arrays and scores are alive at once: nothing paces them.
        streams = config.streams.values
        each = sum((live.connected + live.deeper * s.layers) * s.width for s in streams)
        each += live.scores * sum(stream.heads for stream in streams) * positions
        connected = prompts * positions * each * itemsize
        normalized = rows * inputs * memory_table.FLOAT32 * live.hidden_states
        return rows * inputs * itemsize + max(connected, normalized)

    @classmethod
    def fit(cls, config: ConnectorConfig, weights: Weights) -> ConnectorConfig:
        """``config`` with the numbers of text layers and registers, which only ``weights`` (official or ours) tell.

        Raises ``UserError`` if those tensors are missing or belong to another model.
        """
        ours = cls.sanitize(weights)
        kind = "video_" if config.caption_proj_before_connector else ""
        projection = _matrix(ours, f"projection.{kind}aggregate_embed.weight")
        registers = _matrix(ours, "video.learnable_registers")
        if projection.shape[1] < config.caption_channels:
            raise UserError(
                f"The text projection takes {projection.shape[1]} features, fewer than the {config.caption_channels} of one "
                "layer of the language model. It and the config belong to different models."
            )
        return replace(
            config,
            text_layers=projection.shape[1] // config.caption_channels - 1,
            connector_num_learnable_registers=registers.shape[0],
        )


def _matrix(weights: Weights, key: str) -> mx.array:
    if (found := weights.get(key)) is not None and found.ndim == 2:
        return found
    state = "missing" if found is None else f"of shape {found.shape}"
    raise UserError(
        f"The text connectors need a matrix {TextConnectors.NAMES.official(key)}, which is {state}. Fetch the checkpoint again; that of "
        "LTX-2.5 keeps text_embedding_projection in the text encoder's file."
    )


class PromptProjection(nn.Module):
    """LTX-2: one projection for both streams, of layers that are normalised over each whole prompt to mean 0 and range 8."""

    def __init__(self, config: ConnectorConfig):
        super().__init__()
        D = config.caption_channels
        self.aggregate_embed = nn.Linear((config.text_layers + 1) * D, D, bias=False)

    def __call__(self, hidden_states: mx.array, valid: mx.array) -> AV[mx.array]:
        """(layers + 1, B, T, D), with tokens where ``valid`` (B, T) -> (B, T, D), the same for both streams; in float32."""
        x, shown = hidden_states.astype(mx.float32), valid[None, :, :, None]
        over = (2, 3)
        count = shown.sum(axis=over, keepdims=True) * x.shape[-1]
        mean = mx.where(shown, x, 0).sum(axis=over, keepdims=True) / (count + 1e-6)
        low = mx.where(shown, x, mx.inf).min(axis=over, keepdims=True)
        high = mx.where(shown, x, -mx.inf).max(axis=over, keepdims=True)
        x, linear = 8 * (x - mean) / (high - low + 1e-6), self.aggregate_embed
        features = linear(_side_by_side(x, shown, linear.weight.dtype))
        return AV(features, features)


class TokenProjection(nn.Module):
    """LTX-2.3: one projection per stream, of layers that are RMS-normed token by token."""

    def __init__(self, config: ConnectorConfig):
        super().__init__()
        self.text_width = config.caption_channels
        inputs = (config.text_layers + 1) * config.caption_channels
        self.video_aggregate_embed = nn.Linear(inputs, config.streams.video.width)
        self.audio_aggregate_embed = nn.Linear(inputs, config.streams.audio.width)

    def __call__(self, hidden_states: mx.array, valid: mx.array) -> AV[mx.array]:
        """(layers + 1, B, T, D), with tokens where ``valid`` (B, T) -> (B, T, width) of each stream; normed in float32."""
        dtype = self.video_aggregate_embed.weight.dtype
        x = mx.fast.rms_norm(hidden_states.astype(mx.float32), None, 1e-6)
        x = _side_by_side(x, valid[None, :, :, None], dtype)

        def project(linear: nn.Linear) -> mx.array:
            width = linear.weight.shape[0]
            return linear(x * (width / self.text_width) ** 0.5)

        return AV(self.video_aggregate_embed, self.audio_aggregate_embed).map(project)


def _side_by_side(layers: mx.array, shown: mx.array, dtype: mx.Dtype) -> mx.array:
    """(layers, B, T, D) -> (B, T, D * layers), the layer index fastest; 0 where not ``shown`` (1, B, T, 1)."""
    x = mx.where(shown, layers, 0).astype(dtype)
    return x.transpose(1, 2, 3, 0).flatten(-2)


class Connector(nn.Module):
    """A small transformer over the prompt's tokens and, after them, learnable registers."""

    def __init__(self, config: ConnectorConfig, own: ConnectorStream):
        super().__init__()
        self.config, self.heads = config, own.heads
        registers, blocks = config.connector_num_learnable_registers, range(own.layers)
        self.learnable_registers = mx.zeros((registers, own.width))
        self.transformer_1d_blocks = [ConnectorBlock(config, own) for _ in blocks]

    def __call__(self, x: mx.array, lengths: mx.array, L: int) -> mx.array:
        """(B, T, D), whose last ``lengths`` (B,) tokens are the prompt -> (B, L, D)."""
        x = self.fill_with_registers(x, lengths, L)
        rope = self.rope(L)
        for block in self.transformer_1d_blocks:
            x = block(x, rope)
        return mx.fast.rms_norm(x, None, self.config.norm_eps)

    def fill_with_registers(self, x: mx.array, lengths: mx.array, L: int) -> mx.array:
        """(B, T, D) -> (B, L, D): the prompt's tokens first; each later position p holds register p mod R."""
        T, R = x.shape[1], len(self.learnable_registers)
        if L % R:
            raise UserError(
                f"The text context must be a multiple of {R} tokens long, the number of registers; got {L}. Nearest: "
                f"{max(1, round(L / R)) * R}."
            )
        place, lengths = mx.arange(L)[None, :, None], lengths[:, None, None]
        # Row p of the prompt is T - length rows further down; past the prompt, any row will do.
        tokens = mx.take_along_axis(x, mx.minimum(place + T - lengths, T - 1), axis=1)
        filler = mx.tile(self.learnable_registers, (L // R, 1))
        return mx.where(place < lengths, tokens, filler)

    def rope(self, L: int) -> Rope:
        """Rotary tables of the token indices 0 to L - 1."""
        config = self.config
        return precompute_freqs_cis(
            indices_grid=mx.arange(L, dtype=mx.float32)[None, None],
            dim=self.learnable_registers.shape[-1],
            theta=config.positional_embedding_theta,
            max_pos=config.connector_positional_embedding_max_pos,
            num_attention_heads=self.heads,
            rope_type=config.rope_type,
            double_precision=config.double_precision_rope,
        )


class ConnectorBlock(nn.Module):
    """Pre-norm self-attention and feed-forward, without modulation: (B, N, D) -> (B, N, D)."""

    def __init__(self, config: ConnectorConfig, own: ConnectorStream):
        super().__init__()
        self.norm_eps = config.norm_eps
        self.attn1 = Attention(
            own.width,
            heads=own.heads,
            head_dim=own.head_dim,
            norm_eps=config.norm_eps,
            rope_type=config.rope_type,
            gated=config.connector_apply_gated_attention,
        )
        self.ff = FeedForward(own.width, bias=config.connector_ff_bias)

    def __call__(self, x: mx.array, rope: Rope) -> mx.array:
        x = x + self.attn1(mx.fast.rms_norm(x, None, self.norm_eps), rope=rope)
        return x + self.ff(mx.fast.rms_norm(x, None, self.norm_eps))


def embed_prompts(
    connectors: TextConnectors,
    features: TextFeatures,
    modalities: Sequence[Modality] = tuple(Modality),
) -> PromptEmbeddings:
    """Embeddings of a prompt and, if ``features`` has a second row, of its negative prompt; (1, L, D) each."""
    context = connectors(*features, modalities)
    prompts = [context.map(lambda x: x[i : i + 1]) for i in range(len(features.mask))]
    return PromptEmbeddings(*prompts)
