"""Copies of the tiny checkpoint to open, change and break."""

import json
import shutil
import struct
from pathlib import Path
from typing import Callable

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_video.models.ltx.gemma import language_model
from tests.reference import CHECKPOINT, UPSCALER
from tests.tiny_tokenizer import make_text_encoder_folder

MODEL = "ltx-2-tiny.safetensors"


def tiny_folder(folder: Path) -> Path:
    """A folder as a user has it: the single file, its upscaler and Gemma."""
    folder.mkdir(exist_ok=True)
    shutil.copy(CHECKPOINT, folder / MODEL)
    shutil.copy(UPSCALER, folder)
    make_text_encoder_folder(folder / "text_encoder")
    return folder


def wide_gemma(folder: Path, text_only: bool = False) -> Path:
    """Another Gemma in place of the one in ``folder``, random, whose widths groups of 64 divide."""
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"hidden_size": 64, "intermediate_size": 128}
    config["vocab_size"] = config["text_config"]["vocab_size"]  # mlx-lm looks here
    config, prefix = (
        (config["text_config"], "") if text_only else (config, "language_model.")
    )
    model = language_model(config)
    mx.random.seed(0)
    drawn = {
        prefix + name: mx.random.normal(value.shape, scale=0.125)
        for name, value in tree_flatten(model.parameters())
    }
    mx.save_safetensors(str(folder / "model.safetensors"), drawn)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def rewrite(
    file: Path,
    weights: Callable[[dict], None] | None = None,
    config: Callable[[dict], None] = lambda config: None,
    metadata: Callable[[dict], None] = lambda metadata: None,
) -> Path:
    """Change a file's tensors, config or metadata in place; without ``weights`` only its header is written anew."""
    if weights:
        tensors, stated = mx.load(str(file), return_metadata=True)
        mx.eval(tensors)
        weights(tensors)
        mx.save_safetensors(str(file), tensors, stated)
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    stated = header["__metadata__"]
    block = json.loads(stated["config"])
    config(block)
    stated["config"] = json.dumps(block)
    metadata(stated)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[start:])
    return file


def write_raw(
    file: Path,
    tensors: dict[str, tuple[str, list[int], bytes]],
    metadata: dict[str, str] | None = None,
) -> Path:
    """A safetensors file with dtypes that MLX cannot write: name -> (dtype, shape, bytes)."""
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def completed(file: Path, transformer: nn.Module) -> Path:
    """The LoRA in ``file``, in which all other Linears are changed by nothing: a distilled LoRA names all of them."""
    tensors = mx.load(str(file))
    mx.eval(tensors)
    for path, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear):
            rows, columns = layer.weight.shape
            name = transformer.NAMES.official(f"{path}.weight").removesuffix(".weight")
            tensors.setdefault(
                f"diffusion_model.{name}.lora_A.weight", mx.zeros((1, columns))
            )
            tensors.setdefault(
                f"diffusion_model.{name}.lora_B.weight", mx.zeros((rows, 1))
            )
    mx.save_safetensors(str(file), tensors)
    return file


def write_lora(file: Path, *names: str) -> Path:
    """A LoRA of rank 2 that adds 2 to every weight of some layers of 64 by 64."""
    weights = {}
    for name in names:
        weights[f"{name}.lora_A.weight"] = mx.ones((2, 64))
        weights[f"{name}.lora_B.weight"] = mx.ones((64, 2))
    mx.save_safetensors(str(file), weights)
    return file
