"""The parts of LTX-2 and the networks that each can be, chosen by the part's config. Builds nothing."""

import importlib
from dataclasses import dataclass
from typing import Iterable, Mapping, NamedTuple

from mlx_video import hub
from mlx_video.errors import UserError
from mlx_video.models.ltx.audio_config import (
    AudioVAEConfig,
    BigVGANVocoderConfig,
    VocoderConfig,
)
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.config import ConnectorConfig, LTXModelConfig, UpsamplerConfig
from mlx_video.models.ltx.duration import DurationConfig
from mlx_video.models.ltx.gemma_config import GemmaConfig
from mlx_video.models.ltx.network import Network, read_part_config
from mlx_video.models.ltx.schema import Config
from mlx_video.models.ltx.video_config import (
    DiffusionDecoderConfig,
    VideoEncoderConfig,
    VideoVAEConfig,
)
from mlx_video.weights import CONFIG, INDEX


class Candidate(NamedTuple):
    """A network that a part can be.

    home    its module and class
    config  its config, which can be read without importing the network
    marks   keys that its config block must have, each with the required value (``None`` = any); empty = fits all
    """

    home: str
    config: type[Config]
    marks: Mapping[str, object] = {}

    def fits(self, block: Mapping[str, object]) -> bool:
        """Whether a config ``block`` has all marks."""
        return all(
            key in block and value in (None, block[key])
            for key, value in self.marks.items()
        )

    @property
    def network(self) -> type[Network]:
        """The network's class, imported on first use."""
        module, name = self.home.split(":")
        return getattr(importlib.import_module(f"mlx_video.models.ltx.{module}"), name)


@dataclass(frozen=True)
class Part:
    """A component that is built, loaded and freed on its own.

    block       its block of the official config; ``None`` = its file holds nothing else
    candidates  the first that fits the block is the network; the last fits any block
    optional    whether a checkpoint may lack it
    files       patterns of its files in a folder of its own
    unlike      what is wrong with a file that does not hold it, for a part that releases ship as a file of its own
    lacking     how to get it if it is missing, a format string over ``release``
    """

    name: str
    block: str | None
    candidates: tuple[Candidate, ...]
    optional: bool = False
    files: tuple[str, ...] = (CONFIG, INDEX, "*.safetensors")
    unlike: str = ""
    lacking: str = "use the files of {release.repository}"

    def candidate(self, block: Mapping[str, object]) -> Candidate:
        """The network that a config ``block`` asks for."""
        return next(c for c in self.candidates if c.fits(block))

    def network(self, source: Source) -> type[Network]:
        """The class that the config in ``source`` asks for."""
        return self.candidate(_checked(self.name, source)).network

    def config(self, source: Source) -> Config:
        """Its config, see ``read_part_config``."""
        return read_part_config(
            self.candidate(_checked(self.name, source)).config, source
        )


def _checked(name: str, source: Source) -> Mapping[str, object]:
    if not isinstance(source.config, Mapping):
        raise UserError(
            f"{source.path}: the config of its {name} is not a JSON object."
        )
    return source.config


def _part(name: str, block: str | None, *candidates, **options) -> Part:
    return Part(name, block, tuple(Candidate(*each) for each in candidates), **options)


DIFFUSION = {"_class_name": DiffusionDecoderConfig.CLASS_NAME}
PARTS = {
    part.name: part
    for part in (
        _part("transformer", "transformer", ("ltx:LTXModel", LTXModelConfig)),
        _part("connectors", "transformer", ("connector:TextConnectors", ConnectorConfig)),
        _part("video_encoder", "vae", ("video_vae.encoder:VideoEncoder", VideoEncoderConfig)),
        _part(
            "video_decoder",
            "vae",
            ("video_vae.diffusion:DiffusionDecoder", DiffusionDecoderConfig, DIFFUSION),
            ("video_vae.decoder:VideoDecoder", VideoVAEConfig),
        ),
        _part("audio_encoder", "audio_vae", ("audio_vae.autoencoder:AudioEncoder", AudioVAEConfig)),
        _part("audio_decoder", "audio_vae", ("audio_vae.autoencoder:AudioDecoder", AudioVAEConfig)),
        _part(
            "vocoder",
            "vocoder",
            ("audio_vae.bigvgan:BigVGANVocoder", BigVGANVocoderConfig, {"vocoder": None, "bwe": None}),
            ("audio_vae.vocoder:Vocoder", VocoderConfig),
        ),
        _part(
            "upsampler",
            None,
            ("upsampler:LatentUpsampler", UpsamplerConfig),
            unlike="does not double rows and columns",
            lacking="put {release.upsampler} beside it, or let it be fetched from {release.repository} (1.0 GB)",
        ),
        _part(
            "text_encoder",
            None,
            ("text_encoder:GemmaTextEncoder", GemmaConfig),
            files=hub.TEXT_ENCODER_FILES,
            lacking="put {release.text_encoder.name} beside it, a folder named text_encoder or gemma-3-12b-it-..., or let it "
            "be fetched from {release.text_encoder_place} ({release.text_encoder.size:.0f} GB)",
        ),
        _part(
            "temporal_upsampler",
            None,
            ("upsampler:LatentUpsampler", UpsamplerConfig),
            optional=True,
            unlike="does not double frames",
        ),
        _part(
            "duration_head",
            None,
            ("duration:DurationHead", DurationConfig),
            optional=True,
            unlike="has no duration head",
        ),
    )
}  # fmt: skip
NEEDED = tuple(name for name, part in PARTS.items() if not part.optional)


def part_of(name: str) -> Part:
    """The part that a folder of this name holds: "transformer-dev" is a transformer."""
    return PARTS[name.partition("-")[0]]


def held(names: Iterable[str]) -> set[str]:
    """The names of the parts in folders of these names."""
    return {part_of(name).name for name in names}


def part_config(name: str, source: Source) -> Config:
    """The config of the part ``name``, see ``Part.config``."""
    return part_of(name).config(source)
