"""The files of a run: given, beside the model or on the hub; checked before anything is loaded.

Knows where to look and what would stop a run, not how parts are built.
"""

import logging
from difflib import get_close_matches
from pathlib import Path
from typing import Callable, Iterable, Iterator, Mapping

from mlx_video import hub
from mlx_video.disk import is_there, typed_path
from mlx_video.errors import MissingFileError, UserError
from mlx_video.lora import Adapter
from mlx_video.models.ltx.contents import (
    companions,
    is_diffusion,
    parts_in,
    upsampler_kind,
)
from mlx_video.models.ltx.files import CONV, Files
from mlx_video.models.ltx.fusion import LoRA
from mlx_video.models.ltx.gemma_check import check_gemma
from mlx_video.models.ltx.geometry import read_geometry
from mlx_video.models.ltx.knowledge import Knowledge
from mlx_video.models.ltx.layouts import (
    DEV,
    DISTILLED_LORA_FILES,
    VARIANTS,
    Layout,
    identify,
    is_gemma,
    text_encoder_source,
)
from mlx_video.models.ltx.parts import PARTS, part_config, part_of
from mlx_video.models.ltx.releases import LTX_2, RELEASES, Release, published
from mlx_video.models.ltx.source import Source, newest
from mlx_video.types import Geometry
from mlx_video.weights import CONFIG, some

log = logging.getLogger(__name__)

DEMO = "ltx-2-tiny"
PACKAGED = Path(__file__).parents[2] / DEMO  # in the package, a converted folder
_KNOWN = Knowledge.read(PACKAGED / "text_encoder")
DEMO_KNOWS = _KNOWN.draws if _KNOWN else "a small world"


def default_model(tell: Callable[[str], None] = log.warning) -> str:
    """The model to use when none is named: a cached official one, else the demo model if the package has it.

    ``tell`` is told about the demo model, and how to find the official ones.
    """
    for release in RELEASES:
        if any(hub.has(release.repository, f) for f in release.transformers.values()):
            return release.repository
    if not (PACKAGED / CONFIG).is_file():
        return LTX_2.repository
    tell(f"Using the demo model {DEMO}; `mlx-video models` lists LTX-2 and the others.")
    return DEMO


NAMES = {
    name.lower(): r.repository for r in RELEASES for name in (r.name, r.repository)
}


def named(model: str | Path) -> str | Path:
    """The repository of a release that goes by its name, such as "ltx-2.5"; any other model as it is.

    Raises ``MissingFileError`` for what is nearly such a name.
    """
    typed = str(model).lower()
    if typed == DEMO or is_there(typed_path(model)):
        return model
    if typed not in NAMES and not {"/", "\\"} & {*typed}:
        if near := get_close_matches(
            typed, [n for n in (*NAMES, DEMO) if "/" not in n], 1
        ):
            raise MissingFileError(
                f"There is no file or folder {model}, and no release of that name. Did you mean {near[0]}? "
                "`mlx-video models` lists them."
            )
    return NAMES.get(typed, model)


def located(model: str | Path) -> Path:
    """``model`` as a path, if it is not a hub repository; the demo model's name stands for its folder."""
    return PACKAGED if str(model) == DEMO else typed_path(model)


def find_defaults(
    model: str | Path,
    variant: str,
    announce: hub.Announce = lambda plan: None,
) -> Mapping[str, object]:
    """The defaults that the checkpoint states, found before anything large is fetched.

    On the hub, only converted folders are asked. A model that does not exist states nothing; using it will fail.
    """
    path = located(model)
    if is_there(path):
        return identify(path, variant).defaults
    file, repository = path.suffix == ".safetensors", "/" in str(model)
    if release := published(str(model)):
        return release.defaults
    if file or not repository:
        return {}
    folder = hub.resolve(model, [f"*{CONFIG}"], announce)
    return identify(folder, variant).defaults


def find_geometry(model: str | Path, variant: str) -> Geometry | None:
    """The checkpoint's geometry, if it is known before anything is fetched."""
    path = located(model)
    if path.exists():
        sources = identify(path, variant).sources
        return read_geometry(sources) if "video_decoder" in sources else None
    release = published(str(model))
    return release and release.geometry


def find_model(
    model: str | Path,
    variant: str | None,
    needs: tuple[str, ...],
    announce: hub.Announce,
) -> Path:
    """The file or folder of ``model``, fetched as far as the parts in ``needs`` ask for. Raises as ``hub.plan`` does."""
    path = located(model)
    if is_there(path):
        return path
    if path.suffix == ".safetensors":
        return hub.resolve_file(model, announce)
    if release := published(str(model)):
        files = release.files(variant or VARIANTS[0])
        return hub.resolve(model, files, release.announced(announce)) / files[0]
    folder = hub.resolve(model, [f"*{CONFIG}"], announce)
    wanted = _wanted(identify(folder, variant), needs)
    return hub.resolve(model, list(wanted), announce)


def find_folders(
    model: str | Path, folders: Mapping[str, Source], announce: hub.Announce
) -> None:
    """Fetch all ``folders`` of a converted repository, of both variants; does nothing for a path."""
    homes = {n: s.path.name for n, s in folders.items() if s.path.is_dir()}
    files = [file for name, home in homes.items() for file in _files(name, home)]
    hub.resolve(located(model), files, announce)


def _wanted(layout: Layout, needs: tuple[str, ...]) -> Iterator[str]:
    """Patterns of the files to fetch from a converted repository, whose configs ``layout`` knows."""
    found = layout.sources.items()
    homes = {name: source.path.name for name, source in found if source.path.is_dir()}
    if "transformer" in needs and "transformer" not in homes and DEV in layout.folders:
        homes["transformer"] = DEV
        yield DISTILLED_LORA_FILES  # turns it into the distilled one
    for name in needs:
        if name in homes or (name in PARTS and PARTS[name].block):
            yield from _files(name, homes.get(name, name))


def _files(name: str, home: str) -> Iterator[str]:
    """Patterns of a part's files in the folder ``home``, including the config, which may be missing too."""
    yield from (f"{home}/{file}" for file in part_of(name).files)


def check_names(files: Files) -> None:
    """Raise ``UserError`` where a name can be neither a path nor on the hub, before anything is fetched."""
    text_encoder, loras = files.text_encoder, (file for file, _ in files.loras)
    if text_encoder and not _is_file(text_encoder):
        hub.local(text_encoder)
        text_encoder = None
    others = files.upsampler, files.distilled_lora, files.detailing_lora
    for file in (text_encoder, *others, files.video_vae, *loras):
        if file and file != CONV:
            hub.local(file, file=True)


def find_sources(
    layout: Layout, needs: tuple[str, ...], files: Files, announce: hub.Announce
) -> dict[str, Source]:
    """The parts of a checkpoint, with the text encoder and upsampler that are given or that it lacks; checked."""
    sources, release = dict(layout.sources), layout.release
    if files.text_encoder or "text_encoder" in set(needs) - sources.keys():
        found = find_text_encoder(files.text_encoder, release, announce)
        sources["text_encoder"] = found
    if {"text_encoder", "connectors"} <= sources.keys() & set(needs):
        check_text_encoder(layout, sources["text_encoder"])
    if files.upsampler or "upsampler" in set(needs) - sources.keys():
        sources["upsampler"] = find_upsampler(files.upsampler, release, announce)
    if files.video_vae and "video_decoder" in sources:
        sources |= find_video_vae(files.video_vae, layout, announce)
    others = {
        "duration_head": release.duration_head,
        "temporal_upsampler": release.temporal_upsampler,
    }
    for name in others.keys() & set(needs) - sources.keys():
        if others[name]:
            file = _published(release, others[name], announce)
            sources[name] = Source.of(file)
    sources = joined(sources)
    wanted = {name: source for name, source in sources.items() if name in needs}
    for name, source in wanted.items():
        part_config(name, source)
    for source in {source.paths: source for source in wanted.values()}.values():
        source.check()
    if "transformer" in needs:
        check_residency(sources, files.quantize, files.low_memory)
    if "video_decoder" in needs:
        read_geometry(wanted)
    return sources


def find_text_encoder(
    given: str | Path | None, release: Release, announce: hub.Announce
) -> Source:
    """The text encoder that is ``given``, or the one of ``release``; raises ``UserError`` if it is no Gemma."""
    source = text_encoder_source(_text_encoder_path(given, release, announce))
    if not is_gemma(source):
        raise UserError(
            f"{source.path} is not a Gemma folder: its config.json names no Gemma model. "
            f"Give one such as {release.text_encoder_place}."
        )
    return source


def _text_encoder_path(
    given: str | Path | None, release: Release, announce: hub.Announce
) -> Path:
    usual = release.text_encoder
    if not given and usual.file:
        return _published(release, usual.file, announce)
    if given and _is_file(given):
        return hub.resolve_file(given, announce)
    return hub.resolve(given or usual.repository, hub.TEXT_ENCODER_FILES, announce)


def _is_file(name: str | Path) -> bool:
    return str(name).endswith(".safetensors")


def _published(release: Release, file: str, announce: hub.Announce) -> Path:
    """A file of a release's own repository."""
    return hub.resolve(release.repository, [file], release.announced(announce)) / file


def find_upsampler(
    given: str | Path | None, release: Release, announce: hub.Announce
) -> Source:
    """The spatial upsampler that is ``given``, or the one of ``release``; raises ``UserError`` for any other network."""
    if given:
        source = Source.of(hub.resolve_file(given, announce))
    else:
        source = Source.of(_published(release, release.upsampler, announce))
    if upsampler_kind(source.config) != "upsampler":
        raise UserError(
            f"{source.path} does not double rows and columns. Give {release.upsampler} of {release.repository}."
        )
    return source


VIDEO_VAE = ("video_encoder", "video_decoder")


def find_video_vae(
    given: str | Path, layout: Layout, announce: hub.Announce
) -> dict[str, Source]:
    """The video autoencoder in the file ``given``; where that is "conv", the convolutional one of the checkpoint.

    Raises ``UserError`` where there is none.
    """
    if str(given) != CONV:
        file = hub.resolve_file(given, announce)
        found = {k: v for k, v in parts_in(file).items() if k in VIDEO_VAE}
        if len(found) < len(VIDEO_VAE):
            raise UserError(
                f"{file} is no video autoencoder: it lacks the encoder, the decoder or the config of one. Give a file such "
                f"as {layout.release.conv_vae or layout.path}, or {CONV}."
            )
        return found
    if not is_diffusion(layout.sources["video_decoder"]):
        return {}
    if layout.path.is_dir():
        raise UserError(
            f"{layout.path} ({layout.name}) is not searched for a second video autoencoder; name its file with "
            "--video-vae."
        )
    beside = companions(layout.path, layout.release, diffusion=False)
    found = {k: v for k, v in beside.items() if k in VIDEO_VAE}
    if len(found) < len(VIDEO_VAE) and layout.release.conv_vae:
        file = _published(layout.release, layout.release.conv_vae, announce)
        return {k: v for k, v in parts_in(file).items() if k in VIDEO_VAE}
    return found


def find_distilled_lora(
    given: str | Path | None, layout: Layout, announce: hub.Announce
) -> Path:
    """The LoRA that is ``given``, lies beside the model, or was published with it, in this order."""
    folder = layout.path if layout.path.is_dir() else layout.path.parent
    beside = newest(folder, DISTILLED_LORA_FILES)
    if given or beside:
        return hub.resolve_file(given or beside, announce)
    return _published(layout.release, layout.release.distilled_lora, announce)


def check_text_encoder(layout: Layout, given: Source) -> None:
    """Raise ``UserError`` if the checkpoint's connectors were trained with another language model."""
    own = joined({**layout.sources, "text_encoder": given}).get("connectors")
    if own is None:
        return
    config = part_config("connectors", own)
    try:
        network = part_of("connectors").network(own)
        config = network.fit(config, own.outline())
        fitted = True
    except UserError:  # its tensors are checked when the part is opened
        fitted = False
    gemma = part_config("text_encoder", given)
    try:
        check_gemma(gemma, config, layout.metadata, fitted=fitted)
    except UserError as error:
        raise UserError(f"{given.path}: {error}") from None


def check_against_release(given: Source, release: Release) -> None:
    """``check_text_encoder`` before the checkpoint itself is fetched."""
    gemma, own = part_config("text_encoder", given), release.text_encoder
    if (gemma.num_hidden_layers, gemma.hidden_size) != (own.layers, own.width):
        raise UserError(
            f"{given.path}: this language model has {gemma.num_hidden_layers} layers of width {gemma.hidden_size}, and "
            f"{release.name} was trained with {own.layers} of {own.width}. Give {release.text_encoder_place}."
        )


def joined(sources: Mapping[str, Source]) -> dict[str, Source]:
    """``sources``, with the connectors' projection taken from a packed text encoder."""
    sources = dict(sources)
    text, connectors = sources.get("text_encoder"), sources.get("connectors")
    if text and connectors and text.path.is_file():
        sources["connectors"] = connectors.with_file(text.path)
    return sources


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
        part_config(name, layout.sources[name])


def check_variant(layout: Layout, variant: str | None) -> None:
    """Raise ``UserError`` if a single file is named after the other variant."""
    name = layout.path.stem
    others = [other for other in VARIANTS if other != variant and other in name]
    if variant and layout.path.is_file() and others and variant not in name:
        raise UserError(
            f"{layout.path.name} is the {others[0]} model by its name, but this run samples the {variant} one. "
            f"Give {layout.release.transformers[variant]}, or choose --variant {others[0]}."
        )


def check_residency(
    sources: Mapping[str, Source], quantize: int | None, low_memory: bool
):
    """Raise ``UserError`` if quantizing on load would change nothing."""
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
            "--quantize shrinks weights that stay in memory, but with --low-memory the transformer's do not stay, and there "
            "is no text encoder to quantize; leave out one of them. A folder that `mlx-video convert -q` wrote is read "
            "in half the time."
        )


def find_loras(
    loras: Iterable[tuple[str | Path, float]], version: str, announce: hub.Announce
) -> list[LoRA]:
    """The files of ``loras``; raises ``UserError`` if one is for another version."""
    found = [LoRA(hub.resolve_file(f, announce), s) for f, s in loras]
    for file, _ in found:
        check_lora(file, version)
    return found


def check_distilled_lora(file: Path, layout: Layout) -> None:
    """``check_lora``, and that the rank, where the file states no version, is not that of another release."""
    check_lora(file, layout.version)
    ranks = {release.distilled_rank: release for release in RELEASES}
    other = ranks.get(Adapter.read(file).about.rank, layout.release)
    if other.distilled_rank != layout.release.distilled_rank:
        raise UserError(
            f"{file} has rank {other.distilled_rank}, as the distilled LoRA of {other.name} has, and the model is "
            f"{layout.release.name}. Give {layout.release.distilled_lora} of {layout.release.repository}."
        )


def check_lora(file: Path, version: str, *, reference: bool = False) -> None:
    """Raise ``UserError`` if ``file`` is not a LoRA that can be applied to ``version``.

    reference  whether there is a clip for a LoRA that needs one
    """
    Adapter.read(file).check(version, reference=reference)
