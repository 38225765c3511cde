"""GGUF files: every packing beside the numbers of the `gguf` package, and headers that lie."""

import struct

import mlx.core as mx
import numpy as np
import pytest

from mlx_video import weights
from mlx_video.errors import UserError
from mlx_video.formats import gguf as ours
from mlx_video.formats.gguf import KINDS, PACKINGS, read, read_header
from mlx_video.formats.quantized import read_dense
from mlx_video.formats.sniff import sniff

gguf = pytest.importorskip("gguf")
rng = np.random.default_rng(0)


@pytest.mark.parametrize("number, name", KINDS.items(), ids=KINDS.values())
def test_unpacks_as_ggml_does(number, name):
    kind = gguf.GGMLQuantizationType(number)
    assert kind.name == name
    assert gguf.GGML_QUANT_SIZES[kind] == PACKINGS[name][1:3]
    raw = rng.integers(0, 256, (50, PACKINGS[name].bytes)).astype(np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = gguf.quants.dequantize(raw, kind)
    found = PACKINGS[name].unpack(mx.array(raw)).astype(mx.float32)
    finite = np.isfinite(expected)
    assert finite.mean() > 0.5
    np.testing.assert_allclose(
        np.array(found)[finite], expected[finite], rtol=1e-6, atol=0
    )


def write(file, kind="Q8_0", arch="ltxv", shape=(4, 64), **values):
    """A file of two tensors that the package wrote: "a", packed, and "b", float32."""
    writer = gguf.GGUFWriter(str(file), arch)
    for key, value in values.items():
        add = writer.add_string if isinstance(value, str) else writer.add_array
        add(key.replace("__", "."), value)
    true = rng.standard_normal(shape).astype(np.float32)
    number = gguf.GGMLQuantizationType[kind]
    writer.add_tensor("a", gguf.quants.quantize(true, number), raw_dtype=number)
    writer.add_tensor("b", np.arange(6, dtype=np.float32).reshape(1, 6))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return true


@pytest.mark.parametrize("kind, error", [("Q8_0", 0.02), ("Q4_0", 0.4), ("BF16", 0.02)])
def test_reads_a_file_that_the_package_wrote(tmp_path, kind, error):
    file = tmp_path / "model.gguf"
    values = {"model_version": "2.5.0", "comfy__gguf__orig_shape__b": [2, 3]}
    true = write(file, kind, **values)
    assert sniff(file) == "GGUF file"
    tensors, metadata = weights.read(file)
    assert metadata["general.architecture"] == "ltxv"
    assert metadata["model_version"] == "2.5.0"
    assert tensors["a"].shape == (4, 64) and tensors["b"].shape == (2, 3)
    assert np.abs(np.array(tensors["a"].astype(mx.float32)) - true).max() < error
    assert tensors["b"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert weights.stored_types(file) == {"a": kind, "b": "F32"}
    dense, _ = read_dense(file, mx.bfloat16)
    assert dense["a"].dtype == mx.bfloat16 and dense["b"].dtype == mx.float32
    assert mx.array_equal(dense["a"], tensors["a"].astype(mx.bfloat16))


def raw(version=3, tensors=0, values=0, rest=b"") -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, values) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(name=b"a", axes=(32,), kind=8, offset=0) -> bytes:
    dims = struct.pack(f"<I{len(axes)}Q", len(axes), *axes)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def value(key: bytes, *numbers: float, letters: str) -> bytes:
    return text(key) + struct.pack(f"<{letters}", *numbers)


ALIGNMENT, SHAPE = b"general.alignment", b"comfy.gguf.orig_shape.a"
ALIGN = "general.alignment must be a number above 0; got "
NO_SHAPE = "tensor a cannot have the shape "
EARLY = "it ends too early, after its first bytes"
HOSTILE = {
    "only magic": (b"GGUF", EARLY),
    "absent values": (raw(values=2**60), EARLY),
    "absent tensors": (
        raw(tensors=2**60),
        EARLY,
    ),
    "an endless name": (
        raw(values=1, rest=struct.pack("<Q", 2**63)),
        EARLY,
    ),
    "an unknown value": (
        raw(values=1, rest=value(b"k", 99, letters="I")),
        "value k is of unknown kind 99",
    ),
    "an endless list": (
        raw(values=1, rest=value(b"k", 9, 4, 2**61, letters="IIQ")),
        "it ends too early, after value k",
    ),
    "an endless list of texts": (
        raw(values=1, rest=value(b"k", 9, 8, 2**61, letters="IIQ")),
        "it ends too early, after value k",
    ),
    "a list of lists": (
        raw(values=1, rest=value(b"k", 9, 9, 0, letters="IIQ")),
        "value k is of unknown kind 9",
    ),
    "endless axes": (
        raw(tensors=1, rest=text(b"a") + struct.pack("<I32Q", 2**31, *[1] * 32)),
        "it ends too early, after tensor a",
    ),
    "twice": (
        raw(tensors=2, rest=tensor() * 2),
        "tensor a is listed twice",
    ),
    "half a block": (raw(tensors=1, rest=tensor(axes=(16,))), f"{NO_SHAPE}[16]"),
    "an absurd axis": (
        raw(tensors=1, rest=tensor(axes=(2**40,))),
        f"{NO_SHAPE}[{2**40}]",
    ),
    "cut off": (
        raw(tensors=1, rest=tensor()),
        "tensor a ends 41 bytes beyond the file",
    ),
    "beyond the file": (
        raw(tensors=1, rest=tensor(offset=2**63) + bytes(99)),
        "tensor a ends 9,223,372,036,854,775,750 bytes beyond the file",
    ),
    "an alignment of 0": (
        raw(values=1, rest=value(ALIGNMENT, 4, 0, letters="II")),
        f"{ALIGN}0",
    ),
    "an alignment of 32.0": (
        raw(values=1, rest=value(ALIGNMENT, 6, 32.0, letters="If")),
        f"{ALIGN}32.0",
    ),
    "an alignment that is a list": (
        raw(values=1, rest=value(ALIGNMENT, 9, 4, 0, letters="IIQ")),
        f"{ALIGN}[]",
    ),
    "another original shape": (
        raw(
            tensors=1,
            values=1,
            rest=value(SHAPE, 9, 5, 1, 7, letters="IIQi") + tensor(),
        ),
        f"{NO_SHAPE}[7]",
    ),
    "an original shape below 0": (
        raw(
            tensors=1,
            values=1,
            rest=value(SHAPE, 9, 5, 2, -4, -8, letters="IIQii") + tensor() + bytes(99),
        ),
        f"{NO_SHAPE}[-4, -8]",
    ),
    "an original shape that is a number": (
        raw(tensors=1, values=1, rest=value(SHAPE, 4, 32, letters="II") + tensor()),
        f"{NO_SHAPE}32",
    ),
}


@pytest.mark.parametrize("content, fault", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_refused_by_what_is_wrong_in_it(tmp_path, content, fault):
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(file)
    told = f"{file} is cut off or damaged: its table of contents does not describe its"
    assert str(caught.value).startswith(told)
    assert str(caught.value).endswith(f"bytes ({fault}). Fetch it again.")


@pytest.mark.parametrize("version", [1, 9])
def test_another_version_is_named(tmp_path, version):
    file = tmp_path / "model.gguf"
    file.write_bytes(raw(version))
    with pytest.raises(UserError, match=f"{file} is a GGUF file of version {version};"):
        read(file)


@pytest.mark.parametrize("kind, name", [(16, "IQ2_XXS"), (99, "kind 99")])
def test_other_packings_are_refused_by_name(tmp_path, kind, name):
    file = tmp_path / "model.gguf"
    file.write_bytes(raw(tensors=1, rest=tensor(kind=kind)))
    with pytest.raises(
        UserError, match=f"{file} packs tensor a as {name}, which .*use"
    ):
        read_header(file)


def test_names_every_packing_once():
    assert set(KINDS.values()) == PACKINGS.keys()
    assert not KINDS.keys() & ours.OTHERS.keys()
