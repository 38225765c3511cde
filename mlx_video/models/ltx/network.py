"""What every network of LTX-2 is to those who find, lend, convert and plan: one class, opened from where it lies."""

from pathlib import Path
from typing import Callable, ClassVar, Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_video.errors import UserError
from mlx_video.models.ltx.config import LTXModelType
from mlx_video.models.ltx.schema import Config
from mlx_video.models.ltx.source import QUANTIZATION, Source
from mlx_video.tensor_names import TensorNames
from mlx_video.weights import Weights, channels_last, load, save


class Network(nn.Module):
    """A part's network.

    CONFIG    its hyper-parameters
    NAMES     what official files call its tensors
    LARGE     whether it must be alone in memory
    BLOCKS    how the names of those layers start that are quantized as they are loaded: they hold nearly all weights,
              while the few around them are cheap to keep exact; empty where nothing is quantized
    STREAMED  whether its blocks may be read as they are used, see ``stream``
    LORAS     whether LoRAs may change it, under the official names or ``OTHER_NAMES``, from official to theirs
    SELECTS   whether what it reads depends on the streams that are wanted
    """

    CONFIG: ClassVar[type[Config]]
    NAMES: ClassVar[TensorNames]
    LARGE: ClassVar[bool] = False
    BLOCKS: ClassVar[str] = ""
    LORAS: ClassVar[bool] = False
    OTHER_NAMES: ClassVar[tuple[TensorNames, ...]] = ()
    STREAMED: ClassVar[bool] = False
    SELECTS: ClassVar[bool] = False

    @classmethod
    def sanitize(cls, weights: Weights) -> Weights:
        """The network's own tensors out of an official file's, as we name and lay them out; ours come back unchanged."""
        official = cls.NAMES.take(weights)
        if official is None:
            return weights
        return {key: cls.to_mlx(key, value) for key, value in official.items()}

    @staticmethod
    def to_mlx(key: str, value: mx.array) -> mx.array:
        """An official tensor as MLX lays it out; ``key`` is our name."""
        return channels_last(value) if value.ndim > 3 else value

    @classmethod
    def official_name(cls, key: str) -> str:
        """What an official file calls our ``key``."""
        return cls.NAMES.official(key)

    @classmethod
    def from_source(
        cls,
        source: Source,
        dtype: mx.Dtype | None = None,
        model_type: LTXModelType = LTXModelType.AudioVideo,
    ) -> "Network":
        """The network with its weights, all lazy: what is not evaluated is never read.

        dtype       of the weights; ``None`` keeps the stored ones (bfloat16 for what another tool quantized)
        model_type  the streams that are wanted, where it has several
        Raises ``UserError``, naming the file, where the tensors do not fit the config.
        """
        weights = cls.sanitize(source.weights(dtype or mx.bfloat16))
        config = cls.configure(source, weights, model_type)
        try:
            network = cls(config)
        except OverflowError:
            raise UserError(
                f"{source.path}: the config of its {cls.__name__} asks for layers larger than an array can be. The file "
                "may be damaged."
            ) from None
        weights = network.select(weights)
        load(network, weights, dtype=dtype, mode=source.mode, source=str(source.path))
        return network

    @classmethod
    def configure(
        cls, source: Source, weights: Weights, model_type: LTXModelType
    ) -> Config:
        """The config of the network that holds ``weights``."""
        return read_part_config(cls.CONFIG, source)

    def select(self, weights: Weights) -> Weights:
        """Those of sanitized ``weights`` that this network reads."""
        return weights

    @classmethod
    def write(
        cls,
        source: Source,
        folder: Path,
        dtype: mx.Dtype | None = None,
        quantization: Mapping[str, int | str] = {},
    ) -> None:
        """Write the part as a folder of our own; lazily, so that tensors pass through memory a shard at a time.

        ``quantization`` is that of its blocks, where it has any; what is quantized already stays as it is.
        """
        asked = quantization if cls.BLOCKS and not source.quantization else {}
        stated = dict(asked or source.quantization)
        config = dict(source.config) | ({QUANTIZATION: stated} if stated else {})
        save(folder, cls._tensors(source, dtype, asked), config)

    @classmethod
    def _tensors(
        cls,
        source: Source,
        dtype: mx.Dtype | None,
        quantization: Mapping[str, int | str],
    ) -> Weights:
        """All lazy tensors, checked against the network, which itself is gone when this returns."""
        part = cls.from_source(source, dtype)
        if quantization:
            quantize_blocks(part.network, **quantization)
        return dict(tree_flatten(part.network.parameters()))

    @property
    def blocks(self) -> list[nn.Module]:
        """Those that ``stream`` lets go of."""
        raise NotImplementedError

    def stream(self, again: Callable[[], "Network"]) -> None:
        """Keep no blocks: take them, in each pass, from the same network built ``again``."""
        raise NotImplementedError

    @property
    def network(self) -> nn.Module:
        """What holds the weights: itself, or what it wraps."""
        return self


def read_part_config(config: type[Config], source: Source) -> Config:
    """A part's config, read strictly. Raises ``UserError`` naming the file and what this version lacks."""
    try:
        return config.from_dict(source.config)
    except ValueError as error:
        raise UserError(f"{source.path}: {error}") from None


def quantize_blocks(
    network: nn.Module, group_size: int, bits: int, mode: str = "affine"
) -> None:
    """Quantize, lazily, the Linears of the network's ``BLOCKS`` whose width the groups divide."""

    def chosen(path: str, layer: nn.Module) -> bool:
        return (
            path.startswith(network.BLOCKS)
            and isinstance(layer, nn.Linear)
            and layer.weight.shape[-1] % group_size == 0
        )

    if network.BLOCKS:
        nn.quantize(network, group_size, bits, mode=mode, class_predicate=chosen)
