"""Finds the files of a run: given, beside the model or on the hub. Knows where to look, not how parts are built."""

import logging
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Callable, Iterable, Mapping

from mlx_video import hub
from mlx_video.disk import is_there, short, typed_path
from mlx_video.errors import MissingFileError, UserError
from mlx_video.lora import Adapter
from mlx_video.models.ltx.checkpoint import checks, layouts, releases
from mlx_video.models.ltx.checkpoint.files import CONV, Files
from mlx_video.models.ltx.checkpoint.layouts import VARIANTS, Layout, identify
from mlx_video.models.ltx.checkpoint.releases import RELEASES, Release, published
from mlx_video.models.ltx.checkpoint.source import Source, newest
from mlx_video.models.ltx.gemma_config import read_gemma_config
from mlx_video.models.ltx.loading.geometry import read_geometry
from mlx_video.models.ltx.loading.parts import PARTS, part_of
from mlx_video.models.ltx.text_folder import Subjects
from mlx_video.models.ltx.vae_config import DiffusionDecoderConfig
from mlx_video.types import Geometry
from mlx_video.weights import CONFIG, read_header

log = logging.getLogger(__name__)

DEMO = "ltx-2-tiny"
PACKAGED = Path(__file__).parents[3] / DEMO  # in the package, a converted folder
_SUBJECTS = Subjects.read(PACKAGED / "text_encoder")
DEMO_KNOWS = _SUBJECTS.draws if _SUBJECTS else "a small world"


def default_model(notify: Callable[[str], None] = log.warning) -> str:
    """The model to use when none is named: a cached release, else the demo model (``notify`` says so), else LTX-2."""
    for release in RELEASES:
        if hub.cached_bytes(release.repository, tuple(release.transformers.values())):
            return release.repository
    if not (PACKAGED / CONFIG).is_file():
        return releases.LTX_2.repository
    notify(
        f"Using the demo model {DEMO}; `mlx-video models` lists LTX-2 and the others."
    )
    return DEMO


def named(model: str | Path) -> str | Path:
    """The repository of a release's name, such as "ltx-2.5", else ``model``. Raises ``MissingFileError`` if misspelled."""
    typed = str(model).lower()
    if typed == DEMO or is_there(typed_path(model)):
        return model
    names = {n.lower(): r.repository for r in RELEASES for n in (r.name, r.repository)}
    if typed not in names and not {"/", "\\"} & {*typed}:
        alone = [name for name in (*names, DEMO) if "/" not in name]
        if near := get_close_matches(typed, alone, 1):
            raise MissingFileError(
                f"There is no file or folder {model}, and no release of that name. Did you mean {near[0]}? "
                "`mlx-video models` lists them."
            )
    return names.get(typed, model)


def model_of(files: Files, notify: Callable[[str], None] = log.warning) -> str:
    """The model that ``files`` names; else the release that their other files are for, else the default model."""
    loras = [file for file, _ in files.loras]
    others = *loras, files.text_encoder, files.upsampler, files.distilled_lora
    other = next(filter(None, others), None)
    if files.model or not other:
        return str(named(files.model or default_model(notify)))
    release = releases.release_of(next(filter(None, map(_made_for, loras)), ""))
    notify(f"Using {release.name} for {short(other)}; --model names another.")
    return release.repository


def _made_for(lora: str) -> str:
    """The version of the model that a local LoRA states; empty if it states none."""
    path = hub.local(lora, file=True)
    return read_header(path).metadata.get(layouts.VERSION, "") if path else ""


def located(model: str | Path) -> Path:
    """``model`` as a path; the demo model's name stands for its folder."""
    return PACKAGED if str(model) == DEMO else typed_path(model)


def find_defaults(
    model: str | Path, variant: str, notify: hub.Notify = lambda plan: None
) -> Mapping[str, object]:
    """The defaults that a checkpoint states; fetches no large file. Raises ``MissingFileError`` for a missing path."""
    if found := known(model, variant):
        return found.defaults
    if _is_file(model):
        hub.local(model, file=True)  # raises if it can only be a path
        return {}  # on the hub, only converted folders are read
    folder = hub.resolve(model, [f"*{CONFIG}"], notify)
    return identify(folder, variant).defaults


def published_geometry(model: str | None) -> Geometry | None:
    """That of a release or of the demo model; no other file is opened."""
    if model == DEMO:
        return read_geometry(known_parts(DEMO, VARIANTS[0]))
    release = published(model or "")
    return release and release.geometry


def known(model: str | Path, variant: str) -> Layout | Release | None:
    """What is known before anything is fetched: a local checkpoint, or a release's published config."""
    path = located(model)
    return identify(path, variant) if is_there(path) else published(str(model))


def known_parts(model: str | Path, variant: str) -> Mapping[str, Source]:
    """The parts of what is ``known``."""
    found = known(model, variant)
    return found.sources if found else {}


def find_folders(model: str | Path, layout: Layout, notify: hub.Notify) -> None:
    """Fetch all folders of a converted repository, for both variants; does nothing for a path."""
    hub.resolve(located(model), _wanted(layout, layout.folders), notify)


def _wanted(layout: Layout, names: Iterable[str]) -> list[str]:
    """Patterns of the files to fetch from a converted repository, for parts or folders of these ``names``."""
    found = {**layout.folders, **layout.sources}
    homes = {name: s.path.name for name, s in found.items() if s.path.is_dir()}
    patterns = []
    if "transformer" in {*names} - homes.keys() and layouts.DEV in homes:
        homes["transformer"] = layouts.DEV
        patterns.append(layouts.DISTILLED_LORA_FILES)  # makes it the distilled one
    for name in names:
        if name in homes or (name in PARTS and PARTS[name].block):
            home = homes.get(name, name)
            patterns += [f"{home}/{file}" for file in part_of(name).files]
    return patterns


def check_names(files: Files) -> None:
    """Raise ``UserError`` if a name is neither a path nor on the hub, before anything is fetched."""
    for name in files.named():
        is_file = name != files.text_encoder or _is_file(name)
        if name != files.model and not hub.local(name, file=is_file):
            hub.plan(*hub.named(name))


@dataclass(frozen=True)
class Search:
    """Finds the files of the parts in ``needs``: those that ``files`` names, or else those of ``release``.

    ``notify`` is called for downloads.
    """

    files: Files
    needs: tuple[str, ...]
    release: Release
    notify: hub.Notify

    def model(self, model: str | Path, variant: str | None) -> Path:
        """The path of ``model``, needed parts fetched, or a release's files not given. Raises as ``hub.plan`` does."""
        path = located(model)
        if is_there(path):
            return path
        if _is_file(model):
            return hub.resolve_file(model, self.notify)
        if published(str(model)):
            files = self.release.files(variant or VARIANTS[0])
            plans = [hub.plan(*part) for part in self._published(files).items()]
            return hub.fetch(plans, self.notify)[0] / files[0]
        folder = hub.resolve(model, [f"*{CONFIG}"], self.notify)
        wanted = _wanted(identify(folder, variant), self.needs)
        return hub.resolve(model, wanted, self.notify)

    def _published(self, files: Iterable[str]) -> dict[str, list[str]]:
        """Repository -> names or patterns of the ``files`` and others that the release has and a run needs; its own first."""
        lacking = {n for n in self.needs if not getattr(self.files, n, None)}
        own = [file for name, file in self.release.single.items() if name in lacking]
        wanted = {self.release.repository: [*files, *own]}
        if "text_encoder" in lacking:
            repository, names = hub.named(self.release.text_encoder.place)
            wanted.setdefault(repository, []).extend(names)
        return wanted

    def sources(self, layout: Layout) -> dict[str, Source]:
        """The checked parts of a checkpoint, including other files that are given or that it lacks."""
        sources, files, needs = dict(layout.sources), self.files, self.needs
        lacking = set(needs) - sources.keys()
        if files.text_encoder or "text_encoder" in lacking:
            sources["text_encoder"] = self.text_encoder()
        sources = layouts.with_projection(sources)
        if {"text_encoder", "connectors"} <= sources.keys() & set(needs):
            checks.check_text_encoder(sources, layout.metadata)
        if files.video_vae and "video_decoder" in sources:
            sources |= self.video_vae(layout)
        for name in filter(PARTS.get, self.release.single):
            if getattr(files, name, None) or name in lacking:
                sources[name] = self.single(name)
        wanted = {name: source for name, source in sources.items() if name in needs}
        for name, source in wanted.items():
            PARTS[name].config(source)
        for source in {source.paths: source for source in wanted.values()}.values():
            source.formats()  # raises for what cannot be read
        if "transformer" in needs:
            checks.check_residency(sources, files.quantize, files.low_memory)
        read_geometry(wanted)  # raises if they contradict each other
        return sources

    def text_encoder(self) -> Source:
        """The text encoder; raises ``UserError`` if it is not a Gemma."""
        usual = self.release.text_encoder.place
        given = self.files.text_encoder or usual
        if _is_file(given):
            path = hub.resolve_file(given, self.notify)
        else:
            path = hub.resolve(given, hub.TEXT_ENCODER_FILES, self.notify)
        source = Source.of(path, read_gemma_config(path))
        if not layouts.is_gemma(source):
            raise UserError(
                f"{source.path} is not a Gemma folder: its config.json names no Gemma model. "
                f"Give one such as {usual}."
            )
        return source

    def check_against_release(self) -> None:
        """Raise ``UserError`` for a local text encoder or LoRA of another release, before the model is fetched."""
        if self.files.text_encoder and hub.local(self.files.text_encoder):
            checks.check_against_release(self.text_encoder(), self.release)
        for file, _ in self.files.loras:
            if path := hub.local(file, file=True):
                Adapter.read(path).check(self.release.stated)

    def single(self, name: str) -> Source:
        """The part ``name`` in a file of its own; raises ``UserError`` if the file holds another."""
        file = self.release.single[name]
        found = self._file(getattr(self.files, name, None), file)
        parts = layouts.parts_in(found)
        if name not in parts:
            raise UserError(
                f"{found} {PARTS[name].unlike}. Give {file} of {self.release.repository}."
            )
        return parts[name]

    def video_vae(self, layout: Layout) -> dict[str, Source]:
        """The video autoencoder that is named, which for "conv" is the checkpoint's convolutional one.

        Raises ``UserError`` if there is none.
        """
        given, usual = self.files.video_vae, self.release.conv_vae
        if given != CONV:
            file = hub.resolve_file(given, self.notify)
            if found := _autoencoder(layouts.parts_in(file)):
                return found
            named = usual or self.release.transformers[VARIANTS[0]]
            raise UserError(
                f"{file} is not a video autoencoder: it lacks the encoder, the decoder or the config of one. Give a file "
                f"such as {self.release.repository}/{named}, or {CONV}."
            )
        if not DiffusionDecoderConfig.fits(layout.sources["video_decoder"].config):
            return {}
        if layout.path.is_dir():
            raise UserError(
                f"{layout.path} ({layout.name}) is not searched for a second video autoencoder; name its file with "
                "--video-vae."
            )
        beside = layouts.companions(layout.path, self.release, diffusion=False)
        found = _autoencoder(beside)
        if not found and usual:
            return _autoencoder(layouts.parts_in(self._file(None, usual)))
        return found

    def distilled_lora(self, layout: Layout) -> Path:
        """The distilled LoRA: the one that is named, else beside the model, else published with it."""
        folder = layout.path if layout.path.is_dir() else layout.path.parent
        beside = newest(folder, layouts.DISTILLED_LORA_FILES)
        given = self.files.distilled_lora or beside
        found = self._file(given, self.release.distilled_lora)
        checks.check_distilled_lora(found, layout)
        return found

    def lora(self, file: str, layout: Layout, reference: bool = False) -> Path:
        """A LoRA that is named; raises ``UserError`` if it is for another version or lacks its ``reference``."""
        found = hub.resolve_file(file, self.notify)
        Adapter.read(found).check(layout.version, reference=reference)
        return found

    def _file(self, given: str | Path | None, usual: str) -> Path:
        """The file ``given``, or ``usual`` from the release's repository."""
        usual = f"{self.release.repository}/{usual}"
        return hub.resolve_file(given or usual, self.notify)


def _is_file(name: str | Path) -> bool:
    return str(name).endswith(".safetensors")


def _autoencoder(parts: Mapping[str, Source]) -> dict[str, Source]:
    """Both halves of the video autoencoder in ``parts``; empty if one is missing."""
    halves = ("video_encoder", "video_decoder")
    return {n: parts[n] for n in halves} if parts.keys() >= {*halves} else {}
