"""Give the packaged parts the names that their networks have now, without touching a number: python -m tiny.rename

For after a network's modules were renamed. Knows folders; each network knows its earlier names.
"""

import shutil
from pathlib import Path

from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.loading.parts import part_of
from mlx_video.weights import CONFIG, read_json, save_folder
from tiny.model import PACKAGED


def rename(folder: Path) -> bool:
    """Whether the part in ``folder`` had earlier names, and has the present ones now."""
    source = Source.of(folder)
    weights = source.weights()
    renamed = part_of(folder.name).network(source).sanitize(weights)
    if renamed.keys() == weights.keys():
        return False
    aside = folder.with_name(f"{folder.name}.new")
    ordered = {key: renamed[key] for key in sorted(renamed)}
    save_folder(aside, ordered, read_json(folder / CONFIG))
    shutil.rmtree(folder)
    aside.rename(folder)
    return True


def main() -> None:
    folders = (file.parent for file in sorted(PACKAGED.glob(f"*/{CONFIG}")))
    for folder in (f for f in folders if f.name != "text_encoder"):
        print(folder.name, "renamed" if rename(folder) else "as it was")


if __name__ == "__main__":
    main()
