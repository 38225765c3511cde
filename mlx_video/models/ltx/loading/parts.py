"""The parts of LTX-2: what all their networks have in common, and which network each can be, chosen by its config."""

from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import ClassVar, Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_video import hub
from mlx_video.errors import UserError
from mlx_video.models.ltx import vae_config as vae
from mlx_video.models.ltx.checkpoint.source import QUANTIZATION, Source
from mlx_video.models.ltx.config import (
    ConnectorConfig,
    DurationConfig,
    LTXModelConfig,
    LTXModelType,
    UpsamplerConfig,
)
from mlx_video.models.ltx.gemma_config import GemmaConfig
from mlx_video.models.ltx.loading.schema import Config
from mlx_video.tensor_names import TensorNames
from mlx_video.weights import SAVED, Weights, load_into, save_folder


class Network(nn.Module):
    """The network of a part.

    CONFIG    its hyper-parameters
    NAMES     what official files call its tensors
    BLOCKS    prefix of the layers that may be quantized, of a large part: no other may be in memory with it; empty = none
    STREAMED  whether it has ``transformer_blocks`` and a method ``stream``, which makes it read them as they are used, and
              reads only the tensors of the streams that its config's ``model_type`` names
    LORAS     tables from official names to others that LoRAs use for its layers; empty = no LoRA changes it
    WIDE      whether its activations may exceed float16's range (65,504), so that it runs in bfloat16 instead
    """

    CONFIG: ClassVar[type[Config]]
    NAMES: ClassVar[TensorNames]
    BLOCKS: ClassVar[str] = ""
    LORAS: ClassVar[tuple[TensorNames, ...]] = ()
    STREAMED: ClassVar[bool] = False
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
        """An official tensor in MLX's layout, (O, I, ...) -> (O, ..., I); ``key`` is our name."""
        return mx.moveaxis(value, 1, -1) if value.ndim > 3 else value

    @classmethod
    def from_source(
        cls, source: Source, dtype: mx.Dtype | None = None, **wanted: LTXModelType
    ) -> "Network":
        """The network with its weights, all lazy.

        dtype   of the weights; ``None`` keeps the stored one (bfloat16 for weights that other tools quantized)
        wanted  what no file states of its config: ``model_type``, the streams, if it is ``STREAMED``
        Raises ``UserError``, naming the file, if the tensors do not fit the config.
        """
        weights = cls.sanitize(source.weights(dtype or mx.bfloat16))
        config = replace(cls.fit(source.read_as(cls.CONFIG), weights), **wanted)
        try:
            network = cls(config)
        except OverflowError:
            raise UserError(
                f"{source.path}: the config of its {cls.__name__} asks for layers larger than an array can be. The file "
                "may be damaged."
            ) from None
        weights = network.select(weights)
        load_into(network, weights, dtype=dtype, mode=source.mode, source=source.path)
        return network

    @classmethod
    def fit(cls, config: Config, weights: Weights) -> Config:
        """``config`` with what only the ``weights`` tell, in official names or ours."""
        return config

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
        """Write it as a folder in our format, one shard at a time; ``quantization`` is for blocks that have none yet."""
        asked = quantization if cls.BLOCKS and not source.quantization else {}
        stated = dict(asked or source.quantization)
        config = dict(source.config) | ({QUANTIZATION: stated} if stated else {})
        network = cls.from_source(source, dtype).network
        if asked:
            quantize_blocks(network, **asked)
        prefix = cls.stored_prefix(source)
        tensors = {prefix + k: v for k, v in tree_flatten(network.parameters())}
        del network  # so that the memory of what is written is freed
        save_folder(folder, tensors, config)

    @staticmethod
    def stored_prefix(source: Source) -> str:
        """What ``write`` puts before the names of tensors."""
        return ""

    @property
    def network(self) -> nn.Module:
        """The module that holds the weights: itself, or the one it wraps."""
        return self


def quantize_blocks(
    network: nn.Module, group_size: int, bits: int, mode: str = "affine"
) -> None:
    """Quantize, lazily, the linear layers in ``BLOCKS`` whose input width is a multiple of ``group_size``."""
    chosen = quantizable(network, group_size)
    nn.quantize(
        network, group_size, bits, mode=mode, class_predicate=lambda k, _: k in chosen
    )


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


@dataclass(frozen=True)
class Part:
    """A component that is built, loaded and freed on its own.

    block     its block of the official config; ``None`` = its file holds nothing else
    networks  config -> module and class of the network that it describes; the first config that fits the block applies
    optional  whether a checkpoint may lack it
    files     patterns of its files in a folder of its own
    unlike    what is wrong with a file that does not hold it, for a part that releases ship as a file of its own
    lacking   how to get it if it is missing, a format string over ``release``
    """

    name: str
    block: str | None
    networks: Mapping[type[Config], str]
    optional: bool = False
    files: tuple[str, ...] = SAVED
    unlike: str = ""
    lacking: str = "use the files of {release.repository}"

    def kind(self, source: Source) -> type[Config]:
        """The class of its config."""
        if not isinstance(source.config, Mapping):
            raise UserError(
                f"{source.path}: the config of its {self.name} is not a JSON object."
            )
        return next(kind for kind in self.networks if kind.fits(source.config))

    def config(self, source: Source) -> Config:
        """Its config, see ``Source.read_as``."""
        return source.read_as(self.kind(source))

    def network(self, source: Source) -> type[Network]:
        """The class of its network, imported on first use."""
        return resolve_name(f"mlx_video.models.ltx.{self.networks[self.kind(source)]}")

    def build(
        self,
        source: Source,
        dtype: mx.Dtype | None = None,
        model_type: LTXModelType = LTXModelType.AudioVideo,
    ) -> Network:
        """It with its weights, see ``Network.from_source``; bfloat16 where float16 is too narrow for it."""
        network = self.network(source)
        if network.WIDE and dtype and dtype == mx.float16:
            dtype = mx.bfloat16
        wanted = {"model_type": model_type} if network.STREAMED else {}
        return network.from_source(source, dtype, **wanted)


PARTS = {
    part.name: part
    for part in (
        Part("transformer", "transformer", {LTXModelConfig: "ltx:LTXModel"}),
        Part("connectors", "transformer", {ConnectorConfig: "connector:TextConnectors"}),
        Part("video_encoder", "vae", {vae.VideoEncoderConfig: "video_vae.encoder:VideoEncoder"}),
        Part(
            "video_decoder",
            "vae",
            {
                vae.DiffusionDecoderConfig: "video_vae.diffusion:DiffusionDecoder",
                vae.VideoVAEConfig: "video_vae.decoder:VideoDecoder",
            },
        ),
        Part("audio_encoder", "audio_vae", {vae.AudioVAEConfig: "audio_vae.autoencoder:AudioEncoder"}),
        Part("audio_decoder", "audio_vae", {vae.AudioVAEConfig: "audio_vae.autoencoder:AudioDecoder"}),
        Part(
            "vocoder",
            "vocoder",
            {
                vae.BigVGANVocoderConfig: "audio_vae.bigvgan:BigVGANVocoder",
                vae.VocoderConfig: "audio_vae.vocoder:Vocoder",
            },
        ),
        Part(
            "upsampler",
            None,
            {UpsamplerConfig: "upsampler:LatentUpsampler"},
            unlike="does not double rows and columns",
            lacking="put {release.upsampler} beside it, or let it be fetched from {release.repository} (1.0 GB)",
        ),
        Part(
            "text_encoder",
            None,
            {GemmaConfig: "text_encoder:GemmaTextEncoder"},
            files=hub.TEXT_ENCODER_FILES,
            lacking="put {release.text_encoder.name} beside it, a folder named text_encoder or gemma-3-12b-it-..., or let it "
            "be fetched from {release.text_encoder.place} ({release.text_encoder.size:.0f} GB)",
        ),
        Part(
            "temporal_upsampler",
            None,
            {UpsamplerConfig: "upsampler:LatentUpsampler"},
            optional=True,
            unlike="does not double frames",
        ),
        Part(
            "duration_head",
            None,
            {DurationConfig: "duration:DurationHead"},
            optional=True,
            unlike="has no duration head",
        ),
    )
}  # fmt: skip
NEEDED = tuple(name for name, part in PARTS.items() if not part.optional)


def part_of(name: str) -> Part:
    """The part that a folder of this name holds: "transformer-dev" is a transformer."""
    return PARTS[name.partition("-")[0]]
