"""LTX-2's parts, lent one at a time: found when opened, read when lent, freed when given back.

Knows how files become modules and for how long; not what they compute, nor in which order they are needed.
"""

import logging
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    ContextManager,
    Iterable,
    Iterator,
    Mapping,
    NamedTuple,
    Sequence,
)

import mlx.core as mx
import mlx.nn as nn

from mlx_video import hub, lora
from mlx_video.errors import UserError
from mlx_video.formats.quantized import read_dense
from mlx_video.models.ltx import find
from mlx_video.models.ltx.config import LTXModelType
from mlx_video.models.ltx.geometry import read_geometry
from mlx_video.models.ltx.layouts import (
    LORA,
    PARTS,
    Layout,
    Source,
    held,
    identify,
    part_config,
    part_of,
)
from mlx_video.models.ltx.ltx import X0Model
from mlx_video.models.ltx.offload import BlockStream
from mlx_video.types import Geometry
from mlx_video.weights import (
    Weights,
    load,
    materialize,
    read,
)

if TYPE_CHECKING:  # it imports a tokenizer library, which takes seconds
    from mlx_video.models.ltx.text_encoder import GemmaTextEncoder

log = logging.getLogger(__name__)

Announce = hub.Announce


def announce_to_log(plan: hub.Plan) -> None:
    log.info("%s", plan)


DISTILLED_LORA = "distilled_lora"  # not a part, but it too can be needed

# The layers that hold nearly all of the weights, by part. The few around them set scales or look words up, and are
# cheap to keep exact.
QUANTIZED = {"transformer": "transformer_blocks.", "text_encoder": "model.layers."}
GROUP_SIZE = 64  # weights that share a scale


class LoRA(NamedTuple):
    """A LoRA file (path, or owner/repository/file on the hub) and how strongly it is fused."""

    file: str | Path
    strength: float = 1.0


class Fusion(NamedTuple):
    """That a LoRA was fused into a part, and how well it matched."""

    file: Path
    strength: float
    part: str
    report: lora.Report

    def __str__(self) -> str:
        matched, skipped, dense = map(len, self.report)
        return (
            f"{self.file} at {self.strength:g}: {matched} layers of the {self.part}, {skipped} names skipped, "
            f"{dense} layers no longer quantized"
        )


class Components:
    """The parts of one checkpoint; at most one large part is resident at a time.

    sources         where each part lies
    dtype           of the floating-point weights
    loras           fused into every part that they concern
    distilled_lora  the LoRA of the two-stage dev recipe; ``None`` if there is none
    quantize        bits to which the transformer's and the text encoder's blocks are quantized as they are loaded,
                    where ``bits`` does not say otherwise; ``None`` leaves them
    low_memory      whether the transformer's blocks are read as they are used instead of kept
    layout          what the model's path turned out to be
    resident        names of the parts on loan
    fusions         what was fused so far, oldest first
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        dtype: mx.Dtype,
        loras: Iterable[LoRA] = (),
        distilled_lora: Path | None = None,
        quantize: int | None = None,
        low_memory: bool = False,
        layout: Layout = Layout("none", "", Path()),
    ):
        self.sources = dict(sources)
        self.dtype = dtype
        self.loras = tuple(loras)
        self.distilled_lora = distilled_lora
        self.quantize = quantize
        self.low_memory = low_memory
        self.layout = layout
        self.resident: list[str] = []
        self.fusions: list[Fusion] = []

    @classmethod
    def open(
        cls,
        model: str | Path = hub.MODEL_REPO,
        *,
        variant: str | None = None,
        text_encoder: str | Path | None = None,
        upsampler: str | Path | None = None,
        loras: Iterable[tuple[str | Path, float]] = (),
        distilled_lora: str | Path | None = None,
        dtype: mx.Dtype | None = None,
        quantize: int | None = None,
        low_memory: bool = False,
        needs: Iterable[str] = tuple(PARTS),
        announce: Announce = announce_to_log,
    ) -> "Components":
        """Find every needed part and read its config; no tensor is read.

        model         official file, folder with one, folder that ``convert`` wrote, or hub repository
        variant       "distilled" or "dev": which checkpoint of a folder or repository
        text_encoder  Gemma 3 folder or repository; ``None`` looks beside the model, then on the hub
        upsampler     file or folder, likewise; so is ``distilled_lora``
        dtype         ``None`` is bfloat16 on a GPU and float32 on a CPU
        quantize      bits of the transformer's and Gemma's blocks in memory; those that are quantized already stay
        low_memory    read the transformer's blocks from the file in each step instead of keeping them
        needs         the parts to find, and "distilled_lora"; nothing else is fetched
        announce      hears what is about to be downloaded
        Raises ``FileNotFoundError`` or ``ValueError``, in one sentence, for whatever would stop a run later.
        """
        needs = tuple(needs)
        dtype = dtype or default_dtype()
        if needs == ("text_encoder",) and (text_encoder or model == hub.MODEL_REPO):
            source = find.find_text_encoder(text_encoder, announce)
            return cls({"text_encoder": source}, dtype, quantize=quantize)
        layout = identify(find.find_model(model, variant, needs, announce), variant)
        find.check_layout(layout, needs)
        find.check_variant(layout, variant)
        sources = dict(layout.sources)
        if text_encoder or "text_encoder" in set(needs) - sources.keys():
            sources["text_encoder"] = find.find_text_encoder(text_encoder, announce)
        if upsampler or "upsampler" in set(needs) - sources.keys():
            sources["upsampler"] = find.find_upsampler(upsampler, announce)
        for name in sources.keys() & set(needs):
            find.check_source(name, sources[name])
        if "transformer" in needs:
            find.check_residency(sources, quantize, low_memory)
        if "video_decoder" in needs:
            read_geometry(sources)
        if distilled_lora or DISTILLED_LORA in needs:
            distilled_lora = find.find_distilled_lora(
                distilled_lora, layout.path, announce
            )
            find.check_lora(distilled_lora, layout.version)
        return cls(
            sources,
            dtype,
            _found(loras, layout.version, announce),
            distilled_lora,
            quantize,
            low_memory,
            layout,
        )

    @cached_property
    def geometry(self) -> Geometry:
        """How the checkpoint's latents lie in pixels and seconds."""
        return read_geometry(self.sources)

    def check(self, needs: Iterable[str], prompts: Sequence[str] = ()) -> None:
        """Raise ``ValueError`` where tensors or LoRAs do not fit, or a prompt is too long; reads no weights."""
        needs, built = tuple(needs), {}
        for name in needs:
            if name in PARTS and name != "text_encoder":
                built[name] = build(name, self.sources[name], self.dtype)
        if find.LORA_TARGETS <= built.keys():
            self._check_loras([built[name] for name in find.LORA_TARGETS], needs)
        if prompts:
            encoder, _ = self._load("text_encoder")
            encoder.tokenize(prompts)

    def _check_loras(self, modules: Sequence[nn.Module], needs: Sequence[str]) -> None:
        files = [file for file, _ in self.loras]
        if DISTILLED_LORA in needs and self.distilled_lora is not None:
            files.append(self.distilled_lora)
        for file in files:
            lora.Adapter.read(file).check_layers(modules)

    # Lending

    @contextmanager
    def lend(
        self,
        name: str,
        model_type: LTXModelType = LTXModelType.AudioVideo,
        loras: Iterable[LoRA] = (),
    ) -> Iterator[nn.Module]:
        """Load a part, lend it for the length of the ``with`` block, and free it.

        Only the part's own tensors are read; of the transformer only the streams of ``model_type``. ``loras`` are
        fused in addition to the checkpoint's. The module is empty afterwards, whoever still holds it.
        """
        larges = [other for other in (*self.resident, name) if PARTS[other].large]
        if len(larges) > 1:
            raise RuntimeError(
                f"The {name} must wait until the {larges[0]} is given back: close the stream that still holds it."
            )
        self.resident.append(name)
        network = None
        try:
            lent, network = self._load(name, model_type, (*self.loras, *loras))
            materialize(network)
            yield lent
        finally:
            self.resident.remove(name)
            if network is not None:
                network.clear()
            mx.clear_cache()

    @contextmanager
    def transformer(
        self,
        model_type: LTXModelType = LTXModelType.AudioVideo,
        distilled_lora: float = 0.0,
    ) -> Iterator[X0Model]:
        """Lend the transformer as a sampler sees it (``X0Model``), the distilled LoRA fused at the given strength."""
        loras = []
        if distilled_lora and self.distilled_lora is None:
            raise UserError(
                f"The refinement needs the distilled LoRA: put {hub.DISTILLED_LORA_FILE} beside the model, or name it "
                "with --distilled-lora."
            )
        if distilled_lora:
            loras = [LoRA(self.distilled_lora, distilled_lora)]
        with self.lend("transformer", model_type, loras) as model:
            yield X0Model(model)

    @contextmanager
    def video_statistics(self) -> Iterator[nn.Module]:
        """Lend the video latents' per-channel statistics, the only tensors of the decoder that the upsampler needs."""
        decoder, _ = self._load("video_decoder")
        yield decoder.per_channel_statistics

    def connectors(self) -> ContextManager[nn.Module]:
        return self.lend("connectors")

    def video_encoder(self) -> ContextManager[nn.Module]:
        return self.lend("video_encoder")

    def video_decoder(self) -> ContextManager[nn.Module]:
        return self.lend("video_decoder")

    def audio_encoder(self) -> ContextManager[nn.Module]:
        return self.lend("audio_encoder")

    def audio_decoder(self) -> ContextManager[nn.Module]:
        return self.lend("audio_decoder")

    def vocoder(self) -> ContextManager[nn.Module]:
        return self.lend("vocoder")

    def upsampler(self) -> ContextManager[nn.Module]:
        return self.lend("upsampler")

    def text_encoder(self) -> ContextManager["GemmaTextEncoder"]:
        return self.lend("text_encoder")

    def bits(self, name: str) -> int | None:
        """To which a part's blocks are quantized as it is loaded; ``None`` leaves them.

        What is stored quantized stays so, and blocks that are read in each step are not worth the work.
        """
        passing = name == "transformer" and self.low_memory
        stays = name not in QUANTIZED or passing or self.sources[name].quantization
        return None if stays else self.quantize

    def sketch(
        self, name: str, model_type: LTXModelType = LTXModelType.AudioVideo
    ) -> nn.Module:
        """A part as it is lent, but lazy, and with all blocks: what it weighs is known before anything is read."""
        return self._network(name, model_type, self.loras)[0]

    # Loading

    def _load(
        self,
        name: str,
        model_type: LTXModelType = LTXModelType.AudioVideo,
        loras: Iterable[LoRA] = (),
    ) -> tuple[nn.Module, nn.Module]:
        """What to lend and the network in it, the same but for the text encoder; nothing is read yet."""
        source = self.sources[name]
        if name == "text_encoder":
            encoder = PARTS[name].module.load(source.path, self.dtype)
            if bits := self.bits(name):
                quantize_blocks(encoder.model, GROUP_SIZE, bits)
            return encoder, encoder.model
        network = partial(self._network, name, model_type, tuple(loras))
        module, fusions = network()
        self.fusions += fusions
        for fusion in fusions:
            log.info("%s", fusion)
        if name == "transformer" and self.low_memory:
            blocks = lambda: network()[0].transformer_blocks
            module.transformer_blocks = BlockStream(blocks)
        return module, module

    def _network(
        self, name: str, model_type: LTXModelType, loras: tuple[LoRA, ...]
    ) -> tuple[nn.Module, list[Fusion]]:
        """A part as it is to compute, all of it lazy, and what was fused into it."""
        module = build(name, self.sources[name], self.dtype, model_type)
        if self.layout.distillation:
            fuse(name, module, [LoRA(self.layout.distillation)])
        fusions = fuse(name, module, loras)
        if bits := self.bits(name):
            quantize_blocks(module, GROUP_SIZE, bits)
        return module, fusions


def _found(
    loras: Iterable[tuple[str | Path, float]], version: str, announce: Announce
) -> list[LoRA]:
    """The files of ``loras``, each of which is one for a model of this version."""
    loras = list(loras)
    for file, strength in loras:
        lora.check_strength(file, strength)
    loras = [LoRA(hub.resolve_file(f, announce), s) for f, s in loras]
    for file, _ in loras:
        find.check_lora(file, version)
    return loras


def fuse(name: str, module: nn.Module, loras: Iterable[LoRA]) -> list[Fusion]:
    """Fuse those of ``loras`` that concern part ``name`` into it, lazily."""
    if name not in find.LORA_TARGETS:
        return []
    fusions = []
    for file, strength in loras:
        adapter = lora.Adapter.read(file)
        if adapter.concerns(module):
            report = lora.fuse(module, adapter, strength)
            fusions.append(Fusion(file, strength, name, report))
    return fusions


def build(
    name: str,
    source: Source,
    dtype: mx.Dtype | None,
    model_type: LTXModelType = LTXModelType.AudioVideo,
) -> nn.Module:
    """A part's module with its weights, all lazy: what is not evaluated is never read.

    ``dtype`` ``None`` keeps the stored ones. Raises ``ValueError`` where the tensors do not fit the config.
    """
    part, config = PARTS[name].module, part_config(name, source)
    weights = part_weights(name, source, dtype or mx.bfloat16)
    if name == "transformer":
        config = replace(config, model_type=model_type)
    if name == "connectors":
        config = part.fit(config, weights)
    module = part(config)
    if name == "transformer":
        weights = module.select(weights)
    mode = source.quantization.get("mode", "affine")
    load(module, weights, dtype=dtype, mode=mode, source=str(source.path))
    return module


def part_weights(name: str, source: Source, dtype: mx.Dtype = mx.bfloat16) -> Weights:
    """The lazy tensors of one part under our names; ``dtype`` is what quantized ones become."""
    weights, _ = read_dense(source.path, dtype)
    return PARTS[name].module.sanitize(weights)


def quantize_blocks(
    module: nn.Module, group_size: int, bits: int, mode: str = "affine"
) -> None:
    """Quantize the Linears of the transformer's or Gemma's blocks whose width the groups divide, lazily."""
    blocks = tuple(QUANTIZED.values())

    def chosen(path: str, layer: nn.Module) -> bool:
        return (
            path.startswith(blocks)
            and isinstance(layer, nn.Linear)
            and layer.weight.shape[-1] % group_size == 0
        )

    nn.quantize(module, group_size, bits, mode=mode, class_predicate=chosen)


def default_dtype() -> mx.Dtype:
    return mx.bfloat16 if mx.default_device() == mx.gpu else mx.float32


# Describing


class PartSummary(NamedTuple):
    """What a file holds of one part; ``dtypes`` are those of its tensors, most bytes first."""

    tensors: int
    bytes: int
    dtypes: tuple[str, ...]
    quantization: Mapping[str, object]


class Description(NamedTuple):
    """What a path is, for a person to read.

    version   of the model, "2.0" where a checkpoint states none; empty where there is no checkpoint
    missing   part -> how to get it, of the parts that a full run needs and nothing here provides
    refusals  why this version cannot run it, in the config's own words; empty if it can
    defaults  what it states in place of the usual ones
    changes   what it changes, where it is a LoRA
    """

    path: Path
    layout: str
    version: str
    parts: Mapping[str, PartSummary]
    missing: Mapping[str, str]
    refusals: tuple[str, ...]
    defaults: Mapping[str, object] = {}
    changes: lora.About | None = None


# Where the parts come from that an official file lacks.
PROVIDED_BY = {
    "upsampler": f"put {hub.UPSAMPLER_FILE} beside it, or let it be fetched from {hub.MODEL_REPO} (1.0 GB)",
    "text_encoder": "put a Gemma 3 12B folder named text_encoder or gemma-3-12b-it-... beside it, or let it be fetched "
    f"from {hub.TEXT_ENCODER_REPO} (24 GB)",
}


def describe(path: str | Path, variant: str | None = None) -> Description:
    """Say what ``path`` is and holds, from headers and configs. Raises as ``identify`` does."""
    layout = identify(find.located(path), variant)
    refusals = [layout.refusal] if layout.refusal else []
    parts = {}
    for name, source in layout.stored.items():
        try:
            if part_of(name).config is not None:
                part_config(name, source)
            weights, _ = read(source.path)
            if name != "text_encoder":
                weights = part_of(name).module.sanitize(weights)
            parts[name] = _summary(weights, source.quantization)
        except ValueError as error:
            refusals.append(str(error))
    if layout.distillation:
        parts[layout.distillation.stem] = _summary(read(layout.distillation)[0])
    about = None
    if layout.name == LORA:
        try:
            about = lora.Adapter.read(layout.path).about
        except ValueError as error:
            refusals.append(str(error))
    missing = {
        name: PROVIDED_BY.get(name, f"use a single file of {hub.MODEL_REPO}")
        for name in PARTS
        if name not in held(layout.stored)
    }
    return Description(
        layout.path,
        layout.name,
        layout.version,
        parts,
        missing,
        tuple(refusals),
        layout.defaults,
        about,
    )


def _summary(weights: Weights, quantization: Mapping[str, object] = {}) -> PartSummary:
    sizes = Counter()
    for value in weights.values():
        # MLX shows float8 as the bytes it is made of.
        sizes[
            str(value.dtype).split(".")[-1].replace("uint8", "float8")
        ] += value.nbytes
    dtypes = tuple(name for name, _ in sizes.most_common())
    return PartSummary(len(weights), sizes.total(), dtypes, quantization)
