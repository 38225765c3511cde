"""LTX-2's diffusion transformer: noisy tokens of video and sound in, the velocity of each out.

Knows the network and its checkpoint's names; not schedules, guidance or latents' geometry.
"""

from dataclasses import replace
from functools import partial
from typing import Callable, ClassVar, Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_video.conditioning.latent import LatentState
from mlx_video.models.ltx.adaln import AdaLNSingle, Modulation, modulate
from mlx_video.models.ltx.attention import gelu
from mlx_video.models.ltx.config import LTXModelConfig, LTXModelType, named
from mlx_video.models.ltx.network import Network
from mlx_video.models.ltx.offload import BlockStream
from mlx_video.models.ltx.pacing import piece_by_piece
from mlx_video.models.ltx.rope import Rope, precompute_freqs_cis
from mlx_video.models.ltx.source import Source
from mlx_video.models.ltx.transformer import (
    MODALITIES,
    Conditioning,
    ModalityInput,
    RopeTables,
    Timesteps,
    TransformerBlock,
)
from mlx_video.types import AV, Modality, Perturbation
from mlx_video.weights import Weights, strip_prefixes


class LTXModel(Network):
    """The transformer, with the streams that ``config.model_type`` names."""

    CONFIG: ClassVar = LTXModelConfig
    LARGE: ClassVar = True
    BLOCKS: ClassVar = "transformer_blocks."
    LORAS: ClassVar = True
    STREAMED: ClassVar = True
    OFFICIAL: ClassVar[dict[str, str]] = {"model.diffusion_model.": ""}
    CONNECTORS: ClassVar[tuple[str, ...]] = (
        "video_embeddings_connector.",
        "audio_embeddings_connector.",
    )
    RENAMED: ClassVar[dict[str, str]] = {
        ".emb.timestep_embedder": "",
        ".to_out.0": ".to_out",
        ".net.0.proj": ".proj_in",
        ".net.2": ".proj_out",
    }

    def __init__(self, config: LTXModelConfig):
        super().__init__()
        self.config = config
        modalities = config.model_type.modalities
        for modality in modalities:
            self._build_stream(modality)
            if len(modalities) > 1:
                self._build_exchange(modality)
        self.transformer_blocks = [
            TransformerBlock(config) for _ in range(config.num_layers)
        ]

    def _build_stream(self, modality: Modality):
        width = self.config.width(modality)
        inputs = self.config.of(modality, "in_channels")
        outputs = self.config.of(modality, "out_channels")
        captions = self.config.caption_channels
        parts = {
            "patchify_proj": nn.Linear(inputs, width),
            "adaln_single": AdaLNSingle(width, rows=6),
            "caption_projection": CaptionProjection(captions, width),
            "scale_shift_table": mx.zeros((2, width)),
            "proj_out": nn.Linear(width, outputs),
        }
        for name, part in parts.items():
            self[named(modality, name)] = part

    def _build_exchange(self, modality: Modality):
        width = self.config.width(modality)
        self[_exchange_adaln(modality)] = AdaLNSingle(width, rows=4)
        self[_gate_adaln(modality)] = AdaLNSingle(width, rows=1)

    @property
    def dtype(self) -> mx.Dtype:
        """The dtype to compute in: that of the first layer, which is never quantized."""
        first, *_ = self.config.model_type.modalities
        return self[named(first, "patchify_proj")].weight.dtype

    # Names

    @classmethod
    def rename(cls, key: str) -> str:
        """Our name of an official tensor or module, given without its prefix."""
        for official, ours in cls.RENAMED.items():
            key = key.replace(official, ours)
        return key

    @classmethod
    def sanitize(cls, weights: Weights) -> Weights:
        """The transformer's tensors of an official checkpoint under our names; ours are returned unchanged."""
        official = strip_prefixes(weights, cls.OFFICIAL)
        if official is None:
            return weights
        return {
            cls.rename(key): value
            for key, value in official.items()
            if not key.startswith(cls.CONNECTORS)
        }

    @classmethod
    def official_name(cls, key: str) -> str:
        """The name in an official file of one of ours."""
        key = key.replace("adaln_single.linear_", "adaln_single.emb.timestep_embedder.linear_")  # fmt: skip
        for official, ours in list(cls.RENAMED.items())[1:]:
            key = key.replace(f"{ours}.", f"{official}.")
        return f"model.diffusion_model.{key}"

    @classmethod
    def configure(
        cls, source: Source, weights: Weights, model_type: LTXModelType
    ) -> LTXModelConfig:
        config = super().configure(source, weights, model_type)
        return replace(config, model_type=model_type)

    def stream(self, again: Callable[[], "LTXModel"]) -> None:
        self.transformer_blocks = BlockStream(lambda: again().transformer_blocks)

    def select(self, weights: Weights) -> Weights:
        """Those of sanitized ``weights`` that belong to the streams this model has.

        Every other tensor is dropped by its name: a video-only model never reads the sound's.
        """
        wanted = set(self.config.model_type.modalities)
        return {k: v for k, v in weights.items() if streams_of(k) <= wanted}

    # What stays the same over many steps

    def rope(self, positions: AV[mx.array]) -> AV[RopeTables]:
        """Rotary tables of tokens at ``positions``, (B, axes, N, 2) in seconds and pixels; once per stage."""
        both = len(positions.present) > 1

        def tables(bounds: mx.array, modality: Modality) -> RopeTables:
            cross = self._cross_rope(bounds) if both else None
            return RopeTables(self._token_rope(modality, bounds), cross)

        return positions.map(tables, MODALITIES)

    def _token_rope(self, modality: Modality, bounds: mx.array) -> Rope:
        extent = self.config.of(modality, "positional_embedding_max_pos")
        return self._freqs_cis(modality, bounds, extent)

    def _cross_rope(self, bounds: mx.array) -> Rope:
        """Across the modalities only time has a meaning, and both share one scale of it."""
        config = self.config
        extent = max(
            config.positional_embedding_max_pos[0],
            config.audio_positional_embedding_max_pos[0],
        )
        return self._freqs_cis(Modality.AUDIO, bounds[:, :1], (extent,))

    def _freqs_cis(
        self, heads_of: Modality, bounds: mx.array, extent: tuple[float, ...]
    ) -> Rope:
        config = self.config
        return precompute_freqs_cis(
            bounds,
            config.width(heads_of),
            config.positional_embedding_theta,
            extent,
            config.use_middle_indices_grid,
            config.heads(heads_of)[0],
            config.rope_type,
            config.double_precision_rope,
        )

    def project_context(self, embeddings: AV[mx.array]) -> AV[mx.array]:
        """Text embeddings (B, L, caption_channels) -> the width of each stream, (B, L, D); once per prompt."""
        return embeddings.map(
            lambda x, modality: self[named(modality, "caption_projection")](x),
            MODALITIES,
        )

    # The network

    def __call__(
        self,
        inputs: AV[ModalityInput],
        perturbations: Sequence[Perturbation] = (),
    ) -> AV[mx.array]:
        """The velocity of each modality, (B, N, C), in the dtype of its latent.

        perturbations  one per batch item, or one for all of them; what all leave out is not computed
        """
        self._check(inputs, perturbations)
        x, conditioning = self.enter(inputs)
        for index, block in enumerate(self.transformer_blocks):
            x = block(x, conditioning, *_perturbed(index, perturbations))
        return self.leave(x, conditioning)

    def enter(self, inputs: AV[ModalityInput]) -> tuple[AV[mx.array], AV[Conditioning]]:
        """What the first block gets: tokens (B, N, D) of each stream, and what every block reads besides."""
        other = AV(inputs.audio, inputs.video)
        conditioning = inputs.map(self._conditioning, MODALITIES, other)
        return inputs.map(self._patchify, MODALITIES), conditioning

    def leave(self, x: AV[mx.array], conditioning: AV[Conditioning]) -> AV[mx.array]:
        """The velocities (B, N, C) that the last block's tokens stand for."""
        return x.map(self._velocity, MODALITIES, conditioning)

    def _patchify(self, stream: ModalityInput, modality: Modality) -> mx.array:
        return self[named(modality, "patchify_proj")](stream.latent)

    def _conditioning(
        self, stream: ModalityInput, modality: Modality, other: ModalityInput | None
    ) -> Conditioning:
        dtype = stream.latent.dtype
        levels = stream.timesteps.values * self.config.timestep_scale_multiplier
        rows, embedded = self[named(modality, "adaln_single")](levels, dtype)
        c = Conditioning(
            stream.timesteps,
            stream.context,
            stream.rope,
            stream.enabled,
            rows,
            embedded,
        )
        if other is None:
            return c
        cross_rows, _ = self[_exchange_adaln(modality)](levels, dtype)
        # The gate hears the other modality's noise, on a scale of its own.
        sigma = other.timesteps.sigma * self.config.av_ca_timestep_scale_multiplier
        gate, _ = self[_gate_adaln(modality)](sigma[:, None], dtype)
        return c._replace(cross_rows=cross_rows, cross_gate=gate)

    def _velocity(self, x: mx.array, modality: Modality, c: Conditioning) -> mx.array:
        table = self[named(modality, "scale_shift_table")]
        rows = c.embedded[:, :, None]
        at = Modulation.of(table, rows, c.timesteps.index, x.dtype)
        normed = mx.fast.layer_norm(x, None, None, self.config.norm_eps)
        shifted = modulate(normed, at.row(0), at.row(1))
        return self[named(modality, "proj_out")](shifted)

    def _check(self, inputs: AV[ModalityInput], perturbations: Sequence[Perturbation]):
        """Raise ``ValueError`` where the inputs do not fit the model or each other."""
        has = self.config.model_type.modalities
        if absent := [m.value for m in inputs.present if m not in has]:
            raise ValueError(
                f"This {self.config.model_type.value} model has no {absent[0]} stream; "
                f"give it {' and '.join(m.value for m in has)} only."
            )
        sizes = {
            f"{m.value} {name}": getattr(inputs[m], name).shape[0]
            for m in inputs.present
            for name in ("latent", "context")
        }
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"Latents and contexts must share one batch size; got {sizes}."
            )
        batch = next(iter(sizes.values()), 0)
        if len(perturbations) not in (0, 1, batch):
            raise ValueError(
                f"Give one perturbation, or one for each of the {batch} batch items; got {len(perturbations)}."
            )


class CaptionProjection(nn.Module):
    """Text embeddings to the width of a stream."""

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(dim, width)
        self.linear_2 = nn.Linear(width, width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(gelu(self.linear_1(x)))


class X0Model:
    """What a sampler sees: the clean sample that ``model`` predicts from a pair of latent states.

    While the same arrays come in, what does not change from step to step is computed once: projected prompts, rotary
    tables and the levels of denoise masks.
    """

    def __init__(self, model: LTXModel):
        self.model = model
        # Not a method of its own: the circle would keep model and tables until Python looks for such.
        project = partial(_project, model)
        self._contexts = _Memo(project, size=4)  # one per pass of a guided step
        self._ropes = _Memo(model.rope, size=1)
        self._levels = _Memo(_levels, size=1)

    def __call__(
        self,
        states: AV[LatentState],
        context: AV[mx.array],
        sigma: float,
        perturbations: Sequence[Perturbation] = (),
    ) -> AV[mx.array]:
        """x0 of each modality, (B, N, C) float32, at noise level ``sigma`` in [0, 1].

        context        the text connectors' output, (B, L, caption_channels)
        perturbations  one per batch item, or one for all of them
        Latents and contexts must share one batch size; that of masks and positions may also be 1.
        """
        inputs = self._inputs(states, context, sigma)
        with piece_by_piece():
            velocity = self.model(inputs, perturbations)
        return states.map(
            lambda state, v: to_x0(state.latent, v, state.denoise_mask * sigma),
            velocity,
        )

    def _inputs(
        self, states: AV[LatentState], context: AV[mx.array], sigma: float
    ) -> AV[ModalityInput]:
        if absent := [m.value for m in states.present if context[m] is None]:
            raise ValueError(
                f"There is a latent but no text context for {absent[0]}; give one for each modality."
            )

        def one(
            state: LatentState, context: mx.array, rope: RopeTables, levels: Timesteps
        ) -> ModalityInput:
            latent = state.latent.astype(self.model.dtype)
            levels = levels.scaled(0.0 if state.frozen else sigma)
            return ModalityInput(latent, levels, context, rope, state.enabled)

        return states.map(
            one,
            self._contexts(states.map(lambda _, c: c, context)),
            self._ropes(states.map(lambda state: state.positions)),
            self._levels(states.map(lambda state: state.denoise_mask)),
        )


def to_x0(latent: mx.array, velocity: mx.array, timesteps: mx.array) -> mx.array:
    """Where the flow through ``latent`` began: latent - velocity * timestep, float32 as the timesteps (B, N, 1) are."""
    return latent - velocity * timesteps


def _project(model: LTXModel, context: AV[mx.array]) -> AV[mx.array]:
    return model.project_context(context.map(lambda x: x.astype(model.dtype)))


def _levels(masks: AV[mx.array]) -> AV[Timesteps]:
    return masks.map(lambda mask: Timesteps.from_mask(1.0, mask))


class _Memo:
    """The last ``size`` results of a function of arrays, which it knows again by identity.

    Holding the arguments keeps their identities from being reused.
    """

    def __init__(self, function: Callable[[AV], AV], size: int):
        self.function, self.size = function, size
        self.entries: list[tuple[AV, AV]] = []

    def __call__(self, arrays: AV) -> AV:
        for known, result in self.entries:
            if all(known[m] is arrays[m] for m in Modality):
                return result
        result = self.function(arrays)
        self.entries = [*self.entries, (arrays, result)][-self.size :]
        return result


def streams_of(key: str) -> set[Modality]:
    """The streams that one of our tensors needs: both, where it carries one to the other."""
    name = key.split(".")[2 if key.startswith("transformer_blocks.") else 0]
    if "_to_" in name or "_ca_" in name:
        return set(Modality)
    return {Modality.AUDIO if name.startswith("audio_") else Modality.VIDEO}


def _perturbed(
    block: int, perturbations: Sequence[Perturbation]
) -> tuple[AV[mx.array | bool], mx.array | bool]:
    """Whether ``block`` attends within each stream, and between them."""

    def attends(modality: Modality) -> mx.array | bool:
        skipped = [p.skip_self_attention[modality] or () for p in perturbations]
        return _agreed([block not in blocks for blocks in skipped])

    crossing = [not p.isolate for p in perturbations]
    return MODALITIES.map(attends), _agreed(crossing)


def _agreed(answers: list[bool]) -> mx.array | bool:
    """The one answer of all batch items, yes where none has one; or each one's, (B, 1, 1), where they differ."""
    return all(answers) if len(set(answers)) < 2 else mx.array(answers)[:, None, None]


def _exchange_adaln(modality: Modality) -> str:
    return f"av_ca_{modality.value}_scale_shift_adaln_single"


def _gate_adaln(modality: Modality) -> str:
    direction = "a2v" if modality is Modality.VIDEO else "v2a"
    return f"av_ca_{direction}_gate_adaln_single"
