"""Which model a run uses when none is named, and the defaults it brings. Does not know how a clip is made."""

import logging
from dataclasses import replace
from typing import Callable, Iterable

from mlx_video import hub
from mlx_video.errors import UserError
from mlx_video.models.ltx.components import Announce, Components, announce_to_log
from mlx_video.models.ltx.files import Files
from mlx_video.models.ltx.find import (
    default_model,
    find_defaults,
    find_geometry,
    named,
)
from mlx_video.models.ltx.releases import LTX_2
from mlx_video.recipes import Defaults, Recipe
from mlx_video.types import Geometry

log = logging.getLogger(__name__)

Say = Callable[[object], None]


def resolve_model(
    files: Files, variant: str, say: Say = log.warning
) -> tuple[Files, Defaults]:
    """``files`` with a model named, and that model's defaults.

    ``say`` is told when the demo model is used because none was named, and what is about to be downloaded.
    """
    model = model_of(files, say)
    stated = find_defaults(model, variant, say)
    try:
        defaults = Defaults.from_dict(stated)
    except UserError as error:
        raise UserError(f"{model}: {error}") from None
    return replace(files, model=model), defaults


def model_of(files: Files, say: Say = log.warning) -> str:
    """The model that ``files`` names; else LTX-2 if they name files for it, else the default model."""
    others = files.text_encoder, files.upsampler, files.loras, files.distilled_lora
    usual = hub.MODEL_REPO if any(others) else None
    return str(named(files.model or usual or default_model(say)))


def geometry_of(files: Files, variant: str) -> Geometry:
    """The model's, as far as it is known before anything is fetched; else LTX-2's."""
    return find_geometry(files.model, variant) or LTX_2.geometry


def open_components(
    files: Files,
    recipe: Recipe,
    needs: Iterable[str],
    announce: Announce = announce_to_log,
) -> Components:
    """The parts in ``needs``, found and identified by ``files``."""
    files = replace(files, model=model_of(files))
    return Components.open(
        files, variant=recipe.variant, needs=needs, announce=announce
    )
