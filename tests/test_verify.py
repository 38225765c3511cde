"""Whether a file's bytes are checked: against the hub's checksum, and for tensors that cannot be right."""

import hashlib
import os

import mlx.core as mx
import numpy as np
import pytest

from mlx_video.cli import main
from mlx_video.verify import HOLE, published_checksum
from mlx_video.verify import verify as findings
from tests.checkpoints import tiny_folder, write_raw
from tests.reference import CHECKPOINT


def verify(path) -> list[str]:
    return [finding.text for finding in findings([path])]


ALIVE = mx.random.normal((256, 256), key=mx.random.key(0))


def saved(file, **tensors):
    mx.save_safetensors(str(file), {"alive": ALIVE, **tensors})
    return file


def test_finds_nothing_in_a_whole_checkpoint():
    assert verify(CHECKPOINT) == []


def with_hole(value: mx.array) -> mx.array:
    values = np.array(value)
    values.reshape(-1)[4096 : 4096 + HOLE // 2] = 0
    return mx.array(values)


@pytest.mark.parametrize(
    "value, fault",
    [
        (ALIVE.at[3, 4].add(float("nan")), "has values that are not numbers"),
        (ALIVE.at[3].add(float("inf")), "has values that are not numbers"),
        (mx.zeros((3, 4)), "has only zeros"),
        (with_hole(ALIVE), "has a hole of zeros"),
    ],
)
def test_names_tensors_that_cannot_be_right(tmp_path, value, fault):
    file = saved(tmp_path / "a.safetensors", strange=value)
    (finding,) = verify(file)
    assert finding.startswith(f"{file}: strange ") and fault in finding


def test_zeros_are_strange_and_no_numbers_are_damage(tmp_path):
    zeros = saved(tmp_path / "a.safetensors", strange=mx.zeros((3, 4)))
    broken = saved(tmp_path / "b.safetensors", strange=ALIVE * float("nan"))
    certain = [f.certain for f in findings([zeros, broken, zeros])]
    assert certain == [False, True]  # and each file is read once


@pytest.mark.slow
def test_info_verifies_every_file_that_a_run_reads(tmp_path, capsys):
    folder = tiny_folder(tmp_path / "tiny")
    assert main(["info", "--verify", str(folder)]) == 0
    assert capsys.readouterr().out.endswith("verified    nothing is wrong\n")
    gemma = next((folder / "text_encoder").glob("*.safetensors"))
    tensors, metadata = mx.load(str(gemma), return_metadata=True)
    name = max(tensors, key=lambda name: tensors[name].size)
    for value, code, told in ((0.0, 0, "\nnote        "), (float("nan"), 2, "\ndamaged     ")):  # fmt: skip
        spoiled = {**tensors, name: mx.full(tensors[name].shape, value)}
        mx.eval(spoiled)
        mx.save_safetensors(str(gemma), spoiled, metadata)
        assert main(["info", "--verify", str(folder)]) == code
        assert f"{told}{gemma}: {name} has " in capsys.readouterr().out


def test_a_bias_may_be_zero_and_integers_are_no_numbers_to_judge(tmp_path):
    tensors = {"bias": mx.zeros(5000), "ids": mx.arange(9), "none": mx.zeros((0, 2))}
    assert verify(saved(tmp_path / "a.safetensors", **tensors)) == []


def test_fp8_has_a_nan_of_its_own(tmp_path):
    codes = bytes([0x38, 0x7F, 0xFF, 0x7E])
    tensors = {"x": ("F8_E4M3", [4], codes), "largest": ("F8_E4M3", [1], b"\x7e")}
    (finding,) = verify(write_raw(tmp_path / "a.safetensors", tensors))
    assert "x has values that are not numbers" in finding


def test_compares_with_the_name_of_the_cache_blob(tmp_path):
    file = saved(tmp_path / "whole.safetensors")
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/1"
    blobs.mkdir(), snapshot.mkdir(parents=True)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file.rename(blobs / digest)
    link = snapshot / "model.safetensors"
    os.symlink(f"../../blobs/{digest}", link)
    assert published_checksum(link) == digest and verify(link) == []
    raw = bytearray(link.read_bytes())
    raw[-1] ^= 1
    link.write_bytes(raw)
    (finding,) = verify(link)
    assert finding.startswith(f"{link} is not as it was published: its checksum is")


def test_compares_with_the_note_of_a_download(tmp_path):
    (tmp_path / "loras").mkdir()
    file = saved(tmp_path / "loras/a.safetensors")
    note = tmp_path / ".cache/huggingface/download/loras/a.safetensors.metadata"
    note.parent.mkdir(parents=True)
    raw = file.read_bytes()
    digest = hashlib.sha1(f"blob {len(raw)}\0".encode() + raw).hexdigest()
    note.write_text(f"commit\n{digest}\n0.0\n")
    assert published_checksum(file) == digest and verify(file) == []
    zeros = {"alive": ALIVE, "zeros": mx.zeros((3, 4))}
    mx.save_safetensors(str(file), zeros)
    raw = file.read_bytes()
    digest = hashlib.sha1(f"blob {len(raw)}\0".encode() + raw).hexdigest()
    note.write_text(f"commit\n{digest}\n0.0\n")
    assert verify(file) == []  # it was published with them
    note.write_text(f"commit\n{'0' * 64}\n0.0\n")
    assert "the hub's 000000000000..." in verify(file)[0]
    note.write_text("commit\nW/etag\n0.0\n")
    assert published_checksum(file) is None


def test_a_name_is_a_checksum_only_in_the_cache(tmp_path):
    for folder, name in (("shots", "a" * 40), ("blobs", "model.safetensors")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
        assert published_checksum(tmp_path / folder / name) is None
