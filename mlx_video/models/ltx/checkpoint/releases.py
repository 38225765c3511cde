"""Lightricks' releases as data: where each model is, what belongs to it, and its defaults.

Another official repository is one more entry in ``RELEASES``.
"""

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Iterable, Mapping

from mlx_video import hub
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.loading.geometry import read_geometry
from mlx_video.models.ltx.loading.parts import PARTS
from mlx_video.types import Geometry
from mlx_video.weights import read_json

PUBLISHED = Path(__file__).with_name("published")


@dataclass(frozen=True)
class TextEncoder:
    """The language model that a release was trained with.

    name           for messages
    layers, width  used to refuse another model before anything is fetched
    size           of its files, in GB
    place          on the hub: a repository, or owner/repository/file
    kind           the beginning of ``model_type`` in its config
    """

    name: str
    layers: int
    width: int
    size: float
    place: str
    kind: str = "gemma3"


@dataclass(frozen=True)
class Release:
    """One published model.

    version       the lowest ``model_version`` of files of this release
    repository    on the hub; if ``gated``, its ``licence`` must be accepted there before a download
    gigabytes     of the files of one variant
    transformers  variant -> the file with its transformer: the whole checkpoint if there are no ``others``
    others        the files of its other parts
    upsampler, temporal_upsampler, distilled_lora, duration_head, conv_vae
                  files that some runs need; empty = none. ``conv_vae`` is the convolutional video autoencoder of a release
                  that uses another by default
    marks         words that tell it from earlier releases if a file states no version: one occurs in its transformer's
                  tensor names, in any spelling, or in its diffusers config; needs ``blocks``
    defaults      where they differ from ``recipes.Defaults``
    """

    name: str
    version: tuple[int, ...]
    repository: str
    gigabytes: float
    licence: str
    transformers: Mapping[str, str]
    text_encoder: TextEncoder
    upsampler: str
    distilled_lora: str
    marks: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    temporal_upsampler: str = ""
    duration_head: str = ""
    conv_vae: str = ""
    gated: bool = False
    defaults: Mapping[str, object] = field(default_factory=dict)

    @property
    def stated(self) -> str:
        """Its version as text, such as "2.3"."""
        return ".".join(map(str, self.version))

    @cached_property
    def blocks(self) -> Mapping[str, Mapping[str, object]]:
        """Its published config by blocks; empty if there is none in ``published/``, so that it is known after a download."""
        return read_json(PUBLISHED / f"{self.name.lower()}.json")

    @cached_property
    def sources(self) -> Mapping[str, Source]:
        """The configs of its parts, to check requests before anything is fetched; empty if they are not known."""
        if not self.blocks:
            return {}
        usual = {"vae": self.blocks.get("vae_diffusion", self.blocks["vae"])}
        blocks = {**self.blocks, **usual}
        parts = {n: part.block for n, part in PARTS.items() if part.block}
        return {n: Source(PUBLISHED, blocks[b]) for n, b in parts.items()}

    @cached_property
    def geometry(self) -> Geometry | None:
        """The geometry of its published config."""
        return read_geometry(self.sources)

    @property
    def size(self) -> str:
        """The size of all files that a run needs, in words."""
        return f"{self.gigabytes:.0f} GB, and {self.text_encoder.size:.0f} GB for its text encoder"

    @property
    def terms(self) -> str:
        """One line on the licence and what it requires."""
        page = f"https://huggingface.co/{self.repository}"
        to_do = f"gated: accept it at {page}, then `hf auth login`"
        return f"{self.licence}, {to_do if self.gated else 'open to all'}"

    @property
    def distilled_rank(self) -> int | None:
        """The rank of its distilled LoRA, if the name states it."""
        found = re.search(r"lora-(\d+)", self.distilled_lora)
        return int(found[1]) if found else None

    @property
    def single(self) -> dict[str, str]:
        """Files that some runs need, by the name of their part or as "distilled_lora"."""
        names = "upsampler", "temporal_upsampler", "distilled_lora", "duration_head"
        return {name: file for name in names if (file := getattr(self, name))}

    def files(self, variant: str) -> tuple[str, ...]:
        """The files of a checkpoint, the transformer's first."""
        return (self.transformers[variant], *self.others)


GEMMA_3 = TextEncoder("Gemma 3 12B", 48, 3840, 24.4, hub.TEXT_ENCODER_REPO)
GEMMA_4 = TextEncoder(
    "LTX-2.5's Gemma 4 12B",
    48,
    3840,
    26.3,
    "Lightricks/LTX-2.5/text_encoders/gemma4-12b-with-proj-ltx-2.5-bf16.safetensors",
    kind="gemma4",
)
NEWER = {"steps": 30, "stg_blocks": [28]}

LTX_2 = Release(
    name="LTX-2",
    version=(2, 0),
    repository=hub.MODEL_REPO,
    gigabytes=43.3,
    licence="LTX-2 Community License",
    transformers={
        "distilled": "ltx-2-19b-distilled.safetensors",
        "dev": "ltx-2-19b-dev.safetensors",
    },
    text_encoder=GEMMA_3,
    upsampler="ltx-2-spatial-upscaler-x2-1.0.safetensors",
    temporal_upsampler="ltx-2-temporal-upscaler-x2-1.0.safetensors",
    distilled_lora="ltx-2-19b-distilled-lora-384.safetensors",
)
LTX_2_3 = Release(
    name="LTX-2.3",
    version=(2, 3),
    repository="Lightricks/LTX-2.3",
    gigabytes=46.1,
    licence="LTX-2 Community License",
    transformers={
        "distilled": "ltx-2.3-22b-distilled-1.1.safetensors",
        "dev": "ltx-2.3-22b-dev.safetensors",
    },
    text_encoder=GEMMA_3,
    upsampler="ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
    temporal_upsampler="ltx-2.3-temporal-upscaler-x2-1.0.safetensors",
    distilled_lora="ltx-2.3-22b-distilled-lora-384-1.1.safetensors",
    marks=(
        "prompt_adaln",
        "prompt_scale_shift_table",
        "video_aggregate_embed",
        "cross_attn_mod",
    ),
    defaults=NEWER,
)
LTX_2_5 = Release(
    name="LTX-2.5",
    version=(2, 5),
    repository="Lightricks/LTX-2.5",
    gigabytes=43.9,
    licence="LTX-2.x Community License",
    gated=True,
    transformers={
        "distilled": "diffusion_models/ltx-2.5-22b-distilled-transformer-bf16.safetensors",
        "dev": "diffusion_models/ltx-2.5-22b-dev-transformer-bf16.safetensors",
    },
    others=(
        "vae/ltx-2.5-video-vae-bf16.safetensors",
        "vae/ltx-2.5-audio-vae-bf16.safetensors",
    ),
    text_encoder=GEMMA_4,
    upsampler="latent_upscale_models/ltx-2.5-latent-spatial-upscaler-x2-bf16-1.0.safetensors",
    temporal_upsampler="latent_upscale_models/ltx-2.5-latent-temporal-upscaler-x2-bf16-1.0.safetensors",
    distilled_lora="loras/ltx-2.5-22b-distilled-lora-450-bf16.safetensors",
    duration_head="model_patches/ltx-2.5-duration-head-bf16.safetensors",
    conv_vae="vae/ltx-2.5-video-vae-conv-bf16.safetensors",
    marks=("keyframes_abs_pos_embedding",),
    defaults=NEWER | {"image_crf": 18, "sampler": "euler_ancestral"},
)
RELEASES = [LTX_2, LTX_2_3, LTX_2_5]


def published(repository: str) -> Release | None:
    """The release in that hub repository, or ``None``."""
    return next((r for r in RELEASES if r.repository == repository), None)


def with_terms(notify: hub.Notify) -> hub.Notify:
    """``notify``, called with plans that state the terms of the release that they fetch."""

    def told(what: hub.DownloadPlan | hub.Download) -> None:
        release = isinstance(what, hub.DownloadPlan) and published(what.repo)
        notify(replace(what, terms=release.terms) if release else what)

    return told


def release_of(version: str) -> Release:
    """The release that a file with this ``model_version`` belongs to; the first if it states none."""
    digits = re.match(r"\d+(?:[.-]\d+)*", version[:20])
    stated = tuple(map(int, re.split("[.-]", digits[0]))) if digits else (0,)
    fitting = [release for release in RELEASES if release.version <= stated]
    return max(fitting, key=lambda release: release.version, default=RELEASES[0])


def told_by(names: Iterable[str]) -> Release:
    """The newest release with a mark in one of ``names``; the first if there is none."""
    text = "\n".join(names)
    marked = [r for r in RELEASES if any(mark in text for mark in r.marks)]
    return max(marked, key=lambda release: release.version, default=RELEASES[0])
