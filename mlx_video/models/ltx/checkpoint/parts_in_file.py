"""Finds which parts of LTX-2 a file holds, by its header alone, and which files beside it hold the others.

A checkpoint is one file (LTX-2, 2.3), or one file per part, each with its own config (LTX-2.5).
"""

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Iterator, Mapping

from mlx_video import lora
from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint import foreign
from mlx_video.models.ltx.checkpoint.foreign_names import DIT
from mlx_video.models.ltx.checkpoint.releases import Release, release_of
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.config import UpsamplerConfig
from mlx_video.models.ltx.gemma_config import read_gemma_config
from mlx_video.models.ltx.parts import PARTS
from mlx_video.models.ltx.video_config import DiffusionDecoderConfig
from mlx_video.weights import read_config, read_header

TRANSFORMERS = "diffusion_models"  # the folder of the transformers of LTX-2.5
UNET = "unet"  # ComfyUI's earlier name of that folder
# Folders of the other files, beside that one.
COMPANIONS = ("vae", "text_encoders", "latent_upscale_models", "model_patches")
CONNECTOR = "_embeddings_connector."  # within the names of the connectors' tensors
DURATION = "duration_head"
ENDINGS = (".safetensors", ".gguf")


def parts_in(file: Path) -> dict[str, Source]:
    """The parts in ``file``; none if it is a LoRA or of unknown origin."""
    header = read_header(file)
    if lora.holds_changes(header.tensors):
        return {}
    if gemma := read_gemma_config(file):
        return {"text_encoder": Source.described(file, gemma)}
    config = read_config(file)
    if name := upsampler_kind(config):
        return {name: Source(file, config)}
    if DURATION in config:
        return {DURATION: Source(file, config)}
    transformer = any(name.startswith(DIT) for name in header.tensors)
    blocks = {name for name in config if transformer or name != "transformer"}
    found = {
        part.name: Source(file, config[part.block])
        for part in PARTS.values()
        if part.block in blocks
    }
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
    inside = file.parent.name in (TRANSFORMERS, UNET)
    return file.parent.parent if inside else file.parent


def transformer_files(folder: Path) -> list[Path]:
    """The files in ``folder`` that may hold a transformer."""
    homes = [folder, folder / TRANSFORMERS, folder / UNET]
    return sorted(f for home in homes for end in ENDINGS for f in home.glob(f"*{end}"))


def companions(
    file: Path, release: Release, diffusion: bool = True
) -> dict[str, Source]:
    """The parts in the files that belong to the transformer in ``file``, which is of ``release``.

    Of several, prefers one of the same release, then one that states none; then a diffusion autoencoder, as in the official
    code (``diffusion=False`` excludes those); then the last by name.
    """
    found = [part for other in _around(file) for part in _readable(other).items()]
    found = [part for part in found if diffusion or not is_diffusion(part[1])]
    found.sort(key=lambda part: (_kinship(part[1], release), is_diffusion(part[1])))
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


def _around(file: Path) -> Iterator[Path]:
    """Other safetensors files that may be of the same checkpoint, sorted by name."""
    root = checkpoint_folder(file)
    folders = [root / name for name in COMPANIONS]
    if root == file.parent:
        folders.insert(0, root)
    for folder in folders:
        yield from (f for f in sorted(folder.glob("*.safetensors")) if f != file)


def _readable(file: Path) -> dict[str, Source]:
    """The parts in ``file``; none if it has a transformer (another checkpoint) or is damaged."""
    with suppress(UserError):
        found = parts_in(file)
        return {} if "transformer" in found else found
    return {}


def is_diffusion(source: Source) -> bool:
    """Whether the config is that of a diffusion autoencoder."""
    return source.config.get("_class_name") == DiffusionDecoderConfig.CLASS_NAME


def with_projection(sources: Mapping[str, Source]) -> dict[str, Source]:
    """``sources`` with the connectors' projection taken from a packed text encoder."""
    sources = dict(sources)
    text, connectors = sources.get("text_encoder"), sources.get("connectors")
    if text and connectors and text.path.is_file():
        sources["connectors"] = replace(connectors, beside=(text.path,))
    return sources
