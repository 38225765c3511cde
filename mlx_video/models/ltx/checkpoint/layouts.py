"""Recognises how LTX-2 is stored, and which parts are in a file and beside it, by headers and configs. Loads nothing."""

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Iterator, Mapping, NamedTuple

from mlx_video import hub, lora
from mlx_video.errors import MissingFileError, UserError, clip
from mlx_video.formats.gguf import ARCHITECTURE
from mlx_video.formats.safetensors import Header, json_object
from mlx_video.formats.sniff import GGUF, sniff
from mlx_video.models.ltx.checkpoint import foreign
from mlx_video.models.ltx.checkpoint.foreign_names import DIT
from mlx_video.models.ltx.checkpoint.releases import LTX_2, Release, release_of, told_by
from mlx_video.models.ltx.checkpoint.source import Source, newest
from mlx_video.models.ltx.config import UpsamplerConfig
from mlx_video.models.ltx.gemma_config import read_gemma_config
from mlx_video.models.ltx.loading.parts import PARTS, part_of
from mlx_video.models.ltx.vae_config import DiffusionDecoderConfig
from mlx_video.weights import (
    CONFIG,
    INDEX,
    read_config,
    read_header,
    some,
    tensor_files,
)

# Keys in a file's metadata, and in a converted folder's config; DEFAULTS are the checkpoint's own.
VERSION = foreign.VERSION
SOURCE = "gemma_source_checkpoint"
DEFAULTS = "defaults"
CRF = "image_crf"  # one of them
VARIANTS = ("distilled", "dev")
DEV = "transformer-dev"

OFFICIAL = "official single file"
SPLIT = "official files, one per part"
CONVERTED = "converted folder"
LORA = "LoRA file"
GEMMA = "Gemma folder"
PART_FILE = "file of one part"
ALONE = {  # parts that are published in a file of their own
    "upsampler": "upscaler file",
    "temporal_upsampler": "upscaler file",
    "text_encoder": "text encoder file",
}

# Files beside a checkpoint, preferred ones first; of several, the last by name is used.
UPSCALER_FILES = ("*spatial-upscaler-x2*.safetensors", "*upsampler*.safetensors")
TEXT_ENCODER_FOLDERS = ("text_encoder", "gemma-3-12b-it*")
DISTILLED_LORA_FILES = "*distilled-lora*.safetensors"

TRANSFORMERS = ("diffusion_models", "unet")  # their folder: LTX-2.5's, ComfyUI's
# Folders of the other files, beside that one.
COMPANIONS = ("vae", "text_encoders", "latent_upscale_models", "model_patches")
CONNECTOR = "_embeddings_connector."  # within the names of the connectors' tensors
DURATION = "duration_head"
ENDINGS = (".safetensors", ".gguf")


class Layout(NamedTuple):
    """What a path holds.

    sources       the parts in it or beside it
    folders       everything in a converted folder by name: "transformer-dev" as well as "transformer"
    defaults      of settings: the release's, overridden by what the checkpoint states
    distillation  the LoRA that turns the dev transformer in ``sources`` into the distilled one
    refusal       why this version cannot use it, and what to use instead; empty if it can
    """

    name: str
    path: Path
    sources: Mapping[str, Source] = {}
    metadata: Mapping[str, str] = {}
    folders: Mapping[str, Source] = {}
    defaults: Mapping[str, object] = {}
    distillation: Path | None = None
    refusal: str = ""

    @property
    def stored(self) -> Mapping[str, Source]:
        """All parts, of both variants."""
        return with_projection(self.folders or self.sources)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files and folders with its tensors, and a LoRA's file."""
        parts = [path for source in self.stored.values() for path in source.paths]
        other = self.path if self.name == LORA else self.distillation
        return (*parts, other) if other else tuple(parts)

    @property
    def version(self) -> str:
        """The model's version as the file states it; LTX-2.0 states none. Empty if there is no model inside."""
        model = any(name.startswith("transformer") for name in self.stored)
        return self.metadata.get(VERSION) or (LTX_2.stated if model else "")

    @property
    def stated(self) -> dict[str, object]:
        """The metadata that a conversion must keep: the version, the required text encoder, and the defaults."""
        kept = {k: self.metadata[k] for k in (VERSION, SOURCE) if k in self.metadata}
        return kept | ({DEFAULTS: self.defaults} if self.defaults else {})

    @property
    def beside(self) -> Path | None:
        """The file in a converted folder that is not a part: the distilled LoRA."""
        return newest(self.path, DISTILLED_LORA_FILES) if self.folders else None

    @property
    def release(self) -> Release:
        """The release of its version."""
        return release_of(self.version)


def identify(path: Path, variant: str | None = None) -> Layout:
    """Recognise a file or folder by its headers and configs, and find the upscaler and Gemma beside a checkpoint.

    ``variant``, "distilled" or "dev", chooses among several checkpoints in a folder, or the transformers of a converted
    one. Raises ``MissingFileError`` if nothing is there, ``UserError`` if a file is damaged or several checkpoints remain.
    """
    path = Path(path)
    if not path.is_dir():
        return _identify_file(path)
    if found := foreign.identify_folder(path, variant or VARIANTS[0]):
        return _identify_foreign(path, found)
    if found := _identify_converted(path, variant):
        return found
    if is_gemma(source := Source.of(path)):
        return Layout(GEMMA, path, {"text_encoder": source})
    if (path / INDEX).is_file():
        tensor_files(path)  # raises if it names missing files
    return _identify_file(choose_checkpoint(path, variant))


def _identify_file(file: Path) -> Layout:
    header = read_header(file)
    if lora.holds_changes(header.tensors):
        return Layout(LORA, file, metadata=header.metadata)
    held = parts_in(file)
    metadata = dict(header.metadata)
    if "transformer" in held:  # repacked ones may state no version
        metadata.setdefault(VERSION, told_by(header.tensors).stated)
    if alone := [kind for name, kind in ALONE.items() if name in held]:
        return Layout(alone[0], file, held, metadata)
    if unified := foreign.identify_unified(file):
        return _identify_foreign(file, unified)
    if "transformer" in held or any(name.startswith(DIT) for name in header.tensors):
        return _identify_official(file, held, metadata)
    if held:
        refusal = f"it holds only {some(held)}, one file of several; give the transformer's file, or the folder of all of them"
        return Layout(PART_FILE, file, held, metadata, refusal=refusal)
    return _unknown(file, header)


def _unknown(file: Path, header: Header) -> Layout:
    kind = "GGUF file" if sniff(file) == GGUF else "single file"
    model = header.metadata.get(ARCHITECTURE, "ltxv")
    what = f"its tensors have unknown names, such as {some(header.tensors, 2)}"
    if model != "ltxv":
        what = f"it holds a model of kind {clip(model, 30)}"
    elif not header.tensors:
        what = "it holds no tensors"
    refusal = f"{what}. Use a file of {hub.MODEL_REPO}"
    return Layout(f"{kind} of unknown origin", file, refusal=refusal)


def _identify_official(
    file: Path, held: Mapping[str, Source], metadata: Mapping[str, str]
) -> Layout:
    """The file of a whole checkpoint, or the transformer's file with the other parts beside it."""
    name, beside = OFFICIAL, {}
    needed = {part.name for part in PARTS.values() if part.block}
    if "transformer" in held and needed - held.keys():
        release = release_of(metadata.get(VERSION, ""))
        name, beside = SPLIT, companions(file, release)
        if "connectors" in beside:  # their config is the transformer's
            config = held["transformer"].config
            beside["connectors"] = replace(beside["connectors"], config=config)
    sources = neighbours(checkpoint_folder(file)) | beside | held
    defaults = _defaults(file, metadata, metadata.get(DEFAULTS, "{}"), beside)
    layout = Layout(name, file, sources, metadata, defaults=defaults)
    absent = needed - sources.keys()
    return layout._replace(refusal=_absence(layout.version, absent))


def _absence(version: str, absent: set[str]) -> str:
    """Why a checkpoint without the parts in ``absent`` cannot be used, and what to do."""
    if not absent:
        return ""
    if "transformer" in absent:
        blocks = {PARTS[name].block for name in absent}
        return (
            f"its metadata has no config of {', '.join(sorted(blocks))}: it was repacked, or is one of several files. "
            f"Use a file as {hub.MODEL_REPO} publishes it"
        )
    return (
        f"it is the transformer of LTX-{version} alone, and no file beside it holds {some(sorted(absent))}. "
        f"Fetch the other files too, and keep them beside it or in the folders {', '.join(COMPANIONS)}"
    )


def _identify_foreign(path: Path, found: foreign.Found) -> Layout:
    """A checkpoint of another project, with the upscaler and Gemma beside it."""
    sources = neighbours(path if path.is_dir() else path.parent) | dict(found.sources)
    metadata = {VERSION: found.version}
    defaults = _defaults(path, metadata, {})
    return Layout(found.layout, path, sources, metadata, defaults=defaults)


def _identify_converted(folder: Path, variant: str | None) -> Layout | None:
    """One folder per part. A folder for ``variant``, such as transformer-dev, is preferred to one for both variants."""
    found = {
        name: Source.of(folder / name)
        for name in (*PARTS, *(f"{part}-{v}" for part in PARTS for v in VARIANTS))
        if (folder / name / CONFIG).is_file()
    }
    if all(part_of(name).block is None for name in found):
        return None
    found = neighbours(folder) | found
    variant = variant or VARIANTS[0]
    chosen = {name: found.get(f"{name}-{variant}", found.get(name)) for name in PARTS}
    distillation = None
    if variant == "distilled" and not chosen["transformer"] and DEV in found:
        distillation = newest(folder, DISTILLED_LORA_FILES)
    if distillation:  # the distilled one is stored only in this form
        chosen["transformer"] = found[DEV]
    sources = {name: source for name, source in chosen.items() if source}
    own = read_config(folder)
    metadata = {k: v for k, v in own.items() if isinstance(v, str)}
    defaults = _defaults(folder, metadata, own.get(DEFAULTS, {}))
    rest = found, defaults, distillation
    return Layout(CONVERTED, folder, sources, metadata, *rest)


def _defaults(
    path: Path,
    metadata: Mapping[str, str],
    stated: object,
    beside: Mapping[str, Source] = {},
) -> Mapping[str, object]:
    """A checkpoint's defaults: its release's, overridden by ``stated``, an object (folder) or text (file).

    The compression of pictures follows the video autoencoder ``beside`` it, if that is a separate file.
    """
    found = stated
    if isinstance(stated, str):
        found = json_object(stated, f"{path}: its {DEFAULTS}")
    if not isinstance(found, Mapping):
        raise UserError(
            f'{path}: its {DEFAULTS} must be a JSON object, such as {{"width": 768}}; got {stated!r}.'
        )
    usual = dict(release_of(metadata.get(VERSION, "")).defaults)
    vae = beside.get("video_encoder")
    if version := file_version(vae.path) if vae else "":
        usual.pop(CRF, None)
        usual |= {k: v for k, v in release_of(version).defaults.items() if k == CRF}
    return {**usual, **found}


def is_gemma(source: Source) -> bool:
    """Whether the config of a folder or a packed file is a Gemma's."""
    return str(source.config.get("model_type")).startswith("gemma")


def choose_checkpoint(folder: Path, variant: str | None = None) -> Path:
    """The only checkpoint in ``folder``, or of ``variant``. Raises ``MissingFileError`` for none, ``UserError`` for more."""
    others = ("lora", "upscaler", "upsampler")
    homes = [folder, *(folder / name for name in TRANSFORMERS)]
    files = sorted(f for home in homes for end in ENDINGS for f in home.glob(f"*{end}"))
    files = [f for f in files if not any(word in f.stem for word in others)]
    if len(files) > 1:
        files = [f for f in files if _identify_file(f).name in (OFFICIAL, SPLIT)]
    files = _of_variant(files, variant)
    if not files:
        raise MissingFileError(
            f"There is no {f'{variant} ' if variant else ''}checkpoint of LTX-2 in {folder.resolve()}. It should hold a single "
            f"file of {hub.MODEL_REPO}, such as {LTX_2.transformers[variant or VARIANTS[0]]}, or what "
            "`mlx-video convert` wrote."
        )
    if len(files) > 1:
        raise UserError(
            f"{folder} holds several checkpoints: {some(f.name for f in files)}. Give the path of one of them."
        )
    return files[0]


def _of_variant(files: list[Path], variant: str | None) -> list[Path]:
    """The files named after ``variant``, preferably at the end (fp8 and others add to a name), or after neither variant."""
    if variant is None:
        return files
    return (
        [f for f in files if f.stem.endswith(variant)]
        or [f for f in files if variant in f.stem]
        or [f for f in files if not any(name in f.stem for name in VARIANTS)]
    )


def neighbours(folder: Path) -> dict[str, Source]:
    """The upscaler and Gemma that have their published names in ``folder``."""
    found = {}
    if upscaler := newest(folder, *UPSCALER_FILES):
        found["upsampler"] = Source.of(upscaler)
    if gemma := newest(folder, *(f"{name}/{CONFIG}" for name in TEXT_ENCODER_FOLDERS)):
        found["text_encoder"] = Source.of(gemma.parent)
    return found


# A checkpoint is one file (LTX-2, 2.3), or one file per part, each with its own config (LTX-2.5)


def parts_in(file: Path) -> dict[str, Source]:
    """The parts in ``file``; none if it is a LoRA or of unknown origin."""
    header = read_header(file)
    if lora.holds_changes(header.tensors):
        return {}
    if gemma := read_gemma_config(file):
        return {"text_encoder": Source.of(file, gemma)}
    config = read_config(file)
    if name := upsampler_kind(config):
        return {name: Source(file, config)}
    if DURATION in config:
        return {DURATION: Source(file, config)}
    transformer = any(name.startswith(DIT) for name in header.tensors)
    blocks = {name for name in config if transformer or name != "transformer"}
    parts = (part for part in PARTS.values() if part.block in blocks)
    found = {part.name: Source(file, config[part.block]) for part in parts}
    if not any(CONNECTOR in name for name in header.tensors):
        found.pop("connectors", None)  # in another file, although the config is here
    # ComfyUI's files and GGUF leave out the prefix, the config or both.
    return found if found else foreign.bare_parts(file, config)


def upsampler_kind(config: Mapping[str, object]) -> str:
    """The part that an upsampler with this config is: "upsampler", "temporal_upsampler", or empty for any other."""
    if config.get("_class_name") != UpsamplerConfig.FIXED["_class_name"]:
        return ""
    space, time = config.get("spatial_upsample"), config.get("temporal_upsample")
    if space and not time and config.get("spatial_scale", 2.0) == 2.0:
        return "upsampler"
    return "temporal_upsampler" if time and not space else ""


def checkpoint_folder(file: Path) -> Path:
    """The root of a checkpoint: the folder of the transformer's file, or its parent if that is a folder of transformers."""
    inside = file.parent.name in TRANSFORMERS
    return file.parent.parent if inside else file.parent


def companions(
    file: Path, release: Release, diffusion: bool = True
) -> dict[str, Source]:
    """The parts in the files that belong to the transformer in ``file``, which is of ``release``.

    Of several, prefers one of the same release, then one that states none; then a diffusion autoencoder, as in the official
    code (``diffusion=False`` excludes those); then the last by name.
    """
    fits = DiffusionDecoderConfig.fits
    found = [p for p in _around(file) if diffusion or not fits(p[1].config)]
    found.sort(key=lambda part: (_kinship(part[1], release), fits(part[1].config)))
    return dict(found)  # of parts of one name, the last


def _kinship(source: Source, release: Release) -> int:
    """1 for a part of ``release``, -1 for another release's, 0 if it states none."""
    if kind := source.config.get("model_type"):  # only a language model states one
        return 1 if str(kind).startswith(release.text_encoder.kind) else -1
    version = file_version(source.path)
    return (1 if release_of(version) is release else -1) if version else 0


def file_version(file: Path) -> str:
    """The model's version in a file's header or name; empty if neither states one."""
    told = re.search(r"ltx-?2(\.?\d)?(?!\d)", file.stem.lower())
    by_name = f"2.{(told[1] or '0')[-1]}" if told else ""
    return read_header(file).metadata.get(foreign.VERSION) or by_name


def _around(file: Path) -> Iterator[tuple[str, Source]]:
    """The parts in other safetensors files, sorted by name; skips damaged files, and checkpoints, which have a transformer."""
    root = checkpoint_folder(file)
    folders = [root / name for name in COMPANIONS]
    if root == file.parent:
        folders.insert(0, root)
    for other in (f for home in folders for f in sorted(home.glob("*.safetensors"))):
        parts = {}
        with suppress(UserError):
            parts = parts_in(other)
        if other != file and "transformer" not in parts:
            yield from parts.items()


def with_projection(sources: Mapping[str, Source]) -> dict[str, Source]:
    """``sources`` with the connectors' projection taken from a packed text encoder."""
    sources = dict(sources)
    text, connectors = sources.get("text_encoder"), sources.get("connectors")
    if text and connectors and text.path.is_file():
        sources["connectors"] = replace(connectors, beside=(text.path,))
    return sources
