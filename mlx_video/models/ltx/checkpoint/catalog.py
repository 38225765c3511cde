"""The models to run: the demo model and Lightricks' releases, and how much of each is in the hub's cache. Fetches nothing."""

from dataclasses import dataclass
from typing import Mapping

from mlx_video import hub
from mlx_video.models.ltx.checkpoint.find import DEMO, PACKAGED, named
from mlx_video.models.ltx.checkpoint.releases import RELEASES, Release, published


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
    release = published(str(named(model)))
    return release and _release(release)


def _demo() -> list[Entry]:
    size = sum(file.stat().st_size for file in PACKAGED.rglob("*") if file.is_file())
    here = {"distilled": Cached(size, True)}
    words = f"the demo model, {size / 1e6:.0f} MB in this package"
    terms = "MIT licence, open to all"
    return [Entry(DEMO, "", words, "MIT", False, terms, here)] if size else []


def _release(release: Release) -> Entry:
    repository = release.repository
    files = {v: (repository, release.files(v)) for v in release.transformers}
    files["text encoder"] = release.text_files
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
