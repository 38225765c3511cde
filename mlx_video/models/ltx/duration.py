"""The duration head of LTX-2.5, which chooses a clip's length by its prompt.

Knows the connectors' context and seconds, and rounds them to the latent grid.
"""

from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx.attention import gelu
from mlx_video.models.ltx.config import DurationConfig
from mlx_video.models.ltx.loading.parts import Network
from mlx_video.models.ltx.rope import split_heads
from mlx_video.tensor_names import TensorNames
from mlx_video.types import AV

SHORTEST, LONGEST = 1.0, 20.0  # seconds


class DurationHead(Network):
    """A learned query attends to the context of both streams; the result becomes seconds."""

    CONFIG: ClassVar = DurationConfig
    WIDE: ClassVar = True  # like the context that it reads
    NAMES: ClassVar = TensorNames(
        {"duration_head.": ""},
        {
            "*_input_proj.*": "*.proj.*",
            "*_modality_emb": "*.embedding",
            "attention_pooler.cross_attn.in_proj_*": "pooler.in_proj.*",
            "attention_pooler.cross_attn.out_proj.*": "pooler.out_proj.*",
            "attention_pooler.query_tokens": "pooler.queries",
        },
    )

    def __init__(self, config: DurationConfig):
        super().__init__()
        D = config.pooler_hidden_dim
        self.video = ContextInput(config.cross_attention_dim, D)
        self.audio = ContextInput(config.audio_cross_attention_dim, D)
        self.pooler = Pooler(D, config.num_queries, config.num_pooler_heads)
        self.mlp_hidden = nn.Linear(config.num_queries * D, config.mlp_hidden)
        self.mlp_out = nn.Linear(config.mlp_hidden, 1)

    def activation_bytes(self, context: int) -> int:
        """Bytes for ``context`` positions of each stream: tokens, apart and joined, keys and values, whole and in heads."""
        weight = self.pooler.out_proj.weight
        return 6 * 2 * context * weight.shape[0] * weight.itemsize

    def __call__(self, context: AV[mx.array]) -> mx.array:
        """The context (B, L, width) of both streams or of one -> seconds (B,), float32.

        All positions count, including registers.
        """
        tokens = context.map(lambda x, stream: stream(x), AV(self.video, self.audio))
        pooled = self.pooler(mx.concatenate(tokens.values, axis=1))
        out = self.mlp_out(gelu(self.mlp_hidden(pooled.flatten(1))))
        return mx.exp(out[:, 0].astype(mx.float32))


class ContextInput(nn.Module):
    """One stream's context in the head's width, marked as that stream's: (B, L, width) -> (B, L, dim)."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.proj = nn.Linear(width, dim)
        self.embedding = mx.zeros((dim,))

    def __call__(self, context: mx.array) -> mx.array:
        return self.proj(context) + self.embedding


class Pooler(nn.Module):
    """Multi-head attention of learned queries: (B, N, dim) -> (B, queries, dim)."""

    def __init__(self, dim: int, queries: int, heads: int):
        super().__init__()
        self.heads = heads
        self.queries = mx.zeros((queries, dim))
        self.in_proj = nn.Linear(dim, 3 * dim)  # of queries, keys and values
        self.out_proj = nn.Linear(dim, dim)

    def __call__(self, tokens: mx.array) -> mx.array:
        D = tokens.shape[-1]
        weight, bias = self.in_proj.weight, self.in_proj.bias
        q = mx.addmm(bias[:D], self.queries[None], weight[:D].T)
        k, v = mx.split(mx.addmm(bias[D:], tokens, weight[D:].T), 2, axis=-1)
        q, k, v = (split_heads(x, self.heads) for x in (q, k, v))
        q = mx.broadcast_to(q, (len(tokens), *q.shape[1:]))
        pooled = mx.fast.scaled_dot_product_attention(
            q, k, v, scale=q.shape[-1] ** -0.5
        )
        return self.out_proj(pooled.swapaxes(1, 2).flatten(-2))


def frames_for(seconds: float, fps: float, step: int) -> int:
    """Frames of a clip of ``seconds``, 1 + a multiple of ``step`` (frames per latent frame), from 1 to 20 seconds.

    >>> frames_for(5.0, 24, step=8)
    113
    """
    fewest, most = round(SHORTEST * fps), round(LONGEST * fps)
    wanted = min(max(round(seconds * fps), fewest), most)
    frames = (wanted - 1) // step * step + 1
    return frames if frames >= fewest else frames + step
