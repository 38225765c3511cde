"""Checkpoints of other projects, recognised by the contents of a folder or file: diffusers' folders, ComfyUI's files,
GGUF and the MLX packs. Each part gets its tensors' spelling and the official config; loads nothing.
"""

import json
from functools import cache
from pathlib import Path
from typing import Callable, Iterable, Mapping, NamedTuple

from mlx_video.errors import UserError
from mlx_video.models.ltx import foreign_names as names
from mlx_video.models.ltx.foreign_configs import (
    audio_vae_block,
    diffusion_vae_block,
    duration_head_config,
    transformer_block,
    upsampler_config,
    video_vae_block,
    vocoder_block,
)
from mlx_video.models.ltx.foreign_names import Spelling
from mlx_video.models.ltx.gemma_config import read_gemma_config
from mlx_video.models.ltx.source import QUANTIZATION, Source
from mlx_video.weights import CONFIG, read_header, read_json, tensor_files

DIFFUSERS, FORGE = "diffusers folder", "MLX pack of mlx-forge"
PRINCE, UNIFIED = "MLX pack of mlx-video", "unified MLX file"
PUBLISHED = Path(__file__).with_name("published")  # official configs, for packs without
EMBEDDED, SPLIT_MODEL = "embedded_config.json", "split_model.json"
QUANTIZE_CONFIG = "quantize_config.json"
VERSION = "model_version"
UNIFIED_FILE = "model.safetensors"

Block = Mapping[str, object]
Blocks = Mapping[str, Block]


class Found(NamedTuple):
    """A checkpoint of another project."""

    layout: str
    sources: Mapping[str, Source]
    version: str


def identify_folder(folder: Path, variant: str) -> Found | None:
    """The checkpoint of another project in ``folder``; ``None`` if it is of no known kind."""
    if (folder / "model_index.json").is_file():
        return _diffusers(folder)
    if (folder / EMBEDDED).is_file() or (folder / SPLIT_MODEL).is_file():
        return _forge(folder, variant)
    if (folder / "text_projections").is_dir():
        return _prince(folder)
    if (folder / UNIFIED_FILE).is_file():
        return identify_unified(folder / UNIFIED_FILE)
    return None


# diffusers


def _diffusers(folder: Path) -> Found:
    """One folder per part, each with its own config."""
    configs = {
        home.name: read_json(home / CONFIG)
        for home in sorted(folder.iterdir())
        if (home / CONFIG).is_file()
    }
    sources = {}
    if {"transformer", "connectors"} <= configs.keys():
        pair = configs["transformer"], configs["connectors"]
        block = _translated(folder / "transformer", transformer_block, *pair)
        for part, spelling in DIFFUSERS_DIT.items():
            sources[part] = Source(folder / part, block, spelling=spelling)
    if "vae" in configs:
        block = _translated(folder / "vae", video_vae_block, configs["vae"])
        counts = (len(configs["vae"][key]) for key in ("downsample_type", "upsample_factor"))  # fmt: skip
        spelling = names.diffusers_video_vae(*counts)
        sources |= _halves("video", folder / "vae", block, spelling)
    if "audio_vae" in configs:
        block = _translated(folder / "audio_vae", audio_vae_block, configs["audio_vae"])
        sources |= _halves("audio", folder / "audio_vae", block, names.DIFFUSERS_AUDIO)
    if "vocoder" in configs:
        block = _translated(folder / "vocoder", vocoder_block, configs["vocoder"])
        spelling = names.DIFFUSERS_VOCODER
        sources["vocoder"] = Source(folder / "vocoder", block, spelling=spelling)
    for name, config in configs.items():
        if found := DIFFUSERS_ALONE.get(config.get("_class_name")):
            part, translate, spelling = found
            block = _translated(folder / name, translate, config)
            if block.get("temporal_upsample"):
                part = f"temporal_{part}"
            sources[part] = Source(folder / name, block, spelling=spelling)
    return Found(DIFFUSERS, sources, _diffusers_version(configs.get("transformer", {})))


def _translated(home: Path, translate: Callable[..., Block], *configs: Block) -> Block:
    """``configs`` as the official config; errors name the folder."""
    try:
        return translate(*configs)
    except UserError as error:
        raise UserError(f"{home}: {error}") from None


DIFFUSERS_DIT = {
    "transformer": names.DIFFUSERS_TRANSFORMER,
    "connectors": names.DIFFUSERS_CONNECTORS,
}


# Class -> the part that is one, its official config, its spelling; whatever the folder is called.
DIFFUSERS_ALONE = {
    "LTX2LatentUpsamplerModel": ("upsampler", upsampler_config, None),
    "LTX2VideoDiffusionDecoderModel": ("video_decoder", diffusion_vae_block, names.DIFFUSERS_DIFFUSION),
    "LTX2DurationHead": ("duration_head", duration_head_config, names.DIFFUSERS_DURATION_HEAD),
}  # fmt: skip


def _diffusers_version(transformer: Mapping[str, object]) -> str:
    if transformer.get("use_keyframes_abs_pos_embedding"):
        return "2.5"
    return "2.3" if transformer.get("cross_attn_mod") else "2.0"


def _halves(
    kind: str, path: Path, block: Mapping[str, object], spelling: Spelling
) -> dict[str, Source]:
    """Both parts of an autoencoder in one place."""
    source = Source(path, block, spelling=spelling)
    return {f"{kind}_encoder": source, f"{kind}_decoder": source}


# MLX packs


# Part -> its files, of which the first that exists counts; its config block; its spelling. "{vae}" is the kind of
# autoencoder in the config.
FORGE_FILES = {
    "connectors": (("connector",), "transformer", names.MLX_CONNECTORS),
    "video_decoder": (("vae_decoder_{vae}", "vae_decoder"), "vae", names.MLX_VIDEO_DECODER),
    "video_encoder": (("vae_encoder_{vae}", "vae_encoder"), "vae", names.MLX_VIDEO_ENCODER),
    "audio_decoder": (("audio_vae",), "audio_vae", names.MLX_AUDIO),
    "audio_encoder": (("audio_vae",), "audio_vae", names.MLX_AUDIO),
    "vocoder": (("vocoder",), "vocoder", names.MLX_VOCODER),
}  # fmt: skip


def _forge(folder: Path, variant: str) -> Found:
    """Flat files, one per part. Their config.json may be wrong about the transformer; the embedded config is right."""
    stated, sources = read_json(folder / CONFIG), {}
    stems = (f"transformer-{variant}*", "transformer", "transformer-*")
    transformer = _first(folder, *stems)
    release = release_told_by(_tensors(transformer)) if transformer else "2.3"
    embedded = _embedded(folder, stated)
    blocks = {**published(release), **embedded}
    if "vae" not in embedded and _first(folder, "vae_decoder_av"):
        blocks["vae"] = blocks["vae_diffusion"]
    quantized = _object(read_json(folder / QUANTIZE_CONFIG).get(QUANTIZATION))
    if transformer:
        found = _flat(transformer, blocks["transformer"], names.MLX_TRANSFORMER)
        sources["transformer"] = found.with_quantization(quantized)
    diffusion = blocks["vae"].get("_class_name") == "CausalDiffusionVAE"
    for part, (stems, block, spelling) in FORGE_FILES.items():
        kind = "av" if diffusion else "conv"
        if file := _first(folder, *(stem.format(vae=kind) for stem in stems)):
            sources[part] = _flat(file, blocks[block], spelling)
    version = stated.get(VERSION) or read_json(folder / EMBEDDED).get(VERSION)
    sources |= _forge_extras(folder, blocks)
    if text := _first(folder, "text_encoder"):
        source = Source.described(text, read_gemma_config(text))
        sources["text_encoder"] = source.with_quantization(quantized)
    return Found(FORGE, sources, version if isinstance(version, str) else release)


def _embedded(folder: Path, stated: Mapping[str, object]) -> Blocks:
    """The blocks of the official config that a pack has embedded."""
    found = read_json(folder / EMBEDDED) or _object(stated.get("embedded_config"))
    found = _object(found.get("config")) or found
    return {name: block for name, block in found.items() if isinstance(block, dict)}


def _object(value: object) -> dict[str, object]:
    """``value`` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _forge_extras(folder: Path, blocks: Blocks) -> dict[str, Source]:
    """The upscalers, whose configs are beside them, and the duration head."""
    found, upscalers = {}, {"upsampler": "spatial", "temporal_upsampler": "temporal"}
    for part, kind in upscalers.items():
        if upscaler := _first(folder, f"{kind}_upscaler_x2*"):
            config = read_json(upscaler.with_name(f"{upscaler.stem}_config.json"))
            config = _object(config.get("config")) or config
            found[part] = _flat(upscaler, config, names.MLX_UPSAMPLER)
    if (head := _first(folder, "duration_head")) and "duration_head" in blocks:
        found["duration_head"] = _flat(head, blocks, names.MLX_DURATION_HEAD)
    return found


def _flat(file: Path, block: Mapping[str, object], spelling: Spelling) -> Source:
    """A part in a file of its own, whose name may prefix all of its tensors."""
    keys, stem = _tensors(file), file.stem.partition("-")[0]
    words = (f"{word}." for word in (file.stem, stem, _component(stem)))
    stands = (word for word in words if keys and all(k.startswith(word) for k in keys))
    container = next(stands, "")
    inner = {key.removeprefix(container).partition(".")[0] for key in keys}
    if spelling is names.MLX_VOCODER and "bwe_generator" in inner:
        spelling = spelling if "vocoder" in inner else names.FORGE_VOCODER
    return Source(file, block, spelling=spelling, container=container)


def _component(stem: str) -> str:
    """The part in a file's name, without its kind: "vae_decoder_conv" is a vae_decoder."""
    return stem.removesuffix("_conv").removesuffix("_av")


def _prince(folder: Path) -> Found:
    """One folder per part. Their configs are guesses; the published ones are right."""
    transformer = folder / "transformer"
    own = read_json(transformer / CONFIG)
    release = release_told_by(_tensors(transformer) if transformer.is_dir() else [])
    blocks = dict(published(release))
    sizes = blocks["transformer"].keys() & own.keys() - {"rope_type"}
    blocks["transformer"] = {**blocks["transformer"], **{key: own[key] for key in sizes}}  # fmt: skip
    homes = {
        "transformer": ("transformer", "transformer", names.MLX_TRANSFORMER),
        "connectors": ("text_projections", "transformer", names.PRINCE_CONNECTORS),
        "video_decoder": ("vae/decoder", "vae", names.PRINCE_VIDEO_DECODER),
        "video_encoder": ("vae/encoder", "vae", names.PRINCE_VIDEO_ENCODER),
        "audio_decoder": ("audio_vae/decoder", "audio_vae", names.PRINCE_AUDIO),
        "vocoder": ("vocoder", "vocoder", names.MLX_VOCODER),
    }
    sources = {
        part: Source(folder / home, blocks[block], spelling=spelling)
        for part, (home, block, spelling) in homes.items()
        if (folder / home).is_dir()
    }
    quantized = _object(own.get(QUANTIZATION))
    if "transformer" in sources and quantized:
        sources["transformer"] = sources["transformer"].with_quantization(quantized)
    return Found(PRINCE, sources, release)


CONTAINERS = {
    "transformer": ("transformer.", "transformer", names.MLX_TRANSFORMER),
    "connectors": ("", "transformer", names.UNIFIED_CONNECTORS),
    "video_decoder": ("vae_decoder.", "vae", names.MLX_VIDEO_DECODER),
    "video_encoder": ("vae_encoder.", "vae", names.MLX_VIDEO_ENCODER),
    "audio_decoder": ("audio_vae.", "audio_vae", names.UNIFIED_AUDIO),
    "vocoder": ("vocoder.", "vocoder", names.MLX_VOCODER),
}


def identify_unified(file: Path) -> Found | None:
    """All parts in one file, each under its own prefix (notapalindrome/ltx2-mlx-av); ``None`` for other files."""
    keys = _tensors(file)
    if not any(key.startswith("transformer.transformer_blocks.") for key in keys):
        return None
    release = release_told_by(keys)
    blocks = published(release)
    quantized = _object(read_json(file.with_name(CONFIG)).get(QUANTIZATION))
    sources = {
        part: Source(file, blocks[block], spelling=spelling, container=container)
        for part, (container, block, spelling) in CONTAINERS.items()
        if any(key.startswith(container or "connector.") for key in keys)
    }
    if quantized:
        sources["transformer"] = sources["transformer"].with_quantization(quantized)
    return Found(UNIFIED, sources, release)


# ComfyUI's files and GGUF


def bare_parts(file: Path, config: Blocks) -> dict[str, Source]:
    """The transformer or the connectors in a file without the prefix or without a config; nothing for other files.

    ``config`` is what the file states; the rest is as published.
    """
    keys = _tensors(file)
    bare = {key.removeprefix(names.DIT) for key in keys}
    spelled = any(key.startswith(names.DIT) for key in keys)
    wanted = {
        "transformer": "adaln_single.linear.weight",
        "connectors": "video_embeddings_connector.learnable_registers",
    }
    block = config.get("transformer") or published(release_told_by(keys))["transformer"]
    return {
        part: Source(file, block, spelling=None if spelled else names.BARE)
        for part, mark in wanted.items()
        if mark in bare
    }


# What packs do not say


@cache
def published(release: str) -> Blocks:
    """The official config of a release, by its blocks."""
    name = {"2.0": "ltx-2"}.get(release, f"ltx-{release}")
    return json.loads((PUBLISHED / f"{name}.json").read_text())


def release_told_by(keys: Iterable[str]) -> str:
    """The release whose transformer has tensors of these names, in any spelling."""
    text = "\n".join(keys)
    if "keyframes_abs_pos_embedding" in text:
        return "2.5"
    newer = ("prompt_adaln", "prompt_scale_shift_table", "video_aggregate_embed")
    return "2.3" if any(word in text for word in newer) else "2.0"


def _tensors(path: Path) -> list[str]:
    return [name for file in tensor_files(path) for name in read_header(file).tensors]


def _first(folder: Path, *stems: str) -> Path | None:
    """The last file, by name, that matches the first pattern with any match."""
    for stem in stems:
        if files := sorted(folder.glob(f"{stem}.safetensors")):
            return files[-1]
    return None
