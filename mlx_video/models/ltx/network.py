"""The base of all networks of LTX-2: all that finding, lending, converting and planning need to know of one."""

from pathlib import Path
from typing import ClassVar, Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint.source import QUANTIZATION, Source
from mlx_video.models.ltx.config import LTXModelType
from mlx_video.models.ltx.schema import Config
from mlx_video.tensor_names import TensorNames
from mlx_video.weights import Weights, channels_last, load_into, save_folder


class Network(nn.Module):
    """The network of a part.

    CONFIG    its hyper-parameters
    NAMES     what official files call its tensors
    LARGE     whether no other large part may be in memory with it
    BLOCKS    prefix of the layers that may be quantized, which hold nearly all weights; empty = none
    STREAMED  whether it has ``transformer_blocks`` and a method ``stream``, which makes it read them as they are used
    LORAS     whether LoRAs may change it, by official names or by ``OTHER_NAMES`` (tables from official names to those)
    SELECTS   whether it reads only the tensors of the wanted streams
    WIDE      whether its activations may exceed float16's range (65,504), so that it runs in bfloat16 instead
    """

    CONFIG: ClassVar[type[Config]]
    NAMES: ClassVar[TensorNames]
    LARGE: ClassVar[bool] = False
    BLOCKS: ClassVar[str] = ""
    LORAS: ClassVar[bool] = False
    OTHER_NAMES: ClassVar[tuple[TensorNames, ...]] = ()
    STREAMED: ClassVar[bool] = False
    SELECTS: ClassVar[bool] = False
    WIDE: ClassVar[bool] = False

    @classmethod
    def sanitize(cls, weights: Weights) -> Weights:
        """The network's tensors from those of an official file, in our names and layout; ours are returned unchanged."""
        official = cls.NAMES.take(weights)
        if official is None:
            return weights
        return {key: cls.to_mlx(key, value) for key, value in official.items()}

    @staticmethod
    def to_mlx(key: str, value: mx.array) -> mx.array:
        """An official tensor in MLX's layout; ``key`` is our name."""
        return channels_last(value) if value.ndim > 3 else value

    @classmethod
    def official_name(cls, key: str) -> str:
        """The official name of our ``key``."""
        return cls.NAMES.official(key)

    @classmethod
    def from_source(
        cls,
        source: Source,
        dtype: mx.Dtype | None = None,
        model_type: LTXModelType = LTXModelType.AudioVideo,
    ) -> "Network":
        """The network with its weights, all lazy.

        dtype       of the weights; ``None`` keeps the stored one (bfloat16 for weights that other tools quantized)
        model_type  the wanted streams, if it has several
        Raises ``UserError``, naming the file, if the tensors do not fit the config.
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
        load_into(
            network, weights, dtype=dtype, mode=source.mode, source=str(source.path)
        )
        return network

    @classmethod
    def configure(
        cls, source: Source, weights: Weights, model_type: LTXModelType
    ) -> Config:
        """The config of the network that holds ``weights``."""
        return read_part_config(cls.CONFIG, source)

    def select(self, weights: Weights) -> Weights:
        """The sanitized ``weights`` that this network reads."""
        return weights

    @classmethod
    def write(
        cls,
        source: Source,
        folder: Path,
        dtype: mx.Dtype | None = None,
        quantization: Mapping[str, int | str] = {},
    ) -> None:
        """Write the part as a folder in our format, with one shard at a time in memory.

        ``quantization`` applies to its blocks; weights that are quantized already stay as they are.
        """
        asked = quantization if cls.BLOCKS and not source.quantization else {}
        stated = dict(asked or source.quantization)
        config = dict(source.config) | ({QUANTIZATION: stated} if stated else {})
        save_folder(folder, cls._tensors(source, dtype, asked), config)

    @classmethod
    def _tensors(
        cls,
        source: Source,
        dtype: mx.Dtype | None,
        quantization: Mapping[str, int | str],
    ) -> Weights:
        """All tensors, lazy and checked against the network, which is not kept."""
        part = cls.from_source(source, dtype)
        if quantization:
            quantize_blocks(part.network, **quantization)
        return dict(tree_flatten(part.network.parameters()))

    @property
    def network(self) -> nn.Module:
        """The module that holds the weights: itself, or the one it wraps."""
        return self


def read_part_config(config: type[Config], source: Source) -> Config:
    """A part's config, read strictly. Raises ``UserError`` naming the file and the problem."""
    try:
        return config.from_dict(source.config)
    except ValueError as error:
        raise UserError(f"{source.path}: {error}") from None


def quantize_blocks(
    network: nn.Module, group_size: int, bits: int, mode: str = "affine"
) -> None:
    """Quantize, lazily, the linear layers in ``BLOCKS`` whose input width is a multiple of ``group_size``."""
    if chosen := quantizable(network, group_size):
        wanted = lambda path, _: path in chosen  # noqa: E731
        nn.quantize(network, group_size, bits, mode=mode, class_predicate=wanted)


def quantizable(network: nn.Module, group_size: int) -> dict[str, nn.Linear]:
    """The layers that ``quantize_blocks`` quantizes, by their paths."""
    return {
        path: layer
        for path, layer in network.named_modules()
        if network.BLOCKS
        and path.startswith(network.BLOCKS)
        and isinstance(layer, nn.Linear)
        and layer.weight.shape[-1] % group_size == 0
    }
