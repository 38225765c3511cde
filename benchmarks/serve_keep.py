"""How much sooner a second clip begins when the models of the first stay loaded (``mlx-video serve --keep``).

    python benchmarks/serve_keep.py --folder /tmp --transformer /dev/shm    # 19B on a GPU: 38 GB in one, 30 GB in the other
    python benchmarks/serve_keep.py --tiny                                  # the tests' sizes, anywhere

Writes a random checkpoint of the real sizes in bfloat16, then makes three clips of 512x768x121 with sound up to the second
step, as the server's worker does: everything new; read again, as after ``--idle``; and kept. Prints the seconds from the
request to the first step that was sampled. The first clip pays for CUDA's kernels too, so the second and the third count.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import mlx_video  # noqa: E402,F401  isort: skip  first: it chooses MLX's backend

import mlx.core as mx
from job import PROMPT, TINY, RandomComponents, components
from mlx.utils import tree_flatten

from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.loading.residency import Shelf
from mlx_video.output import Output
from mlx_video.pipeline import Request
from mlx_video.recipes import distilled
from mlx_video.record import Job
from mlx_video.run import Options, run
from mlx_video.types import Step, VideoPixelShape
from mlx_video.weights import save_folder

PARTS = (
    "transformer",
    "connectors",
    "text_encoder",
    "video_decoder",
    "audio_decoder",
    "vocoder",
    "upsampler",
)


def write(drawn: RandomComponents, folder: Path, elsewhere: Path) -> None:
    """A converted folder of random weights; the transformer lies ``elsewhere``."""
    (folder / "transformer").symlink_to(elsewhere / "transformer")
    for name in PARTS:
        part, source = drawn._load(name), drawn.sources[name]
        place = (elsewhere if name == "transformer" else folder) / name
        save_folder(
            place, dict(tree_flatten(part.network.parameters())), dict(source.config)
        )
        part.network.clear()
        mx.clear_cache()
    for file in (TINY / "text_encoder").glob("tokenizer*"):
        shutil.copy(file, folder / "text_encoder")


def first_step(job: Job, path: Path, shelf: Shelf) -> float:
    """Seconds until the first step of a clip is sampled; the clip is given up then."""
    start = time.perf_counter()
    events = run(job, Output(path), Options(shelf=shelf, previews=True, health=False))
    for event in events:
        if isinstance(event, Step) and (event.phase, event.index) == ("stage 1", 1):
            seconds = time.perf_counter() - start
            break
    events.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="512x768x121", help="height x width x frames")
    parser.add_argument("--folder", help="where the checkpoint goes for the while")
    parser.add_argument("--transformer", help="where the largest part of it goes")
    parser.add_argument("--tiny", action="store_true", help="the tests' checkpoint")
    args = parser.parse_args()
    height, width, frames = map(int, args.size.split("x"))
    shape = VideoPixelShape(frames, height, width, 24.0)
    with (
        tempfile.TemporaryDirectory(dir=args.folder) as folder,
        tempfile.TemporaryDirectory(dir=args.transformer) as elsewhere,
    ):
        start = time.perf_counter()
        model, shelf = Path(folder, "model"), Shelf()
        model.mkdir()
        write(components(args.tiny), model, Path(elsewhere))
        print(f"The checkpoint was written in {time.perf_counter() - start:.0f} s.\n")
        job = Job(Request(PROMPT, shape, audio=True), distilled(), Files(str(model)))
        print("| clip | seconds to its first step | peak GiB |\n|---|---|---|")
        taken = []
        for number, name in enumerate(("first", "read again", "kept"), start=1):
            mx.reset_peak_memory()
            taken.append(first_step(job, Path(folder, f"{number}.mp4"), shelf))
            peak = mx.get_peak_memory() / 2**30
            print(f"| {name} | {taken[-1]:.2f} | {peak:.2f} |", flush=True)
            if name == "first":
                shelf.clear()
        print(
            f"\nKept: {', '.join(sorted(shelf.names)) or 'nothing, it does not fit'}."
        )
        print(f"Sooner by a factor of {taken[1] / taken[2]:.1f} (goal: 3).")


if __name__ == "__main__":
    main()
