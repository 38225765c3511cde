"""LTX-2's diffusion transformer: noisy tokens of video and sound in, the velocity of each out. Knows no schedules."""

from functools import partial
from typing import Callable, ClassVar, Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx.adaln import AdaLNSingle, Modulation, Rows, modulate
from mlx_video.models.ltx.attention import ALL, Items, gelu
from mlx_video.models.ltx.checkpoint import foreign_names
from mlx_video.models.ltx.config import LTXModelConfig, LTXRopeType, StreamConfig
from mlx_video.models.ltx.loading import memory_table
from mlx_video.models.ltx.loading.parts import Network
from mlx_video.models.ltx.loading.residency import BlockStream
from mlx_video.models.ltx.pacing import end_piece
from mlx_video.models.ltx.rope import Rope, precompute_freqs_cis
from mlx_video.models.ltx.transformer import (
    CROSS_GATE,
    Conditioning,
    ModalityInput,
    RopeTables,
    TransformerBlock,
    table_rows,
)
from mlx_video.tensor_names import TensorNames
from mlx_video.types import AV, Modality, Perturbation
from mlx_video.weights import Weights

OUTPUT = Rows(shift=0, scale=1)


class LTXModel(Network):
    """The transformer, with the streams that ``config.model_type`` names."""

    CONFIG: ClassVar = LTXModelConfig
    BLOCKS: ClassVar = "transformer_blocks."
    LORAS: ClassVar = (
        foreign_names.DIFFUSERS_TRANSFORMER,
        foreign_names.MLX_TRANSFORMER,
    )
    STREAMED: ClassVar = True
    NAMES: ClassVar = TensorNames(
        foreign_names.DIT_ALONE,
        {
            "*adaln_single.emb.timestep_embedder.linear_*": "*adaln_single.linear_*",
            "*.to_out.0.*": "*.to_out.*",
            "*.net.0.proj.*": "*.proj_in.*",
            "*.net.2.*": "*.proj_out.*",
        },
        {  # An attention between the streams belongs to the one that asks.
            "av_ca_video_scale_shift_adaln_single.*": "video.cross_adaln_single.*",
            "av_ca_audio_scale_shift_adaln_single.*": "audio.cross_adaln_single.*",
            "av_ca_a2v_gate_adaln_single.*": "video.gate_adaln_single.*",
            "av_ca_v2a_gate_adaln_single.*": "audio.gate_adaln_single.*",
            "*.audio_to_video_attn.*": "*.video.cross_attn.*",
            "*.video_to_audio_attn.*": "*.audio.cross_attn.*",
            "*.scale_shift_table_a2v_ca_video": "*.video.cross_scale_shift_table",
            "*.scale_shift_table_a2v_ca_audio": "*.audio.cross_scale_shift_table",
            "transformer_blocks.*.audio_*": "transformer_blocks.*.audio.*",
            "transformer_blocks.*.*": "transformer_blocks.*.video.*",
            "audio_*": "audio.*",
            "*": "video.*",
        },
    )

    def __init__(self, config: LTXModelConfig):
        super().__init__()
        self.config = config
        streams = config.streams
        built = streams.map(partial(Stream, config), streams.swapped)
        self.video, self.audio = built.video, built.audio
        blocks = range(config.num_layers)
        self.transformer_blocks = [TransformerBlock(config) for _ in blocks]

    @property
    def streams(self) -> AV["Stream"]:
        """``video`` and ``audio``; ``None`` for one that the model lacks."""
        return AV(self.video, self.audio)

    @property
    def dtype(self) -> mx.Dtype:
        """The dtype to compute in: that of the first layer, which is never quantized."""
        return self.streams.values[0].patchify_proj.weight.dtype

    @classmethod
    def sanitize(cls, weights: Weights) -> Weights:
        """As in ``Network``. Blocks have official names in folders written before the streams were modules."""
        if (ours := cls.NAMES.take(weights)) is not None:
            return ours
        if any(key.startswith(("video.", "audio.")) for key in weights):
            return weights
        return {
            cls.NAMES.ours(foreign_names.DIT + key): v for key, v in weights.items()
        }

    def stream(self, again: Callable[[], "LTXModel"]) -> None:
        """Keep no blocks: every pass takes them from the same model, built ``again``."""
        self.transformer_blocks = BlockStream(lambda: again().transformer_blocks)

    def select(self, weights: Weights) -> Weights:
        """The sanitized ``weights`` without those of a stream, or of its exchange with another, that this model lacks."""
        return {k: v for k, v in weights.items() if not _lacks(self, k)}

    # Memory besides the weights

    def held_bytes(self, tokens: AV[int], passes: int, context: int) -> float:
        """Bytes held between the steps of a stage: float32 rotary tables and the contexts of its passes."""
        streams = self.config.streams
        angles = 1 + (self.config.rope_type is LTXRopeType.INTERLEAVED)
        cross = streams.audio.width if len(tokens.present) > 1 else 0

        def held(count: int, own: StreamConfig) -> int:
            tables = count * (own.width + cross) * angles * memory_table.FLOAT32
            return tables + (passes + 4) * context * own.width * self.dtype.size

        return sum(tokens.map(held, streams).values)

    def activation_bytes(self, tokens: AV[int], passes: int, context: int) -> float:
        """Bytes of a forward of ``passes`` batch items with ``tokens`` in each stream and ``context`` in the prompt."""
        live, streams = memory_table.live(), self.config.streams
        moving = sum(tokens.map(lambda n, own: n * own.width, streams).values)
        scores = tokens.map(lambda n, own: own.heads * n * max(n, context), streams)
        elements = live.tokens * moving + live.scores * max(scores.values)
        result = moving * self.dtype.size
        waiting = min(live.queued, memory_table.QUEUED // result) * result
        return passes * elements * self.dtype.size + waiting

    def operations(self, tokens: AV[int], context: int) -> float:
        """Floating-point operations of one pass, in matrix products of the video stream."""
        N, D = tokens.video, self.config.streams.video.width
        cross = self.config.streams.audio.width if len(tokens.present) > 1 else 0
        each = 2 * (14 * D**2 + 4 * D * cross) + 4 * D * (N + context)
        return self.config.num_layers * N * each

    # What stays the same over many steps

    def rope(self, positions: AV[mx.array]) -> AV[RopeTables]:
        """Rotary tables of tokens at ``positions``, (B, axes, N, 2) in seconds and pixels; computed once per stage."""
        config, streams = self.config, self.config.streams

        def rotary(bounds: mx.array, own: StreamConfig, max_pos: Sequence[int]) -> Rope:
            return precompute_freqs_cis(
                bounds,
                own.width,
                config.positional_embedding_theta,
                max_pos,
                use_middle_indices_grid=config.use_middle_indices_grid,
                num_attention_heads=own.heads,
                rope_type=config.rope_type,
                double_precision=config.double_precision_rope,
            )

        def tables(bounds: mx.array, own: StreamConfig) -> RopeTables:
            alone = rotary(bounds, own, own.max_pos)
            if len(positions.present) < 2:
                return RopeTables(alone)
            # Between the streams only time has meaning, on a shared scale; the exchange has the audio's heads.
            shared = max(stream.max_pos[0] for stream in streams.values)
            return RopeTables(alone, rotary(bounds[:, :1], streams.audio, (shared,)))

        return positions.map(tables, streams)

    def project_context(self, embeddings: AV[mx.array]) -> AV[mx.array]:
        """The connectors' embeddings in the width of each stream, (B, L, D), and in the model's dtype; once per prompt."""
        texts = embeddings.map(lambda x: x.astype(self.dtype))
        return texts.map(lambda x, s: s.caption_projection(x), self.streams)

    # The network

    def __call__(
        self,
        inputs: AV[ModalityInput],
        perturbations: Sequence[Perturbation] = (),
    ) -> AV[mx.array]:
        """The velocity of each modality, (B, N, C), in the dtype of its latent.

        perturbations  one per batch item, or one for all; what all of them skip is not computed
        Raises ``ValueError`` if the inputs do not fit the model or each other.
        """
        self._check(inputs, perturbations)
        x, conditioning = self.embed(inputs)
        for index, block in enumerate(self.transformer_blocks):
            x = block(x, conditioning, *_perturbed(index, perturbations))
            end_piece(*x.values)  # saves another 2.6 and 4.3 GiB
        return self.project_out(x, conditioning)

    def embed(self, inputs: AV[ModalityInput]) -> tuple[AV[mx.array], AV[Conditioning]]:
        """The first block's input: tokens (B, N, D) of each stream, and the conditioning of every block."""
        x = inputs.map(lambda given, s: s.embed(given), self.streams)
        conditioning = inputs.map(
            lambda given, s, other: s.conditioning(given, other),
            self.streams,
            inputs.swapped,
        )
        return x, conditioning

    def project_out(self, x: AV[mx.array], c: AV[Conditioning]) -> AV[mx.array]:
        """The velocities (B, N, C) from the last block's tokens."""
        return x.map(lambda x, s, c: s.project_out(x, c), self.streams, c)

    def _check(
        self, inputs: AV[ModalityInput], perturbations: Sequence[Perturbation]
    ) -> None:
        has = self.streams.present
        if absent := [m.value for m in inputs.present if m not in has]:
            raise ValueError(
                f"This {self.config.model_type.name} model has no {absent[0]} stream; "
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


class Stream(nn.Module):
    """Both ends of a stream: its tokens before and after the blocks, and how its noise level modulates them."""

    def __init__(
        self, config: LTXModelConfig, own: StreamConfig, other: StreamConfig | None
    ):
        super().__init__()
        D, self.norm_eps = own.width, config.norm_eps
        self.level_scale = config.timestep_scale_multiplier
        self.gate_scale = config.av_ca_timestep_scale_multiplier
        self.patchify_proj = nn.Linear(own.in_channels, D)
        self.adaln_single = AdaLNSingle(D, rows=table_rows(config))
        self.scale_shift_table = mx.zeros((2, D))
        self.proj_out = nn.Linear(D, own.out_channels)
        self.caption_projection = nn.Identity()  # where the connectors project it
        if not config.caption_proj_before_connector:
            self.caption_projection = CaptionProjection(config.caption_channels, D)
        self.modulated_text = config.cross_attention_adaln
        if config.cross_attention_adaln and config.use_prompt_adaln_single:
            self.prompt_adaln_single = AdaLNSingle(D, rows=2)
        if own.marks_keyframes:
            self.keyframes_abs_pos_embedding = mx.zeros((1, D))
        self.cross_adaln_single = self.gate_adaln_single = None  # need the other
        if other is not None:
            self.cross_adaln_single = AdaLNSingle(D, rows=CROSS_GATE)
            self.gate_adaln_single = AdaLNSingle(D, rows=1)

    def embed(self, given: ModalityInput) -> mx.array:
        """Tokens (B, N, D); those that encode a single frame are marked, if the model supports it."""
        x = self.patchify_proj(given.latent)
        if given.keyframes is None or "keyframes_abs_pos_embedding" not in self:
            return x
        return x + (given.keyframes > 0) * self.keyframes_abs_pos_embedding

    def conditioning(
        self, given: ModalityInput, other: ModalityInput | None
    ) -> Conditioning:
        """What the blocks read of this stream; ``other`` is the other stream's input."""
        times, dtype = given.timesteps, given.latent.dtype
        levels = times.values * self.level_scale
        rows, embedded = self.adaln_single(levels, dtype)
        output = mx.repeat(embedded[:, :, None], 2, axis=2)  # both rows are the same
        cross = prompt = None
        if other is not None:
            theirs = other.timesteps.sigma[:, None] * self.gate_scale
            cross = Modulation(self._cross_rows(levels, theirs, dtype), times.index)
        if self.modulated_text:
            whole = times.sigma[:, None] * self.level_scale
            prompt = Modulation(self._prompt_rows(whole, dtype))
        return Conditioning(
            given.context,
            given.rope,
            given.enabled,
            Modulation(rows, times.index),
            Modulation(output, times.index),
            cross,
            prompt,
            given.bias,
        )

    def _cross_rows(
        self, levels: mx.array, theirs: mx.array, dtype: mx.Dtype
    ) -> mx.array:
        """(B, K, 5, D): four rows for each of this stream's levels, and a gate from the other stream's, (B, 1)."""
        rows, _ = self.cross_adaln_single(levels, dtype)
        gate, _ = self.gate_adaln_single(theirs, dtype)
        rows, gate = mx.broadcast_arrays(rows, gate)
        return mx.concatenate([rows, gate[:, :, :1]], axis=2)

    def _prompt_rows(self, level: mx.array, dtype: mx.Dtype) -> mx.array:
        """(B, 1, 2, D) of a level (B, 1); zeros if only the blocks' tables modulate the prompt."""
        if "prompt_adaln_single" in self:
            return self.prompt_adaln_single(level, dtype)[0]
        return mx.zeros((1, 1, *self.scale_shift_table.shape), dtype)

    def project_out(self, x: mx.array, c: Conditioning) -> mx.array:
        """The velocity (B, N, C) from the last block's tokens."""
        normed = mx.fast.layer_norm(x, None, None, self.norm_eps)
        x = modulate(normed, self.scale_shift_table, c.output, OUTPUT)
        return self.proj_out(x)


class CaptionProjection(nn.Module):
    """Text embeddings (B, L, dim) to the width of a stream, (B, L, width)."""

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(dim, width)
        self.linear_2 = nn.Linear(width, width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear_2(gelu(self.linear_1(x)))


def _lacks(module: nn.Module, key: str) -> bool:
    """Whether the tensor ``key`` (our name) is in a module that is ``None`` here; not if its name is unknown."""
    for name in key.split("."):
        blocks = isinstance(module, list)  # all alike
        module = module[0] if blocks else getattr(module, name, ...)
        if module is None:
            return True
    return False


UNPERTURBED = AV(ALL, ALL), ALL


def _perturbed(
    block: int, perturbations: Sequence[Perturbation]
) -> tuple[AV[Items], Items]:
    """The items in which ``block`` attends within each stream, and between them."""
    if not perturbations:
        return UNPERTURBED

    def attending(modality: Modality) -> Items:
        skipped = [p.skip_self_attention[modality] or () for p in perturbations]
        return Items.where([block not in blocks for blocks in skipped])

    crossing = Items.where([not p.isolate for p in perturbations])
    return AV(*map(attending, Modality)), crossing
