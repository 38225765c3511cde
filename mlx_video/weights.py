"""Reads, loads and saves the tensors of checkpoint files, lazily: unused ones are never read. Knows names, not networks."""

import json
from errno import EIO
from pathlib import Path
from typing import Iterable, Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_video.disk import GB, folder_aside, read_small
from mlx_video.errors import MissingFileError, UserError, clip
from mlx_video.formats import gguf, safetensors
from mlx_video.formats.safetensors import TYPES, Header, json_object
from mlx_video.formats.sniff import GGUF, sniff

Weights = dict[str, mx.array]

SHARD_BYTES = 5 * GB
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SAVED = (CONFIG, INDEX, "*.safetensors")  # patterns of what ``save_folder`` writes
LONGEST_JSON = 100 * 10**6  # bytes

LONGEST = 240  # characters of the list of problems in a message

# Kept in the stored precision: the official code adds these float32 rows to activations before rounding.
KEPT_PRECISION = "scale_shift_table"


# Reading


def read(path: Path) -> tuple[Weights, dict[str, str]]:
    """Lazy tensors and metadata of a file or a folder of shards; GGUF tensors become dense float32.

    Raises ``UserError`` if a file is missing, damaged or of another format.
    """
    weights, metadata, home = {}, {}, {}
    for file in tensor_files(path):
        header = read_header(file)
        metadata |= header.metadata
        if twice := header.tensors.keys() & home.keys():
            raise UserError(
                f"{path} holds {some(sorted(twice))} twice, in {home[min(twice)].name} and in {file.name}: keep one set "
                "of files there."
            )
        home |= dict.fromkeys(header.tensors, file)
        try:
            weights |= gguf.read(file) if sniff(file) == GGUF else mx.load(str(file))
        except RuntimeError:
            raise UserError(f"{file} cannot be read by MLX. Fetch it again.") from None
    return weights, metadata


def read_header(file: Path) -> Header:
    """The header of a safetensors or GGUF file, fully checked: its tensors and metadata."""
    return (gguf if sniff(file) == GGUF else safetensors).read_header(file)


def stored_types(path: Path) -> dict[str, str]:
    """Tensor name -> type as the file states it ("F8_E4M3"), some of which MLX does not distinguish."""
    return {name: entry["dtype"] for name, entry in _entries(path).items()}


def outline(path: Path) -> Weights:
    """Placeholders with the names, shapes and types of ``read``, from headers alone; floating ones are NaN."""

    def placeholder(entry: Mapping) -> mx.array:
        dtype = TYPES.get(entry["dtype"], mx.float32)  # GGUF's packed types
        nothing = float("nan") if mx.issubdtype(dtype, mx.floating) else 0
        return mx.full(entry["shape"], nothing, dtype)

    return {name: placeholder(entry) for name, entry in _entries(path).items()}


def _entries(path: Path) -> dict[str, dict]:
    """Tensor name -> its entry in the header, in all files of ``path``."""
    headers = map(read_header, tensor_files(path))
    return {name: entry for found in headers for name, entry in found.tensors.items()}


def read_config(path: Path) -> dict:
    """A folder's ``config.json``, or a file's ``config`` metadata; empty if there is none."""
    path = Path(path)
    if path.is_dir():
        return read_json(path / CONFIG)
    text = read_header(path).metadata.get("config", "{}")
    return json_object(text, f"The config inside {path}")


def tensor_files(path: Path) -> list[Path]:
    """``path`` itself if it is a file; in a folder, the shards that its index names, else every safetensors file."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    if (path / INDEX).is_file():
        shards = shard_names(path / INDEX)
        if absent := [name for name in shards if not (path / name).is_file()]:
            raise MissingFileError(
                f"{path} lacks {some(absent)}, named in its {INDEX}: the download did not finish. Fetch it again."
            )
        return [path / name for name in shards]
    if found := sorted(path.glob("*.safetensors")):
        return found
    raise MissingFileError(f"There is no safetensors file in {path}.")


def shard_names(index: Path) -> list[str]:
    """The distinct files that an index names; raises ``UserError`` unless they are safetensors files beside it."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise UserError(
            f"{index} is damaged: its weight_map is not a table of tensors and files. Fetch it again."
        )
    for name in found.values():
        plain = isinstance(name, str) and not {"/", "\\"}.intersection(name)
        if not plain or not name.endswith(".safetensors"):
            raise UserError(
                f"{index} names {clip(name)} as a shard; a shard is a safetensors file beside it, such as "
                "model-00001-of-00002.safetensors."
            )
    return sorted(set(found.values()))


def read_json(file: Path) -> dict:
    """The JSON object in ``file``; empty if there is no file. Raises ``UserError`` if it holds anything else."""
    if not file.is_file():
        return {}
    return json_object(read_small(file, LONGEST_JSON), str(file))


def some(names: Iterable[str], most: int = 4) -> str:
    """The first few names, and how many more there are, for a message."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(clip(name) for name in names[:most]) + rest


# Loading


def load_into(
    module: nn.Module,
    weights: Weights,
    *,
    dtype: mx.Dtype | None = None,
    mode: str = "affine",
    source: str | Path = "The checkpoint",
) -> None:
    """Load ``weights`` (under our names) into ``module``: exactly those that it has.

    A linear layer is quantized if the weights hold its ``.scales``. Floating tensors become ``dtype``, except the
    ``scale_shift_table`` rows; ``None`` keeps every dtype. Raises ``UserError`` naming what in ``source`` does not fit.
    """
    if any(key.endswith(".scales") for key in weights):
        _quantize_like(module, weights, mode, source)
    expected = dict(tree_flatten(module.parameters()))
    if problems := _problems(expected, weights):
        raise UserError(
            f"{source} does not fit {type(module).__name__}: {clip('; '.join(problems), LONGEST)}."
        )
    fitting = [(k, _cast(k, v, dtype)) for k, v in weights.items()]
    module.load_weights(fitting, strict=False)  # checked above


def materialize(module: nn.Module, batch_bytes: int = GB // 4) -> None:
    """Evaluate all parameters of ``module``, in batches to limit temporary copies."""
    weights = dict(tree_flatten(module.parameters()))
    for keys in _batches(weights, batch_bytes):
        mx.eval([weights[key] for key in keys])


def _cast(key: str, value: mx.array, dtype: mx.Dtype | None) -> mx.array:
    keep = dtype is None or KEPT_PRECISION in key or not _is_float(value)
    return value if keep else value.astype(dtype)


def _is_float(value: mx.array) -> bool:
    return mx.issubdtype(value.dtype, mx.floating)


def _quantize_like(module: nn.Module, weights: Weights, mode: str, source: str) -> None:
    """Quantize the layers for which ``weights`` holds ``.scales``, with bits and group size from the shapes."""

    def layout(path: str, layer: nn.Module) -> bool | dict:
        packed, scales = weights.get(f"{path}.weight"), weights.get(f"{path}.scales")
        if packed is None or scales is None or not hasattr(layer, "to_quantized"):
            return False
        width = layer.weight.shape[-1]
        bits, group_size = 32 * packed.shape[-1] // width, width // scales.shape[-1]
        return {"bits": bits, "group_size": group_size, "mode": mode}

    try:
        nn.quantize(module, class_predicate=layout)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{source} is quantized in a way MLX cannot read: {error}"
        ) from None


def _problems(expected: Weights, given: Weights) -> list[str]:
    common = expected.keys() & given.keys()
    kinds = {
        "missing": [key for key in expected if key not in given],
        "unexpected": [key for key in given if key not in expected],
        "of the wrong shape": [
            f"{key} {given[key].shape} instead of {expected[key].shape}"
            for key in sorted(common)
            if given[key].shape != expected[key].shape
        ],
        "of the wrong type": [
            f"{key} {given[key].dtype}"
            for key in sorted(common)
            if _is_float(given[key]) != _is_float(expected[key])
        ],
    }
    return [
        f"{len(names)} {kind} ({some(names)})" for kind, names in kinds.items() if names
    ]


# Saving


def save_folder(folder: Path, weights: Weights, config: Mapping[str, object]) -> None:
    """Write ``weights`` and ``config`` as a folder of shards with an index, or nothing. Empties ``weights``, to free them."""
    with folder_aside(Path(folder)) as scratch:
        shards, home = _batches(weights, SHARD_BYTES), {}
        size = sum(value.nbytes for value in weights.values())
        for number, keys in enumerate(shards, start=1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            shard = {key: weights.pop(key) for key in keys}
            write_tensors(scratch / name, shard, {"format": "mlx"})
            home |= dict.fromkeys(keys, name)
        index = {"metadata": {"total_size": size}, "weight_map": home}
        write_json(scratch / INDEX, index)
        write_json(scratch / CONFIG, config)


def _batches(weights: Weights, most: int) -> list[list[str]]:
    """Names in order, split so that no batch exceeds ``most`` bytes unless one tensor does."""
    batches, size = [[]], 0
    for key, value in weights.items():
        size += value.nbytes
        if size > most and batches[-1]:
            batches.append([])
            size = value.nbytes
        batches[-1].append(key)
    return batches


def write_tensors(file: Path, tensors: Weights, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file. Raises ``OSError``, which ``file_errors`` turns into a sentence."""
    try:
        mx.save_safetensors(str(file), tensors, dict(metadata))
    except RuntimeError:  # MLX says no more
        raise OSError(
            EIO, "the disk is full, or a file that it is made from cannot be read"
        ) from None


def write_json(file: Path, data: Mapping[str, object]) -> None:
    """Write ``data``, indented. Raises ``OSError`` as ``write_tensors`` does."""
    file.write_text(json.dumps(data, indent=2) + "\n")
