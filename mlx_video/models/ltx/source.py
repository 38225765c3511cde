"""Where the tensors of a part lie, and the config stored with them. Knows files; builds nothing."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Iterator, Mapping

import mlx.core as mx

from mlx_video.errors import UserError
from mlx_video.formats.quantized import quantized_as, read_dense
from mlx_video.formats.sniff import GGUF, sniff
from mlx_video.models.ltx.foreign_names import (
    TEXT_ENCODER,
    Spelling,
    contained,
    to_official,
)
from mlx_video.models.ltx.kinds import short
from mlx_video.weights import (
    Weights,
    outline,
    read_config,
    read_header,
    tensor_files,
)

QUANTIZATION = "quantization"  # the key that mlx-lm and convert add to a config


MODES = ("affine", "mxfp4", "mxfp8", "nvfp4")  # MLX's


def checked_quantization(stated: object, path: Path) -> Mapping[str, object]:
    """What the config of ``path`` states as its quantization; raises ``UserError`` where that makes no sense."""
    stated = stated or {}
    if not isinstance(stated, Mapping) or stated.get("mode", MODES[0]) not in MODES:
        raise UserError(
            f"{path}: its config's {QUANTIZATION} must be an object whose mode is one of {', '.join(MODES)}; got "
            f"{short(stated)}."
        )
    return stated


@dataclass(frozen=True)
class Source:
    """The files of one part, and the config that describes it as stored there (without quantization).

    path       the file or folder
    beside     further files that hold some of its tensors, in the official spelling
    spelling   how the tensors in ``path`` are written; ``None`` where as officially, or as we do
    container  a word before the names of the tensors that are the part's; empty where there is none
    sketched   whether ``weights`` gives placeholders
    """

    path: Path
    config: Mapping[str, object]
    quantization: Mapping[str, object] = field(default_factory=dict)
    beside: tuple[Path, ...] = ()
    spelling: Spelling | None = None
    container: str = ""
    sketched: bool = False

    @classmethod
    def of(cls, path: Path) -> "Source":
        """A file or folder that holds one part and its config."""
        return cls.described(path, read_config(path))

    @classmethod
    def described(cls, path: Path, config: Mapping[str, object]) -> "Source":
        """A part whose whole config is known."""
        config = dict(config)
        return cls(
            path, config, checked_quantization(config.pop(QUANTIZATION, {}), path)
        )

    def with_file(self, file: Path) -> "Source":
        """The same part, some of whose tensors lie in ``file``."""
        return replace(self, beside=(*self.beside, file))

    def with_quantization(self, quantization: Mapping[str, object]) -> "Source":
        return replace(self, quantization=checked_quantization(quantization, self.path))

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path, *self.beside)

    @property
    def mode(self) -> str:
        """How MLX quantized it."""
        return self.quantization.get("mode", "affine")

    def weights(self, dtype: mx.Dtype = mx.bfloat16) -> Weights:
        """All lazy tensors of its files; what another tool quantized is dense and of ``dtype``."""
        if self.sketched:
            return self.outline()
        return self._joined(read_dense(path, dtype)[0] for path in self.paths)

    def outline(self) -> Weights:
        """Placeholders of all its tensors, with the names, shapes and types that are stored; no tensor is read."""
        return self._joined(outline(path) for path in self.paths)

    def sketch(self) -> "Source":
        """The same part for those who ask for shapes alone: without the tensors, where reading them takes memory.

        MLX reads safetensors when they are evaluated, but a GGUF file's packed bytes are copied at once.
        """
        packed = self.path.is_file() and sniff(self.path) == GGUF
        return replace(self, sketched=packed)

    def formats(self) -> tuple[str, ...]:
        """How other tools quantized it: "int8_tensorwise", "Q4_K" ...; the most frequent first.

        Raises ``UserError`` where one is not read.
        """
        found = Counter()
        for path in self.paths:
            found.update(quantized_as(path))
        return tuple(name for name, _ in found.most_common())

    def _joined(self, files: Iterator[Weights]) -> Weights:
        whole = next(files)
        if self.container:
            whole = contained(whole, self.container)
        if self.spelling:
            whole = to_official(whole, self.spelling)
        for weights in files:
            whole |= {k.removeprefix(TEXT_ENCODER): v for k, v in weights.items()}
        return whole

    def check(self) -> None:
        """Raise ``UserError`` where a file is damaged, missing or quantized in a way that is not read; reads no tensor."""
        for path in self.paths:
            for file in tensor_files(path):
                read_header(file)
        self.formats()
