"""Finds in headers and configs what would stop a run, before large files are fetched. Does not look for files."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Iterable, Mapping

from mlx_video import hub
from mlx_video.errors import UserError
from mlx_video.formats.safetensors import json_object
from mlx_video.lora import Adapter
from mlx_video.models.ltx.checkpoint.layouts import SOURCE, VARIANTS, VERSION, Layout
from mlx_video.models.ltx.checkpoint.releases import RELEASES, Release, release_of
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.config import ConnectorConfig
from mlx_video.models.ltx.gemma_config import FAMILIES, GemmaConfig
from mlx_video.models.ltx.loading.parts import PARTS
from mlx_video.weights import some

log = logging.getLogger(__name__)


def check_layout(layout: Layout, needs: tuple[str, ...]) -> None:
    """Raise ``UserError`` if the model cannot be used, before other files are fetched for it."""
    if layout.refusal:
        raise UserError(
            f"{layout.path} ({layout.name}) cannot be used: {layout.refusal}."
        )
    parts = [name for name in needs if name in PARTS and PARTS[name].block]
    if absent := [name for name in parts if name not in layout.sources]:
        raise UserError(
            f"{layout.path} ({layout.name}) has no {some(absent)}. Give a single file of {hub.MODEL_REPO}, or a folder "
            "that `mlx-video convert` wrote."
        )
    for name in parts:
        PARTS[name].config(layout.sources[name])


def check_variant(layout: Layout, variant: str | None) -> None:
    """Raise ``UserError`` if a single file is named after the other variant."""
    name = layout.path.stem
    others = [other for other in VARIANTS if other != variant and other in name]
    if variant and layout.path.is_file() and others and variant not in name:
        raise UserError(
            f"{layout.path.name} is the {others[0]} model by its name, but this run samples the {variant} one. "
            f"Give {layout.release.transformers[variant]}, or choose --variant {others[0]}."
        )


def check_duration_head(needs: Iterable[str], held: Iterable[str]) -> None:
    """Raise ``UserError`` if the model should choose the clip's length, and the parts ``held`` cannot."""
    if "duration_head" in needs and "duration_head" not in held:
        raise UserError(
            "This model has no duration head, so it cannot choose the clip's length. Give --duration SECONDS "
            "or --num-frames."
        )


def check_residency(
    sources: Mapping[str, Source], quantize: int | None, low_memory: bool
) -> None:
    """Raise ``UserError`` if quantizing on load would change nothing."""
    transformer, gemma = sources["transformer"], sources.get("text_encoder")
    if not quantize or (gemma and not gemma.quantization):
        return
    if transformer.quantization:
        raise UserError(
            f"{transformer.path} is already quantized to {transformer.quantization.get('bits')} bits; drop "
            "--quantize."
        )
    if low_memory:
        raise UserError(
            "--quantize has no effect here: with --low-memory the transformer is read from the disk at every step, and there "
            "is no text encoder to quantize. Drop one of the two, or convert the model with `mlx-video convert -q`, which "
            "halves the time to read it."
        )


def check_distilled_lora(file: Path, layout: Layout) -> None:
    """Raise ``UserError`` if a LoRA's version, or its rank if it states no version, is that of another release."""
    adapter = Adapter.read(file)
    adapter.check(layout.version)
    ranks = {release.distilled_rank: release for release in RELEASES}
    other = ranks.get(adapter.about.rank, layout.release)
    if layout.release.distilled_rank not in (None, other.distilled_rank):
        raise UserError(
            f"{file} has rank {other.distilled_rank}, like the distilled LoRA of {other.name}, but the model is "
            f"{layout.release.name}. Give {layout.release.distilled_lora} of {layout.release.repository}."
        )


def check_text_encoder(
    sources: Mapping[str, Source], metadata: Mapping[str, str]
) -> None:
    """Raise ``UserError`` if the connectors were trained with another language model; ``metadata`` as in ``check_gemma``."""
    given, own = sources["text_encoder"], sources["connectors"]
    config, fitted = PARTS["connectors"].config(own), False
    with suppress(UserError):  # its tensors are checked when the part is opened
        config = PARTS["connectors"].network(own).fit(config, own.outline())
        fitted = True
    gemma = PARTS["text_encoder"].config(given)
    try:
        check_gemma(gemma, config, metadata, fitted=fitted)
    except UserError as error:
        raise UserError(f"{given.path}: {error}") from None


def check_against_release(given: Source, release: Release) -> None:
    """``check_text_encoder`` before the checkpoint itself is fetched."""
    gemma, own = PARTS["text_encoder"].config(given), release.text_encoder
    if (gemma.num_hidden_layers, gemma.hidden_size) != (own.layers, own.width):
        raise UserError(
            f"{given.path}: this language model has {gemma.num_hidden_layers} layers of width {gemma.hidden_size}, but "
            f"{release.name} was trained with {own.layers} of {own.width}. Give {own.place}."
        )


def check_gemma(
    gemma: GemmaConfig,
    connectors: ConnectorConfig,
    metadata: Mapping[str, str] = {},
    *,
    fitted: bool = True,
) -> None:
    """Raise ``UserError`` if a checkpoint was not trained with ``gemma``.

    connectors  the checkpoint's; ``fitted`` = its ``text_layers`` come from tensors (``TextConnectors.fit``)
    metadata    of the transformer's file: ``model_version`` and the Gemma that it needs
    """
    name = _wanted_name(connectors, metadata)
    compared = {"channels": (gemma.hidden_size, connectors.caption_channels)}
    if fitted:
        compared["layers"] = gemma.num_hidden_layers, connectors.text_layers
    for what, (own, wanted) in compared.items():
        if own != wanted:
            raise UserError(
                f"The text encoder has {own} {what} and this checkpoint's connectors read {wanted}: give the "
                f"{name or 'language model'} that it was trained with."
            )
    if name and gemma.NAME != name:
        raise UserError(
            f"This checkpoint was trained with {name}, but the text encoder is a {gemma.NAME}, which it "
            f"cannot use. Give a {name} with --text-encoder."
        )
    version = _wanted_version(metadata)
    if version and not gemma.version:
        log.warning("The text encoder does not say whether it is %s.", version)
    elif version and version != gemma.version:
        raise UserError(
            f"This checkpoint was trained with the text encoder {version}, but the given one is "
            f"{gemma.version[:60]!r}. Give {version} with --text-encoder."
        )


def _wanted_version(metadata: Mapping[str, str]) -> str:
    source = json_object(metadata.get(SOURCE) or "{}", "The checkpoint's metadata")
    return str(source.get("gemma_version", ""))


def _wanted_name(connectors: ConnectorConfig, metadata: Mapping[str, str]) -> str:
    """The Gemma family that the file states or that its release was trained with; empty if either fits."""
    if version := _wanted_version(metadata):
        return "Gemma 3" if version.lower().startswith(("gemma3", "gemma-3")) else "Gemma 4"  # fmt: skip
    stated = metadata.get(VERSION)
    if not stated and connectors.caption_proj_before_connector:
        return ""
    kind = release_of(stated or "").text_encoder.kind
    return next(f.NAME for model, f in FAMILIES.items() if model.startswith(kind))
