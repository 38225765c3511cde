"""From the language model's hidden states to the transformer's text context: one projection, then a connector a stream.

Knows layers, tokens and registers; not prompts, tokenizers or the language model.
"""

from dataclasses import replace
from typing import ClassVar, Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_video.errors import UserError
from mlx_video.models.ltx.attention import Attention, FeedForward
from mlx_video.models.ltx.config import ConnectorConfig
from mlx_video.models.ltx.rope import Rope, precompute_freqs_cis
from mlx_video.types import AV, Modality, PromptEmbeddings, TextFeatures
from mlx_video.weights import Weights, strip_prefixes


class TextConnectors(nn.Module):
    """All of the language model's layers projected to one, then refined for video and for audio."""

    OFFICIAL: ClassVar[dict[str, str]] = {
        "text_embedding_projection.": "",
        "model.diffusion_model.video_embeddings_connector.": "video_embeddings_connector.",
        "model.diffusion_model.audio_embeddings_connector.": "audio_embeddings_connector.",
    }

    def __init__(self, config: ConnectorConfig):
        super().__init__()
        D = config.caption_channels
        self.aggregate_embed = nn.Linear((config.text_layers + 1) * D, D, bias=False)
        self.video_embeddings_connector = Connector(config)
        self.audio_embeddings_connector = Connector(config)

    def __call__(
        self,
        hidden_states: mx.array | Sequence[mx.array],
        mask: mx.array,
        modalities: Sequence[Modality] = tuple(Modality),
    ) -> AV[mx.array]:
        """Hidden states (layers + 1, B, T, D) and their mask (B, L), see ``TextFeatures`` -> context (B, L, D) each.

        Only the connectors of ``modalities`` run. Every one of the L positions is meant to be attended to: those
        past the prompt hold registers. Raises ``ValueError`` where L is no multiple of the number of registers.
        """
        if not isinstance(hidden_states, mx.array):
            hidden_states = mx.stack(hidden_states)
        valid = mask[:, -hidden_states.shape[2] :] > 0
        dtype = self.aggregate_embed.weight.dtype
        features = self.aggregate_embed(normalize_layers(hidden_states, valid, dtype))
        lengths = valid.sum(axis=1)

        def connect(modality: Modality) -> mx.array | None:
            if modality in modalities:
                return self[f"{modality.value}_embeddings_connector"](
                    features, lengths, mask.shape[1]
                )

        return AV(connect(Modality.VIDEO), connect(Modality.AUDIO))

    @classmethod
    def fit(cls, config: ConnectorConfig, weights: Weights) -> ConnectorConfig:
        """``config`` with the number of text layers that the projection in ``weights`` (official or ours) tells."""
        weight = cls.sanitize(weights)["aggregate_embed.weight"]
        return replace(config, text_layers=weight.shape[1] // weight.shape[0] - 1)

    @classmethod
    def sanitize(cls, weights: Weights) -> Weights:
        """The connectors' tensors under our names; unchanged where none bears an official prefix."""
        official = strip_prefixes(weights, cls.OFFICIAL)
        if official is None:
            return weights
        return {cls.rename(key): value for key, value in official.items()}

    @staticmethod
    def rename(key: str) -> str:
        """An official key, less its prefix, in our words."""
        for old, new in OUR_NAMES.items():
            key = key.replace(old, new)
        return key


OUR_NAMES = {
    ".to_out.0.": ".to_out.",
    ".ff.net.0.proj.": ".ff.proj_in.",
    ".ff.net.2.": ".ff.proj_out.",
}


class Connector(nn.Module):
    """A small transformer over the prompt's tokens and, after them, learnable registers."""

    def __init__(self, config: ConnectorConfig):
        super().__init__()
        self.config = config
        width = (
            config.connector_num_attention_heads * config.connector_attention_head_dim
        )
        self.learnable_registers = mx.zeros(
            (config.connector_num_learnable_registers, width)
        )
        self.transformer_1d_blocks = [
            ConnectorBlock(config, width) for _ in range(config.connector_num_layers)
        ]

    def __call__(self, x: mx.array, lengths: mx.array, positions: int) -> mx.array:
        """(B, T, D), of which the last ``lengths`` (B,) tokens are the prompt -> (B, positions, D)."""
        x = self.fill_with_registers(x, lengths, positions)
        rope = self.rope(positions)
        for block in self.transformer_1d_blocks:
            x = block(x, rope)
        return mx.fast.rms_norm(x, None, self.config.norm_eps)

    def fill_with_registers(
        self, x: mx.array, lengths: mx.array, positions: int
    ) -> mx.array:
        """The prompt's tokens moved to the front; every later position p holds register p mod R."""
        registers = len(self.learnable_registers)
        if positions % registers:
            raise UserError(
                f"The text context must be a multiple of {registers} tokens long, the number of registers; got "
                f"{positions}. Nearest: {max(1, round(positions / registers)) * registers}."
            )
        T = x.shape[1]
        place, lengths = mx.arange(positions)[None, :, None], lengths[:, None, None]
        # Row p of the prompt stands T - length rows further down; past the prompt any row will do.
        tokens = mx.take_along_axis(x, mx.minimum(place + T - lengths, T - 1), axis=1)
        filler = mx.tile(self.learnable_registers, (positions // registers, 1))
        return mx.where(place < lengths, tokens, filler)

    def rope(self, positions: int) -> Rope:
        """Rotary tables of the token indices 0, 1, 2, ..."""
        config = self.config
        return precompute_freqs_cis(
            mx.arange(positions, dtype=mx.float32)[None, None],
            self.learnable_registers.shape[-1],
            theta=config.positional_embedding_theta,
            max_pos=config.connector_positional_embedding_max_pos,
            num_attention_heads=config.connector_num_attention_heads,
            rope_type=config.rope_type,
            double_precision=config.double_precision_rope,
        )


class ConnectorBlock(nn.Module):
    """Pre-norm self-attention and feed-forward, without modulation."""

    def __init__(self, config: ConnectorConfig, width: int):
        super().__init__()
        self.norm_eps = config.norm_eps
        self.attn1 = Attention(
            width,
            heads=config.connector_num_attention_heads,
            head_dim=config.connector_attention_head_dim,
            norm_eps=config.norm_eps,
            rope_type=config.rope_type,
        )
        self.ff = FeedForward(width)

    def __call__(self, x: mx.array, rope: Rope) -> mx.array:
        x = x + self.attn1(mx.fast.rms_norm(x, None, self.norm_eps), rope=rope)
        return x + self.ff(mx.fast.rms_norm(x, None, self.norm_eps))


def normalize_layers(
    hidden_states: mx.array, valid: mx.array, dtype: mx.Dtype = mx.float32
) -> mx.array:
    """Every layer of every prompt brought to mean 0 and range 8: (layers, B, T, D) -> (B, T, D * layers).

    Mean and range are over the ``valid`` (B, T) tokens and all channels; other rows become 0. The layer index runs
    fastest. Computed in float32, returned as ``dtype``.
    """
    x = hidden_states.astype(mx.float32)
    shown = valid[None, :, :, None]
    over = (2, 3)
    count = shown.sum(axis=over, keepdims=True) * x.shape[-1]
    mean = mx.where(shown, x, 0).sum(axis=over, keepdims=True) / (count + 1e-6)
    low = mx.where(shown, x, mx.inf).min(axis=over, keepdims=True)
    high = mx.where(shown, x, -mx.inf).max(axis=over, keepdims=True)
    x = mx.where(shown, 8 * (x - mean) / (high - low + 1e-6), 0)
    return x.astype(dtype).transpose(1, 2, 3, 0).flatten(-2)


def embed_prompts(
    connectors: TextConnectors,
    features: TextFeatures,
    modalities: Sequence[Modality] = tuple(Modality),
) -> PromptEmbeddings:
    """Embeddings of a prompt and, where ``features`` holds a second row, of its negative prompt; (1, L, D) each."""
    context = connectors(*features, modalities)
    prompts = [context.map(lambda x: x[i : i + 1]) for i in range(len(features.mask))]
    return PromptEmbeddings(*prompts)
