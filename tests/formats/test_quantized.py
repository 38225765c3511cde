"""Quantized files of other tools: tensors whose true values are known, written by each format's definition."""

import json

import mlx.core as mx
import numpy as np
import pytest

from mlx_video.errors import UserError
from mlx_video.formats.quantized import E2M1, hadamard, read_dense
from tests.checkpoints import write_raw
from tests.memory import Memory

rng = np.random.default_rng(0)


def f32(values) -> tuple[str, list[int], bytes]:
    values = np.array(values, np.float32)
    return "F32", list(values.shape), values.tobytes()


def fp8(values: np.ndarray) -> tuple[str, list[int], bytes]:
    codes = np.array(mx.to_fp8(mx.array(values)))
    return "F8_E4M3", list(codes.shape), codes.tobytes()


def note(**says) -> tuple[str, list[int], bytes]:
    text = json.dumps(says).encode()
    return "U8", [len(text)], text


def read(tmp_path, metadata=None, **tensors):
    file = write_raw(tmp_path / "a.safetensors", tensors, metadata)
    return read_dense(file, mx.float32)[0]


# Exact in fp8: a few steps of a power of two.
EXACT = rng.integers(-8, 9, (4, 32)).astype(np.float32) / 8


@pytest.mark.parametrize("scale", [0.25, [0.25], [[1], [2], [4], [0.5]], [1, 2, 4, 8]])
@pytest.mark.parametrize("name", ["a.weight_scale", "a.scale_weight"])
def test_fp8_is_multiplied_by_its_scale(tmp_path, name, scale):
    tensors = {
        "a.weight": fp8(EXACT),
        name: f32(scale),
        "a.input_scale": f32(3),
        "a.scale_input": f32(3),
        "a.comfy_quant": note(format="float8_e4m3fn"),
        "a.bias": f32([7]),
        "scaled_fp8": ("F8_E4M3", [2], b"\0\0"),
        "b.scaled_fp8": ("F8_E4M3", [0], b""),
    }
    found = read(tmp_path, **tensors)
    rows = np.reshape(np.array(scale, np.float32), (-1, 1))
    assert found.keys() == {"a.weight", "a.bias"}
    assert np.array_equal(found["a.weight"], EXACT * rows)
    assert found["a.bias"].tolist() == [7]


def test_fp8_without_a_scale_is_taken_as_it_is(tmp_path):
    found = read(tmp_path, **{"a.weight": fp8(EXACT), "a.bias": fp8(EXACT[0])})
    assert np.array_equal(found["a.weight"], EXACT)
    assert np.array_equal(found["a.bias"], EXACT[0])


def test_bytes_that_are_no_fp8_stay(tmp_path):
    found = read(tmp_path, tokenizer=("U8", [3], b"abc"), ids=("I8", [1], b"\xff"))
    assert found["tokenizer"].dtype == mx.uint8 and found["ids"].tolist() == [-1]


def test_the_rotation_is_an_orthogonal_matrix_of_known_rows():
    H = np.array(hadamard(16))
    assert np.allclose(H @ H, np.eye(16), atol=1e-6)
    assert np.allclose(H[0, :4] * 4, [1, 1, 1, -1])
    assert np.allclose(H[0, 12:] * 4, [-1, -1, -1, 1])
    assert np.allclose(H[4, 8:12] * 4, [-1, -1, -1, 1])


@pytest.mark.parametrize("group", [None, 16, 64])
@pytest.mark.parametrize("in_metadata", [False, True])
def test_int8_is_scaled_by_rows_and_turned_back(tmp_path, group, in_metadata):
    true = rng.standard_normal((6, 128)).astype(np.float32)
    turned = true
    if group:
        groups = true.reshape(6, -1, group)
        turned = (groups @ np.array(hadamard(group)).T).reshape(6, 128)
    scale = np.abs(turned).max(1, keepdims=True) / 127
    codes = np.round(turned / scale).astype(np.int8)
    says = {"format": "int8_tensorwise"}
    if group:
        says |= {"convrot": True, "convrot_groupsize": group}
    tensors = {
        "a.weight": ("I8", [6, 128], codes.tobytes()),
        "a.weight_scale": f32(scale),
    }
    metadata = {}
    if in_metadata:
        metadata = {"_quantization_metadata": json.dumps({"layers": {"a": says}})}
    else:
        tensors["a.comfy_quant"] = note(**says)
    found = read(tmp_path, metadata, **tensors)
    # Half a step a column, which the rotation spreads over a group.
    assert np.abs(np.array(found["a.weight"]) - true).max() < 4 * scale.max()
    assert np.abs(np.array(found["a.weight"]) - true).mean() < 0.5 * scale.max()
    if group is None:
        assert np.array_equal(found["a.weight"], codes * scale)


def tiled(scales: np.ndarray) -> np.ndarray:
    """cuBLAS' arrangement: element (r, c) of each 128 by 4 tile lies at (r % 32) * 16 + (r // 32) * 4 + c."""
    rows, columns = scales.shape
    down, across = -(-rows // 128), -(-columns // 4)
    flat = np.zeros((down, across, 512), scales.dtype)
    for r in range(rows):
        for c in range(columns):
            r_, c_ = r % 128, c % 4
            flat[r // 128, c // 4, (r_ % 32) * 16 + (r_ // 32) * 4 + c_] = scales[r, c]
    return flat.reshape(down * 128, across * 4)


def test_fp4_is_what_its_two_bits_of_exponent_and_one_of_mantissa_say():
    values = [0.0, 0.5]  # subnormal
    values += [2.0 ** (e - 1) * (1 + m / 2) for e in (1, 2, 3) for m in (0, 1)]
    assert list(E2M1) == values


@pytest.mark.parametrize("rows, columns", [(6, 32), (130, 96), (256, 64)])
def test_nvfp4_is_untiled_and_scaled_twice(tmp_path, rows, columns):
    codes = rng.integers(0, 16, (rows, columns)).astype(np.uint8)
    scales = np.exp2(rng.integers(-4, 5, (rows, columns // 16))).astype(np.float32)
    table = np.array([*E2M1, *(-v for v in E2M1)], np.float32)
    true = table[codes] * np.repeat(scales, 16, axis=1) * 0.125
    packed = codes[:, ::2] << 4 | codes[:, 1::2]
    bytes_of = np.array(mx.to_fp8(mx.array(scales)))
    laid = tiled(bytes_of)
    tensors = {
        "a.weight": ("U8", [rows, columns // 2], packed.tobytes()),
        "a.weight_scale": ("F8_E4M3", list(laid.shape), laid.tobytes()),
        "a.weight_scale_2": f32(0.125),
    }
    assert np.array_equal(read(tmp_path, **tensors)["a.weight"], true)


@pytest.mark.parametrize(
    "name, told",
    [
        ("mxfp8", "mxfp8"),
        ("convrot_w4a4", "convrot_w4a4"),
        ("asym_w4a8_int8", "asym_w4a8_int8"),
        ("awq_w4a16", "awq_w4a16"),
        ("wonder", "wonder"),
        ([1], r"\[1\]"),
        (None, "null"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path, name, told):
    tensors = {"a.weight": ("U8", [1], b"\0"), "a.comfy_quant": note(format=name)}
    with pytest.raises(UserError, match=f"quantized as {told}.*as a says.*use a file"):
        read(tmp_path, **tensors)


@pytest.mark.parametrize(
    "tensors, metadata, message",
    [
        (
            {"a.weight": fp8(EXACT), "a.weight_scale": f32([1, 2])},
            {},
            r"a.weight of shape \(4, 32\) does not match its scale of shape \(2,\)",
        ),
        (
            {"a.weight": ("I8", [1, 4], b"abcd")},
            {},
            "a.weight is quantized as int8_tensorwise and lacks its scale",
        ),
        (
            {"a.weight": ("U8", [1], b"a"), "a.comfy_quant": ("U8", [1], b"{")},
            {},
            "a.comfy_quant is not valid JSON",
        ),
        (
            {"a.weight": ("U8", [1], b"a")},
            {"_quantization_metadata": '{"layers": [1]}'},
            "is not a table of layers",
        ),
        (
            {
                "a.weight": ("I8", [1, 4], b"abcd"),
                "a.weight_scale": f32(1),
                "a.comfy_quant": note(
                    format="int8_tensorwise", convrot=True, convrot_groupsize=8
                ),
            },
            {},
            "not made of groups of 8 columns",
        ),
        (
            {
                "a.weight": ("U8", [1, 8], b"abcdefgh"),
                "a.weight_scale": fp8(EXACT),
                "a.weight_scale_2": f32(1),
            },
            {},
            "does not match its scales",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, tensors, metadata, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, metadata, **tensors)


def test_reads_nothing_before_it_is_evaluated(tmp_path):
    codes = rng.integers(0, 100, (512, 512)).astype(np.uint8)
    memory = Memory()
    found = read(
        tmp_path,
        **{
            "a.weight": ("F8_E4M3", [512, 512], codes.tobytes()),
            "a.weight_scale": f32(2),
        },
    )
    assert memory.held < 10_000
    mx.eval(found["a.weight"])
