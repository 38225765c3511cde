"""Latents during denoising, and conditions applied before the noise. Knows tokens and masks, not models or samplers.

A condition is a function ``state -> state`` of either stream. Conditions apply in order; the tokens that they append follow
the stream's own, are denoised or kept along with them, and are cut off at the end.
"""

from dataclasses import dataclass
from typing import Callable, Iterable, NamedTuple

import mlx.core as mx


class LatentState(NamedTuple):
    """One modality during sampling, as tokens.

    latent          (B, N, C)     current sample x_t, float32
    clean_latent    (B, N, C)     the target of tokens with a mask below 1, float32
    denoise_mask    (1, N, 1)     1 = denoise fully, 0 = keep clean, float32; shared by the batch
    positions       (1, A, N, 2)  [start, end) of each token on each of A axes, float32;
                                  seconds on the time axis, pixels on the others
    keyframes_mask  (1, N, 1)     1 = the token encodes a single pixel frame, as a clip's first latent does; ``None`` = none
    attention_mask  (1, N, N)     how strongly row n attends to column m, 0 to 1; ``None`` = fully everywhere
    own             how many of the first tokens are the stream's own; ``None`` = all
    frozen          whether the stream is given: its noise level is 0 for the network
    enabled         ``False`` = the network does not change the stream, but the other still attends to it
    """

    latent: mx.array
    clean_latent: mx.array
    denoise_mask: mx.array
    positions: mx.array
    keyframes_mask: mx.array | None = None
    attention_mask: mx.array | None = None
    own: int | None = None
    frozen: bool = False
    enabled: bool = True

    @classmethod
    def fresh(
        cls, latent: mx.array, positions: mx.array, single_frames: int = 0
    ) -> "LatentState":
        """A state with nothing pinned, from ``latent`` (B, N, C) before noise.

        single_frames  how many of the first tokens encode a single pixel frame
        """
        mask = mx.ones((1, latent.shape[1], 1))
        marks = mx.arange(latent.shape[1])[None, :, None] < single_frames
        keyframes = marks.astype(mx.float32) if single_frames else None
        return cls(latent, latent, mask, positions, keyframes)

    @classmethod
    def pinned(cls, latent: mx.array, positions: mx.array) -> "LatentState":
        """A state of tokens (B, N, C) that do not change, such as given sound for a video."""
        state = cls.fresh(latent, positions)
        mask = mx.zeros_like(state.denoise_mask)
        return state._replace(denoise_mask=mask, frozen=True)

    def noised(self, sigma: float, noise: mx.array) -> "LatentState":
        """Mix in Gaussian ``noise`` (B, N, C) to level ``sigma``, as far as the mask allows."""
        mixed = (1 - sigma) * self.latent + sigma * noise
        return self._replace(latent=self.masked(mixed))

    def masked(self, x: mx.array) -> mx.array:
        """``x`` (B, N, C) where the mask is 1, the clean latent where it is 0, a mix between; in the dtype of ``x``."""
        mask = self.denoise_mask
        return (x * mask + self.clean_latent * (1 - mask)).astype(x.dtype)

    @property
    def own_tokens(self) -> int:
        """How many tokens the stream has without those that conditions appended."""
        return self.latent.shape[1] if self.own is None else self.own

    def generated_keyframes(self) -> mx.array:
        """The tokens of generated keyframes, (B, n, C); n = 0 if there are none."""
        if self.keyframes_mask is None:
            return self.latent[:, :0]
        marks = self.keyframes_mask[0, self.own_tokens :, 0].tolist()
        chosen = [self.own_tokens + i for i, mark in enumerate(marks) if mark]
        return self.latent[:, mx.array(chosen, mx.int32)]


Condition = Callable[[LatentState], LatentState]


def apply_conditioning(
    state: LatentState, conditions: Iterable[Condition]
) -> LatentState:
    """``state`` with every condition applied, in order."""
    for condition in conditions:
        state = condition(state)
    return state


def patchify_video(latent: mx.array) -> mx.array:
    """Tokens of a latent clip: (B, C, F, H, W) -> (B, F*H*W, C), columns fastest."""
    return latent.flatten(2).swapaxes(1, 2)


@dataclass(frozen=True)
class VideoConditionByLatentIndex:
    """Pin latent frames from ``frame_idx`` on to an encoded image or clip.

    latent     (B, C, f, H, W), at the size of the clip's latents
    frame_idx  latent frame
    strength   1 keeps the frames exactly; 0 leaves them free
    """

    latent: mx.array
    frame_idx: int = 0
    strength: float = 1.0

    def __call__(self, state: LatentState) -> LatentState:
        """``state`` with those frames pinned. Raises ``ValueError`` if the clip is too short for them."""
        *_, F, H, W = self.latent.shape
        start, stop = self.frame_idx * H * W, (self.frame_idx + F) * H * W
        if stop > state.own_tokens:
            raise ValueError(
                f"The condition covers tokens {start} to {stop}, but the clip has {state.own_tokens}."
            )
        clean, mask = mx.array(state.clean_latent), mx.array(state.denoise_mask)
        clean[:, start:stop] = patchify_video(self.latent).astype(clean.dtype)
        mask[:, start:stop] = 1 - self.strength
        return state._replace(clean_latent=clean, denoise_mask=mask)


@dataclass(frozen=True)
class VideoConditionByMask:
    """Keep the cells of an encoded clip that ``mask`` selects, for inpainting and outpainting.

    latent    (B, C, F, H, W), of the whole clip
    mask      (1, F, H, W), 1 = keep, 0 = regenerate
    strength  1 keeps the cells exactly; 0 leaves them free
    """

    latent: mx.array
    mask: mx.array
    strength: float = 1.0

    def __call__(self, state: LatentState) -> LatentState:
        """``state`` with the selected cells kept and the rest unchanged."""
        keep = mx.zeros_like(state.denoise_mask)
        keep[:, : state.own_tokens] = self.mask.reshape(1, -1, 1)
        clean = mx.array(state.clean_latent)
        clean[:, : state.own_tokens] = patchify_video(self.latent).astype(clean.dtype)
        return state._replace(
            clean_latent=mx.where(keep > 0, clean, state.clean_latent),
            denoise_mask=mx.where(keep > 0, 1 - self.strength, state.denoise_mask),
        )


@dataclass(frozen=True)
class TemporalRegionMask:
    """Regenerate the tokens between ``start`` and ``end`` in seconds, and keep the others; for either stream."""

    start: float
    end: float

    def __call__(self, state: LatentState) -> LatentState:
        """``state`` with a new denoise mask (1, N, 1)."""
        starts, ends = state.positions[:, 0, :, 0], state.positions[:, 0, :, 1]
        inside = (ends > self.start) & (starts < self.end)
        return state._replace(denoise_mask=inside.astype(mx.float32)[..., None])


@dataclass(frozen=True)
class AppendedTokens:
    """Encoded pictures, clips or sound that a stream attends to: keyframes and references.

    tokens     (B, n, C)
    positions  (1, A, n, 2) of the tokens; sound from before the clip has negative times
    strength   1 keeps the tokens exactly; 0 leaves them free
    """

    tokens: mx.array
    positions: mx.array
    strength: float = 1.0

    def __call__(self, state: LatentState) -> LatentState:
        """``state`` with n more tokens, which start from zeros where they are not kept."""
        start = mx.zeros_like(self.tokens)
        mask = mx.full((1, self.tokens.shape[1], 1), 1 - self.strength)
        return _append(state, LatentState(start, self.tokens, mask, self.positions))


@dataclass(frozen=True)
class GeneratedKeyframes:
    """Pictures that are denoised together with the clip, each a single pixel frame (LTX-2.5 and later).

    positions  (1, 3, n, 2) of their tokens
    tokens     (B, n, C) to mix their noise into; ``None`` = zeros
    """

    positions: mx.array
    tokens: mx.array | None = None

    def __call__(self, state: LatentState) -> LatentState:
        """``state`` with n more tokens, denoised fully and marked as single frames."""
        B, _, C = state.latent.shape
        zeros = mx.zeros((B, self.positions.shape[2], C))
        start = zeros if self.tokens is None else self.tokens
        more = LatentState.fresh(start, self.positions, start.shape[1])
        return _append(state, more._replace(clean_latent=zeros))


@dataclass(frozen=True)
class WithAttention:
    """Makes the tokens that ``condition`` appends and the stream's own attend to each other at ``strength``, 0 to 1.

    strength  one number, or (1, n), one per appended token
    The appended tokens attend fully to each other and not to those of other conditions.
    """

    condition: Condition
    strength: float | mx.array

    def __call__(self, state: LatentState) -> LatentState:
        """``condition(state)`` with an attention mask (1, N + n, N + n)."""
        appended = self.condition(state._replace(attention_mask=None))
        count = appended.latent.shape[1] - state.latent.shape[1]
        return appended._replace(attention_mask=_attention(state, count, self.strength))


def _append(state: LatentState, more: LatentState) -> LatentState:
    """``state`` with the tokens of ``more`` appended, at attention strength 1 if there is an attention mask."""

    def joined(x: mx.array, y: mx.array, axis: int = 1) -> mx.array:
        return mx.concatenate([x, y.astype(x.dtype)], axis=axis)

    def marks(one: LatentState) -> mx.array:
        marks = one.keyframes_mask
        return mx.zeros_like(one.denoise_mask) if marks is None else marks

    marked = any(one.keyframes_mask is not None for one in (state, more))
    attends = state.attention_mask is not None
    return state._replace(
        latent=joined(state.latent, more.latent),
        clean_latent=joined(state.clean_latent, more.clean_latent),
        denoise_mask=joined(state.denoise_mask, more.denoise_mask),
        positions=joined(state.positions, more.positions, axis=2),
        keyframes_mask=joined(marks(state), marks(more)) if marked else None,
        attention_mask=_attention(state, more.latent.shape[1], 1) if attends else None,
        own=state.own_tokens,
    )


def _attention(state: LatentState, count: int, strength: float | mx.array) -> mx.array:
    """The attention mask of ``state`` after appending ``count`` tokens."""
    before, own = state.latent.shape[1], state.own_tokens
    old = state.attention_mask
    if old is None:
        old = mx.ones((1, before, before))
    strengths = mx.broadcast_to(mx.array(strength).reshape(1, -1, 1), (1, count, own))
    across = mx.concatenate([strengths, mx.zeros((1, count, before - own))], axis=2)
    above = mx.concatenate([old, across.swapaxes(1, 2)], axis=2)
    below = mx.concatenate([across, mx.ones((1, count, count))], axis=2)
    return mx.concatenate([above, below], axis=1)
