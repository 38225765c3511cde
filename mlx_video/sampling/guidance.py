"""Guidance: combine several predictions of the clean sample into one. Knows which passes to ask for, not the model."""

from dataclasses import dataclass
from typing import Callable, Collection, Sequence

import mlx.core as mx

from mlx_video.conditioning.latent import LatentState
from mlx_video.types import AV, Perturbation, PromptEmbeddings

Predict = Callable[
    [AV[LatentState], AV[mx.array], float, Sequence[Perturbation]], AV[mx.array]
]

Pass = tuple[AV[mx.array], Perturbation]


@dataclass(frozen=True)
class Guidance:
    """Strengths for one modality; the defaults are no guidance.

    cfg         away from the negative prompt, 1 = off (https://arxiv.org/abs/2207.12598)
    stg         away from a prediction whose ``stg_blocks`` attend to nothing, 0 = off (https://arxiv.org/abs/2411.18664)
    stg_blocks  transformer blocks, counted from 0
    modality    away from a prediction that does not see the other modality, 1 = off
    rescale     how far to pull the result's standard deviation back to the conditional one's, 0 = off, 1 = fully
                (https://arxiv.org/abs/2305.08891, section 3.4)
    """

    cfg: float = 1.0
    stg: float = 0.0
    modality: float = 1.0
    rescale: float = 0.0
    stg_blocks: tuple[int, ...] = (29,)

    def combine(
        self,
        cond: mx.array,
        uncond: mx.array | None = None,
        perturbed: mx.array | None = None,
        isolated: mx.array | None = None,
    ) -> mx.array:
        """The guided x0 of four predictions of x0; a pass that was not run is ``None``."""
        guided = cond
        if uncond is not None:
            guided = guided + cfg_delta(cond, uncond, self.cfg)
        if perturbed is not None:
            guided = guided + stg_delta(cond, perturbed, self.stg)
        if isolated is not None:
            guided = guided + cfg_delta(cond, isolated, self.modality)
        if self.rescale == 0.0:
            return guided
        ratio = mx.std(cond, ddof=1) / mx.std(guided, ddof=1)
        return guided * (self.rescale * ratio + (1 - self.rescale))


def cfg_delta(cond: mx.array, uncond: mx.array, scale: float) -> mx.array:
    """What classifier-free guidance of strength ``scale`` adds to ``cond``; 0 at scale 1."""
    return (cond - uncond) * (scale - 1.0)


def cfg_star_delta(cond: mx.array, uncond: mx.array, scale: float) -> mx.array:
    """``cfg_delta`` with ``uncond`` first scaled onto ``cond`` (CFG-Zero*, https://arxiv.org/abs/2503.18886)."""
    ratio = (cond * uncond).sum() / (mx.square(uncond).sum() + 1e-8)
    return cfg_delta(cond, uncond * ratio, scale)


def stg_delta(cond: mx.array, perturbed: mx.array, scale: float) -> mx.array:
    """What spatiotemporal guidance of strength ``scale`` adds to ``cond``; 0 at scale 0."""
    return (cond - perturbed) * scale


def apg_delta(
    cond: mx.array,
    uncond: mx.array,
    scale: float,
    eta: float = 1.0,
    norm_threshold: float = 0.0,
) -> mx.array:
    """``cfg_delta`` with its part along ``cond`` damped by ``eta`` (APG, https://arxiv.org/abs/2410.02416).

    norm_threshold  largest norm of the difference over each sample's tokens and channels; 0 = unlimited
    """
    axes = (-1, -2)
    delta = cond - uncond
    if norm_threshold > 0:
        norm = mx.sqrt(mx.square(delta).sum(axes, keepdims=True))
        delta = delta * mx.minimum(1.0, norm_threshold / norm)
    ratio = (delta * cond).sum(axes, keepdims=True) / mx.square(cond).sum(
        axes, keepdims=True
    )
    parallel = cond * ratio
    return (delta - parallel + parallel * eta) * (scale - 1.0)


def guided(
    predict: Predict,
    prompt: PromptEmbeddings,
    guidance: AV[Guidance],
    *,
    batched: bool = False,
) -> Callable[[AV[LatentState], float], AV[mx.array]]:
    """Return ``denoise(states, sigma) -> AV[x0]`` over ``predict(states, context, sigma, perturbations)``.

    Every pass that either modality asks for is run for both, as the official code does.
    batched  all passes in one call: faster where memory allows it, equal in result
    Raises ``ValueError`` when a ``cfg`` other than 1 has no negative prompt to go away from.
    """
    passes = passes_of(prompt, guidance)
    together = batched and len(passes) > 1
    run = (_run_together if together else _run_in_turn)(predict, passes.values())

    def denoise(states: AV[LatentState], sigma: float) -> AV[mx.array]:
        predictions = run(states, sigma)
        return guidance.map(
            lambda strength, *x0s: strength.combine(**dict(zip(passes, x0s))),
            *predictions,
        )

    return denoise


def passes_of(prompt: PromptEmbeddings, guidance: AV[Guidance]) -> dict[str, Pass]:
    """Context and perturbation of each pass that is needed, by the name ``Guidance.combine`` gives it."""
    wanted = guidance.values
    passes = {"cond": (prompt.positive, Perturbation())}
    if any(g.cfg != 1.0 for g in wanted):
        if prompt.negative is None:
            raise ValueError(
                f"Guidance with cfg {max(g.cfg for g in wanted)} needs a negative prompt; an empty one will do."
            )
        passes["uncond"] = (prompt.negative, Perturbation())
    if any(g.stg != 0.0 for g in wanted):
        blocks = guidance.map(lambda g: frozenset(g.stg_blocks if g.stg != 0.0 else ()))
        passes["perturbed"] = (prompt.positive, Perturbation(blocks))
    if any(g.modality != 1.0 for g in wanted) and len(wanted) > 1:
        passes["isolated"] = (prompt.positive, Perturbation(isolate=True))
    return passes


def _run_in_turn(predict: Predict, passes: Collection[Pass]):
    """One call of the model for each pass."""

    def run(states: AV[LatentState], sigma: float) -> list[AV[mx.array]]:
        return [
            predict(states, context, sigma, (perturbation,))
            for context, perturbation in passes
        ]

    return run


def _run_together(predict: Predict, passes: Collection[Pass]):
    """One call with the passes stacked along the batch axis, then taken apart; masks and positions are shared."""
    contexts, perturbations = zip(*passes)
    context = contexts[0].map(lambda *each: mx.concatenate(each), *contexts[1:])
    count = len(contexts)

    def run(states: AV[LatentState], sigma: float) -> list[AV[mx.array]]:
        batch = states.values[0].latent.shape[0]
        repeated = states.map(
            lambda state: state._replace(latent=mx.concatenate([state.latent] * count))
        )
        per_item = [p for p in perturbations for _ in range(batch)]
        x0s = predict(repeated, context, sigma, per_item)
        parts = x0s.map(lambda x0: mx.split(x0, count))
        return [parts.map(lambda part: part[i]) for i in range(count)]

    return run
