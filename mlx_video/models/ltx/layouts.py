"""The nine parts of LTX-2, and the files that people keep them in. Finds and recognises; builds and loads nothing."""

import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Mapping, NamedTuple, Sequence

import mlx.nn as nn

from mlx_video import hub, lora
from mlx_video.errors import MissingFileError, UserError
from mlx_video.models.ltx.config import (
    AudioVAEConfig,
    Config,
    ConnectorConfig,
    LTXModelConfig,
    UpsamplerConfig,
    VideoVAEConfig,
    VocoderConfig,
)
from mlx_video.weights import CONFIG, read_config, read_header, read_json, some

DEFAULTS = "defaults"  # the key of a checkpoint's own, in a folder's config and a file's metadata
QUANTIZATION = "quantization"  # the key that mlx-lm and convert add to a config
TOKENIZER_CONFIG = "tokenizer_config.json"
MAX_TOKENS = 1024  # of a prompt, BOS included: the context LTX-2 was trained with
VARIANTS = ("distilled", "dev")
DEV = "transformer-dev"

OFFICIAL = "official single file"
CONVERTED = "converted folder"
UPSCALER = "upscaler file"
LORA = "LoRA file"
GEMMA = "Gemma folder"


@dataclass(frozen=True)
class Part:
    """A component that is built, loaded and freed on its own.

    home    module and class of the network
    config  reads the part's block of the metadata; ``None`` where the class reads its own folder
    block   which block of the official metadata that is; ``None`` where it is the whole
    large   whether it must be alone in memory
    """

    name: str
    home: str
    config: type[Config] | None
    block: str | None
    large: bool = False

    @property
    def module(self) -> type[nn.Module]:
        """The network's class, imported on first use."""
        module, name = self.home.split(":")
        return getattr(importlib.import_module(f"mlx_video.models.ltx.{module}"), name)


PARTS = {
    part.name: part
    for part in (
        Part("transformer", "ltx:LTXModel", LTXModelConfig, "transformer", large=True),
        Part("connectors", "connector:TextConnectors", ConnectorConfig, "transformer"),
        Part("video_encoder", "video_vae.encoder:VideoEncoder", VideoVAEConfig, "vae"),
        Part("video_decoder", "video_vae.decoder:VideoDecoder", VideoVAEConfig, "vae"),
        Part(
            "audio_encoder",
            "audio_vae.encoder:AudioEncoder",
            AudioVAEConfig,
            "audio_vae",
        ),
        Part(
            "audio_decoder",
            "audio_vae.decoder:AudioDecoder",
            AudioVAEConfig,
            "audio_vae",
        ),
        Part("vocoder", "audio_vae.vocoder:Vocoder", VocoderConfig, "vocoder"),
        Part("upsampler", "upsampler:LatentUpsampler", UpsamplerConfig, None),
        Part("text_encoder", "text_encoder:GemmaTextEncoder", None, None, large=True),
    )
}
# What lies beside a checkpoint; of several, the last by name is the newest version.
UPSCALER_FILES = ("*upsampler*.safetensors", "*spatial-upscaler-x2*.safetensors")
TEXT_ENCODER_FOLDERS = ("gemma-3-12b-it*", "text_encoder")
DISTILLED_LORA_FILES = ("*distilled-lora*.safetensors",)


def part_of(name: str) -> Part:
    """The part that a folder of this name holds: "transformer-dev" is a transformer."""
    return PARTS[name.partition("-")[0]]


def held(names: Iterable[str]) -> set[str]:
    """The names of the parts in so named folders."""
    return {part_of(name).name for name in names}


@dataclass(frozen=True)
class Source:
    """Where a part's tensors lie, and the config that describes it as stored there (without quantization)."""

    path: Path
    config: Mapping[str, object]
    quantization: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> "Source":
        """A file or folder that holds one part and its config."""
        config = read_config(path)
        return cls(path, config, config.pop(QUANTIZATION, {}))

    @property
    def is_upsampler(self) -> bool:
        return self.config.get("_class_name") == UpsamplerConfig.FIXED["_class_name"]

    @property
    def is_gemma(self) -> bool:
        return str(self.config.get("model_type")).startswith("gemma")


def tokenizer_folder(text_encoder: Path) -> Path | None:
    """Where the tokenizer lies: in Gemma's folder, or in one called ``tokenizer`` beside it."""
    names = ("tokenizer.json", "tokenizer.model")
    folders = (text_encoder, text_encoder.parent / "tokenizer")
    return next((f for f in folders if any((f / n).exists() for n in names)), None)


def max_tokens(text_encoder: Path) -> int:
    """Of a prompt, and positions of its context: 1024, or fewer where the tokenizer states fewer."""
    file = (tokenizer_folder(text_encoder) or text_encoder) / TOKENIZER_CONFIG
    stated = read_json(file).get("model_max_length") or MAX_TOKENS
    if not isinstance(stated, (int, float)) or not stated >= 1:
        raise UserError(
            f"{file}: model_max_length must be a number of tokens, such as {MAX_TOKENS}; got {stated!r}."
        )
    return int(min(MAX_TOKENS, stated))


def part_config(name: str, source: Source) -> Config:
    """The config of a part, read strictly. Raises ``ValueError`` naming the file and what this version lacks."""
    if not isinstance(source.config, Mapping):
        raise UserError(f"{source.path}: the config of its {name} is no JSON object.")
    try:
        return part_of(name).config.from_dict(source.config)
    except ValueError as error:
        raise UserError(f"{source.path}: {error}") from None


class Layout(NamedTuple):
    """What a path turned out to be.

    refusal       why this version cannot use it and what to use instead; empty where it can
    sources       of the parts it holds, or that lie beside it
    folders       all that a converted folder holds, by their own names: "transformer-dev" beside "transformer"
    defaults      what the checkpoint wants where the user said nothing, as it states it
    distillation  the LoRA that makes the distilled transformer of the dev one in ``sources``
    """

    name: str
    refusal: str
    path: Path
    sources: Mapping[str, Source] = {}
    metadata: Mapping[str, str] = {}
    folders: Mapping[str, Source] = {}
    defaults: Mapping[str, object] = {}
    distillation: Path | None = None

    @property
    def stored(self) -> Mapping[str, Source]:
        """Everything that lies there, whichever variant is chosen."""
        return self.folders or self.sources

    @property
    def version(self) -> str:
        """The model's version as the file states it; those of LTX-2.0 state none. Empty where no model is inside."""
        stated = self.metadata.get("model_version")
        return stated or ("2.0" if "transformer" in held(self.stored) else "")


def identify(path: Path, variant: str | None = None) -> Layout:
    """Recognise a file or folder by its headers and configs, and find the upscaler and Gemma beside a checkpoint.

    ``variant``, "distilled" or "dev", chooses among several checkpoints in a folder, or among the transformers of a
    converted one. Raises ``FileNotFoundError`` where nothing is there and ``ValueError`` where a file is damaged or
    the choice is open.
    """
    path = Path(path)
    if path.is_file():
        return _identify_file(path)
    if not path.is_dir():
        raise MissingFileError(f"There is no file or folder {path}.")
    if refusal := _foreign(path):
        return Layout(*refusal, path)
    if found := _identify_converted(path, variant) or _identify_gemma(path):
        return found
    return _identify_file(choose_checkpoint(path, variant))


def _identify_file(file: Path) -> Layout:
    header, config = read_header(file), read_config(file)
    names = header.tensors.keys()
    if lora.holds_changes(names):
        return Layout(LORA, "", file, metadata=header.metadata)
    source = Source(file, config)
    if source.is_upsampler:
        return Layout(UPSCALER, "", file, {"upsampler": source}, header.metadata)
    if not any(name.startswith("model.diffusion_model.") for name in names):
        return Layout(
            "single file of unknown origin",
            "its tensors do not bear Lightricks' names, as in unified MLX files (notapalindrome/ltx2-mlx-av) and files "
            f"of one component. Use a file of {hub.MODEL_REPO}",
            file,
        )
    return _identify_official(file, config, header.metadata)


def _identify_official(file: Path, config: dict, metadata: dict[str, str]) -> Layout:
    parts = [part for part in PARTS.values() if part.block is not None]
    if absent := sorted({part.block for part in parts} - config.keys()):
        refusal = (
            f"its metadata has no config of {', '.join(absent)}: it was repacked, or is one of several files. "
            f"Use a file as {hub.MODEL_REPO} publishes it"
        )
        return Layout(OFFICIAL, refusal, file, metadata=metadata)
    sources = {part.name: Source(file, config[part.block]) for part in parts}
    sources = neighbours(file.parent) | sources
    defaults = _defaults(file, metadata.get(DEFAULTS, "{}"))
    return Layout(OFFICIAL, "", file, sources, metadata, {}, defaults)


def _foreign(folder: Path) -> tuple[str, str] | None:
    """Name of a known layout that is not read, and what to use instead."""
    if (folder / "model_index.json").is_file():
        file = hub.MODEL_FILE.format(variant="distilled")
        return (
            "diffusers folder",
            f"diffusers' layout is not read. Use the single file {file} of {hub.MODEL_REPO}",
        )
    if (folder / "text_projections").is_dir() or (folder / "vae" / CONFIG).is_file():
        return (
            "MLX pack",
            "packs such as prince-canuma/LTX-2-distilled name their tensors in another way, which is not read. Use "
            f"{hub.MODEL_REPO}, or a folder that `mlx-video convert` wrote",
        )


def _identify_converted(folder: Path, variant: str | None) -> Layout | None:
    """A folder a part. One for ``variant``, such as transformer-dev, goes before the one that both variants share."""
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
    if distillation := _distillation(folder, found, variant):
        chosen["transformer"] = found[DEV]
    sources = {name: source for name, source in chosen.items() if source}
    defaults = _defaults(folder, read_config(folder).get(DEFAULTS, {}))
    return Layout(CONVERTED, "", folder, sources, {}, found, defaults, distillation)


def _distillation(
    folder: Path, found: Mapping[str, Source], variant: str
) -> Path | None:
    """The LoRA that makes the distilled transformer of the dev one, where ``folder`` keeps it in this form only."""
    dense = {"transformer", "transformer-distilled"} & found.keys()
    if variant == "distilled" and DEV in found and not dense:
        return newest(folder, DISTILLED_LORA_FILES)


def _defaults(path: Path, stated: object) -> Mapping[str, object]:
    """What a checkpoint states as its defaults: a folder's as read, a file's still as text."""
    try:
        found = json.loads(stated) if isinstance(stated, str) else stated
    except json.JSONDecodeError:
        found = stated
    if not isinstance(found, Mapping):
        raise UserError(
            f'{path}: its {DEFAULTS} must be a JSON object, such as {{"width": 768}}; got {stated!r}.'
        )
    return found


def _identify_gemma(folder: Path) -> Layout | None:
    source = Source.of(folder)
    return (
        Layout(GEMMA, "", folder, {"text_encoder": source}) if source.is_gemma else None
    )


def choose_checkpoint(folder: Path, variant: str | None = None) -> Path:
    """The single file in ``folder``: the only one there, or the only one of ``variant``.

    Raises ``FileNotFoundError`` where there is none and ``ValueError`` where there are several.
    """
    files = [f for f in sorted(folder.glob("*.safetensors")) if not _is_companion(f)]
    if len(files) > 1:
        files = [f for f in files if _identify_file(f).name == OFFICIAL]
    files = _of_variant(files, variant)
    if not files:
        raise MissingFileError(
            f"There is no {f'{variant} ' if variant else ''}checkpoint of LTX-2 in {folder}. It should hold a single "
            f"file of {hub.MODEL_REPO}, such as {hub.MODEL_FILE.format(variant=variant or VARIANTS[0])}, or what "
            "`mlx-video convert` wrote."
        )
    if len(files) > 1:
        raise UserError(
            f"{folder} holds several checkpoints: {some(f.name for f in files)}. Give the path of one of them."
        )
    return files[0]


def _of_variant(files: list[Path], variant: str | None) -> list[Path]:
    """Those named after ``variant``, at best at the end, since remakes such as fp8 add to the name; or the nameless."""
    if variant is None:
        return files
    return (
        [f for f in files if f.stem.endswith(variant)]
        or [f for f in files if variant in f.stem]
        or [f for f in files if not any(name in f.stem for name in VARIANTS)]
    )


def _is_companion(file: Path) -> bool:
    return any(word in file.stem for word in ("lora", "upscaler", "upsampler"))


def neighbours(folder: Path) -> dict[str, Source]:
    """The upscaler and Gemma in ``folder``, under the names they are published with."""
    found = {}
    if upscaler := newest(folder, UPSCALER_FILES):
        found["upsampler"] = Source.of(upscaler)
    if gemma := newest(folder, [f"{name}/{CONFIG}" for name in TEXT_ENCODER_FOLDERS]):
        found["text_encoder"] = Source.of(gemma.parent)
    return found


def newest(folder: Path, patterns: Sequence[str]) -> Path | None:
    """The last by name of the files in ``folder`` that match the last pattern that any file matches."""
    for pattern in reversed(patterns):
        if files := sorted(folder.glob(pattern)):
            return files[-1]
