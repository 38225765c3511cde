"""Guidance: combines several predictions of the clean sample into one. Knows which passes it needs, not the model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_video.conditioning.latent import LatentState
from mlx_video.sampling.samplers import Denoise
from mlx_video.types import AV, Perturbation, PromptEmbeddings

Predict = Callable[
    [AV[LatentState], AV[mx.array], float, Sequence[Perturbation]], AV[mx.array]
]

Pass = tuple[AV[mx.array], Perturbation]  # the context, and what to skip
Run = Callable[[AV[LatentState], float], list[AV[mx.array]]]  # of its passes


@dataclass(frozen=True)
class Guidance:
    """Strengths for one modality; the defaults turn guidance off.

    cfg         away from the negative prompt, 1 = off (https://arxiv.org/abs/2207.12598)
    stg         away from a prediction without self-attention in ``stg_blocks``, 0 = off (https://arxiv.org/abs/2411.18664)
    stg_blocks  transformer blocks, counted from 0
    modality    away from a prediction that does not see the other modality, 1 = off
    rescale     how far to pull the result's standard deviation back to the conditional one's, 0 = off, 1 = fully
                (https://arxiv.org/abs/2305.08891, section 3.4)
    skip_step   how many steps reuse the modality's last x0 after each step that computes it; 0 = none
    """

    cfg: float = 1.0
    stg: float = 0.0
    modality: float = 1.0
    rescale: float = 0.0
    stg_blocks: tuple[int, ...] = (29,)
    skip_step: int = 0

    def computes(self, step: int) -> bool:
        """Whether ``step``, counted from 0, computes the modality."""
        return step % (self.skip_step + 1) == 0

    def combine(self, x0s: Mapping[str, mx.array]) -> mx.array:
        """The guided x0 (B, N, C) from those of the passes, by their names in ``passes_of``."""
        cond = guided = x0s["cond"]
        if "uncond" in x0s:
            guided = guided + cfg_delta(cond, x0s["uncond"], self.cfg)
        if "perturbed" in x0s:
            guided = guided + (cond - x0s["perturbed"]) * self.stg
        if "isolated" in x0s:
            guided = guided + cfg_delta(cond, x0s["isolated"], self.modality)
        if self.rescale == 0.0:
            return guided
        ratio = mx.std(cond, ddof=1) / mx.std(guided, ddof=1)
        return guided * (self.rescale * ratio + (1 - self.rescale))


def cfg_delta(cond: mx.array, uncond: mx.array, scale: float) -> mx.array:
    """What classifier-free guidance of strength ``scale`` adds to ``cond``, of any shape; 0 at scale 1."""
    return (cond - uncond) * (scale - 1.0)


def guided(
    predict: Predict,
    prompt: PromptEmbeddings,
    guidance: AV[Guidance],
    *,
    batched: bool = False,
) -> Denoise:
    """Return ``denoise(states, sigma, step=0) -> AV[x0]`` over ``predict(states, context, sigma, perturbations)``.

    A pass that either modality needs runs for both, as in the official code.

    batched  run all passes in one call: faster if memory allows, with slightly different rounding
    Raises ``ValueError`` if ``cfg`` is not 1 and there is no negative prompt.
    """
    passes, last = passes_of(prompt, guidance), AV()
    calls = [passes.values()] if batched else [[each] for each in passes.values()]
    runs = [_run(predict, each) for each in calls]

    def denoise(states: AV[LatentState], sigma: float, step: int = 0) -> AV[mx.array]:
        nonlocal last
        computes = guidance.map(lambda strength: strength.computes(step))
        if any(computes.values):
            states = states.map(
                lambda state, yes: state._replace(enabled=state.enabled and yes),
                computes,
            )
            x0s = guidance.map(
                lambda strength, *x0s: strength.combine(dict(zip(passes, x0s))),
                *(x0 for run in runs for x0 in run(states, sigma)),
            )
            last = x0s.map(lambda x0, yes, old: x0 if yes else old, computes, last)
        if last.present != states.present:
            raise ValueError(
                f"Step {step} reuses a prediction that was not made; start where may_start() is true."
            )
        return last

    return denoise


def may_start(guidance: AV[Guidance], step: int) -> bool:
    """Whether a run can resume at ``step`` from its latents alone, because that step reuses no x0."""
    return all(strength.computes(step) for strength in guidance.values)


def passes_of(prompt: PromptEmbeddings, guidance: AV[Guidance]) -> dict[str, Pass]:
    """The passes of the model that ``guidance`` needs, by name.

    cond       the prompt
    uncond     the negative prompt, or the prompt for a modality without one
    perturbed  the prompt, without self-attention in some blocks
    isolated   the prompt, with no modality seeing the other
    """
    wanted, positive = guidance.values, prompt.positive
    passes = {"cond": (positive, Perturbation())}
    if any(g.cfg != 1.0 for g in wanted):
        if prompt.negative is None:
            raise ValueError(
                f"Guidance with cfg {max(g.cfg for g in wanted)} needs a negative prompt; it may be empty."
            )
        negative = positive.map(lambda x, y: x if y is None else y, prompt.negative)
        passes["uncond"] = negative, Perturbation()
    if any(g.stg != 0.0 for g in wanted):
        blocks = guidance.map(lambda g: frozenset(g.stg_blocks if g.stg != 0.0 else ()))
        passes["perturbed"] = positive, Perturbation(blocks)
    if any(g.modality != 1.0 for g in wanted) and len(wanted) > 1:
        passes["isolated"] = positive, Perturbation(isolate=True)
    return passes


def _run(predict: Predict, passes: Iterable[Pass]) -> Run:
    """One call with the ``passes`` stacked along the batch axis; they share masks and positions."""
    (first, *others), perturbations = zip(*passes)
    context = first.map(lambda *each: mx.concatenate(each), *others)
    count = len(perturbations)

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
