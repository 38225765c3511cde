"""The whole distilled job at full size with random weights, bfloat16: seconds and peak memory of each phase.

    python benchmarks/job.py [--size 512x768x121] [--runs 2] [--json PATH] [--tiny] [--previews few|every]

Gemma 3 12B, connectors, two stages of the 19B transformer with sound, upsampler, audio and video decoders, up to the
written mp4, whose frames are encoded as they are decoded; the tokenizer is the tests'. Weights are drawn on the device
where a run would read them from a file, so the load phases are not those of a disk. The last of the runs is reported:
by then every kernel is compiled.

With ``--previews few`` a frame of the clip is decoded and written as often as ``mlx_video.previews.SHARE`` allows, which
is what the terminal and the server do. What each takes is printed beside the step before it, and all of them beside the
time sampled: of the first run, whose kernels are new, and of the last; the first row of each holds the decoder's load too.

With ``--previews every`` runs without pictures and with one after every step, however short, take turns, up to the last
step. Printed are medians of a step and of a step with a picture before it, without the first picture of a stage, which
has a column of its own: in the first stage the decoder is drawn for it. The first run of each kind is left out, if there
are others.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Iterator

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import mlx_video  # noqa: E402,F401  isort: skip  first: it chooses MLX's backend

import mlx.core as mx  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402
from sizes import GEMMA  # noqa: E402

try:
    from mlx_video import media  # noqa: E402
except ImportError as error:
    sys.exit(f"The job ends in a file, and PyAV and Pillow write it: {error}.")
from mlx_video import previews  # noqa: E402
from mlx_video.background import Background  # noqa: E402
from mlx_video.models.ltx.checkpoint.files import Files  # noqa: E402
from mlx_video.models.ltx.checkpoint.source import Source  # noqa: E402
from mlx_video.models.ltx.gemma import language_model  # noqa: E402
from mlx_video.models.ltx.loading.components import Components  # noqa: E402
from mlx_video.models.ltx.loading.parts import PARTS  # noqa: E402
from mlx_video.models.ltx.loading.residency import Residency
from mlx_video.models.ltx.text_encoder import GemmaTextEncoder  # noqa: E402
from mlx_video.models.ltx.x0 import X0Model  # noqa: E402
from mlx_video.pipeline import Pipeline, Reached, Request  # noqa: E402
from mlx_video.recipes import distilled  # noqa: E402
from mlx_video.types import Sample, Step, VideoPixelShape  # noqa: E402
from tests.reference import CHECKPOINT, FIXTURES, TINY, UPSCALER  # noqa: E402

GEMMA_FILE = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        **GEMMA,
    },
}
PROMPT = "a red ball rolls along a blue floor in the warm light of the evening"


class RandomComponents(Components):
    """Parts of the real sizes whose weights are drawn when they are lent."""

    def _load(self, name, loras=()):
        if name == "text_encoder":
            tokenizer = GemmaTextEncoder.load(TINY / "text_encoder").tokenizer
            network = language_model(self.sources[name].config)
            draw(network, self.residency.dtype)
            return GemmaTextEncoder(network, tokenizer)
        config = PARTS[name].config(self.sources[name])
        if name == "connectors":
            gemma = self.sources["text_encoder"].config["text_config"]
            config = replace(config, text_layers=gemma["num_hidden_layers"])
        network = PARTS[name].network(self.sources[name])(config)
        draw(network, self.residency.dtype)
        return network

    def sketch(self, name, *_):
        config = PARTS[name].config(self.sources[name])
        return PARTS[name].network(self.sources[name])(config)

    def check(self, *_):
        """There are no files whose tensors could be wrong."""

    @contextmanager
    def transformer(self, *_):
        with self.lend("transformer") as model:
            yield X0Model(model)


def draw(network, dtype: mx.Dtype) -> None:
    """Random weights of a scale that keeps activations near 1, a tensor at a time."""
    for name, parameter in tree_flatten(network.parameters()):
        fan_in = max(1, parameter.size // parameter.shape[0])
        kind = mx.float32 if "scale_shift_table" in name else dtype
        value = mx.random.normal(parameter.shape, kind, scale=fan_in**-0.5)
        network.load_weights([(name, value)], strict=False)
        mx.eval(value)


def components(tiny: bool) -> RandomComponents:
    manifests = FIXTURES / "manifests"
    config = json.loads((manifests / "ltx-2-19b.config.json").read_text())["config"]
    files = json.loads((manifests / "ltx-2-upscalers.config.json").read_text())
    upscaler = files["ltx-2-spatial-upscaler-x2-1.0.safetensors"]["config"]
    blocks = {p.name: config.get(p.block, upscaler) for p in PARTS.values()}
    blocks["text_encoder"] = GEMMA_FILE
    if tiny:
        opened = Components.open(Files(CHECKPOINT, upsampler=UPSCALER))
        blocks = {name: source.config for name, source in opened.sources.items()}
    sources = {name: Source(TINY, block) for name, block in blocks.items()}
    return RandomComponents(sources, Residency(mx.float32 if tiny else mx.bfloat16))


def run(
    pipeline: Pipeline, request: Request, path: Path, shown: "Timed"
) -> list[tuple[str, float, float]]:
    """(phase, seconds, peak GiB) of one job, whose clip is written to ``path``."""
    phases, started = [], time.perf_counter()

    def end(phase: str) -> None:
        nonlocal started
        now = time.perf_counter()
        phases.append((phase, now - started, mx.get_peak_memory() / 2**30))
        mx.reset_peak_memory()
        started = now

    def taken(frames: Iterator) -> Iterator:
        yield from frames
        end("decode and encode frames")

    mx.reset_peak_memory()
    for event in shown.following(pipeline.stream(request), path):
        if isinstance(event, Step):
            if event.index == event.total:
                end(event.phase)
        elif not isinstance(event, Sample):
            end("decode sound")
            media.save(replace(event, frames=taken(event.frames)), path)
            end("finish the file")
    return phases


class Timed:
    """The events of a run, whose pictures are written as the terminal and the server do it, and how long they took.

    rows   (stage and step, seconds of the picture, seconds of the step before it) of each picture
    steps  seconds by phase and step, with those of the picture between the step before it and this one
    """

    def __init__(self):
        self.rows: list[tuple[str, float, float]] = []
        self.steps: dict[tuple[str, int], float] = {}
        self.sampled = 0.0

    def following(self, events: Iterator, path: Path) -> Iterator:
        stepped = before = time.perf_counter()
        step = 0.0
        with Background() as background:
            for event in events:
                now = time.perf_counter()
                if isinstance(event, previews.Preview):
                    still = path.with_suffix(".jpg")
                    background(media.save_still, event.picture, still)
                    name = f"stage {event.stage}, step {event.step}"
                    self.rows.append((name, time.perf_counter() - before, step))
                else:
                    step = now - before
                    if isinstance(event, Step) and event.sigma is not None:
                        self.sampled += step
                        self.steps[event.phase, event.index] = now - stepped
                    yield event
                    stepped = time.perf_counter()
                before = time.perf_counter()

    def report(self) -> None:
        print("\n| preview after | ms | of the step |\n|---|---|---|")
        for name, seconds, step in self.rows:
            print(f"| {name} | {1000 * seconds:.1f} | {100 * seconds / step:.1f} % |")
        spent = sum(seconds for _, seconds, _ in self.rows)
        print(
            f"| all {len(self.rows)} beside {self.sampled:.2f} s of steps "
            f"| {1000 * spent:.1f} | {100 * spent / self.sampled:.1f} % |\n"
        )


FIRST = 2  # the step, counted from 1, before which a stage has its first picture


def compare(pipeline: Pipeline, request: Request, runs: int, folder: Path) -> None:
    """Print what a picture after every step costs, from ``runs`` runs without and as many with them, in turn."""
    previews.SHARE = math.inf
    timed: dict[bool, list[Timed]] = {False: [], True: []}
    for number in range(2 * runs):
        pipeline.previews = bool(number % 2)
        one = Timed()
        events = pipeline.events(request)
        events = (event for event in events if not isinstance(event, Reached))
        for _ in one.following(events, folder / "clip.mp4"):
            pass
        timed[pipeline.previews].append(one)
    warm = {shown: each[min(1, runs - 1) :] for shown, each in timed.items()}

    def median(phase: str, shown: bool, first: bool = False) -> float:
        """Milliseconds of a step before which there may be a picture, or the first one."""
        return 1000 * statistics.median(
            seconds
            for one in warm[shown]
            for (name, step), seconds in one.steps.items()
            if name == phase and (step == FIRST if first else step > FIRST)
        )

    print("| | step, ms | with a picture | difference | of the step | first picture |")
    print("|---|---|---|---|---|---|")
    for stage in sorted({name.partition(",")[0] for name, *_ in warm[True][-1].rows}):
        without, with_one = median(stage, False), median(stage, True)
        more = with_one - without
        first = median(stage, True, first=True) - median(stage, False, first=True)
        print(
            f"| {stage} | {without:.1f} | {with_one:.1f} | {more:.1f} "
            f"| {100 * more / without:.1f} % | {first:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="512x768x121", help="height x width x frames")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true", help="the tests' checkpoint")
    parser.add_argument("--previews", choices=("few", "every"), help="show steps")
    args = parser.parse_args()
    height, width, frames = map(int, args.size.split("x"))
    shape = VideoPixelShape(frames, height, width, 24.0)
    request = Request(PROMPT, shape, audio=True, tiling="auto")
    pipeline = Pipeline(
        components(args.tiny), distilled(), health=False, previews=bool(args.previews)
    )
    with tempfile.TemporaryDirectory() as folder:
        if args.previews == "every":
            return compare(pipeline, request, args.runs, Path(folder))
        for number in range(args.runs):
            path = Path(folder, f"{number}.mp4")
            shown = Timed()
            phases = run(pipeline, request, path, shown)
            if shown.rows and number in (0, args.runs - 1):
                shown.report()
        written = path.stat().st_size
    loads = sum(seconds for phase, seconds, _ in phases if phase.startswith("load"))
    total = sum(seconds for _, seconds, _ in phases)
    print("| phase | seconds | peak GiB |\n|---|---|---|")
    for phase, seconds, peak in phases:
        print(f"| {phase} | {seconds:.2f} | {peak:.2f} |")
    peak = max(peak for *_, peak in phases)
    print(f"| all | {total:.2f}, without loads {total - loads:.2f} | {peak:.2f} |")
    print(f"\nThe file has {written / 1e6:.2f} MB.")
    if args.json:
        args.json.write_text(json.dumps(phases))


if __name__ == "__main__":
    main()
