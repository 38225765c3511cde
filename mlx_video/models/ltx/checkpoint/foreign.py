"""Recognises checkpoints of other projects: diffusers' folders, ComfyUI's files, GGUF and MLX packs.

Gives each part its tensors' spelling and the official config. Loads nothing.
"""

from dataclasses import replace
from pathlib import Path
from typing import Callable, Mapping, NamedTuple

from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint import foreign_names as names
from mlx_video.models.ltx.checkpoint.foreign_configs import (
    audio_vae_block,
    diffusion_vae_block,
    duration_head_config,
    transformer_block,
    upsampler_config,
    video_vae_block,
    vocoder_block,
)
from mlx_video.models.ltx.checkpoint.foreign_names import Spelling
from mlx_video.models.ltx.checkpoint.releases import LTX_2_3, told_by
from mlx_video.models.ltx.checkpoint.source import QUANTIZATION, Source, newest
from mlx_video.models.ltx.gemma_config import read_gemma_config
from mlx_video.models.ltx.loading.parts import PARTS
from mlx_video.models.ltx.vae_config import DiffusionDecoderConfig
from mlx_video.weights import CONFIG, read_json, stored_types

DIFFUSERS, FORGE = "diffusers folder", "MLX pack of mlx-forge"
PRINCE, UNIFIED = "MLX pack of mlx-video", "unified MLX file"
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


# A folder, or the class of a network in any folder -> its parts, their official config, their spelling.
DIFFUSERS_PARTS = {
    "vae": (("video_encoder", "video_decoder"), video_vae_block, None),
    "audio_vae": (("audio_encoder", "audio_decoder"), audio_vae_block, names.DIFFUSERS_AUDIO),
    "vocoder": (("vocoder",), vocoder_block, names.DIFFUSERS_VOCODER),
    "LTX2LatentUpsamplerModel": (("upsampler",), upsampler_config, None),
    "LTX2VideoDiffusionDecoderModel": (("video_decoder",), diffusion_vae_block, names.DIFFUSERS_DIFFUSION),
    "LTX2DurationHead": (("duration_head",), duration_head_config, names.DIFFUSERS_DURATION_HEAD),
}  # fmt: skip
DIFFUSERS_DIT = {
    "transformer": names.DIFFUSERS_TRANSFORMER,
    "connectors": names.DIFFUSERS_CONNECTORS,
}


def _diffusers(folder: Path) -> Found:
    """One folder per part, each with its own config."""
    files = sorted(folder.glob(f"*/{CONFIG}"))
    configs = {file.parent.name: read_json(file) for file in files}
    sources = {}
    if DIFFUSERS_DIT.keys() <= configs.keys():
        pair = (configs[name] for name in DIFFUSERS_DIT)
        block = _translated(folder / "transformer", transformer_block, *pair)
        for part, spelling in DIFFUSERS_DIT.items():
            sources[part] = Source(folder / part, block, spelling=spelling)
    for key, (parts, translate, spelling) in DIFFUSERS_PARTS.items():
        for name, config in configs.items():
            if key not in (name, config.get("_class_name")):
                continue
            block = _translated(folder / name, translate, config)
            if key == "vae":
                resampled = (config["downsample_type"], config["upsample_factor"])
                spelling = names.diffusers_video_vae(*map(len, resampled))
            doubles_frames = block.get("temporal_upsample")
            held = ("temporal_upsampler",) if doubles_frames else parts
            source = Source(folder / name, block, spelling=spelling)
            sources |= dict.fromkeys(held, source)
    stated = configs.get("transformer", {}).items()
    return Found(DIFFUSERS, sources, told_by(k for k, v in stated if v).stated)


def _translated(home: Path, translate: Callable[..., Block], *configs: Block) -> Block:
    """``configs`` as the official config; errors name the folder."""
    try:
        return translate(*configs)
    except UserError as error:
        raise UserError(f"{home}: {error}") from None


# MLX packs: part -> where it is, its spelling.


# The first file that exists is used; "{vae}" is the config's kind of autoencoder.
FORGE_FILES = {
    "transformer": (("transformer-{variant}*", "transformer", "transformer-*"), names.MLX_TRANSFORMER),
    "connectors": (("connector",), names.MLX_CONNECTORS),
    "video_decoder": (("vae_decoder_{vae}", "vae_decoder"), names.MLX_VIDEO_DECODER),
    "video_encoder": (("vae_encoder_{vae}", "vae_encoder"), names.MLX_VIDEO_ENCODER),
    "audio_decoder": (("audio_vae",), names.MLX_AUDIO),
    "audio_encoder": (("audio_vae",), names.MLX_AUDIO),
    "vocoder": (("vocoder",), names.MLX_VOCODER),
}  # fmt: skip
PRINCE_FOLDERS = {
    "transformer": ("transformer", names.MLX_TRANSFORMER),
    "connectors": ("text_projections", names.PRINCE_CONNECTORS),
    "video_decoder": ("vae/decoder", names.PRINCE_VIDEO_DECODER),
    "video_encoder": ("vae/encoder", names.PRINCE_VIDEO_ENCODER),
    "audio_decoder": ("audio_vae/decoder", names.PRINCE_AUDIO),
    "vocoder": ("vocoder", names.MLX_VOCODER),
}
UNIFIED_PREFIXES = {
    "transformer": ("transformer.", names.MLX_TRANSFORMER),
    "connectors": ("", names.UNIFIED_CONNECTORS),
    "video_decoder": ("vae_decoder.", names.MLX_VIDEO_DECODER),
    "video_encoder": ("vae_encoder.", names.MLX_VIDEO_ENCODER),
    "audio_decoder": ("audio_vae.", names.UNIFIED_AUDIO),
    "vocoder": ("vocoder.", names.MLX_VOCODER),
}


def _forge(folder: Path, variant: str) -> Found:
    """Flat files, one per part. Their config.json can be wrong about the transformer; the embedded config is right."""

    def first(*stems: str, vae: str = "") -> Path | None:
        named = (stem.format(vae=vae, variant=variant) for stem in stems)
        return newest(folder, *(f"{name}.safetensors" for name in named))

    stated, sources = read_json(folder / CONFIG), {}
    transformer = first(*FORGE_FILES["transformer"][0])
    # The first pack of mlx-forge was LTX-2.3.
    release = told_by(stored_types(transformer)) if transformer else LTX_2_3
    embedded = _embedded(folder, stated)
    blocks = {**release.blocks, **embedded}
    if "vae" not in embedded and first("vae_decoder_av"):
        blocks["vae"] = blocks["vae_diffusion"]
    kind = "av" if DiffusionDecoderConfig.fits(blocks["vae"]) else "conv"
    for part, (stems, spelling) in FORGE_FILES.items():
        if file := first(*stems, vae=kind):
            sources[part] = _flat(file, blocks[PARTS[part].block], spelling)
    for part, word in (("upsampler", "spatial"), ("temporal_upsampler", "temporal")):
        if file := first(f"{word}_upscaler_x2*"):
            config = read_json(file.with_name(f"{file.stem}_config.json"))
            config = _object(config, "config") or config
            sources[part] = _flat(file, config, names.MLX_UPSAMPLER)
    if (head := first("duration_head")) and "duration_head" in blocks:
        sources["duration_head"] = _flat(head, blocks, names.MLX_DURATION_HEAD)
    if text := first("text_encoder"):
        sources["text_encoder"] = Source.of(text, read_gemma_config(text))
    stated_version = stated.get(VERSION) or read_json(folder / EMBEDDED).get(VERSION)
    version = stated_version if isinstance(stated_version, str) else release.stated
    quantized = _quantized(sources, read_json(folder / QUANTIZE_CONFIG))
    return Found(FORGE, quantized, version)


def _embedded(folder: Path, stated: Block) -> Blocks:
    """The blocks of the official config that a pack embeds."""
    found = read_json(folder / EMBEDDED) or _object(stated, "embedded_config")
    found = _object(found, "config") or found
    return {name: block for name, block in found.items() if isinstance(block, dict)}


def _object(config: Block, key: str) -> dict[str, object]:
    """The object under ``key``; empty if there is none."""
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _quantized(sources: Mapping[str, Source], config: Block) -> dict[str, Source]:
    """``sources``, with the large ones quantized as the pack's config states."""
    large = {"transformer", "text_encoder"} & sources.keys()
    stated = _object(config, QUANTIZATION)
    return {**sources, **{n: replace(sources[n], quantization=stated) for n in large}}


def _flat(file: Path, block: Block, spelling: Spelling) -> Source:
    """A part in a file of its own, whose name (without its kind, such as "_conv") may prefix all tensors."""
    keys, stem = stored_types(file), file.stem.partition("-")[0]
    words = file.stem, stem, stem.removesuffix("_conv").removesuffix("_av")
    stands = (f"{w}." for w in words if keys and all(k.startswith(f"{w}.") for k in keys))  # fmt: skip
    container = next(stands, "")
    inner = {key.removeprefix(container).partition(".")[0] for key in keys}
    if spelling is names.MLX_VOCODER and "bwe_generator" in inner:
        spelling = spelling if "vocoder" in inner else names.FORGE_VOCODER
    return Source(file, block, spelling=spelling, container=container)


def _prince(folder: Path) -> Found:
    """One folder per part. Their configs are guesses; the published ones are right."""
    transformer = folder / "transformer"
    own = read_json(transformer / CONFIG)
    release = told_by(stored_types(transformer) if transformer.is_dir() else ())
    blocks = dict(release.blocks)
    sizes = blocks["transformer"].keys() & own.keys() - {"rope_type"}
    blocks["transformer"] = {**blocks["transformer"], **{key: own[key] for key in sizes}}  # fmt: skip
    sources = {
        part: Source(folder / home, blocks[PARTS[part].block], spelling=spelling)
        for part, (home, spelling) in PRINCE_FOLDERS.items()
        if (folder / home).is_dir()
    }
    return Found(PRINCE, _quantized(sources, own), release.stated)


def identify_unified(file: Path) -> Found | None:
    """All parts in one file, each under its own prefix (notapalindrome/ltx2-mlx-av); ``None`` for other files."""
    keys = stored_types(file)
    if not any(key.startswith("transformer.transformer_blocks.") for key in keys):
        return None
    release = told_by(keys)
    sources = {
        part: Source(
            file, release.blocks[PARTS[part].block], spelling=spelling, container=start
        )
        for part, (start, spelling) in UNIFIED_PREFIXES.items()
        if any(key.startswith(start or "connector.") for key in keys)
    }
    quantized = _quantized(sources, read_json(file.with_name(CONFIG)))
    return Found(UNIFIED, quantized, release.stated)


# ComfyUI's files and GGUF


def bare_parts(file: Path, config: Blocks) -> dict[str, Source]:
    """The transformer and connectors in a file that lacks the prefix or a config; empty for other files.

    ``config`` is what the file states; the published one replaces what is missing.
    """
    keys = stored_types(file)
    bare = {key.removeprefix(names.DIT) for key in keys}
    spelled = any(key.startswith(names.DIT) for key in keys)
    wanted = {
        "transformer": "adaln_single.linear.weight",
        "connectors": "video_embeddings_connector.learnable_registers",
    }
    block = config.get("transformer") or told_by(keys).blocks["transformer"]
    return {
        part: Source(file, block, spelling=None if spelled else names.BARE)
        for part, mark in wanted.items()
        if mark in bare
    }
