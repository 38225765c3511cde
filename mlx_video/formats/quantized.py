"""Makes tensors dense that other tools quantized: fp8, int8 with or without rotation, nvfp4.

Knows tensors, their types and their notes, not networks. A tensor is read and made dense when it is evaluated.
"""

from functools import cache
from pathlib import Path
from typing import Mapping

import mlx.core as mx
import numpy as np

from mlx_video.errors import UserError, clip
from mlx_video.formats.gguf import PACKED
from mlx_video.formats.safetensors import json_object
from mlx_video.weights import Weights, read, stored_types

NOTE = ".comfy_quant"  # beside a layer's weight: JSON as bytes
NOTES = "_quantization_metadata"  # in a file's metadata: the same for all layers
FP8, INT8, NVFP4 = "float8_e4m3fn", "int8_tensorwise", "nvfp4"  # as notes call them
# Tensors that accompany a quantized one. Input scales are for arithmetic that MLX lacks.
COMPANIONS = (
    ".weight_scale",
    ".weight_scale_2",
    ".scale_weight",
    ".input_scale",
    ".scale_input",
    "scaled_fp8",  # marks a whole file of older ComfyUI
    NOTE,
)
Notes = dict[str, dict]

ROTATION_GROUP = 256  # columns, unless a note says otherwise
HADAMARD_4 = ((1, 1, 1, -1), (1, 1, -1, 1), (1, -1, 1, 1), (-1, 1, 1, 1))
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # fp4, and their negatives
FP4_BLOCK = 16  # columns that share a scale
TILE_ROWS, TILE_COLUMNS = 128, 4  # of a tile of nvfp4's scales


def read_dense(
    path: Path, dtype: mx.Dtype = mx.bfloat16
) -> tuple[Weights, dict[str, str]]:
    """As ``weights.read``, with tensors that another tool quantized made dense, in ``dtype``.

    MLX's own quantization stays as it is. Raises ``UserError`` for an unsupported format.
    """
    (weights, metadata), types = read(path), stored_types(path)
    notes = read_notes(weights, metadata, str(path))
    found = {}
    for key, value in weights.items():
        if key.endswith(COMPANIONS):
            continue
        if kind := _kind(key, types, notes):
            try:
                value = _decoded(key, weights, kind, notes).astype(dtype)
            except ValueError as error:
                raise UserError(f"{path}: {clip(key)} {error}.") from None
        found[key] = value
    return found, metadata


def quantized_as(path: Path) -> list[str]:
    """The format of each tensor in ``path`` that another tool quantized. Raises ``UserError`` for an unsupported one."""
    types = stored_types(path)
    notes = {}
    if PACKED.isdisjoint(types.values()):  # reading a GGUF file copies it
        notes = read_notes(*read(path), str(path))
    own = (key for key in types if not key.endswith(COMPANIONS))
    return [kind for key in own if (kind := _kind(key, types, notes))]


def read_notes(weights: Weights, metadata: Mapping[str, str], source: str) -> Notes:
    """Weight -> how ComfyUI quantized it, {"format": ..., ...}, for those with a note.

    Raises ``UserError`` for an unsupported format.
    """
    marks = {key: value for key, value in weights.items() if key.endswith(NOTE)}
    mx.eval(list(marks.values()))
    listed = json_object(metadata.get(NOTES, "{}"), f"The {NOTES} in {source}")
    layers = listed.get("layers", {})
    if not isinstance(layers, dict):
        raise UserError(f"The {NOTES} in {source} is not a table of layers.")
    notes = dict(layers)
    for key, mark in marks.items():
        text = np.array(mark).tobytes()
        notes[key.removesuffix(NOTE)] = json_object(text, f"{source}: {clip(key)}")
    for layer, note in notes.items():
        name = note.get("format") if isinstance(note, dict) else note
        if name not in (FP8, INT8, NVFP4):
            raise UserError(
                f"{source} is quantized as {clip(name, 40)}, as {clip(layer)} says, which this version does not read; use a "
                "file in bf16, fp8, int8 (ConvRot), nvfp4 or GGUF."
            )
    return {f"{layer}.weight": note for layer, note in notes.items()}


def dense_fp8(codes: mx.array, scale: mx.array | None = None) -> mx.array:
    """E4M3 bytes times a scale (one, or one per row), as float32."""
    values = mx.from_fp8(codes, mx.float32)
    return values if scale is None else values * _by_row(scale, codes)


def dense_int8(
    codes: mx.array, scale: mx.array, rotated: int | None = None
) -> mx.array:
    """Integers (rows, columns) times a scale (one, or one per row), as float32.

    rotated  columns per group that a Hadamard matrix rotated before quantizing; the matrix is its own inverse
    """
    values = codes.astype(mx.float32) * _by_row(scale, codes)
    if rotated is None:
        return values
    if codes.ndim != 2 or codes.shape[1] % rotated:
        raise ValueError(
            f"of shape {codes.shape} is not made of groups of {rotated} columns"
        )
    return (mx.unflatten(values, 1, (-1, rotated)) @ hadamard(rotated)).flatten(1)


def dense_nvfp4(codes: mx.array, scales: mx.array, scale: mx.array) -> mx.array:
    """Pairs of E2M1 (rows, columns / 2), high half first, times an E4M3 scale per 16 columns and ``scale``, as float32.

    ``scales`` are in cuBLAS's tiles, with rows padded to 128 and columns to 4.
    """
    codes = mx.stack([codes >> 4, codes & 15], axis=-1).flatten(1)
    table = mx.array([*E2M1, *(-value for value in E2M1)])
    rows, blocks = codes.shape[0], codes.shape[1] // FP4_BLOCK
    scales = mx.from_fp8(_untiled(scales, rows, blocks), mx.float32) * scale
    values = mx.unflatten(table[codes], 1, (blocks, FP4_BLOCK))
    return (values * scales[..., None]).flatten(1)


@cache
def hadamard(size: int) -> mx.array:
    """The regular Hadamard matrix of ``size``, a power of 4, with rows of length 1; it is symmetric."""
    four, matrix = mx.array(HADAMARD_4, mx.float32) / 2, mx.ones((1, 1))
    while matrix.shape[0] < size:
        matrix = mx.kron(matrix, four)
    if matrix.shape[0] != size:
        raise ValueError(
            f"is rotated in groups of {size} columns, which is not a power of 4"
        )
    return matrix


def _kind(key: str, types: Mapping[str, str], notes: Notes) -> str | None:
    """How another tool quantized a tensor; ``None`` = it did not. ``types`` are the stored types of all tensors."""
    stored = types[key]
    if stored in PACKED:
        return stored
    if f"{key}_scale_2" in types:
        return NVFP4
    # MLX saves fp8 as U8.
    if stored == "F8_E4M3" or (stored == "U8" and f"{key}_scale" in types):
        return FP8
    if stored == "I8" and key.endswith(".weight"):
        return INT8
    return notes.get(key, {}).get("format")


def _decoded(key: str, weights: Weights, kind: str, notes: Notes) -> mx.array:
    codes, scale = weights[key], weights.get(f"{key}_scale")
    if kind in PACKED:
        return codes  # unpacked when it was read
    if scale is None:
        scale = weights.get(f"{key.removesuffix('.weight')}.scale_weight")
    if kind == FP8:
        return dense_fp8(codes, scale)
    if scale is None:
        raise ValueError(f"is quantized as {kind} and lacks its scale")
    if kind == INT8:
        return dense_int8(codes, scale, _rotation(notes.get(key, {})))
    if (of_all := weights.get(f"{key}_scale_2")) is None:
        raise ValueError("is quantized as nvfp4 and lacks its second scale")
    return dense_nvfp4(codes, scale, of_all)


def _rotation(note: dict) -> int | None:
    if not note.get("convrot"):
        return None
    size = note.get("convrot_groupsize", ROTATION_GROUP)
    if type(size) is not int or not 4 <= size <= 4**8:
        raise ValueError(f"is rotated in groups of {clip(size, 30)} columns")
    return size


def _by_row(scale: mx.array, codes: mx.array) -> mx.array:
    """``scale`` (one, or one per row of ``codes``) in a shape that broadcasts to ``codes``."""
    if scale.size not in (1, codes.shape[0] if codes.ndim else 1):
        raise ValueError(
            f"of shape {codes.shape} does not match its scale of shape {scale.shape}"
        )
    scale = scale.astype(mx.float32)
    return scale.reshape(-1, *[1] * (codes.ndim - 1)) if codes.ndim else scale


def _untiled(scales: mx.array, rows: int, blocks: int) -> mx.array:
    """nvfp4's scales as (rows, blocks): in each tile, row 32 i + j of 4 columns is the i-th quarter of line j."""
    down, across = -(-rows // TILE_ROWS), -(-blocks // TILE_COLUMNS)
    if scales.shape == (rows, blocks) and scales.size < down * across * 512:
        return scales  # not padded, so not in tiles
    if scales.size != down * across * TILE_ROWS * TILE_COLUMNS:
        raise ValueError(
            f"of {rows} rows and {blocks} blocks does not match its scales of shape {scales.shape}"
        )
    tiles = scales.reshape(down, across, 32, 4, TILE_COLUMNS)
    tiles = tiles.transpose(0, 3, 2, 1, 4)  # (down, quarter, line, across, column)
    return tiles.reshape(down * TILE_ROWS, -1)[:rows, :blocks]
