"""What a file is by how it begins."""

import os
import pickle

import mlx.core as mx
import pytest

from mlx_video.errors import UserError
from mlx_video.formats.sniff import sniff
from mlx_video.weights import read


def contents():
    return {
        "empty file": b"",
        "GGUF file": b"GGUF\3\0\0\0",
        "Git LFS pointer; fetch the file with `git lfs pull`": b"version https://git-lfs.github.com/spec/v1\n",
        "web page: fetch the file that it offers": b"\xef\xbb\xbf\n <!DOCTYPE html>",
        "Python pickle": pickle.dumps([1], protocol=4),
        "zip archive, as PyTorch pickles are": b"PK\x03\x04rest",
        "unknown": b"\1\2\3\4",
        "picture": b"\x89PNG\r\n",
    }


@pytest.mark.parametrize("kind, content", contents().items())
def test_files_are_known_by_how_they_begin(tmp_path, kind, content):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    assert sniff(file) == kind
    told = {"unknown": "does not begin with a table", "empty file": "is empty"}
    told["GGUF file"] = "is cut off or damaged"
    with pytest.raises(UserError, match=f"{file} .*{told.get(kind, kind)}"):
        read(file)


def test_a_safetensors_file_and_a_pipe(tmp_path):
    file = tmp_path / "a.safetensors"
    mx.save_safetensors(str(file), {"x": mx.zeros(1)})
    assert sniff(file) == "safetensors file"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is not a regular file"):
        sniff(tmp_path / "pipe")
