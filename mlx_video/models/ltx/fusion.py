"""LoRAs fused into parts, lazily, and the outcome. Knows which parts take LoRAs, not where the files are."""

from pathlib import Path
from typing import Iterable, NamedTuple

from mlx_video import lora
from mlx_video.models.ltx.network import Network


class LoRA(NamedTuple):
    """A LoRA file (path, or owner/repository/file on the hub) and how strongly it is fused."""

    file: str | Path
    strength: float = 1.0


class Fusion(NamedTuple):
    """A LoRA that was fused into a part, and how well it matched."""

    file: Path
    strength: float
    part: str
    report: lora.Report

    def __str__(self) -> str:
        matched, skipped, dense = map(len, self.report)
        return (
            f"{self.file} at {self.strength:g}: {matched} layers of the {self.part}, {skipped} names skipped, "
            f"{dense} layers no longer quantized"
        )


def fuse(name: str, module: Network, loras: Iterable[LoRA]) -> list[Fusion]:
    """Fuse the ``loras`` that concern part ``name`` into it, lazily."""
    if not module.LORAS:
        return []
    fusions = []
    for file, strength in loras:
        report = lora.fuse(module, lora.Adapter.read(file), strength)
        if report.matched:
            fusions.append(Fusion(file, strength, name, report))
    return fusions
