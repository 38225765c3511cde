"""One block of the dual-stream diffusion transformer, and what it reads of each modality.

Knows how the two streams attend to themselves, to the text and to each other; not where its inputs come from.
Each rule is written once: the video modules bear the plain names, the audio ones the prefix ``audio_``.
"""

from dataclasses import dataclass
from functools import partial
from typing import Callable, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_video.models.ltx.adaln import Modulation
from mlx_video.models.ltx.attention import Attention, FeedForward
from mlx_video.models.ltx.config import LTXModelConfig, named
from mlx_video.models.ltx.pacing import end_piece
from mlx_video.models.ltx.rope import Rope
from mlx_video.types import AV, Modality

MODALITIES = AV(Modality.VIDEO, Modality.AUDIO)
OTHER = AV(Modality.AUDIO, Modality.VIDEO)


class Timesteps(NamedTuple):
    """The noise levels of one modality's tokens, each distinct level once.

    values  (B, K) float32 in [0, 1]; B may be 1 for a whole batch
    index   (N,) which of the K levels each token has; ``None`` where there is only one
    sigma   (B,) float32, the level of the modality as a whole: what the other one's gate hears
    """

    values: mx.array
    index: mx.array | None
    sigma: mx.array

    @classmethod
    def from_tokens(cls, timesteps: mx.array, sigma: mx.array | float) -> "Timesteps":
        """From the level of every token, (B, N) or (B, N, 1); reads them, so they must not be under a gradient."""
        tokens = np.array(timesteps.astype(mx.float32)).reshape(timesteps.shape[:2])
        values, index = np.unique(tokens, axis=1, return_inverse=True)
        index = mx.array(index.reshape(-1)) if values.shape[1] > 1 else None
        sigma = mx.broadcast_to(mx.array(sigma, mx.float32), tokens.shape[:1])
        return cls(mx.array(values), index, sigma)

    @classmethod
    def from_mask(cls, sigma: mx.array | float, mask: mx.array) -> "Timesteps":
        """``sigma``, a number or (B,), times a denoise mask (B, N, 1)."""
        return cls.from_tokens(mask, 1.0).scaled(sigma)

    def scaled(self, sigma: mx.array | float) -> "Timesteps":
        """Every level times ``sigma``, a number or (B,)."""
        per_item = sigma[:, None] if isinstance(sigma, mx.array) else sigma
        return self._replace(values=self.values * per_item, sigma=self.sigma * sigma)


class RopeTables(NamedTuple):
    """Rotary tables of one modality's tokens: among themselves, and towards the other modality."""

    tokens: Rope
    cross: Rope | None = None


@dataclass(frozen=True)
class ModalityInput:
    """One modality as the transformer sees it.

    latent   (B, N, C), in the dtype to compute in
    context  (B, L, D), the prompt after ``LTXModel.project_context``
    enabled  ``False``: the stream stays as it enters, but the other one still attends to it
    """

    latent: mx.array
    timesteps: Timesteps
    context: mx.array
    rope: RopeTables
    enabled: bool = True


class Conditioning(NamedTuple):
    """What the blocks and the output read of one modality besides its tokens; rows as ``AdaLNSingle`` gives them.

    rows        (B, K, 6, D)  shift, scale, gate of self-attention, then of the feed-forward network
    embedded    (B, K, D)     what the output adds to its own shift and scale
    cross_rows  (B, K, 4, D)  scale, shift where audio flows to video, then where video flows to audio
    cross_gate  (B, 1, 1, D)  how loud the other modality is
    """

    timesteps: Timesteps
    context: mx.array
    rope: RopeTables
    enabled: bool
    rows: mx.array
    embedded: mx.array
    cross_rows: mx.array | None = None
    cross_gate: mx.array | None = None


Rule = Callable[[Modality, mx.array, Conditioning], mx.array]


class TransformerBlock(nn.Module):
    """Self-attention, text attention, exchange between the streams, feed-forward."""

    def __init__(self, config: LTXModelConfig):
        super().__init__()
        self.norm_eps = config.norm_eps
        modalities = config.model_type.modalities
        for modality in modalities:
            self._build_stream(config, modality)
            if len(modalities) > 1:
                self._build_exchange(config, modality)

    def _build_stream(self, config: LTXModelConfig, modality: Modality):
        width = config.width(modality)
        context_dim = config.of(modality, "cross_attention_dim")
        attention = _attention(config, modality, width)
        self[named(modality, "attn1")] = attention(context_dim=width)
        self[named(modality, "attn2")] = attention(context_dim=context_dim)
        self[named(modality, "ff")] = FeedForward(width)
        self[named(modality, "scale_shift_table")] = mx.zeros((6, width))

    def _build_exchange(self, config: LTXModelConfig, modality: Modality):
        """How ``modality`` attends to the other one, in heads of the audio stream's size."""
        width, other = config.width(modality), config.width(OTHER[modality])
        attention = _attention(config, Modality.AUDIO, width)
        self[_exchange_attention(modality)] = attention(context_dim=other)
        self[_exchange_table(modality)] = mx.zeros((5, width))

    def __call__(
        self,
        x: AV[mx.array],
        conditioning: AV[Conditioning],
        attending: AV[mx.array | bool] = AV(True, True),
        crossing: mx.array | bool = True,
    ) -> AV[mx.array]:
        """Tokens (B, N, D) of each stream -> the same shapes.

        attending  whether a stream's self-attention runs or only passes its values through
        crossing   whether the streams attend to each other; both may be (B, 1, 1), one answer per batch item
        """
        x = _advance(partial(self._attend, attending=attending), x, conditioning)
        if crossing is not False and len(x.present) > 1:
            x = self._exchange(x, conditioning, crossing)
        return _advance(self._feed_forward, x, conditioning)

    def _attend(
        self,
        modality: Modality,
        x: mx.array,
        c: Conditioning,
        attending: AV[mx.array | bool],
    ) -> mx.array:
        """Attention to the stream's own tokens, then to its text."""
        modulation = self._modulation(modality, x, c)
        update = self[named(modality, "attn1")](
            modulation.norm(x, self.norm_eps, shift=0, scale=1),
            rope=c.rope.tokens,
            attending=attending[modality],
        )
        x = end_piece(modulation.gated(x, update, gate=2))
        del update  # a name would keep it while the text is attended to
        normed = mx.fast.rms_norm(x, None, self.norm_eps)
        return x + self[named(modality, "attn2")](normed, c.context)

    def _exchange(
        self,
        x: AV[mx.array],
        conditioning: AV[Conditioning],
        crossing: mx.array | bool,
    ) -> AV[mx.array]:
        """Each stream attends to the other as it was before either changed."""
        before = x.map(self._cross_modulation, MODALITIES, conditioning)

        def normed(modality: Modality, into: Modality) -> mx.array:
            """A stream's tokens as the attention ``into`` a modality wants them, be it query or context."""
            scale = 0 if into is Modality.VIDEO else 2
            return before[modality].norm(
                x[modality], self.norm_eps, scale=scale, shift=scale + 1
            )

        def listen(modality: Modality, tokens: mx.array, c: Conditioning) -> mx.array:
            other = OTHER[modality]
            update = self[_exchange_attention(modality)](
                normed(modality, into=modality),
                normed(other, into=modality),
                rope=c.rope.cross,
                context_rope=conditioning[other].rope.cross,
            )
            if crossing is not True:
                update = update * crossing.astype(update.dtype)
            table = self[_exchange_table(modality)][4:]
            gate = Modulation.of(table, c.cross_gate, None, tokens.dtype)
            return gate.gated(tokens, update, gate=0)

        return _advance(listen, x, conditioning)

    def _feed_forward(
        self, modality: Modality, x: mx.array, c: Conditioning
    ) -> mx.array:
        modulation = self._modulation(modality, x, c)
        normed = modulation.norm(x, self.norm_eps, shift=3, scale=4)
        return modulation.gated(x, self[named(modality, "ff")](normed), gate=5)

    def _modulation(
        self, modality: Modality, x: mx.array, c: Conditioning
    ) -> Modulation:
        """The six rows of a stream: shift, scale and gate of self-attention, then of the feed-forward network."""
        table = self[named(modality, "scale_shift_table")]
        return Modulation.of(table, c.rows, c.timesteps.index, x.dtype)

    def _cross_modulation(
        self, x: mx.array, modality: Modality, c: Conditioning
    ) -> Modulation:
        """The four rows of a stream: scale and shift where audio flows to video, then where video flows to audio."""
        table = self[_exchange_table(modality)][:4]
        return Modulation.of(table, c.cross_rows, c.timesteps.index, x.dtype)


def _advance(
    rule: Rule, x: AV[mx.array], conditioning: AV[Conditioning]
) -> AV[mx.array]:
    """Each stream after ``rule``; one that is not enabled stays as it is."""

    def one(x: mx.array, modality: Modality, c: Conditioning) -> mx.array:
        return rule(modality, x, c) if c.enabled else x

    x = x.map(one, MODALITIES, conditioning)
    end_piece(*x.values)  # together: what the small stream reads of the large one goes
    return x


def _attention(
    config: LTXModelConfig, modality: Modality, dim: int
) -> Callable[..., Attention]:
    """A constructor of attentions with the heads of ``modality`` and queries of ``dim`` features."""
    heads, head_dim = config.heads(modality)
    return partial(
        Attention,
        dim,
        heads=heads,
        head_dim=head_dim,
        norm_eps=config.norm_eps,
        rope_type=config.rope_type,
    )


def _exchange_attention(modality: Modality) -> str:
    return f"{OTHER[modality].value}_to_{modality.value}_attn"


def _exchange_table(modality: Modality) -> str:
    return f"scale_shift_table_a2v_ca_{modality.value}"
