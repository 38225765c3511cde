"""Headers of safetensors files: whatever stands in one, it is read right or refused in a sentence."""

import json
import os
import struct

import mlx.core as mx
import pytest

from mlx_video.errors import MissingFileError, UserError
from mlx_video.formats.safetensors import json_object, read_header
from mlx_video.weights import INDEX, read, read_config, stored_types


def write(file, header, data=b""):
    """A file of that header (an object, or its text) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = {"a": entry([2], 0, 8), "b": entry([], 8, 12), "c": entry([0, 3], 12, 12)}


def test_reads_a_header_that_is_right(tmp_path):
    file = write(tmp_path / "a.safetensors", GOOD | {"__metadata__": None}, bytes(12))
    assert read_header(file).metadata == {}
    assert stored_types(file) == {"a": "F32", "b": "F32", "c": "F32"}
    file = write(file, GOOD | {"__metadata__": {"format": "pt"}}, bytes(12))
    assert read_header(file).metadata == {"format": "pt"}
    assert {k: v.shape for k, v in read(file)[0].items()} == {
        "a": (2,),
        "b": (),
        "c": (0, 3),
    }


DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
HOSTILE = {
    "offsets of strings": {"a": entry([2], "0", "8")},
    "offsets of null": {"a": {"dtype": "F32", "shape": [2], "data_offsets": None}},
    "one offset": {"a": entry([2], 0, 8) | {"data_offsets": [8]}},
    "offsets backwards": {"a": entry([2], 8, 0)},
    "an offset below 0": {"a": entry([2], -8, 0)},
    "an offset of a truth": {"a": entry([1], False, 4)},
    "a shape of strings": {"a": entry(["2"], 0, 8)},
    "a negative axis": {"a": entry([-2], 0, 8)},
    "an absurd axis": {"a": entry([0, 10**30], 0, 0), "b": entry([2], 0, 8)},
    "a long axis": {"a": entry([0, 2**31], 0, 0), "b": entry([2], 0, 8)},
    "a shape of another size": {"a": entry([3], 0, 8)},
    "an absurd size": {"a": entry([2**31 - 1] * 9, 0, 8)},
    "no entry": {"a": 7},
    "no shape": {"a": {"dtype": "F32"}},
    "a dtype of a number": {"a": entry([2], 0, 8, 7)},
    "the same bytes twice": {"a": entry([2], 0, 8), "b": entry([1], 4, 8)},
    "a file too short": {"a": entry([3], 0, 12)},
    "a file too long": {"a": entry([1], 0, 4)},
    "metadata of a list": {"__metadata__": [1]},
    "metadata of numbers": {"__metadata__": {"a": 1}},
    "deep JSON": DEEP,
    "a name twice": b'{"a":1,"a":2}',
    "no UTF-8": b'{"\xff":1}',
    "a long number": b'{"a":' + b"9" * 9999 + b"}",
    "a long text": {"a": entry([2], "8" * 9999, 8)},
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_refused_in_a_sentence(tmp_path, header):
    file = write(tmp_path / "a.safetensors", header, bytes(8))
    told = f"{file} is cut off or damaged: its table of contents does not describe its"
    with pytest.raises(UserError, match=told):
        read(file)


def test_a_list_and_a_type_that_mlx_does_not_read_are_named(tmp_path):
    file = write(tmp_path / "a.safetensors", b"[1]", bytes(8))
    with pytest.raises(UserError, match="a.safetensors is not a safetensors file"):
        read(file)
    write(file, {"a": entry([8], 0, 8, "XX")}, bytes(8))
    with pytest.raises(
        UserError, match="a.safetensors holds numbers of type XX, which"
    ):
        read(file)
    write(file, {"a": entry([8], 0, 8, "F8_E5M2")}, bytes(8))
    with pytest.raises(UserError, match="numbers of type F8_E5M2 .tensor a., which"):
        read(file)


def test_the_fault_of_a_header_is_named(tmp_path):
    file = tmp_path / "a.safetensors"
    for content, fault in (
        ({"a": entry([2], 4, 12)}, "tensor a is misplaced"),
        ({"a": entry([1], 0, 4)}, "its tensors need a different number"),
        ({"a": {"dtype": "F32"}}, "a tensor has no shape"),
    ):
        write(file, content, bytes(8))
        with pytest.raises(UserError, match=rf"its .* bytes \(.*{fault}\)\. Fetch"):
            read(file)


def test_a_name_that_stands_twice_in_json_is_refused():
    with pytest.raises(UserError, match="^config.json names a twice.$"):
        json_object('{"b": {"a": 1, "c": 0, "a": 2}}', "config.json")


@pytest.mark.parametrize("length", [5000, 2**40, 2**63])
def test_a_header_longer_than_its_file_is_refused(tmp_path, length):
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(UserError, match="is cut off or damaged: .* its 10 bytes"):
        read_header(file)


def test_a_file_that_changed_is_read_again(tmp_path):
    file = write(tmp_path / "a.safetensors", {"a": entry([2], 0, 8)}, bytes(8))
    assert read_header(file).tensors.keys() == {"a"}
    os.utime(write(file, {"b": entry([2], 0, 8)}, bytes(8)), ns=(0, 10**9))
    assert read_header(file).tensors.keys() == {"b"}


def test_what_is_no_ordinary_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path / "pipe.safetensors", "/dev/zero"):
        with pytest.raises(UserError, match=f"{path} is not a regular file"):
            read(path)
    with pytest.raises(MissingFileError, match="There is no file"):
        read_header(tmp_path / "nothing")


def test_a_git_lfs_pointer_is_named(tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match="Git LFS pointer.*`git lfs pull`"):
        read(file)


@pytest.mark.parametrize(
    "shard",
    [
        "/etc/passwd",
        "../../x.safetensors",
        "a/b.safetensors",
        "..",
        "",
        "x.bin",
        7,
        None,
    ],
)
def test_an_index_names_plain_files_beside_it(tmp_path, shard):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(UserError, match="names .* as a shard; a shard is"):
        read(tmp_path)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}])
def test_an_index_has_a_table(tmp_path, index):
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="its weight_map is not a table"):
        read(tmp_path)


def test_the_same_tensor_in_two_files_is_refused(tmp_path):
    for name in ("a", "b"):
        mx.save_safetensors(str(tmp_path / f"{name}.safetensors"), {"x": mx.zeros(1)})
    with pytest.raises(UserError, match="holds x twice, in a.safetensors and in b.saf"):
        read(tmp_path)


def test_a_config_is_an_object(tmp_path):
    file = write(tmp_path / "a.safetensors", {"__metadata__": {"config": "[1]"}})
    with pytest.raises(UserError, match=r"config inside .* must be a JSON object"):
        read_config(file)
