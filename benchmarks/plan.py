"""The plan beside the truth: what seventeen requests were planned to take and what they took, each in a process of its own.

    python benchmarks/plan.py [NAME ...] [--phases] [--json PATH]

A row holds the largest phase of MLX's in the plan, MLX's peak, and how far the process's resident memory (Linux: VmHWM) is above the plan
with its libraries. It ends with "off" where the peak is more than 15 % from the plan, or resident memory more than 300 MB
above it; then the exit status is 1. The models are the demo's and the tests' miniatures of LTX-2.3 and 2.5. ``parts.py``
measures the parts alone, of the 19B model's widths too, on any device.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Iterator, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
TOLERANCE, LIBRARIES = 0.15, 300e6
MB = 1e6
OUTSIDE = "libraries", "encode inputs"  # phases whose memory is not, or not all, MLX's
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

DEMO: tuple[str, ...] = ()
OLDER = "--model", "{2.3}", "--variant", "dev", "--steps", "2", "--stg-blocks", "1"
NEWER = "--model", "{2.5}"
REQUESTS = {
    "default": DEMO,
    "larger": (*DEMO, "-W", "768", "-H", "512", "-n", "25"),
    "longer": (*DEMO, "-n", "121"),
    "aggressive tiles": (*DEMO, "-W", "512", "-H", "512", "--tiling", "aggressive"),
    "default tiles": (*DEMO, "-W", "768", "-H", "512", "--tiling", "default"),
    "two stages": (*DEMO, "--variant", "dev", "--two-stage", "--steps", "4"),
    "guided": (*DEMO, "--variant", "dev", "--steps", "2", "--stg-scale", "1", "--stg-blocks", "1"),
    "batched": (*DEMO, "--variant", "dev", "--steps", "2", "--batch-guidance", "--no-audio"),
    "large picture": (*DEMO, "--image", "{9000x6000}"),
    "three pictures": (*DEMO, "--image", "{768x512}", "--image", "{768x512}", "16", "--image", "{768x512}", "48", "0.5"),
    "low memory": (*DEMO, "--low-memory"),
    "8 bits": (*NEWER, "--quantize", "8", "-W", "256", "-H", "256", "-n", "49"),
    "no sound": (*DEMO, "--no-audio", "-W", "512", "-H", "256"),
    "kept latents": (*DEMO, "-W", "512", "-H", "512", "--then-decode"),
    "2.3": (*OLDER, "-W", "384", "-H", "256", "-n", "49"),
    "2.5": (*NEWER, "-W", "384", "-H", "256", "-n", "49", "--keyframes", "2"),
    "DFR": (*NEWER, "-W", "256", "-H", "256", "-n", "49", "--dfr", "1"),
}  # fmt: skip


class Measured(NamedTuple):
    """Bytes of a phase; of the whole run where ``phase`` is empty. ``planned`` is without libraries."""

    phase: str
    planned: float
    peak: int
    resident: int


# In a process of its own


def measure(words: list[str]) -> Iterator[Measured]:
    """Run ``mlx-video generate`` with these ``words``, or the decoding of what it left, phase by phase."""
    from mlx_video.cli.commands import main_parser
    from mlx_video.cli.jobs import job_from, options_from, output_from
    from mlx_video.run import Planned, Took, finish, run

    decodes = "--then-decode" in words
    words = [word for word in words if word != "--then-decode"]
    args = main_parser().read(["generate", "-p", "a red ball on a blue floor", "-s", "1", *words])  # fmt: skip
    job = job_from(args)
    output, options = output_from(args, job), options_from(args)
    if decodes:
        latents = left_latents(job, output)
        events = finish(job, latents, output, options)
    else:
        events = run(job, output, options)
    whole, resident = 0, status("VmHWM")
    for event in events:
        if isinstance(event, Planned):
            planned = {phase.name: phase.peak for phase in event.plan.phases}
            for phase in event.plan.phases:
                yield Measured(f"plan: {phase.name}", phase.peak, 0, 0)
        if isinstance(event, Took):
            resident = max(resident, high := status("VmHWM"))
            whole = max(whole, event.peak)
            yield Measured(
                event.phase,
                planned.get(event.phase.partition(",")[0], 0),
                event.peak,
                high,
            )
            CLEAR.write_text("5")
    for name in OUTSIDE:
        planned.pop(name, None)
    yield Measured("", max(planned.values()), whole, max(resident, status("VmHWM")))


def left_latents(job, output) -> Path:
    """What a run that was stopped before it decoded has left; made by another process, as it would be."""
    import mlx.core as mx

    from mlx_video.resume import save_work
    from mlx_video.types import Sample

    shapes = job.pipeline(job.plan()).latent_shapes(job.request)
    latents = shapes.map(lambda shape: mx.random.normal(shape))
    return save_work(output, Sample(latents, job.request.prompt), job)


def status(name: str) -> int:
    """Bytes of a line of the process's status."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


# Around them


def models(folder: Path) -> dict[str, str]:
    """What stands in braces in the requests, made in ``folder``."""
    import numpy as np
    from PIL import Image

    from tests.reference import FIXTURES
    from tests.tiny_tokenizer import make_text_encoder_folder

    older, newer = folder / "2.3", folder / "2.5"
    older.mkdir()
    newer.mkdir()
    shutil.copy(FIXTURES / "ltx23_tiny" / "ltx-2.3-tiny.safetensors", older)
    make_text_encoder_folder(older / "text_encoder")
    for file in (FIXTURES / "ltx25_tiny").glob("*-bf16.safetensors"):
        shutil.copy(file, newer)
    temporal = "ltx-2.3-tiny-temporal-upscaler-x2.safetensors"
    shutil.copy(
        FIXTURES / "ltx23_tiny" / temporal,
        newer / "ltx-2.5-tiny-latent-temporal-upscaler-x2-bf16.safetensors",
    )
    found = {"2.3": str(older), "2.5": str(newer)}
    for width, height in ((768, 512), (9000, 6000)):
        path = folder / f"{width}x{height}.png"
        ramp = np.linspace(0, 255, width, dtype=np.uint8)
        Image.fromarray(np.tile(ramp, (height, 1))).convert("RGB").save(path)
        found[f"{width}x{height}"] = str(path)
    return found


def measured(name: str, made: dict[str, str], folder: Path) -> list[Measured]:
    """What the request of that ``name`` took."""
    words = [w if w[:1] != "{" else made[w[1:-1]] for w in REQUESTS[name]]
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", *words]
    command += ["-o", str(folder / f"{name}.mp4".replace(" ", "-")), "--no-health-check"]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [Measured(*row) for row in map(json.loads, done.stdout.splitlines())]


def row(name: str, found: list[Measured]) -> tuple[str, bool]:
    """A line of the table, and whether it is off."""
    whole, planned = found[-1], {each.phase: each.planned for each in found}
    libraries, pictures = (planned.get(f"plan: {name}", 0) for name in OUTSIDE)
    error = whole.planned / whole.peak - 1
    above = whole.resident - max(whole.planned, pictures) - libraries
    off = abs(error) > TOLERANCE or above > LIBRARIES
    cells = f"{whole.planned / MB:.0f} | {whole.peak / MB:.0f} | {error:+.0%} | {whole.resident / MB:.0f} | {above / MB:+.0f}"  # fmt: skip
    return f"| {name} | {cells} | {'off' * off} |", off


def main():
    if sys.argv[1:2] == ["--measure"]:
        for each in measure(sys.argv[2:]):
            print(json.dumps(each), flush=True)
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*REQUESTS, []])
    parser.add_argument("--phases", action="store_true", help="also each phase")
    parser.add_argument("--json", type=Path, help="write every figure here")
    arguments = parser.parse_args()
    print("| request | planned MB | peak MB | error | resident MB | above plan | |\n|---|---|---|---|---|---|---|")  # fmt: skip
    results, bad = {}, 0
    with tempfile.TemporaryDirectory() as scratch:
        made = models(Path(scratch))
        for name in arguments.names or REQUESTS:
            results[name] = found = measured(name, made, Path(scratch))
            line, off = row(name, found)
            bad += off
            print(line, flush=True)
            for each in found[:-1] if arguments.phases else ():
                planned, peak, resident = (f"{x / MB:8.1f}" for x in each[1:])
                print(f"    {each.phase:<24}{planned}{peak}{resident}")
    if arguments.json:
        rows = {k: [m._asdict() for m in found] for k, found in results.items()}
        arguments.json.write_text(json.dumps(rows, indent=1))
    print(f"{len(results) - bad} of {len(results)} within 15 % and 300 MB")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
