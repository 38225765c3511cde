"""The transformer and the connectors that prepare its text, as they are trained: velocities, and a loss's gradient.

Knows what the sampler would give the model, and into which pieces its gradient falls; not noise levels, data or steps.
"""

from contextlib import contextmanager
from functools import partial
from typing import Iterator, NamedTuple, Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_video.models.ltx.adaln import Modulation
from mlx_video.models.ltx.ltx import LTXModel
from mlx_video.models.ltx.patchify import (
    audio_positions,
    video_positions,
)
from mlx_video.models.ltx.transformer import (
    Conditioning,
    ModalityInput,
    RopeTables,
    Timesteps,
)
from mlx_video.types import (
    AV,
    Modality,
    TextFeatures,
    VideoPixelShape,
)
from tiny.model import GEOMETRY
from tiny.pieces import Arrays, Chain, Piece

AUDIO_WEIGHT = 0.5  # of its error in the loss
MODULATIONS = ("own", "output", "cross")  # of Conditioning, computed


class Denoiser(nn.Module):
    """What is trained together."""

    def __init__(self, transformer: LTXModel, connectors: nn.Module):
        super().__init__()
        self.transformer, self.connectors = transformer, connectors
        self._ropes, self._compiled = {}, {}

    def context(
        self, features: TextFeatures, modalities: Sequence[Modality]
    ) -> AV[mx.array]:
        """What the sentences say to the transformer, (B, TEXT_TOKENS, D) each."""
        return self.transformer.project_context(self.connectors(*features, modalities))

    def velocity(
        self,
        x: AV[mx.array],
        context: AV[mx.array],
        sigma: mx.array,
        shape: VideoPixelShape,
        pinned: bool,
    ) -> AV[mx.array]:
        """The velocity of tokens at noise levels (B,), from what the sampler would give the model."""
        dtype = self.transformer.dtype
        inputs = x.map(
            lambda x, *others: ModalityInput(x.astype(dtype), *others),
            levels(sigma, shape, pinned),
            context,
            self.rope(shape, x.audio is not None),
        )
        return self.transformer(inputs)

    def compiled_velocity(
        self,
        weights: Arrays,
        x: AV[mx.array],
        context: AV[mx.array],
        sigma: mx.array,
        shape: VideoPixelShape,
        pinned: bool,
    ) -> AV[mx.array]:
        """The same from one compiled function, by these weights of the transformer; has no gradient."""

        def run(weights: Arrays, arrays: Arrays) -> Arrays:
            x, context = _read(arrays, "x"), _read(arrays, "context")
            with _with(weights, self.transformer):
                v = self.velocity(x, context, arrays["sigma"], shape, pinned)
            return _named("v", v)

        self.rope(shape, x.audio is not None)  # outside of it, since this evaluates
        key = shape, pinned, x.audio is not None
        if key not in self._compiled:
            self._compiled[key] = mx.compile(run)
        arrays = _named("x", x) | _named("context", context) | {"sigma": sigma}
        return _read(self._compiled[key](weights, arrays), "v")

    def rope(self, shape: VideoPixelShape, audio: bool) -> AV[RopeTables]:
        """Rotary tables of a clip's tokens; they depend on no weight and are kept."""
        if (shape, audio) not in self._ropes:
            T = GEOMETRY.audio_frames(shape)
            sound = audio_positions(T, GEOMETRY.audio) if audio else None
            video = video_positions(shape, GEOMETRY)
            tables = self.transformer.rope(AV(video, sound))
            mx.eval([[t.tokens, t.cross] for t in tables.values])
            self._ropes[shape, audio] = tables
        return self._ropes[shape, audio]


def levels(sigma: mx.array, shape: VideoPixelShape, pinned: bool) -> AV[Timesteps]:
    """The noise level of every token: ``sigma`` (B,), and 0 for the first latent frame where it is ``pinned``."""
    one = Timesteps(sigma[:, None], None, sigma)
    if not pinned:
        return AV(one, one)
    two = mx.stack([mx.zeros_like(sigma), sigma], axis=1)
    return AV(Timesteps(two, free(shape).astype(mx.uint32), sigma), one)


def free(shape: VideoPixelShape) -> mx.array:
    """(N,) whether a video token lies past the first latent frame."""
    grid = GEOMETRY.latents(shape)
    return mx.arange(grid.tokens) >= grid.tokens_per_frame


# ---- the loss


class Lesson(NamedTuple):
    """Noisy clips, and the velocities that a denoiser should find.

    x, velocity  tokens (B, N, 128) and, unless the clips are mute, (B, T, 128)
    text         the language model's hidden states of the sentences, or the context that was made of them
    sigma        (B,) noise level of both modalities
    pinned       whether the first latent frame is given
    """

    x: AV[mx.array]
    velocity: AV[mx.array]
    text: TextFeatures | AV[mx.array]
    sigma: mx.array
    shape: VideoPixelShape
    pinned: bool = False


def velocity_loss(denoiser: Denoiser, lesson: Lesson) -> mx.array:
    """Mean squared errors over tokens that are not given, weighed and added."""
    x, velocity, text, *given = lesson
    context = text if isinstance(text, AV) else denoiser.context(text, x.present)
    v = denoiser.velocity(x, context, *given)
    return _error(v, velocity, lesson.shape, lesson.pinned)


def _error(
    v: AV[mx.array], target: AV[mx.array], shape: VideoPixelShape, pinned: bool
) -> mx.array:
    errors = v.map(lambda v, target: mx.square(v.astype(mx.float32) - target), target)
    start = GEOMETRY.latents(shape).tokens_per_frame if pinned else 0
    loss = mx.mean(errors.video[:, start:])
    if errors.audio is None:
        return loss
    return loss + AUDIO_WEIGHT * mx.mean(errors.audio)


class Slope:
    """``velocity_loss`` and its gradient, in compiled pieces: the text, the transformer's ends and its blocks."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser
        self.chains: dict[tuple, Chain] = {}

    def __call__(self, weights: dict, lesson: Lesson) -> tuple[mx.array, dict]:
        """The loss and its gradients by ``weights``: all of the denoiser's, without the text's where it is a context."""
        x, velocity, text, sigma, shape, pinned = lesson
        told = isinstance(text, AV)
        dtype = tree_flatten(weights)[0][1].dtype
        state = _named("x", x.map(lambda x: x.astype(dtype)))
        given = _named("target", velocity) | self._tables(sigma, shape, pinned, x)
        given |= _named("context", text) if told else text._asdict()
        if (shape, pinned, told) not in self.chains:
            pieces = self._pieces(weights, shape, pinned, told)
            self.chains[shape, pinned, told] = Chain(pieces)
        return self.chains[shape, pinned, told](weights, state, given)

    def _tables(
        self, sigma: mx.array, shape: VideoPixelShape, pinned: bool, x: AV[mx.array]
    ) -> Arrays:
        """What all blocks read that has no gradient."""
        ropes = self.denoiser.rope(shape, x.audio is not None)
        times = ropes.map(lambda _, times: times, levels(sigma, shape, pinned))
        fields = {"values": times.map(lambda t: t.values)}
        fields["sigma"] = times.map(lambda t: t.sigma)
        fields["index"] = times.map(lambda t: t.index)
        for i, name in enumerate(("cos", "sin")):
            fields[name] = ropes.map(lambda r: r.tokens[i])
            fields[f"cross_{name}"] = ropes.map(lambda r: r.cross and r.cross[i])
        return dict(
            e for f, values in fields.items() for e in _named(f, values).items()
        )

    def _pieces(
        self, weights: dict, shape: VideoPixelShape, pinned: bool, told: bool
    ) -> list[Piece]:
        """The pieces, with the names of their weights; ``told`` says whether the context is given."""
        names = [name for name, _ in tree_flatten(weights)]
        blocks = "transformer.transformer_blocks."
        of_text = (
            "connectors.",
            *(f"transformer.{m.value}.caption_projection." for m in Modality),
        )
        of_end = tuple(
            f"transformer.{m.value}.{part}"
            for m in Modality
            for part in ("proj_out.", "scale_shift_table")
        )
        texts = [n for n in names if n.startswith(of_text)]
        ends = [n for n in names if n.startswith(of_end)]
        others = [n for n in names if not n.startswith((*of_text, *of_end, blocks))]
        pieces = [] if told else [Piece(self._tell, "", texts)]
        pieces.append(Piece(self._enter, "", others))
        for i in range(len(self.denoiser.transformer.transformer_blocks)):
            prefix = f"{blocks}{i}."
            inside = [n.removeprefix(prefix) for n in names if n.startswith(prefix)]
            pieces.append(Piece(self._pass, prefix, inside))
        leave = partial(self._leave, shape=shape, pinned=pinned)
        return [*pieces, Piece(leave, "", ends)]

    # Functions of weights, state and what is given

    def _tell(self, weights: Arrays, state: Arrays, given: Arrays) -> Arrays:
        features = TextFeatures(given["hidden_states"], given["mask"])
        with _with(weights, self.denoiser) as denoiser:
            context = denoiser.context(features, _read(state, "x").present)
        return state | _named("context", context)

    def _enter(self, weights: Arrays, state: Arrays, given: Arrays) -> Arrays:
        x, context = (_read(given | state, field) for field in ("x", "context"))
        inputs = x.map(ModalityInput, _times(given), context, _ropes(given))
        with _with(weights, self.denoiser) as denoiser:
            x, conditioning = denoiser.transformer.embed(inputs)
        state = _named("x", x) | _named("context", context)
        for name in MODULATIONS:
            found = conditioning.map(lambda c: getattr(c, name))
            state |= _named(name, found.map(lambda m: m.rows))
        return state

    def _pass(self, weights: Arrays, state: Arrays, given: Arrays) -> Arrays:
        """Any of the blocks, since they differ by nothing but their weights."""
        any_block, *_ = self.denoiser.transformer.transformer_blocks
        with _with(weights, any_block) as block:
            x = block(_read(state, "x"), _conditioning(state, given))
        return state | _named("x", x)

    def _leave(
        self,
        weights: Arrays,
        state: Arrays,
        given: Arrays,
        *,
        shape: VideoPixelShape,
        pinned: bool,
    ) -> Arrays:
        with _with(weights, self.denoiser) as denoiser:
            c = _conditioning(state, given)
            v = denoiser.transformer.project_out(_read(state, "x"), c)
        return {"loss": _error(v, _read(given, "target"), shape, pinned)}


@contextmanager
def _with(weights: Arrays, module: nn.Module) -> Iterator[nn.Module]:
    """The module with weights that it does not keep: those of a function that is being compiled mean nothing later."""
    own = module.parameters()
    module.update(tree_unflatten(list(weights.items())))
    try:
        yield module
    finally:
        module.update(own)


def _named(field: str, values: AV) -> Arrays:
    return {f"{m.value}.{field}": values[m] for m in values.present}


def _read(arrays: Arrays, field: str) -> AV[mx.array]:
    return AV(*(arrays.get(f"{m.value}.{field}") for m in Modality))


def _times(given: Arrays) -> AV[Timesteps]:
    return _read(given, "values").map(
        Timesteps, _read(given, "index"), _read(given, "sigma")
    )


def _ropes(given: Arrays) -> AV[RopeTables]:
    def tables(cos, sin, cross_cos, cross_sin) -> RopeTables:
        cross = None if cross_cos is None else (cross_cos, cross_sin)
        return RopeTables((cos, sin), cross)

    names = "cos", "sin", "cross_cos", "cross_sin"
    first, *others = (_read(given, name) for name in names)
    return first.map(tables, *others)


def _conditioning(state: Arrays, given: Arrays) -> AV[Conditioning]:
    levels, rows = _read(given, "index"), [_read(state, name) for name in MODULATIONS]
    modulations = [of.map(Modulation, levels) for of in rows]
    ropes, context = _ropes(given), _read(state, "context")
    one = lambda x, *others: Conditioning(*others)
    return _read(state, "x").map(one, context, ropes, AV(True, True), *modulations)
