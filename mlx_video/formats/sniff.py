"""The kind of a file by its first bytes, whatever its name."""

from pathlib import Path

from mlx_video.disk import file_errors, file_size

SAFETENSORS, GGUF = "safetensors file", "GGUF file"
EMPTY, UNKNOWN = "empty file", "unknown"
# The beginning of a file -> its kind, as used in a sentence.
BEGINNINGS = {
    b"GGUF": GGUF,
    b"version https://git-lfs": "Git LFS pointer; fetch the file with `git lfs pull`",
    b"<": "web page: fetch the file that it offers",
    b"PK\x03\x04": "zip archive, as PyTorch pickles are",
    b"\x80": "Python pickle",
    b"\x89PNG": "picture",
    b"\xff\xd8\xff": "picture",
    b"%PDF": "PDF",
    b"\x93NUMPY": "NumPy array",
    b"\x1f\x8b": "gzip archive",
}


def sniff(path: Path) -> str:
    """What ``path`` holds: "safetensors file", "GGUF file", another kind in words, or "unknown"."""
    if file_size(path) == 0:
        return EMPTY
    with file_errors(path), open(path, "rb") as stream:
        begin = stream.read(64)
    if begin[8:9] == b"{":
        return SAFETENSORS
    begin = begin.lstrip(b" \r\n\t\xef\xbb\xbf")
    return next((k for b, k in BEGINNINGS.items() if begin.startswith(b)), UNKNOWN)
