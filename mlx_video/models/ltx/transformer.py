"""One block of the dual-stream diffusion transformer, and what it reads of each stream. Knows no sampling."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_video.models.ltx.adaln import (
    Modulation,
    Rows,
    add_gated,
    modulate,
    norm_modulate,
)
from mlx_video.models.ltx.attention import ALL, Attention, FeedForward, Items
from mlx_video.models.ltx.config import LTXModelConfig, StreamConfig
from mlx_video.models.ltx.pacing import end_piece
from mlx_video.models.ltx.rope import Rope
from mlx_video.types import AV

# Of a stream's table; the last only if the text attention is modulated (LTX-2.3).
SELF_ATTENTION = Rows(shift=0, scale=1, gate=2)
FEED_FORWARD = Rows(shift=3, scale=4, gate=5)
TEXT_ATTENTION = Rows(shift=6, scale=7, gate=8)
PROMPT = Rows(shift=0, scale=1)  # of its table for the prompt
CROSS_ROWS = 5  # in its table for the attention between the streams
CROSS_GATE = 4
TO_VIDEO = Rows(scale=0, shift=1, gate=CROSS_GATE)
TO_AUDIO = Rows(scale=2, shift=3, gate=CROSS_GATE)


def table_rows(config: LTXModelConfig) -> int:
    """How many rows a stream's table has."""
    return 9 if config.cross_attention_adaln else 6


class Timesteps(NamedTuple):
    """The distinct noise levels of one stream's tokens.

    values  (B, K) float32 in [0, 1]; B may be 1 for a whole batch
    index   (N,) which of the K levels each token has; ``None`` = there is only one
    sigma   (B,) float32, the level of the stream as a whole; it modulates the prompt and gates the other stream
    """

    values: mx.array
    index: mx.array | None
    sigma: mx.array

    @classmethod
    def from_mask(cls, sigma: mx.array | float, mask: mx.array) -> "Timesteps":
        """``sigma``, a number or (B,), times a denoise mask (B, N, 1). Evaluates the mask and passes it no gradient."""
        # Not where masks are made: each condition may change one, so only the last is worth it. X0Model calls this once a stage.
        tokens = np.array(mask.astype(mx.float32)).reshape(mask.shape[:2])
        values, index = np.unique(tokens, axis=1, return_inverse=True)
        index = mx.array(index.reshape(-1)) if values.shape[1] > 1 else None
        whole = cls(mx.array(values), index, mx.ones(tokens.shape[0]))
        return whole.scaled(sigma)

    def scaled(self, sigma: mx.array | float) -> "Timesteps":
        """Every level times ``sigma``, a number or (B,)."""
        per_item = sigma[:, None] if isinstance(sigma, mx.array) else sigma
        return self._replace(values=self.values * per_item, sigma=self.sigma * sigma)


class RopeTables(NamedTuple):
    """Rotary tables of one stream's tokens: among themselves, and towards the other stream."""

    tokens: Rope
    cross: Rope | None = None


@dataclass(frozen=True)
class ModalityInput:
    """One modality as the transformer sees it.

    latent     (B, N, C), in the compute dtype
    context    (B, L, D), the prompt after ``LTXModel.project_context``
    enabled    ``False`` = the stream does not change, but the other still attends to it
    keyframes  (B, N, 1) 1 = the token encodes a single frame (LTX-2.5); ``None`` marks nothing
    bias       (B, 1, N, N) added to the scores of self-attention, as ``attention_bias`` makes it
    """

    latent: mx.array
    timesteps: Timesteps
    context: mx.array
    rope: RopeTables
    enabled: bool = True
    keyframes: mx.array | None = None
    bias: mx.array | None = None


class Conditioning(NamedTuple):
    """What the blocks and the output read of one stream besides its tokens.

    own     for each block's table, 6 or 9 rows
    output  for the output's table, 2 rows
    cross   for the table of the exchange with the other stream, 5 rows
    prompt  for the prompt's table, 2 rows of the stream as a whole
    """

    context: mx.array
    rope: RopeTables
    enabled: bool
    own: Modulation
    output: Modulation
    cross: Modulation | None = None
    prompt: Modulation | None = None
    bias: mx.array | None = None


class StreamBlock(nn.Module):
    """One stream's part of a block: attention to itself, to the text and to the other stream, then feed-forward."""

    def __init__(
        self, config: LTXModelConfig, own: StreamConfig, other: StreamConfig | None
    ):
        super().__init__()
        D, self.norm_eps = own.width, config.norm_eps
        self.modulated_text = config.cross_attention_adaln
        attention = partial(
            Attention,
            D,
            norm_eps=config.norm_eps,
            rope_type=config.rope_type,
            gated=config.apply_gated_attention,
        )
        heads = {"heads": own.heads, "head_dim": own.head_dim}
        self.attn1 = attention(**heads)
        self.attn2 = attention(context_dim=own.context_dim, **heads)
        self.ff = FeedForward(D, bias=own.ff_bias)
        self.scale_shift_table = mx.zeros((table_rows(config), D))
        if self.modulated_text:
            self.prompt_scale_shift_table = mx.zeros((2, D))
        self.cross_attn = self.cross_scale_shift_table = None  # need the other
        if other is not None:
            audio = config.streams.audio  # the exchange has its heads
            heads = {"heads": audio.heads, "head_dim": audio.head_dim}
            self.cross_attn = attention(context_dim=other.width, **heads)
            self.cross_scale_shift_table = mx.zeros((CROSS_ROWS, D))

    def attend(self, x: mx.array, c: Conditioning, attending: Items) -> mx.array:
        """Tokens (B, N, D) after attention to the stream's own and then to its text; ``x`` itself if it is not enabled."""
        if not c.enabled:
            return x
        table, eps = self.scale_shift_table, self.norm_eps
        update = self.attn1(
            norm_modulate(x, table, c.own, SELF_ATTENTION, eps),
            rope=c.rope.tokens,
            bias=c.bias,
            attending=attending,
        )
        # This and the two pieces of a block save 5.5 GiB of the 19B's peak at 6,144 video tokens, 6.5 at 24,576 (an H200).
        x = end_piece(add_gated(x, update, table, c.own, SELF_ATTENTION))
        del update  # both free what self-attention held during the text attention
        if not self.modulated_text:
            return x + self.attn2(mx.fast.rms_norm(x, None, eps), c.context)
        query = norm_modulate(x, table, c.own, TEXT_ATTENTION, eps)
        text = modulate(c.context, self.prompt_scale_shift_table, c.prompt, PROMPT)
        return add_gated(x, self.attn2(query, text), table, c.own, TEXT_ATTENTION)

    def across(self, x: mx.array, c: Conditioning, at: Rows) -> tuple[mx.array, Rope]:
        """The stream's tokens (B, N, D) as queries or context of the attention between the streams, with their positions."""
        table = self.cross_scale_shift_table
        return norm_modulate(x, table, c.cross, at, self.norm_eps), c.rope.cross

    def attend_across(
        self, x: mx.array, c: Conditioning, other: tuple[mx.array, Rope], at: Rows
    ) -> mx.array:
        """Tokens (B, N, D) after attention to the other stream, of which ``other`` is ``across``."""
        (query, rope), (context, context_rope) = self.across(x, c, at), other
        update = self.cross_attn(query, context, rope=rope, context_rope=context_rope)
        # The gate follows the other stream's noise level, so it is the same for all tokens.
        gate = Modulation(c.cross.rows)
        return add_gated(x, update, self.cross_scale_shift_table, gate, at)

    def feed_forward(self, x: mx.array, c: Conditioning) -> mx.array:
        """Tokens (B, N, D) plus their feed-forward update; ``x`` itself where the stream is not enabled."""
        if not c.enabled:
            return x
        table, eps = self.scale_shift_table, self.norm_eps
        update = self.ff(norm_modulate(x, table, c.own, FEED_FORWARD, eps))
        return add_gated(x, update, table, c.own, FEED_FORWARD)


class TransformerBlock(nn.Module):
    """Self-attention, text attention, exchange between the streams, then feed-forward."""

    def __init__(self, config: LTXModelConfig):
        super().__init__()
        streams = config.streams
        built = streams.map(partial(StreamBlock, config), streams.swapped)
        self.video, self.audio = built.video, built.audio

    @property
    def streams(self) -> AV[StreamBlock]:
        """``video`` and ``audio``; ``None`` for one that the model lacks."""
        return AV(self.video, self.audio)

    def __call__(
        self,
        x: AV[mx.array],
        c: AV[Conditioning],
        attending: AV[Items] = AV(ALL, ALL),
        crossing: Items = ALL,
    ) -> AV[mx.array]:
        """Tokens (B, N, D) of each stream -> the same shapes.

        attending  where a stream's self-attention runs; elsewhere it only passes its values through
        crossing   where the streams attend to each other
        """
        streams = self.streams
        x = x.map(lambda x, c, s, on: s.attend(x, c, on), c, streams, attending)
        end_piece(*x.values)  # frees what the text attention held during the exchange
        both = x.video is not None and x.audio is not None
        if both and crossing.any:
            x = self._exchange(x, c, crossing)
            end_piece(*x.values)  # together: frees what each stream read of the other
        return x.map(lambda x, c, s: s.feed_forward(x, c), c, streams)

    def _exchange(
        self, x: AV[mx.array], c: AV[Conditioning], crossing: Items
    ) -> AV[mx.array]:
        """Each enabled stream attends to the other's state before the exchange, in the items that are ``crossing``."""
        video, audio = x.video, x.audio
        if c.video.enabled:
            heard = self.audio.across(x.audio, c.audio, TO_VIDEO)
            video = self.video.attend_across(x.video, c.video, heard, TO_VIDEO)
        if c.audio.enabled:
            seen = self.video.across(x.video, c.video, TO_AUDIO)
            audio = self.audio.attend_across(x.audio, c.audio, seen, TO_AUDIO)
        after = AV(video, audio)
        if crossing.mask is None:
            return after
        return after.map(partial(mx.where, crossing.mask), x)
