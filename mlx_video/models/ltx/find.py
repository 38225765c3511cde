"""The files of a run: given, beside the model or on the hub, and checked before anything is loaded.

Knows where to look and what would stop a run; not how parts are built.
"""

import logging
from pathlib import Path
from typing import Callable, Iterator, Mapping

from mlx_video import hub
from mlx_video.disk import is_there, typed_path
from mlx_video.errors import UserError
from mlx_video.lora import Adapter
from mlx_video.models.ltx.contents import upsampler_kind
from mlx_video.models.ltx.geometry import read_geometry
from mlx_video.models.ltx.knowledge import Knowledge
from mlx_video.models.ltx.layouts import (
    DEV,
    DISTILLED_LORA_FILES,
    VARIANTS,
    Layout,
    identify,
    is_gemma,
    newest,
    text_encoder_source,
)
from mlx_video.models.ltx.parts import PARTS, part_config, part_of
from mlx_video.models.ltx.releases import RELEASES
from mlx_video.models.ltx.source import Source
from mlx_video.types import Geometry
from mlx_video.weights import CONFIG, some

log = logging.getLogger(__name__)

DEMO = "ltx-2-tiny"
PACKAGED = Path(__file__).parents[2] / DEMO  # in the package, a converted folder
_KNOWN = Knowledge.read(PACKAGED / "text_encoder")
DEMO_KNOWS = _KNOWN.draws if _KNOWN else "a small world"


def default_model(tell: Callable[[str], None] = log.warning) -> str:
    """What to use where nobody named a model: the demo model, if it is in the package and no official one is cached.

    ``tell`` hears of the demo model, and how to get the official one.
    """
    official = (hub.MODEL_FILE.format(variant=variant) for variant in VARIANTS)
    cached = any(hub.has(hub.MODEL_REPO, file) for file in official)
    if cached or not (PACKAGED / CONFIG).is_file():
        return hub.MODEL_REPO
    tell(
        f"Using the demo model {DEMO}; `mlx-video info` says what it knows. "
        f"For LTX-2 ({hub.MODEL_SIZE}): --model {hub.MODEL_REPO}"
    )
    return DEMO


def located(model: str | Path) -> Path:
    """The path that ``model`` is, if it is no hub repository: the demo model goes by its name wherever it lies."""
    return PACKAGED if str(model) == DEMO else typed_path(model)


def find_defaults(
    model: str | Path,
    variant: str,
    announce: hub.Announce = lambda plan: None,
) -> Mapping[str, object]:
    """What the checkpoint states in place of the usual defaults, before anything large is fetched.

    Of what the hub holds only converted folders are asked. What is nowhere states nothing: its use will fail.
    """
    path = located(model)
    if is_there(path):
        return identify(path, variant).defaults
    file, repository = path.suffix == ".safetensors", "/" in str(model)
    if file or not repository or str(model) == hub.MODEL_REPO:
        return {}
    folder = hub.resolve(model, [f"*{CONFIG}"], announce)
    return identify(folder, variant).defaults


def find_geometry(model: str | Path, variant: str) -> Geometry | None:
    """The geometry of the checkpoint, as far as it is known before anything is fetched; ``None`` where it is not."""
    path = located(model)
    if path.exists():
        sources = identify(path, variant).sources
        return read_geometry(sources) if "video_decoder" in sources else None
    published = {release.repository: release.geometry for release in RELEASES}
    return published.get(str(model))


def find_model(
    model: str | Path,
    variant: str | None,
    needs: tuple[str, ...],
    announce: hub.Announce,
) -> Path:
    path = located(model)
    if is_there(path):
        return path
    if path.suffix == ".safetensors":
        return hub.resolve_file(model, announce)
    if str(model) == hub.MODEL_REPO:
        file = hub.MODEL_FILE.format(variant=variant or VARIANTS[0])
        return hub.resolve(model, [file], announce) / file
    folder = hub.resolve(model, [f"*{CONFIG}"], announce)
    wanted = _wanted(identify(folder, variant), needs)
    return hub.resolve(model, list(wanted), announce)


def find_folders(
    model: str | Path, folders: Mapping[str, Source], announce: hub.Announce
) -> None:
    """Fetch all of a converted repository's ``folders``, whichever variant they are for; of a path nothing."""
    homes = {n: s.path.name for n, s in folders.items() if s.path.is_dir()}
    files = [file for name, home in homes.items() for file in _files(name, home)]
    hub.resolve(located(model), files, announce)


def _wanted(layout: Layout, needs: tuple[str, ...]) -> Iterator[str]:
    """Patterns of the files that a converted repository must give, of which ``layout`` knows the configs."""
    found = layout.sources.items()
    homes = {name: source.path.name for name, source in found if source.path.is_dir()}
    if "transformer" in needs and "transformer" not in homes and DEV in layout.folders:
        homes["transformer"] = DEV
        yield from DISTILLED_LORA_FILES  # which makes the distilled one of it
    for name in needs:
        if name in homes or (name in PARTS and PARTS[name].block):
            yield from _files(name, homes.get(name, name))


def _files(name: str, home: str) -> Iterator[str]:
    """Patterns of a part's files in the folder ``home``; the config too, which an interrupted fetch may lack."""
    yield from (f"{home}/{file}" for file in part_of(name).files)


def find_text_encoder(given: str | Path | None, announce: hub.Announce) -> Source:
    given = given or hub.TEXT_ENCODER_REPO
    if str(given).endswith(".safetensors"):
        path = hub.resolve_file(given, announce)
    else:
        path = hub.resolve(given, hub.TEXT_ENCODER_FILES, announce)
    source = text_encoder_source(path)
    if not is_gemma(source):
        raise UserError(
            f"{source.path} is no Gemma folder: its config.json names no Gemma model. "
            f"Give one such as {hub.TEXT_ENCODER_REPO}."
        )
    return source


def find_upsampler(given: str | Path | None, announce: hub.Announce) -> Source:
    source = Source.of(
        hub.resolve_file(given or f"{hub.MODEL_REPO}/{hub.UPSAMPLER_FILE}", announce)
    )
    if upsampler_kind(source.config) != "upsampler":
        raise UserError(
            f"{source.path} does not double rows and columns. Give {hub.UPSAMPLER_FILE} of {hub.MODEL_REPO}."
        )
    return source


def find_distilled_lora(
    given: str | Path | None, model: Path, announce: hub.Announce
) -> Path:
    folder = model if model.is_dir() else model.parent
    beside = None if given else newest(folder, DISTILLED_LORA_FILES)
    given = given or beside or f"{hub.MODEL_REPO}/{hub.DISTILLED_LORA_FILE}"
    return hub.resolve_file(given, announce)


def joined(sources: Mapping[str, Source]) -> dict[str, Source]:
    """``sources`` with what a packed text encoder holds of the connectors: their projection."""
    sources = dict(sources)
    text, connectors = sources.get("text_encoder"), sources.get("connectors")
    if text and connectors and text.path.is_file():
        sources["connectors"] = connectors.with_file(text.path)
    return sources


def check_layout(layout: Layout, needs: tuple[str, ...]) -> None:
    """Raise ``ValueError`` where the model is of no use, before anything is fetched to go with it."""
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
        part_config(name, layout.sources[name])


def check_variant(layout: Layout, variant: str | None) -> None:
    """Raise ``ValueError`` where a single file is named after the other variant than the one to sample."""
    name = layout.path.stem
    others = [other for other in VARIANTS if other != variant and other in name]
    if variant and layout.path.is_file() and others and variant not in name:
        raise UserError(
            f"{layout.path.name} is the {others[0]} model by its name, and the {variant} one is to be sampled. "
            f"Give {hub.MODEL_FILE.format(variant=variant)}, or choose --variant {others[0]}."
        )


def check_source(name: str, source: Source) -> None:
    """Raise ``ValueError`` where a part's config cannot be honoured, or a file is damaged or missing."""
    part_config(name, source)
    source.check()


def check_residency(
    sources: Mapping[str, Source], quantize: int | None, low_memory: bool
):
    """Raise ``ValueError`` where quantizing on load would be in vain; Gemma, where it is not quantized, gains by it."""
    transformer, gemma = sources["transformer"], sources.get("text_encoder")
    if not quantize or (gemma and not gemma.quantization):
        return
    if transformer.quantization:
        raise UserError(
            f"{transformer.path} is quantized already, to {transformer.quantization.get('bits')} bits; leave out "
            "--quantize."
        )
    if low_memory:
        raise UserError(
            "--quantize shrinks the weights that stay in memory, and with --low-memory the transformer's do not, nor is "
            "there a text encoder to quantize; leave out one of them. A folder that `mlx-video convert -q` wrote is "
            "read in half the time."
        )


def check_lora(file: Path, version: str) -> None:
    """Raise ``ValueError`` where ``file`` is no LoRA that can be applied, or one for another model than ``version``."""
    Adapter.read(file).check(version)
