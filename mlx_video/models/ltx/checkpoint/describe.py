"""What a path holds, from its headers and configs alone, and what can be named instead of a path. Loads nothing."""

from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Mapping, NamedTuple

from mlx_video import hub, lora
from mlx_video.disk import is_there
from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint import find
from mlx_video.models.ltx.checkpoint.layouts import LORA, Layout, identify
from mlx_video.models.ltx.checkpoint.releases import RELEASES, Release, published
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.loading.geometry import read_geometry
from mlx_video.models.ltx.loading.parts import NEEDED, PARTS, part_of
from mlx_video.weights import Weights, outline


class PartSummary(NamedTuple):
    """What a file holds of a part: ``dtypes`` with most bytes first, MLX's ``quantization``, and other tools' ``formats``."""

    tensors: int
    bytes: int
    dtypes: tuple[str, ...]
    quantization: Mapping[str, object]
    formats: tuple[str, ...] = ()


class Description(NamedTuple):
    """What a path holds, for people.

    missing   part -> how to get it, for parts that a full run needs and that are not here
    refusals  why this version cannot run it; empty if it can
    changes   what a LoRA changes
    fits      releases that have all layers of a LoRA that states no version
    """

    layout: Layout
    parts: Mapping[str, PartSummary]
    missing: Mapping[str, str]
    refusals: tuple[str, ...]
    changes: lora.About | None = None
    fits: tuple[str, ...] = ()


def describe(path: str | Path) -> Description:
    """Describe a path by headers and configs; a repository or its file as far as it is cached. Raises as ``identify`` does."""
    path = find.located(path)
    if not is_there(path):
        path = hub.cached(str(path)) or path
    layout = identify(path)
    refusals = [layout.refusal] if layout.refusal else []
    parts = _parts(layout.stored, refusals)
    if not refusals:
        with _noted(refusals):
            read_geometry(layout.sources)
    if layout.distillation:
        parts[layout.distillation.stem] = _summary(outline(layout.distillation))
    missing, about, fits = {}, None, ()
    if layout.name == LORA:
        with _noted(refusals):
            adapter = lora.Adapter.read(layout.path)
            about = adapter.about
            fits = () if about.version else tuple(_fitting(adapter))
    else:
        held = {part_of(name).name for name in layout.stored}
        absent = [name for name in NEEDED if name not in held]
        missing = {n: PARTS[n].lacking.format(release=layout.release) for n in absent}
    refusals = tuple(dict.fromkeys(refusals))
    return Description(layout, parts, missing, refusals, about, fits)


@contextmanager
def _noted(refusals: list[str]) -> Iterator[None]:
    """Add the error that the block raises to ``refusals``."""
    try:
        yield
    except ValueError as error:
        refusals.append(str(error))


def _parts(stored: Mapping[str, Source], refusals: list[str]) -> dict[str, PartSummary]:
    """A summary of each part; errors are added to ``refusals``."""
    parts = {}
    for name, source in stored.items():
        with _noted(refusals):
            part = part_of(name)
            part.config(source)
            weights = part.network(source).sanitize(source.outline())
            parts[name] = _summary(weights, source.quantization, source.formats())
            if source.is_gguf:
                size = source.path.stat().st_size  # packed blocks have no MLX dtype
                parts[name] = parts[name]._replace(dtypes=(), bytes=size)
            part.build(source.sketch())  # lazily: does every tensor fit?
    return parts


def _fitting(adapter: lora.Adapter) -> Iterator[str]:
    """The releases that have all layers of ``adapter``, in the same shapes."""
    for release in RELEASES:
        if not (blocks := release.blocks):
            continue
        modules = []
        for name in ("transformer", "connectors"):
            source = Source(Path(name), blocks[PARTS[name].block])
            network = PARTS[name].network(source)
            modules.append(network(part_of(name).config(source)))  # without weights
        with suppress(UserError):
            adapter.check_layers(modules)
            yield release.name


def _summary(
    weights: Weights, quantization: Mapping = {}, formats: tuple[str, ...] = ()
) -> PartSummary:
    sizes = Counter()
    for value in weights.values():
        name = str(value.dtype).rpartition(".")[2]
        # MLX reads float8 as bytes.
        sizes[name.replace("uint8", "float8")] += value.nbytes
    dtypes = tuple(name for name, _ in sizes.most_common())
    return PartSummary(len(weights), sizes.total(), dtypes, quantization, formats)


@dataclass(frozen=True)
class Cached:
    """How many bytes of some files are in the cache, and whether that is all of them."""

    bytes: int
    complete: bool


@dataclass(frozen=True)
class Entry:
    """A model by the name that ``--model`` takes.

    size        of its files and its text encoder, in words
    cached      what is in the cache (the demo model: in the package) of each variant, text encoder and upscaler
    unfinished  bytes of interrupted downloads, which will be resumed
    """

    name: str
    repository: str
    size: str
    licence: str
    gated: bool
    terms: str
    cached: Mapping[str, Cached]
    unfinished: int = 0


def catalog() -> list[Entry]:
    """The demo model, if the package has it, and every release."""
    return [*_demo(), *map(_release, RELEASES)]


def entry(model: str) -> Entry | None:
    """The entry of a release by its name or repository; ``None`` for other models. Raises as ``named`` does."""
    release = published(str(find.named(model)))
    return release and _release(release)


def _demo() -> list[Entry]:
    files = filter(Path.is_file, find.PACKAGED.rglob("*"))
    size = sum(file.stat().st_size for file in files)
    here = {"distilled": Cached(size, True)}
    words = f"the demo model, {size / 1e6:.0f} MB in this package"
    terms = "MIT licence, open to all"
    return [Entry(find.DEMO, "", words, "MIT", False, terms, here)] if size else []


def _release(release: Release) -> Entry:
    repository = release.repository
    files = {v: (repository, release.files(v)) for v in release.transformers}
    files["text encoder"] = hub.named(release.text_encoder.place)
    files["upscaler"] = (repository, [release.upsampler])
    return Entry(
        release.name.lower(),
        repository,
        release.size,
        release.licence,
        release.gated,
        release.terms,
        {k: Cached(hub.cached_bytes(*v), hub.is_cached(*v)) for k, v in files.items()},
        hub.unfinished_bytes(repository),
    )
