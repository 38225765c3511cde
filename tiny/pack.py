"""Puts the trained parts into the package: ``python -m tiny.pack``. Also writes them as Lightricks lays out its files,
and takes them out of the package again, to train them further.

Knows folders, dtypes and names; not how good the parts are.
"""

import argparse
import json
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from mlx_video.linear import dense_weight
from mlx_video.models.ltx.checkpoint.layouts import VARIANTS
from mlx_video.models.ltx.checkpoint.source import QUANTIZATION, Source
from mlx_video.models.ltx.loading.components import quantize_blocks
from mlx_video.models.ltx.loading.parts import PARTS
from mlx_video.models.ltx.text_folder import KNOWS
from mlx_video.weights import CONFIG, Weights, save_folder
from tiny.model import (
    CONFIGS,
    DEFAULTS,
    NAME,
    PACKAGED,
    WORK,
    folder_part,
    fresh,
    load,
    store,
)

DTYPE = (
    mx.float16
)  # as small as bfloat16, and eight times as exact where nothing is large
QUANTIZED = {"group_size": 64, "bits": 6, "mode": "affine"}
DEV, DISTILLED = "transformer-dev", "transformer-distilled"
FOLDERS = (DEV, *(name for name in CONFIGS if name != "transformer"))
LORA_RANK = 16
LORA_FILE = f"{NAME}-distilled-lora-{LORA_RANK}.safetensors"
TEXT_FILES = (
    CONFIG,
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    KNOWS,
)


def pack(target: Path) -> None:
    """Write the model as ``convert`` does, a folder a part: the dev transformer in 6 bits, the distilled one as a LoRA.

    All of it or, where a part is missing, nothing.
    """
    aside = target.with_name(f"{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    for name in FOLDERS:
        pack_part(name, aside / name)
    (aside / "text_encoder").mkdir()
    for name in TEXT_FILES:
        source = WORK / "text_encoder" / name
        save_text(source, aside / "text_encoder" / name, DTYPE)
    packed = PARTS["transformer"].build(Source.of(aside / DEV), mx.float32)
    save_lora(aside / LORA_FILE, distilled_lora(packed, load(DISTILLED)))
    root = {"name": NAME, "defaults": DEFAULTS}
    (aside / CONFIG).write_text(json.dumps(root, indent=2) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)


def save_text(source: Path, target: Path, dtype: mx.Dtype) -> None:
    """Copy a file of the text encoder, weights in ``dtype``."""
    if source.suffix != ".safetensors":
        shutil.copyfile(source, target)
        return
    weights = {name: x.astype(dtype) for name, x in mx.load(str(source)).items()}
    mx.save_safetensors(str(target), weights, {"format": "mlx"})


def pack_part(name: str, folder: Path) -> None:
    module, config = load(name), dict(CONFIGS[folder_part(name)])
    module.update(tree_map(lambda x: x.astype(DTYPE), module.parameters()))
    if name == DEV:
        quantize_blocks(module, **QUANTIZED)
        config[QUANTIZATION] = QUANTIZED
    save_folder(folder, dict(tree_flatten(module.parameters())), config)


def distilled_lora(dev: nn.Module, distilled: nn.Module) -> Weights:
    """What makes ``dev`` the ``distilled`` model: the best change of rank ``LORA_RANK`` of every Linear's weight."""
    targets, weights = dict(distilled.named_modules()), {}
    for path, layer in dev.named_modules():
        if isinstance(layer, (nn.Linear, nn.QuantizedLinear)):
            stored = dense_weight(layer) if "scales" in layer else layer.weight
            change = targets[path].weight - stored.astype(mx.float32)
            up, down = low_rank(change, LORA_RANK)
            name = official_name("transformer", f"{path}.weight")
            name = name.removeprefix("model.").removesuffix(".weight")
            weights[f"{name}.lora_A.weight"] = down.astype(DTYPE)
            weights[f"{name}.lora_B.weight"] = up.astype(DTYPE)
    return weights


def low_rank(matrix: mx.array, rank: int) -> tuple[mx.array, mx.array]:
    """Factors (out, r) and (r, in) of the nearest matrix of rank r, each with half of the singular values."""
    U, S, Vt = mx.linalg.svd(matrix, stream=mx.cpu)
    root = mx.sqrt(S[:rank])
    return U[:, :rank] * root, root[:, None] * Vt[:rank]


def save_lora(file: Path, weights: Weights) -> None:
    mx.save_safetensors(str(file), weights, {"format": "mlx"})


def unpack() -> Path:
    """Put the packaged parts, dense and float32, to where training goes on, if nothing was trained here yet."""
    if any(WORK.glob("*")):
        raise FileExistsError(f"{WORK} holds a training already; move it away first.")
    for name in FOLDERS:
        part = fresh(folder_part(name))
        part.load_weights(list(dense_weights(load(name)).items()))
        store(name, part)
    (WORK / "text_encoder").mkdir()
    for name in TEXT_FILES:
        source = PACKAGED / "text_encoder" / name
        save_text(source, WORK / "text_encoder" / name, mx.float32)
    return WORK


def dense_weights(module: nn.Module) -> Weights:
    """All weights by name, with none of its Linears quantized."""
    weights = dict(tree_flatten(module.parameters()))
    for path, layer in module.named_modules():
        if isinstance(layer, nn.QuantizedLinear):
            weights[f"{path}.weight"] = dense_weight(layer)
            del weights[f"{path}.scales"], weights[f"{path}.biases"]
    return weights


# Lightricks' layout

PARTS_IN_FILE = (
    *("transformer", "connectors", "video_encoder", "video_decoder"),
    *("audio_encoder", "audio_decoder", "vocoder"),
)
BLOCKS = {
    "transformer": "transformer",
    "vae": "video_encoder",
    "audio_vae": "audio_encoder",
    "vocoder": "vocoder",
}


def write_official(folder: Path, variant: str) -> Path:
    """Write ``ltx-2-tiny-VARIANT.safetensors``, its upscaler and its text encoder into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name in PARTS_IN_FILE:
        part = f"transformer-{variant}" if name == "transformer" else name
        weights |= official(name, dict(tree_flatten(load(part).parameters())))
    config = {block: CONFIGS[name] for block, name in BLOCKS.items()}
    file = folder / f"{NAME}-{variant}.safetensors"
    metadata = {"config": json.dumps(config), "defaults": json.dumps(DEFAULTS)}
    mx.save_safetensors(str(file), weights, metadata)
    upscaler = official("upsampler", dict(tree_flatten(load("upsampler").parameters())))
    mx.save_safetensors(
        str(folder / f"{NAME}-spatial-upscaler-x2-1.0.safetensors"),
        upscaler,
        {"config": json.dumps(CONFIGS["upsampler"])},
    )
    shutil.copytree(WORK / "text_encoder", folder / "text_encoder", dirs_exist_ok=True)
    return file


def official(name: str, weights: Weights) -> Weights:
    """Tensors of a part under Lightricks' names and in PyTorch's layout: what the part's ``sanitize`` undoes."""
    return {
        official_name(name, key): _channels_first(name, key, value)
        for key, value in weights.items()
    }


def official_name(name: str, key: str) -> str:
    part = PARTS[name].network(Source(Path(name), CONFIGS[name]))
    return part.NAMES.official(key)


def _channels_first(name: str, key: str, value: mx.array) -> mx.array:
    if value.ndim < 3:
        return value
    if key.startswith("ups."):  # a transposed convolution: (O, k, I) -> (I, O, k)
        return value.transpose(2, 0, 1)
    return mx.moveaxis(value, -1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--official",
        type=Path,
        metavar="FOLDER",
        help="write Lightricks' layout there instead",
    )
    parser.add_argument(
        "--unpack", action="store_true", help="put the packaged parts into tiny/work"
    )
    options = parser.parse_args()
    if options.unpack:
        print(unpack())
    elif options.official:
        for variant in VARIANTS:
            print(write_official(options.official, variant))
    else:
        pack(PACKAGED)
        size = sum(file.stat().st_size for file in PACKAGED.rglob("*"))
        print(f"{PACKAGED}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
