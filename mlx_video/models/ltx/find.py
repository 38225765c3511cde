"""The files of a run: given, beside the model or on the hub, and checked before anything is loaded.

Knows where to look and what would stop a run; not how parts are built.
"""

from pathlib import Path

from mlx_video import hub, lora
from mlx_video.models.ltx.layouts import (
    DISTILLED_LORA_FILES,
    PARTS,
    VARIANTS,
    Layout,
    Source,
    newest,
    part_config,
)
from mlx_video.weights import CONFIG, INDEX, read, read_header, some, tensor_files

LORA_TARGETS = ("transformer", "connectors")


def find_model(
    model: str | Path,
    variant: str | None,
    needs: tuple[str, ...],
    announce: hub.Announce,
) -> Path:
    path = Path(model).expanduser()
    if path.exists():
        return path
    if path.suffix == ".safetensors":
        return hub.resolve_file(model, announce)
    if str(model) == hub.MODEL_REPO:
        file = hub.MODEL_FILE.format(variant=variant or VARIANTS[0])
        return hub.resolve(model, [file], announce) / file
    names = [name for name in needs if name in PARTS and PARTS[name].block]
    files = (CONFIG, INDEX, "*.safetensors")
    return hub.resolve(
        model, [f"{n}/{file}" for n in names for file in files], announce
    )


def find_text_encoder(given: str | Path | None, announce: hub.Announce) -> Source:
    source = Source.of(
        hub.resolve(given or hub.TEXT_ENCODER_REPO, hub.TEXT_ENCODER_FILES, announce)
    )
    if not source.is_gemma:
        raise ValueError(
            f"{source.path} is no Gemma folder: its config.json names no Gemma model. "
            f"Give one such as {hub.TEXT_ENCODER_REPO}."
        )
    return source


def find_upsampler(given: str | Path | None, announce: hub.Announce) -> Source:
    source = Source.of(
        hub.resolve_file(given or f"{hub.MODEL_REPO}/{hub.UPSAMPLER_FILE}", announce)
    )
    if not source.is_upsampler or not _doubles(source):
        raise ValueError(
            f"{source.path} does not double rows and columns. Give {hub.UPSAMPLER_FILE} of {hub.MODEL_REPO}."
        )
    return source


def _doubles(upsampler: Source) -> bool:
    config = part_config("upsampler", upsampler)
    in_space = config.spatial_upsample and not config.temporal_upsample
    return in_space and config.spatial_scale == 2.0


def find_distilled_lora(
    given: str | Path | None, model: Path, announce: hub.Announce
) -> Path:
    folder = model if model.is_dir() else model.parent
    beside = None if given else newest(folder, DISTILLED_LORA_FILES)
    given = given or beside or f"{hub.MODEL_REPO}/{hub.DISTILLED_LORA_FILE}"
    return hub.resolve_file(given, announce)


def check_layout(layout: Layout, needs: tuple[str, ...]) -> None:
    """Raise ``ValueError`` where the model is of no use, before anything is fetched to go with it."""
    if layout.refusal:
        raise ValueError(
            f"{layout.path} ({layout.name}) cannot be used: {layout.refusal}."
        )
    parts = [name for name in needs if name in PARTS and PARTS[name].block]
    if absent := [name for name in parts if name not in layout.sources]:
        raise ValueError(
            f"{layout.path} ({layout.name}) has no {some(absent)}. Give a single file of {hub.MODEL_REPO}, or a folder "
            "that `mlx-video convert` wrote."
        )
    for name in parts:
        part_config(name, layout.sources[name])


def check_variant(layout: Layout, variant: str | None) -> None:
    """Raise ``ValueError`` where a single file is named after the other variant than the one to sample."""
    name = layout.path.stem
    others = [other for other in VARIANTS if other != variant and other in name]
    if variant and layout.path.is_file() and others and variant not in name:
        raise ValueError(
            f"{layout.path.name} is the {others[0]} model by its name, and the {variant} one is to be sampled. "
            f"Give {hub.MODEL_FILE.format(variant=variant)}, or choose --variant {others[0]}."
        )


def check_source(name: str, source: Source) -> None:
    """Raise ``ValueError`` where a part's config cannot be honoured, or a file is damaged or missing."""
    if PARTS[name].config is not None:
        part_config(name, source)
    for file in tensor_files(source.path):
        read_header(file)


def check_residency(transformer: Source, quantize: int | None, low_memory: bool):
    """Raise ``ValueError`` where the blocks cannot be quantized on load, or would be in vain."""
    if quantize and transformer.quantization:
        raise ValueError(
            f"{transformer.path} is quantized already, to {transformer.quantization.get('bits')} bits; leave out "
            "--quantize."
        )
    if quantize and low_memory:
        raise ValueError(
            "--quantize shrinks the weights that stay in memory, and with --low-memory none do; leave out one of them. "
            "A folder that `mlx-video convert -q` wrote is read in half the time."
        )


def check_lora(file: Path) -> None:
    """Raise ``ValueError`` where ``file`` is no LoRA, or is one for another model."""
    weights, _ = read(file)
    if not any(lora.concerns(weights, PARTS[name].module) for name in LORA_TARGETS):
        raise ValueError(
            f"{file} names no layer of LTX-2; its tensors are called {some(weights)}."
        )
