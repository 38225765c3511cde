"""Bad inputs, made by the thousand from a seed: each one is wrong in a way that its reader must name.

A case says what it is, what its answer must name, and reads itself. ``cases`` deals them out kind by kind; the same seed
and number make the same case again.
"""

import io
import json
import os
import random
import struct
import zlib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

import mlx.core as mx

from mlx_video.cli import BAD_INPUT, BAD_OUTPUT, main
from mlx_video.errors import UserError
from mlx_video.formats import gguf
from mlx_video.formats.quantized import read_dense
from mlx_video.lora import Adapter
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.parts import PARTS
from mlx_video.pictures import read_picture
from mlx_video.pipeline import Request
from mlx_video.recipes import distilled
from mlx_video.record import Job
from mlx_video.types import VideoPixelShape
from mlx_video.weights import INDEX, read
from tests.models.ltx.checkpoint import test_foreign_configs as theirs
from tests.reference import CHECKPOINT

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
    import_module("tests.fuzz_runs")  # more kinds, made with what is here
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


# Configs, records, pictures, command lines


def wrong_for(rng: Random, value: object) -> object:
    """A JSON value that cannot stand where ``value`` does."""
    match value:
        case bool():
            kinds = ["x", 5, [], {}, [None]]
        case int():
            kinds = ["x", "1", [], {}, [None], 10**30, {"a": 1}]
        case float():
            kinds = ["x", "1.0", [], {}, [None]]
        case str():
            kinds = [5, 1.5, [], {}, True, ["x"]]
        case list():
            kinds = ["x", 5, {}, {"a": 1}, True, [[["x"]]]]
        case _:
            kinds = [{"a": 1}, [[1]], [None]]
    return rng.choice(kinds)


@cache
def miniature() -> tuple[dict, dict, int]:
    """The header of the tests' checkpoint, its config, and how many bytes of tensors follow."""
    content = CHECKPOINT.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8:start])
    metadata = tensors.pop("__metadata__")
    return tensors, json.loads(metadata["config"]), len(content) - start


@maker
def config(rng: Random, folder: Path):
    """A value of the config of a checkpoint is of a wrong kind or size, or a key is unknown."""
    tensors, blocks, length = miniature()
    blocks = json.loads(json.dumps(blocks))
    name = rng.choice(["transformer", "connectors", "video_decoder", "vocoder"])
    part = PARTS[name]
    block = blocks[part.block]
    read_fields = {f.name for f in fields(part.kind(Source(folder, block)))}
    keys = sorted(read_fields & block.keys())
    how, key = rng.choice(["kind", "kind", "kind", "unknown", "whole"]), rng.choice(
        keys
    )
    if how == "unknown" and name != "connectors":  # its block is the transformer's
        key = f"no_such_{rng.randrange(99)}"
        block[key] = 1
    elif how == "whole":
        key = blocks[part.block] = junk(rng, dict)
    else:
        block[key] = wrong_for(rng, block[key])
    metadata = {"config": json.dumps(blocks)}
    file = write(
        folder / "a.safetensors", {"__metadata__": metadata, **tensors}, length
    )
    return f"{name}: {key} = {block.get(key) if isinstance(key, str) else key}", folder.name, lambda: Components.open(file, needs=[name])  # fmt: skip


STRUCTURE = {
    "vae": ("block_out_channels", "layers_per_block", "decoder_layers_per_block", "upsample_factor", "downsample_type", "decoder_block_out_channels", "latent_channels", "patch_size"),
    "vocoder": ("hidden_channels", "upsample_factors", "upsample_kernel_sizes", "resnet_kernel_sizes", "resnet_dilations"),
    "audio_vae": ("base_channels", "ch_mult", "num_res_blocks", "latent_channels", "sample_rate", "mel_bins"),
    "transformer": ("num_layers", "num_attention_heads", "cross_attention_dim", "rope_theta", "rope_type"),
    "connectors": ("video_connector_num_layers", "video_connector_num_attention_heads", "connector_rope_base_seq_len"),
}  # fmt: skip
DIFFUSERS_CONFIGS = {
    "transformer": theirs.TRANSFORMER,
    "connectors": theirs.CONNECTORS,
    "vae": theirs.VAE,
    "audio_vae": theirs.AUDIO,
    "vocoder": theirs.VOCODER,
}
PART_OF = {"vae": "video_decoder", "audio_vae": "audio_decoder"}


@maker
def diffusers(rng: Random, folder: Path):
    """A folder of diffusers with a config of wrong values, or one that is no object."""
    home = rng.choice(sorted(STRUCTURE))
    configs = {name: dict(config) for name, config in DIFFUSERS_CONFIGS.items()}
    key, how = rng.choice(STRUCTURE[home]), rng.choice(
        ["kind", "kind", "absent", "text"]
    )
    if how == "absent":
        del configs[home][key]
    elif how == "kind":
        configs[home][key] = wrong_for(rng, configs[home][key])
    for name, values in configs.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(values))
        mx.save_safetensors(str(folder / name / "a.safetensors"), {"x": mx.zeros(1)})
    if how == "text":
        bad = rng.choice(["[1]", "{", "", "null", "5"])
        (folder / home / "config.json").write_text(bad)
    (folder / "model_index.json").write_text("{}")
    needs = [PART_OF.get(home, home)]
    return f"{home}.{key} = {configs[home].get(key)} ({how})", folder.name, lambda: Components.open(folder, needs=needs)  # fmt: skip


@maker
def packs(rng: Random, folder: Path):
    """An MLX pack whose configs are no objects, or lie."""
    bad = rng.choice(["[1]", "{", '{"config": 5}', '{"transformer": {}}', '{"transformer": {"num_layers": "x"}}', '{"transformer": [1]}'])  # fmt: skip
    (folder / "embedded_config.json").write_text(bad)
    (folder / "split_model.json").write_text(rng.choice(["{}", "[", "5"]))
    names = ["transformer.x", "adaln_single.linear.weight", "prompt_adaln_single.x"]
    tensors = {rng.choice(names): mx.zeros(1)}
    mx.save_safetensors(str(folder / "transformer.safetensors"), tensors)
    return bad, folder.name, lambda: Components.open(folder, needs=["transformer"]).check(["transformer"])  # fmt: skip


@cache
def usual_record() -> str:
    shape = VideoPixelShape(9, 64, 64, 24.0)
    return Job(
        Request("a cat", shape), distilled(), Files(model=str(CHECKPOINT))
    ).record()


@maker
def record(rng: Random, folder: Path):
    """A record with a value of a wrong kind, a key that is unknown or missing, or no record at all."""
    data = json.loads(usual_record())
    place, node = ["job"], data["job"]
    while True:
        key = rng.choice(sorted(node) if isinstance(node, dict) else range(len(node)))
        place.append(str(key))
        inner = node[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.8:
            node = inner
            continue
        break
    how = rng.choice(["kind", "kind", "kind", "unknown", "text"])
    text = None
    if how == "unknown" and isinstance(node, dict):
        node[f"no_such_{rng.randrange(99)}"] = 1
    elif how == "text":
        whole = json.dumps(data)
        text = rng.choice([whole[: rng.randrange(len(whole))], "[]", "5", "", '"x"'])
    else:
        node[key] = wrong_for(rng, inner)
    file = folder / "a.json"
    file.write_text(json.dumps(data) if text is None else text)
    told = ".".join(place) if text is None else text[:40]
    # What is of the right kind is judged as what was typed is, without the file's name.
    names = "" if node[key] == 10**30 else folder.name
    return f"{how}: {told} = {str(node[key])[:60]}", names, lambda: Job.from_record(file).check()  # fmt: skip


@maker
def picture(rng: Random, folder: Path):
    """A picture that is cut off, of another format, empty, too large, or no file."""
    file = folder / f"a.{rng.choice(['png', 'jpg', 'webp', 'gif'])}"
    head = {
        "PNG": b"\x89PNG\r\n\x1a\n",
        "JPEG": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n",
        "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "none": b"",
    }
    how = rng.choice([*head, "cut", "huge", "folder", "pipe"])
    if how in head:
        content = head[how] + (
            rng.randbytes(rng.randrange(300)) if how != "none" else b""
        )
        file.write_bytes(content)
    elif how == "folder":
        file.mkdir()
    elif how == "pipe":
        os.mkfifo(file)
    else:
        size = (70_000, 70_000) if how == "huge" else (64, 64)
        raw = png(*size)
        file.write_bytes(
            raw if how == "huge" else raw[: rng.randrange(9, len(raw) - 20)]
        )
    return how, folder.name, lambda: read_picture(file)


def png(width: int, height: int) -> bytes:
    """A grey PNG that says it has this size, and has the rows of one of 64 x 64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(65) * 64, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")  # fmt: skip


WHOLE = ["x", "1e3", "-5", "1.5", "nan", "", "99999999999999999999", "0x10", "--"]
NUMBER = ["x", "nan", "inf", "-inf", "", "1e999", "-1e300", "1,5"]
OPTIONS = {
    "--width": [*WHOLE, "0", "63", "6400000"],
    "--height": [*WHOLE, "0", "63", "6400000"],
    "--num-frames": [*WHOLE, "0", "8", "8000000001"],
    "--seed": ["x", "1.5", "-1", "", "18446744073709551616", "1e3"],
    "--fps": [*NUMBER, "0", "-24", "100000000"],
    "--lora": ["none.safetensors", ".", "", "none.safetensors nan", "a b c"],
    "--image": ["none.png", ".", "", "none.png x", "none.png 0 2 3"],
    "--tiling": ["x", "", "AUTO", "5"],
    "--dtype": ["x", "", "float64", "int8"],
    "--variant": ["x", "", "Dev"],
    "--memory-limit": ["x", "nan", "-1", "", "inf"],
    "--quantize": ["x", "0", "9", "-8", "1.5"],
    "--steps": WHOLE,
    "--cfg-scale": NUMBER,
    "--rescale": [*NUMBER, "99"],
    "--stg-blocks": ["x", "-1", "99", "1.5"],
    "--duration": [*NUMBER, "0", "-5", "601", "Auto"],
    "--keyframes": [*WHOLE, "0", "1", "99"],
    "--dfr": [*WHOLE, "0", "3"],
    "--save-every": ["x", "-1", "nan", ""],
    "--audio-cfg-scale": NUMBER,
    "--stg-scale": NUMBER,
    "--modality-scale": NUMBER,
    "--no-such-option": ["1", "x"],
    "--text-encoder": ["none", "/dev/null", ""],
    "--upsampler": ["none.safetensors", "/dev/null", ""],
    "--distilled-lora": ["none.safetensors", "/dev/null", ""],
}


GUIDED = ("--steps", "--cfg-scale", "--rescale", "--stg-blocks", "--audio-cfg-scale", "--stg-scale", "--modality-scale")  # fmt: skip


@maker
def command(rng: Random, folder: Path):
    """A command line with one value that cannot be meant."""
    option = rng.choice(sorted(OPTIONS))
    value = rng.choice(OPTIONS[option])
    words = ["plan", "--model", str(CHECKPOINT), "-p", "a cat", "--no-audio"]
    size = {"--width": "64", "--height": "64", "--num-frames": "9"}
    for name, usual in size.items():
        words += [] if name == option else [name, usual]
    if option in GUIDED:
        words += ["--variant", "dev"]
    words.append(option)
    words += value.split(" ") if " " in value else [value]
    return " ".join(words[-4:]), "error: ", lambda: typed(words)


def typed(words: list[str]) -> None:
    """Run a command in this process; a refusal is raised as the sentence that it printed."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as end:  # of argparse
            code = end.code
    said = err.getvalue()
    if code in (BAD_INPUT, BAD_OUTPUT):
        raise UserError(said)
    if code:
        raise RuntimeError(said)
