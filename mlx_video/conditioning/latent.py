"""Latents under denoising, and conditions that change them before the noise. Knows tokens and masks, not models or samplers.

A condition is a function ``state -> state`` of either stream. Conditions apply in order; the tokens they append follow the
stream's own, are denoised or kept with them, and are cut off at the end.
"""

from dataclasses import dataclass
from typing import Callable, Iterable, NamedTuple

import mlx.core as mx


class LatentState(NamedTuple):
    """One modality during sampling, as tokens.

    latent          (B, N, C)     current sample x_t, float32
    clean_latent    (B, N, C)     what tokens with a mask below 1 are pulled towards, float32
    denoise_mask    (1, N, 1)     1 = denoise fully, 0 = keep clean, float32; one for the whole batch
    positions       (1, A, N, 2)  [start, end) of each token on each of A axes, float32;
                                  seconds on the time axis, pixels on the others
    keyframes_mask  (1, N, 1)     1 = the token encodes a single pixel frame, as in a clip's first latent frame and in
                                  generated keyframes; ``None`` = no such token
    own             how many tokens, the first ones, are the stream's own; ``None`` = all
    enabled         ``False`` = the network does not change the stream, though the other still attends to it
    """

    latent: mx.array
    clean_latent: mx.array
    denoise_mask: mx.array
    positions: mx.array
    keyframes_mask: mx.array | None = None
    own: int | None = None
    enabled: bool = True

    @classmethod
    def fresh(
        cls, latent: mx.array, positions: mx.array, single_frames: int = 0
    ) -> "LatentState":
        """A state with nothing pinned; noise will be mixed into ``latent`` (B, N, C).

        single_frames  how many tokens, the first ones, encode a single pixel frame
        """
        mask = mx.ones((1, latent.shape[1], 1))
        marks = mx.arange(latent.shape[1])[None, :, None] < single_frames
        keyframes = marks.astype(mx.float32) if single_frames else None
        return cls(latent, latent, mask, positions, keyframes)

    def noised(self, sigma: float, noise: mx.array) -> "LatentState":
        """Mix Gaussian ``noise`` (B, N, C) in to level ``sigma``, as far as the mask allows."""
        mixed = (1 - sigma) * self.latent + sigma * noise
        return self._replace(latent=self.masked(mixed))

    def masked(self, x: mx.array) -> mx.array:
        """``x`` (B, N, C) where the mask is 1, the clean latent where it is 0, a mix in between; in the dtype of ``x``."""
        mask = self.denoise_mask
        return (x * mask + self.clean_latent * (1 - mask)).astype(x.dtype)

    @property
    def own_tokens(self) -> int:
        """How many tokens the stream itself has, without those that conditions appended."""
        return self.latent.shape[1] if self.own is None else self.own

    def generated_keyframes(self) -> mx.array:
        """The tokens of generated keyframes, (B, n, C), n = 0 where the state has none."""
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


def latent_tokens(latent: mx.array) -> mx.array:
    """Tokens of a latent clip: (B, C, F, H, W) -> (B, F*H*W, C), columns fastest."""
    B, C = latent.shape[:2]
    return latent.reshape(B, C, -1).swapaxes(1, 2)


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
        *_, F, H, W = self.latent.shape
        start, stop = self.frame_idx * H * W, (self.frame_idx + F) * H * W
        if stop > state.own_tokens:
            raise ValueError(
                f"The condition covers tokens {start} to {stop}, but the clip has {state.own_tokens}."
            )
        clean, mask = mx.array(state.clean_latent), mx.array(state.denoise_mask)
        clean[:, start:stop] = latent_tokens(self.latent).astype(clean.dtype)
        mask[:, start:stop] = 1 - self.strength
        return state._replace(clean_latent=clean, denoise_mask=mask)


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
        start = mx.zeros_like(self.tokens)
        return _append(state, start, self.tokens, 1 - self.strength, self.positions)


@dataclass(frozen=True)
class GeneratedKeyframes:
    """Pictures that are denoised together with the clip, each a single pixel frame (LTX-2.5 and later).

    positions  (1, 3, n, 2) of their tokens
    tokens     (B, n, C) to mix their noise into; ``None`` = zeros
    """

    positions: mx.array
    tokens: mx.array | None = None

    def __call__(self, state: LatentState) -> LatentState:
        B, _, C = state.latent.shape
        zeros = mx.zeros((B, self.positions.shape[2], C))
        start = zeros if self.tokens is None else self.tokens
        return _append(state, start, zeros, 1.0, self.positions, mark=1.0)


def _append(
    state: LatentState,
    latent: mx.array,
    clean: mx.array,
    mask: float,
    positions: mx.array,
    mark: float = 0.0,
) -> LatentState:
    """``state`` with tokens (B, n, C) appended."""

    def joined(x: mx.array, y: mx.array, axis: int = 1) -> mx.array:
        return mx.concatenate([x, y.astype(x.dtype)], axis=axis)

    count = latent.shape[1]
    keyframes = state.keyframes_mask
    if keyframes is None and mark:
        keyframes = mx.zeros_like(state.denoise_mask)
    return state._replace(
        latent=joined(state.latent, latent),
        clean_latent=joined(state.clean_latent, clean),
        denoise_mask=joined(state.denoise_mask, mx.full((1, count, 1), mask)),
        positions=joined(state.positions, positions, axis=2),
        keyframes_mask=None if keyframes is None else joined(keyframes, mx.full((1, count, 1), mark)),  # fmt: skip
        own=state.own_tokens,
    )
