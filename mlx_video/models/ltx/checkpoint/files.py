"""Which files a run uses, as the user names them, and how their weights are kept. Does not look for them."""

from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx

from mlx_video.clip_limits import check_strength
from mlx_video.disk import full_path, short
from mlx_video.errors import UserError, at, check_name
from mlx_video.models.ltx.loading.residency import Residency, default_dtype

DTYPES = ("bfloat16", "float16", "float32")
BITS = (8, 4)
BESIDE = ("text_encoder", "upsampler", "distilled_lora", "detailing_lora", "video_vae")
CONV = "conv"  # the checkpoint's convolutional autoencoder, instead of a file


@dataclass(frozen=True)
class Files:
    """Which checkpoint files to use; ``None`` = found beside the model, or in its hub repository.

    model           official file, folder that ``convert`` wrote, hub repository, the name of a release such as "ltx-2.5",
                    or "ltx-2-tiny", the demo model in the package; ``None`` = the release that a LoRA was made for, or LTX-2,
                    if any of the next four is given, else a release in the hub's cache, else the demo model
    loras           (file, strength) pairs to fuse into the transformer
    distilled_lora  for the second stage of the two-stage dev recipe
    detailing_lora  for the second stage of DFR, which then sees the first stage's clip
    video_vae       "conv" for LTX-2.5's convolutional autoencoder, or a file
    dtype           of the weights: "bfloat16", "float16" or "float32"; ``None`` is bfloat16 on a GPU, float32 on a CPU
    quantize        8 or 4 bits for the transformer's and the text encoder's blocks in memory; ``None`` = as stored
    low_memory      whether the transformer's blocks are read from disk in each step
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
            elif not isinstance(path, str | None):
                raise UserError(f"{name} must be a path or a name; got {path!r}.")
        try:
            loras = tuple((str(file), float(strength)) for file, strength in self.loras)
        except (TypeError, ValueError):
            raise UserError(
                f"loras must be pairs of a file and a strength, such as [('style.safetensors', 0.8)]; got {self.loras!r}."
            ) from None
        object.__setattr__(self, "loras", loras)

    def resolved(self) -> "Files":
        """The same with local files by their full paths, so that a record finds them from anywhere."""
        here = {field: full_path(name) for field, name in self._names().items()}
        loras = tuple((full_path(file), strength) for file, strength in self.loras)
        return replace(self, loras=loras, **here)

    def check(self) -> None:
        """Raise ``UserError`` for an impossible name, an unknown dtype, other bits, or a strength that is absurd."""
        for field, name in self._names().items():
            what = field.replace("_", " ").replace("lora", "LoRA").replace("vae", "VAE")
            with at(field):
                check_name(name, f"The {what}'s name")
        if self.dtype not in (None, *DTYPES):
            raise UserError(
                f"dtype must be one of {', '.join(DTYPES)}; got {short(repr(self.dtype))}."
            ).at("dtype")
        if self.quantize not in (None, *BITS):
            raise UserError(
                f"quantize must be 8 or 4 bits; got {short(self.quantize)}."
            ).at("quantize")
        for number, (file, strength) in enumerate(self.loras):
            with at("loras", number):
                check_name(file, "A LoRA's name")
                check_strength(f"The strength of {short(file)}", strength, usual=0.8)

    @property
    def residency(self) -> Residency:
        """How the weights are kept."""
        dtype = default_dtype() if self.dtype is None else getattr(mx, self.dtype)
        return Residency(dtype, self.quantize, self.low_memory)

    def named(self) -> tuple[str, ...]:
        """Every file, folder or repository that the user named."""
        names = *self._names().values(), *(file for file, _ in self.loras)
        return tuple(name for name in names if name and name != CONV)

    def _names(self) -> dict[str, str]:
        """The fields that name a file, a folder or a repository."""
        named = ((field, getattr(self, field)) for field in ("model", *BESIDE))
        return {field: name for field, name in named if name is not None}
