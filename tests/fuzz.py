"""Bad inputs, made by the thousand from a seed: each one is wrong in a way that its reader must name.

A case says what it is, what its answer must name, and reads itself. ``cases`` deals them out kind by kind; the same seed
and number make the same case again.
"""

import json
import os
import random
import struct
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

import mlx.core as mx

from mlx_video.formats import gguf
from mlx_video.formats.quantized import read_dense
from mlx_video.lora import Adapter
from mlx_video.weights import INDEX, read

Random = random.Random


class Case(NamedTuple):
    """One bad input: ``read`` must raise a ``UserError`` that holds ``names``."""

    title: str
    names: str
    read: Callable[[], object]


Maker = Callable[[Random, Path], tuple[str, str, Callable[[], object]]]
MAKERS: list[Maker] = []


def maker(function: Maker) -> Maker:
    MAKERS.append(function)
    return function


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    """``count`` bad inputs of ``seed``, of each kind in turn, their files below ``folder``."""
    for number in range(count):
        make = MAKERS[number % len(MAKERS)]
        home = folder / str(number)
        home.mkdir()
        title, names, read = make(Random(f"{seed}:{number}"), home)
        yield Case(f"{seed}:{number} {make.__name__}: {title}", names, read)


JUNK = [None, True, 1.5, -1, "x", "", [], {}, [None], ["1"], {"a": 1}, [[1]], 10**30]


def junk(rng: Random, *good: type) -> object:
    """A JSON value of none of the kinds that would be ``good``."""
    return rng.choice([value for value in JUNK if type(value) not in good])


# safetensors


def entries() -> dict[str, dict]:
    return {
        "one": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "two": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }


def write(file: Path, header: object, length: int = 32) -> Path:
    """A safetensors file of this header, an object or its text, over ``length`` bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(file, 8 + len(text) + length)
    return file


@maker
def entry(rng: Random, folder: Path):
    """A field of a tensor's entry is of a wrong kind, absent, or another size."""
    header, name = entries(), rng.choice(["one", "two"])
    field = rng.choice(["dtype", "shape", "data_offsets", "all"])
    bad = {
        "dtype": lambda: rng.choice([junk(rng, str), "F7", "F8_E5M2", "f32", ""]),
        "shape": lambda: rng.choice([junk(rng, list), [2], ["2", 3], [-2, -3], [2.0, 3], [10**20], [[2], 3], [True, 6]]),  # fmt: skip
        "data_offsets": lambda: rng.choice([junk(rng, list), [0], [32, 8], ["0", "24"], [None, 8], [0, 24, 24], [-24, 0], [0, 10**40], [8, 40]]),  # fmt: skip
    }
    if field == "all":
        header[name] = junk(rng)
    elif rng.random() < 0.2:
        del header[name][field]
    else:
        header[name][field] = bad[field]()
    file = write(folder / "a.safetensors", header)
    return f"{name}.{field} = {header[name]}", str(file), lambda: read(file)


@maker
def header_text(rng: Random, folder: Path):
    """The text of a header is cut, nested, doubled or no text."""
    text = json.dumps(entries() | {"__metadata__": {"format": "pt"}}).encode()
    depth = rng.randrange(2_000, 200_000)
    changes = {
        "cut": lambda: text[: rng.randrange(1, len(text))],
        "deep": lambda: b'{"a":' + b"[" * depth + b"]" * depth + b"}",
        "twice": lambda: text[:-1] + b"," + text[1:],
        "no text": lambda: text.replace(b"one", bytes([rng.randrange(128, 256)]) * 3),
        "a list": lambda: b"[" + text + b"]",
        "digits": lambda: text.replace(b"24]", b"9" * rng.randrange(5000, 9000) + b"]"),
        "metadata": lambda: json.dumps(entries() | {"__metadata__": rng.choice([junk(rng, dict, type(None)), {"a": junk(rng, str)}])}).encode(),  # fmt: skip
    }
    how = rng.choice(sorted(changes))
    file = write(folder / "a.safetensors", changes[how]())
    return how, str(file), lambda: read(file)


@maker
def size(rng: Random, folder: Path):
    """The file is longer or shorter than its header says, or the header's length is a lie."""
    file = folder / "a.safetensors"
    if rng.random() < 0.5:
        length = rng.choice([0, 1, 31, 33, 64, rng.randrange(10**6)])
        write(file, entries(), 33 if length == 32 else length)
        return f"{length} bytes", str(file), lambda: read(file)
    raw = write(file, entries()).read_bytes()
    length = rng.choice([0, 1, len(raw), 2**31, 2**63, 2**64 - 1, rng.getrandbits(64)])
    file.write_bytes(struct.pack("<Q", length) + raw[8:])
    return f"a header of {length}", str(file), lambda: read(file)


@maker
def beginning(rng: Random, folder: Path):
    """Another file under the name of a checkpoint."""
    begins = [
        b"",
        b"\0",
        b"<!doctype html>",
        b"version https://git-lfs.github.com/spec/v1",
    ]
    begins += [b"PK\x03\x04", b"\x80\x04\x95", b"%PDF", b"\x89PNG", b"abc", rng.randbytes(7)]  # fmt: skip
    content = rng.choice(begins) + bytes(rng.randrange(100))
    file = folder / "a.safetensors"
    file.write_bytes(content)
    return repr(content[:20]), str(file), lambda: read(file)


@maker
def index(rng: Random, folder: Path):
    """An index that is no table of plain files beside it."""
    file = folder / INDEX
    names = ["/etc/passwd", "../../x.safetensors", "a/b.safetensors", ".", "x.bin"]
    names += ["..", "\\\\host\\x.safetensors", "\0.safetensors", "none.safetensors"]
    found = rng.choice(
        [
            junk(rng, dict),
            {},
            {"weight_map": junk(rng, dict)},
            {"weight_map": {"a": rng.choice([*names, junk(rng, str)])}},
            b"{" * rng.randrange(1, 200_000),
            b"\xff\xfe",
        ]
    )
    file.write_bytes(found if isinstance(found, bytes) else json.dumps(found).encode())
    return str(found)[:80], str(folder), lambda: read(folder)


# Quantized files, GGUF, LoRAs


@maker
def quantized(rng: Random, folder: Path):
    """A quantized tensor whose note, scale or shape is wrong."""
    note = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16}
    scale, weight = mx.ones((4, 1)), mx.zeros((4, 32), mx.int8)
    how = rng.choice(["note", "format", "group", "scale", "no scale", "metadata"])
    if how == "note":
        note = junk(rng)
    elif how == "format":
        note["format"] = rng.choice([junk(rng), "mxfp8", "awq_w4a16", "int9"])
    elif how == "group":
        sizes = [0, -16, 8, 64, 1.5, "16", None, 10**20, [16]]
        note["convrot_groupsize"] = rng.choice(sizes)
    elif how == "scale":
        scale = mx.ones(rng.choice([(2,), (3, 1), (5, 5), (0,)]))
    elif how == "no scale":
        scale = None
    text = json.dumps(note).encode()
    tensors = {"a.weight": weight, "a.comfy_quant": mx.array(list(text), mx.uint8)}
    tensors |= {} if scale is None else {"a.weight_scale": scale}
    metadata = {}
    if how == "metadata":
        metadata = {"_quantization_metadata": rng.choice(["[", "[1]", '{"layers": 1}', '{"layers": {"a": 1}}'])}  # fmt: skip
        del tensors["a.comfy_quant"]
    file = folder / "a.safetensors"
    mx.save_safetensors(str(file), tensors, metadata)
    return f"{how}: {note}", str(file), lambda: read_dense(file)


@maker
def packed(rng: Random, folder: Path):
    """A GGUF file with a header that is cut, or says what cannot be."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    kind = rng.choice([0, 8, 12, 14])
    axes = rng.choice([[256], [32, 8], [256, 1, 4]])
    offset = 0
    change = rng.choice(["kind", "axes", "axis", "offset", "cut", "value", "counts"])
    value = struct.pack("<II", 4, 32)
    counts = [1, 1]
    if change == "kind":
        kind = rng.choice([4, 5, 9, 16, 40, 2**31])
    elif change == "axes":
        axes = [1] * rng.randrange(9, 40)
    elif change == "axis":
        axes = [rng.choice([255, 2**31, 2**62, 2**64 - 1]), 2**33]
    elif change == "offset":
        offset = rng.choice([10**6, 2**63, 2**64 - 1])
    elif change == "value":
        value = struct.pack("<II", rng.choice([9, 13, 99]), 2**31) * 2
    elif change == "counts":
        counts[rng.randrange(2)] = rng.choice([2, 1000, 2**63])
    raw = struct.pack("<4sIQQ", b"GGUF", 3, *counts)
    raw += text(b"general.alignment") + value
    raw += text(b"a") + struct.pack(f"<I{len(axes)}Q", len(axes), *axes)
    raw += struct.pack("<IQ", kind, offset)
    if change == "cut":
        raw = raw[: rng.randrange(4, len(raw))]
    file = folder / "a.gguf"
    file.write_bytes(raw)
    return f"{change}: {kind} {axes} {offset}", str(file), lambda: gguf.read(file)


@maker
def lora(rng: Random, folder: Path):
    """A LoRA that is half, of numbers that are none, or of a kind that is not applied."""
    name = "diffusion_model.transformer_blocks.0.attn1.to_q"
    tensors = {
        f"{name}.lora_A.weight": mx.ones((2, 8)),
        f"{name}.lora_B.weight": mx.ones((8, 2)),
    }
    which, metadata = f"{name}.lora_{rng.choice('AB')}.weight", {}
    how = rng.choice(["half", "whole", "axes", "more", "alpha", "twice", "config"])
    if how == "half":
        del tensors[which]
    elif how == "whole":
        kinds = [mx.int8, mx.uint8, mx.int32, mx.bool_, mx.uint32]
        tensors[which] = tensors[which].astype(rng.choice(kinds))
    elif how == "axes":
        tensors[which] = mx.ones(rng.choice([(), (2,), (2, 8, 1), (1, 2, 8, 1)]))
    elif how == "more":
        ends = ["oft_blocks", "lora_mid.weight", "hada_w1_a", "lokr_w1", "diff"]
        tensors[f"{name}.{rng.choice([*ends, 'weight', 'x'])}"] = mx.ones((2, 2))
    elif how == "alpha":
        tensors[f"{name}.alpha"] = mx.ones(rng.choice([(2,), (0,), (2, 2)]))
    elif how == "twice":
        tensors[f"{name}.lora_down.weight"] = mx.ones((2, 8))
        tensors[f"{name}.lora_up.weight"] = mx.ones((8, 2))
    else:
        metadata = {"lora_adapter_metadata": rng.choice(["{", "[1]", "1", '"x"'])}
    file = folder / "a.safetensors"
    mx.save_safetensors(str(file), tensors, metadata)
    return how, str(file), lambda: Adapter.read(file)
