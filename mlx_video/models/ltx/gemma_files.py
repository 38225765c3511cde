"""The files of a Gemma folder: copied, or unpacked from Lightricks' packed file."""

import shutil
from pathlib import Path
from typing import Sequence

from mlx_video import hub
from mlx_video.weights import CONFIG, INDEX, read

WRITTEN = ("*.safetensors", INDEX, CONFIG)  # ``weights.save`` writes these
ASSET = "hf_asset__"  # prefix of a file that is stored as a tensor of bytes


def copy_files(source: Path, target: Path, but: Sequence[str] = ()) -> None:
    """Copy the text encoder's files, and its tokenizer if that is beside it, except those that match ``but``."""
    target.mkdir(exist_ok=True)
    folders = [f for f in (source.parent / "tokenizer", source) if f.is_dir()]
    for folder in folders:
        for pattern in hub.TEXT_ENCODER_FILES:
            for file in folder.glob(pattern):
                if not any(map(file.match, but)):
                    shutil.copyfile(file, target / file.name)


def unpack_assets(packed: Path, target: Path) -> None:
    """Write the tokenizer's settings, which are tensors of bytes in ``packed``."""
    tensors, _ = read(packed)
    for name, value in tensors.items():
        file = name.removeprefix(ASSET)
        if file != name and Path(file).name == file:  # a plain name only
            (target / file).write_bytes(bytes(memoryview(value.flatten())))
