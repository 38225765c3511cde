"""Lends LTX-2's parts: found when opened, read when lent, freed when returned. Does not know what they compute."""

import logging
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Callable, Iterable, Iterator, Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_video import hub
from mlx_video.backend import suit_cpu
from mlx_video.errors import UserError
from mlx_video.lora import Adapter, Fusion, fuse
from mlx_video.models.ltx.checkpoint import checks, find
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.layouts import Layout, identify
from mlx_video.models.ltx.checkpoint.releases import LTX_2, published, with_terms
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.config import LTXModelType
from mlx_video.models.ltx.loading.geometry import read_geometry
from mlx_video.models.ltx.loading.parts import NEEDED, PARTS, Network, quantize_blocks
from mlx_video.models.ltx.loading.residency import (
    GROUP_SIZE,
    Residency,
    Shelf,
    cache_limited,
)
from mlx_video.models.ltx.x0 import X0Model
from mlx_video.types import Geometry
from mlx_video.weights import materialize

log = logging.getLogger(__name__)

LoRA = tuple[Path, float]  # a file, and the strength at which it is fused
Inspect = Callable[[str, list[tuple[str, mx.array]]], None]


def notify_log(what: hub.DownloadPlan | hub.Download) -> None:
    """Log each download, and every tenth of it, as warnings, which are visible without any logging set up."""
    if isinstance(what, hub.DownloadPlan) or what.tenth or what.waits or what.ended:
        log.warning("%s", what)


DISTILLED_LORA = "distilled_lora"  # not a part, but may be needed like one


@dataclass(eq=False, repr=False)
class Components:
    """The parts of one checkpoint; at most one large part is resident at a time.

    Each part is built once, lazily: the plan, ``check`` and ``lend`` use the same one.

    sources         the files of each part
    residency       how weights are kept while parts are lent
    loras           fused into every part that they apply to
    distilled_lora  the LoRA of the two-stage dev recipe; ``None`` if there is none
    detailing_lora  the LoRA of DFR's second stage; ``None`` if there is none
    layout          what kind of checkpoint the model is
    model_type      the streams of the transformer, see ``streaming``
    fusions         what was fused so far, oldest first
    inspect         is called with the name and weights of each part that is lent; ``None`` = nothing is
    cache_limit     bytes of freed memory that MLX may keep for reuse while a part is lent; ``None`` = MLX's own limit
    """

    sources: Mapping[str, Source]
    residency: Residency
    loras: Sequence[LoRA] = ()
    distilled_lora: Path | None = None
    layout: Layout = Layout("none", Path())
    detailing_lora: Path | None = None
    model_type: LTXModelType = LTXModelType.AudioVideo
    shelf: Shelf = field(default_factory=Shelf, init=False)
    fusions: list[Fusion] = field(default_factory=list, init=False)
    inspect: Inspect | None = field(default=None, init=False)
    cache_limit: int | None = field(default=None, init=False)
    _built: dict[tuple, "Built"] = field(default_factory=dict, init=False)
    _lent: dict[str, type[Network]] = field(default_factory=dict, init=False)

    @classmethod
    def open(
        cls,
        files: Files | str | Path = Files(),
        *,
        variant: str | None = None,
        needs: Iterable[str] = NEEDED,
        notify: hub.Notify = notify_log,
    ) -> "Components":
        """Find every needed part and read its config; no tensor is read.

        files     what to open; a path or name alone is the model
        variant   "distilled" or "dev": which checkpoint of a folder or repository
        needs     the parts to find, and "distilled_lora"; nothing else is fetched
        notify    is called before and during each download
        Raises ``UserError``, in one sentence, for whatever would stop a run later.
        """
        files = files if isinstance(files, Files) else Files(files)
        model, needs = find.named(files.model or hub.MODEL_REPO), tuple(needs)
        files.check()
        find.check_names(files)
        release = published(str(model))
        search = find.Search(files, needs, release or LTX_2, with_terms(notify))
        if release:
            checks.check_duration_head(needs, release.single)
        if needs == ("text_encoder",) and (files.text_encoder or release):
            return cls({"text_encoder": search.text_encoder()}, files.residency)
        if release:
            search.check_against_release()
        layout = identify(search.model(model, variant), variant)
        checks.check_layout(layout, needs)
        checks.check_variant(layout, variant)
        search = replace(search, release=layout.release)
        sources = search.sources(layout)
        distilled_lora = detailing_lora = None
        if files.distilled_lora or DISTILLED_LORA in needs:
            distilled_lora = search.distilled_lora(layout)
        if files.detailing_lora:
            detailing_lora = search.lora(files.detailing_lora, layout, reference=True)
        loras = [(search.lora(file, layout), s) for file, s in files.loras]
        return cls(
            sources, files.residency, loras, distilled_lora, layout, detailing_lora
        )

    def under(self, residency: Residency) -> "Components":
        """The same parts, built and lent ones too, under another residency."""
        other = copy(self)
        other.residency = residency
        return other

    def streaming(self, model_type: LTXModelType) -> "Components":
        """The same parts, built and lent ones too; the transformer reads only the streams of ``model_type``."""
        other = copy(self)
        other.model_type = model_type
        return other

    @property
    def resident(self) -> list[str]:
        """Names of the parts on loan."""
        return list(self._lent)

    @cached_property
    def geometry(self) -> Geometry:
        """How the checkpoint's latents relate to pixels and seconds."""
        return read_geometry(self.sources)

    def check(self, needs: Iterable[str], prompts: Sequence[str] = ()) -> None:
        """Raise ``UserError`` if tensors or LoRAs do not fit, or a prompt is too long; reads no weights."""
        needs = tuple(needs)
        parts = [self.sketch(n) for n in PARTS if n in needs]
        if len([part for part in parts if part.LORAS]) > 1:
            self._check_loras(needs)
        if prompts:
            self.sketch("text_encoder").tokenizer.tokenize(prompts)

    def _check_loras(self, needs: Sequence[str]) -> None:
        """Check LoRAs against all parts at once: one may name layers of several, or of streams that this run does not use."""
        distilled = self.distilled_lora if DISTILLED_LORA in needs else None
        own = [file for file in (distilled, self.detailing_lora) if file]
        files = [*(file for file, _ in self.loras), *own]
        whole = self.streaming(LTXModelType.AudioVideo)
        modules = [whole.sketch(n) for n in PARTS if files and n in needs]
        modules = [module for module in modules if module.LORAS]
        for file in files:
            Adapter.read(file).check_layers(modules)
        if distilled:
            transformer = whole.sketch("transformer")
            Adapter.read(distilled).check_distillation(transformer)

    @contextmanager
    def lend(self, name: str, loras: Iterable[LoRA] = ()) -> Iterator[nn.Module]:
        """Lend a part for the ``with`` block, with ``loras`` fused too, then empty it, unless the residency keeps it."""
        loras = tuple(loras)
        mark = self._mark(name, loras)
        part = PARTS[name].network(self.sources[name])
        large = next((n for n, other in self._lent.items() if other.BLOCKS), None)
        if part.BLOCKS and large:
            raise RuntimeError(
                f"The {name} cannot be loaded while the {large} is in use: close the stream that uses it."
            )
        self._lent[name] = part
        lent = None
        with cache_limited(self.cache_limit):
            try:
                lent = self.shelf.take(name, mark) or self._load(name, loras)
                weights = tree_flatten(lent.network.parameters())
                suit_cpu(max((weight.nbytes for _, weight in weights), default=0))
                materialize(lent.network)
                if self.inspect is not None:
                    self.inspect(name, weights)
                del weights  # or they would outlive the part
                yield lent
            finally:
                del self._lent[name]
                if lent is not None and name in self.residency.keep:
                    self.shelf.put(name, mark, lent)
                elif lent is not None:
                    lent.network.clear()

    @contextmanager
    def transformer(
        self, distilled_lora: float = 0.0, detailing: float = 0.0
    ) -> Iterator[X0Model]:
        """Lend the transformer as an ``X0Model``, with the distilled and the detailing LoRA fused at these strengths."""
        if distilled_lora and self.distilled_lora is None:
            raise UserError(
                f"The second stage needs the distilled LoRA: put {self.layout.release.distilled_lora} beside the model, or pass "
                "--distilled-lora FILE."
            )
        if detailing and self.detailing_lora is None:
            raise UserError(
                "This recipe needs the detailing LoRA: pass --detailing-lora FILE."
            )
        files = self.distilled_lora, self.detailing_lora
        strengths = distilled_lora, detailing
        loras = [each for each in zip(files, strengths) if each[1]]
        with self.lend("transformer", loras) as model:
            yield X0Model(model)

    def video_statistics(self) -> nn.Module:
        """The statistics of video latents, the only tensors of the decoder that the upsampler needs; lazy."""
        decoder = self.sketch("video_decoder")
        if self.sources["video_decoder"].is_gguf:  # then the sketch has no values
            decoder, _ = self._network("video_decoder")
        return decoder.per_channel_statistics

    def sketch(self, name: str) -> Network:
        """The part, lazy and as stored, for computing sizes before weights are read."""
        key = self._key(name)
        if key not in self._built:
            self._built[key] = self._network(name, self.sources[name].sketch())
        return self._built[key][0]

    def keep_on(self, shelf: Shelf) -> None:
        """Keep the residency's ``keep`` on ``shelf``, and free everything else there."""
        self.shelf = shelf
        shelf.clear(but={n: self._mark(n) for n in self.residency.keep})

    def _mark(self, name: str, loras: tuple[LoRA, ...] = ()) -> object:
        source = self.sources[name]
        kept_alike = replace(self.residency, keep=frozenset())
        fused = self.layout.distillation, self.loras, loras
        written = source.path.exists() and source.path.stat().st_mtime_ns
        return self._key(name), source, written, kept_alike, fused

    def _key(self, name: str) -> tuple:
        """The part's name, its dtype, and its streams if it has several."""
        streamed = PARTS[name].network(self.sources[name]).STREAMED
        return name, self.residency.dtype, self.model_type if streamed else None

    def _load(self, name: str, loras: tuple[LoRA, ...] = ()) -> Network:
        """A part ready to be lent, still lazy. Logs what was fused into it."""
        built = self._built.pop(self._key(name), None)
        if built is None or self.sources[name].is_gguf:  # its sketch has no values
            built = self._network(name)
        part, fusions = built
        fusions = fusions + fuse_all(name, part, loras)
        self.fusions += fusions
        for fusion in fusions:
            log.info("%s", fusion)
        if self.residency.low_memory and part.STREAMED:
            part.stream(lambda: self._network(name, loras=loras)[0])
        if bits := self.residency.bits(type(part), self.sources[name]):
            quantize_blocks(part.network, GROUP_SIZE, bits)
        return part

    def _network(
        self, name: str, source: Source | None = None, loras: Sequence[LoRA] = ()
    ) -> "Built":
        """A lazy part with the checkpoint's, the user's and these LoRAs fused, and a list of the last two kinds."""
        source = source or self.sources[name]
        part = PARTS[name].build(source, self.residency.dtype, self.model_type)
        if self.layout.distillation:
            fuse_all(name, part, [(self.layout.distillation, 1.0)])
        return part, fuse_all(name, part, (*self.loras, *loras))


Built = tuple[Network, list[Fusion]]


def fuse_all(name: str, module: Network, loras: Iterable[LoRA]) -> list[Fusion]:
    """Fuse into part ``name``, lazily, the ``loras`` that apply to it."""
    chosen = loras if module.LORAS else ()
    fusions = [fuse(module, Adapter.read(file), s, name) for file, s in chosen]
    return [fusion for fusion in fusions if fusion.matched]
