"""Where a part's tensors are, and the config stored with them. Knows files; builds nothing."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Iterator, Mapping

import mlx.core as mx

from mlx_video.errors import UserError
from mlx_video.formats.quantized import quantized_as, read_dense
from mlx_video.formats.sniff import GGUF, sniff
from mlx_video.models.ltx.checkpoint import foreign_names as names
from mlx_video.models.ltx.loading.schema import Config, short_repr
from mlx_video.weights import Weights, outline, read_config

QUANTIZATION = "quantization"  # the key that mlx-lm and convert add to a config
MODES = ("affine", "mxfp4", "mxfp8", "nvfp4")  # MLX's


@dataclass(frozen=True)
class Source:
    """The files of one part and its stored config, without ``quantization``.

    path       the file or folder
    beside     more files with some of its tensors, in the official spelling
    spelling   of the tensors in ``path``; ``None`` = the official one, or ours
    container  prefix of the names of the part's tensors; may be empty
    sketched   whether ``weights`` returns placeholders
    """

    path: Path
    config: Mapping[str, object]
    quantization: Mapping[str, object] = field(default_factory=dict)
    beside: tuple[Path, ...] = ()
    spelling: names.Spelling | None = None
    container: str = ""
    sketched: bool = False

    def __post_init__(self):
        stated = self.quantization
        if not isinstance(stated, Mapping) or self.mode not in MODES:
            raise UserError(
                f"{self.path}: its config's {QUANTIZATION} must be an object whose mode is one of {', '.join(MODES)}; got "
                f"{short_repr(stated)}."
            )

    @classmethod
    def of(cls, path: Path, config: Mapping[str, object] | None = None) -> "Source":
        """A file or folder that holds one part, and its whole ``config``: by default the one stored there."""
        config = dict(read_config(path) if config is None else config)
        return cls(path, config, config.pop(QUANTIZATION, None) or {})

    @property
    def paths(self) -> tuple[Path, ...]:
        """All its files and folders."""
        return (self.path, *self.beside)

    @property
    def mode(self) -> str:
        """MLX's mode of quantization."""
        return self.quantization.get("mode", MODES[0])

    def weights(self, dtype: mx.Dtype = mx.bfloat16) -> Weights:
        """All tensors, lazy; those that another tool quantized are made dense, in ``dtype``."""
        if self.sketched:
            return self.outline()
        return self._joined(read_dense(path, dtype)[0] for path in self.paths)

    def outline(self) -> Weights:
        """Placeholders with the names, shapes and dtypes of all tensors; reads none."""
        return self._joined(outline(path) for path in self.paths)

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file, whose packed bytes MLX copies into memory before tensors are evaluated."""
        return self.path.is_file() and sniff(self.path) == GGUF

    def sketch(self) -> "Source":
        """The same part for shapes only: placeholders if lazy tensors would take memory."""
        return replace(self, sketched=self.is_gguf)

    def formats(self) -> tuple[str, ...]:
        """How other tools quantized it: "int8_tensorwise", "Q4_K" ...; the most frequent first.

        Raises ``UserError`` for a format that cannot be read, or a file that is damaged or missing; reads no large tensor.
        """
        found = Counter()
        for path in self.paths:
            found.update(quantized_as(path))
        return tuple(name for name, _ in found.most_common())

    def _joined(self, files: Iterator[Weights]) -> Weights:
        whole, start = next(files), self.container
        whole = {k.removeprefix(start): v for k, v in whole.items() if k.startswith(start)}  # fmt: skip
        if self.spelling:
            whole = names.to_official(whole, self.spelling)
        for weights in files:
            whole |= {k.removeprefix(names.TEXT_ENCODER): v for k, v in weights.items()}
        return whole

    def read_as(self, config: type[Config]) -> Config:
        """Its config, read strictly. Raises ``UserError`` naming the file and the problem."""
        try:
            return config.from_dict(self.config)
        except ValueError as error:
            raise UserError(f"{self.path}: {error}") from None


def newest(folder: Path, *patterns: str) -> Path | None:
    """The last file in ``folder``, by name, that matches the first pattern with any match."""
    found = (sorted(folder.glob(pattern)) for pattern in patterns)
    return next((files[-1] for files in found if files), None)
