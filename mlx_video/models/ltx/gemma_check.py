"""Whether a Gemma is the one that a checkpoint was trained with. Needs configs only, so it runs before large downloads."""

import logging
import re
from typing import Mapping

from mlx_video.errors import UserError
from mlx_video.formats.safetensors import json_object
from mlx_video.models.ltx.config import ConnectorConfig
from mlx_video.models.ltx.gemma_config import GemmaConfig

log = logging.getLogger(__name__)

SOURCE = "gemma_source_checkpoint"  # the key of a transformer file's metadata
FIRST_WITH_GEMMA_4 = (2, 4)


def check_gemma(
    gemma: GemmaConfig,
    connectors: ConnectorConfig,
    metadata: Mapping[str, str] = {},
    *,
    fitted: bool = True,
) -> None:
    """Raise ``UserError`` where a checkpoint was not trained with such a Gemma.

    connectors  the checkpoint's; ``fitted`` = its ``text_layers`` come from tensors (``TextConnectors.fit``)
    metadata    of the transformer's file: ``model_version``, and the Gemma it wants
    """
    wanted = connectors.caption_channels
    name = _wanted_name(connectors, metadata) or "language model"
    if gemma.hidden_size != wanted:
        raise UserError(
            f"The text encoder is {gemma.hidden_size} channels wide and this checkpoint's connectors read {wanted}: "
            f"give the {name} that it was trained with."
        )
    if fitted and gemma.num_hidden_layers != connectors.text_layers:
        raise UserError(
            f"The text encoder has {gemma.num_hidden_layers} layers and this checkpoint's connectors read "
            f"{connectors.text_layers}: give the {name} that it was trained with."
        )
    _check_version(gemma, _wanted_name(connectors, metadata), metadata)


def _check_version(gemma: GemmaConfig, name: str, metadata: Mapping[str, str]) -> None:
    if name and gemma.NAME != name:
        raise UserError(
            f"This checkpoint was trained with {name}, and the text encoder is a {gemma.NAME}: its prompts would be "
            f"noise. Give a {name} with --text-encoder."
        )
    version = _wanted_version(metadata)
    if version and not gemma.version:
        log.warning("The text encoder does not say whether it is %s.", version)
    elif version and version != gemma.version:
        raise UserError(
            f"This checkpoint was trained with the text encoder {version}, and the one given is "
            f"{gemma.version[:60]!r}. Give {version} with --text-encoder."
        )


def _wanted_version(metadata: Mapping[str, str]) -> str:
    source = json_object(metadata.get(SOURCE) or "{}", "The checkpoint's metadata")
    return str(source.get("gemma_version", ""))


def _wanted_name(connectors: ConnectorConfig, metadata: Mapping[str, str]) -> str:
    """The family; empty if the file does not say and its connectors fit either.

    Files older than 2.4 were trained with Gemma 3, unless they say otherwise; "-" in a version counts as ".".
    """
    if version := _wanted_version(metadata):
        return "Gemma 3" if version.lower().startswith(("gemma3", "gemma-3")) else "Gemma 4"  # fmt: skip
    stated = metadata.get("model_version")
    if not stated:
        return "" if connectors.caption_proj_before_connector else "Gemma 3"
    numbers = re.match(r"[\d.]{0,20}", stated.replace("-", "."))
    release = tuple(int(n) for n in numbers[0].split(".") if n)
    return "Gemma 4" if release >= FIRST_WITH_GEMMA_4 else "Gemma 3"
