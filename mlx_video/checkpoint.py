"""Which model a run uses: the files that were named, what is found where nothing was, and the defaults it brings.

Knows names of files and repositories, not how a clip is made.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Iterable

import mlx.core as mx

from mlx_video import hub
from mlx_video.errors import UserError
from mlx_video.models.ltx.components import Announce, Components, announce_to_log
from mlx_video.models.ltx.find import (
    CONV,
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
DTYPES = ("bfloat16", "float16", "float32")
BITS = (8, 4)
BESIDE = ("text_encoder", "upsampler", "distilled_lora", "detailing_lora", "video_vae")


@dataclass(frozen=True)
class Files:
    """Which checkpoint files to use; a ``None`` is found beside the model, or in its hub repository.

    model           official file, folder that ``convert`` wrote, hub repository, the name of a release such as "ltx-2.5",
                    or "ltx-2-tiny", the demo model in the package; ``None`` is the official repository if one of its
                    models is in the hub's cache or any of the next four is given, else the demo model
    loras           (file, strength) pairs to fuse into the transformer
    distilled_lora  for the refinement of the two-stage dev recipe
    detailing_lora  for the second stage of DFR, which then looks at the clip of the first
    video_vae       of LTX-2.5: "conv" for the convolutional autoencoder in place of the diffusion one, or a file
    dtype           of the weights: "bfloat16", "float16" or "float32"; ``None`` is bfloat16 on a GPU, float32 on a CPU
    quantize        bits of the transformer's and the text encoder's blocks in memory, 8 or 4; ``None`` keeps them as
                    they are stored
    low_memory      whether the transformer's blocks are read in each step instead of kept
    """

    model: str | None = None
    text_encoder: str | None = None
    upsampler: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    distilled_lora: str | None = None
    detailing_lora: str | None = None
    video_vae: str | None = None
    dtype: str | None = None
    quantize: int | None = None
    low_memory: bool = False

    def __post_init__(self):
        for name in ("model", *BESIDE):
            if isinstance(path := getattr(self, name), Path):
                object.__setattr__(self, name, str(path))
        loras = tuple((str(file), strength) for file, strength in self.loras)
        object.__setattr__(self, "loras", loras)

    def check(self) -> None:
        """Raise ``UserError`` for a dtype, a width or a strength that there is not."""
        if self.dtype not in (None, *DTYPES):
            raise UserError(
                f"dtype must be one of {', '.join(DTYPES)}; got {self.dtype!r}."
            )
        if self.quantize not in (None, *BITS):
            raise UserError(f"quantize must be 8 or 4 bits; got {self.quantize}.")
        for file, strength in self.loras:
            if not abs(strength) < float("inf"):
                raise UserError(
                    f"A LoRA's strength must be a finite number such as 0.8; got {strength} for {file}."
                )

    def named(self) -> tuple[str, ...]:
        """Every file, folder or repository that is named here."""
        loras = (file for file, _ in self.loras)
        names = self.model, *(getattr(self, name) for name in BESIDE)
        return tuple(name for name in (*names, *loras) if name and name != CONV)


def resolve_model(
    files: Files, variant: str, say: Say = log.warning
) -> tuple[Files, Defaults]:
    """``files`` with a model named, and the defaults that it brings.

    ``say`` hears that it is the demo model where none was named, and what is about to be downloaded.
    """
    model = model_of(files, say)
    stated = find_defaults(model, variant, say)
    try:
        defaults = Defaults.from_dict(stated)
    except UserError as error:
        raise UserError(f"{model}: {error}") from None
    return replace(files, model=model), defaults


def model_of(files: Files, say: Say = log.warning) -> str:
    """The model that ``files`` names; or else LTX-2, if they name what goes with it, or what there is."""
    others = files.text_encoder, files.upsampler, files.loras, files.distilled_lora
    usual = hub.MODEL_REPO if any(others) else None
    return str(named(files.model or usual or default_model(say)))


def geometry_of(files: Files, variant: str) -> Geometry:
    """The model's, as far as it is known before anything is fetched; else LTX-2's."""
    return find_geometry(files.model, variant) or LTX_2.geometry


def fitting_frames(
    frames: int, files: Files, variant: str, say: Say = log.warning
) -> int:
    """``frames``, or the nearest number that a clip can have, of which ``say`` hears."""
    step = geometry_of(files, variant).video.time
    nearest = round((frames - 1) / step) * step + 1
    if frames < 1 or nearest == frames:
        return frames
    say(f"{frames} frames are none of 1 + {step}k; making {nearest}.")
    return nearest


def open_components(
    files: Files,
    recipe: Recipe,
    needs: Iterable[str],
    announce: Announce = announce_to_log,
) -> Components:
    """The parts that ``needs`` names, found and identified where ``files`` says."""
    files.check()
    return Components.open(
        model_of(files),
        variant=recipe.variant,
        text_encoder=files.text_encoder,
        upsampler=files.upsampler,
        loras=files.loras,
        distilled_lora=files.distilled_lora,
        detailing_lora=files.detailing_lora,
        video_vae=files.video_vae,
        dtype=None if files.dtype is None else getattr(mx, files.dtype),
        quantize=files.quantize,
        low_memory=files.low_memory,
        needs=needs,
        announce=announce,
    )
