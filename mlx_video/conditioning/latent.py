"""Latents under denoising, and conditions that pin parts of them. Knows tokens and masks, not models or samplers."""

from dataclasses import dataclass
from typing import Iterable, NamedTuple, Protocol

import mlx.core as mx


class LatentState(NamedTuple):
    """One modality during sampling, as tokens.

    latent        (B, N, C)     current sample x_t, float32
    clean_latent  (B, N, C)     what pinned tokens must stay equal to, float32
    denoise_mask  (1, N, 1)     1 = denoise fully, 0 = keep clean, float32; one for the whole batch
    positions     (1, A, N, 2)  [start, end) of each token on each of A axes, float32;
                                seconds on the time axis, pixels on the others
    """

    latent: mx.array
    clean_latent: mx.array
    denoise_mask: mx.array
    positions: mx.array

    @classmethod
    def fresh(cls, latent: mx.array, positions: mx.array) -> "LatentState":
        """A state with nothing pinned: ``latent`` (B, N, C) is what the noise will be mixed into."""
        latent = latent.astype(mx.float32)
        mask = mx.ones((1, latent.shape[1], 1))
        return cls(latent, latent, mask, positions)

    @classmethod
    def pinned(cls, latent: mx.array, positions: mx.array) -> "LatentState":
        """A state that stays as it is, such as given sound that a video is made to."""
        state = cls.fresh(latent, positions)
        return state._replace(denoise_mask=mx.zeros_like(state.denoise_mask))

    def noised(self, sigma: float, noise: mx.array) -> "LatentState":
        """Mix Gaussian ``noise`` (B, N, C) in to level ``sigma``, as far as the mask allows."""
        mixed = (1 - sigma) * self.latent + sigma * noise
        return self._replace(latent=apply_denoise_mask(mixed, *self[1:3]))


def apply_denoise_mask(
    x: mx.array, clean_latent: mx.array, denoise_mask: mx.array
) -> mx.array:
    """``x`` where the mask is 1, ``clean_latent`` where it is 0, their mixture between; in the dtype of ``x``."""
    return (x * denoise_mask + clean_latent * (1 - denoise_mask)).astype(x.dtype)


class Condition(Protocol):
    """What pins a part of a state to something given."""

    def apply(self, state: LatentState, tokens_per_frame: int) -> LatentState: ...


@dataclass(frozen=True)
class VideoConditionByLatentIndex:
    """Pin latent frames from ``frame_idx`` on to an encoded image or clip.

    tokens     (B, n, C), a whole number of latent frames
    frame_idx  latent frame
    strength   1 keeps the tokens exactly; 0 leaves them free
    """

    tokens: mx.array
    frame_idx: int = 0
    strength: float = 1.0

    def apply(self, state: LatentState, tokens_per_frame: int) -> LatentState:
        start = self.frame_idx * tokens_per_frame
        stop = start + self.tokens.shape[1]
        if stop > state.latent.shape[1]:
            raise ValueError(
                f"The condition covers tokens {start} to {stop}, but the clip has {state.latent.shape[1]}."
            )
        return state._replace(
            clean_latent=_overwrite(state.clean_latent, start, self.tokens),
            denoise_mask=_overwrite(
                state.denoise_mask,
                start,
                mx.full((1, self.tokens.shape[1], 1), 1 - self.strength),
            ),
        )


@dataclass(frozen=True)
class VideoConditionByKeyframe:
    """Give the transformer an encoded image as extra tokens that stand at a moment of the clip.

    tokens     (B, n, C), appended behind the clip's own
    positions  (B, 3, n, 2), where they stand
    strength   1 keeps the tokens exactly; 0 leaves them free
    """

    tokens: mx.array
    positions: mx.array
    strength: float = 1.0

    def apply(self, state: LatentState, tokens_per_frame: int) -> LatentState:
        tokens = self.tokens.astype(state.latent.dtype)
        mask = mx.full((1, tokens.shape[1], 1), 1 - self.strength)
        return LatentState(
            mx.concatenate([state.latent, mx.zeros_like(tokens)], axis=1),
            mx.concatenate([state.clean_latent, tokens], axis=1),
            mx.concatenate([state.denoise_mask, mask], axis=1),
            mx.concatenate([state.positions, self.positions], axis=2),
        )


def apply_conditioning(
    state: LatentState, conditions: Iterable[Condition], tokens_per_frame: int
) -> LatentState:
    """``state`` with every condition applied, in order."""
    for condition in conditions:
        state = condition.apply(state, tokens_per_frame)
    return state


def _overwrite(x: mx.array, start: int, value: mx.array) -> mx.array:
    """``x`` with rows from ``start`` on replaced by ``value``."""
    copy = mx.array(x)
    copy[:, start : start + value.shape[1]] = value.astype(x.dtype)
    return copy
