"""One step of the transformer with its blocks read as they are used, beside the same blocks kept: memory and seconds.

    python benchmarks/low_memory.py [--blocks 12] [--folder FOLDER] [--json PATH] [--tiny]

Writes a random checkpoint of the 19B model's widths in bfloat16 (0.77 GB a block; all 48 with --blocks 48) into a
scratch folder, reads it and removes it. A step is what a sampler waits for at 512x768x121 with sound: one forward, or
the four passes of guidance. "cold" empties the system's file cache before each step, so that blocks come from the disk.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Callable, Iterator, NamedTuple

from dit_forward import CLIPS, CONFIG, FPS, SIGMA, TINY_CLIPS, Clip
from sizes import TINY

sys.path.insert(0, str(Path(__file__).parent.parent))
import mlx_video  # noqa: E402,F401  isort: skip  first: it chooses MLX's backend
import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_video.conditioning.latent import LatentState
from mlx_video.models.ltx import patchify
from mlx_video.models.ltx.checkpoint.releases import LTX_2
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.config import LTXModelConfig
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.residency import Residency, default_dtype
from mlx_video.models.ltx.ltx import LTXModel
from mlx_video.models.ltx.x0 import X0Model
from mlx_video.recipes import AUDIO_GUIDANCE, VIDEO_GUIDANCE
from mlx_video.sampling.guidance import Guidance, guided
from mlx_video.types import AV, PromptEmbeddings
from mlx_video.weights import save_folder, tensor_files

ALL_BLOCKS = 48
STRENGTHS = {
    "forward": AV(Guidance(), Guidance()),
    "guided": AV(VIDEO_GUIDANCE, AUDIO_GUIDANCE).map(
        lambda g: Guidance(g.cfg, g.stg, g.modality, g.rescale, stg_blocks=(1,))
    ),
}


class Result(NamedTuple):
    """One kind of step with blocks kept or read.

    weights_bytes   of the transformer in memory at the peak
    peak_bytes      of all that a step takes
    same            whether every number equals what the kept blocks give
    """

    step: str
    blocks: str
    seconds: list[float]
    weights_bytes: int
    peak_bytes: int
    same: bool


@dataclass
class Bench:
    """Steps on one checkpoint and the same noise."""

    source: Source
    clip: Clip
    repeats: int

    def __post_init__(self):
        config = LTXModelConfig.from_dict(self.source.config)
        geometry = LTX_2.geometry
        audio = patchify.audio_positions(self.clip.audio_tokens, geometry.audio)
        video = patchify.position_grid(self.clip.grid, geometry.video, FPS)
        positions = AV(video, audio)
        self.states = positions.map(
            lambda p: LatentState.fresh(noise(p.shape[2], config.in_channels), p)
        )
        contexts = [
            positions.map(
                lambda _: noise(self.clip.text_tokens, config.caption_channels)
            )
            for _ in range(2)
        ]
        self.prompt = PromptEmbeddings(*contexts)

    def run(self) -> Iterator[Result]:
        for step in STRENGTHS:
            kept, x0 = self.measure(step, "kept")
            activations = kept.peak_bytes - kept.weights_bytes
            yield kept
            for blocks in ("read, warm", "read, cold"):
                read, other = self.measure(step, blocks)
                same = all(map(mx.array_equal, x0.values, other.values))
                weights = read.peak_bytes - activations
                yield read._replace(weights_bytes=weights, same=same)

    def measure(self, step: str, blocks: str) -> tuple[Result, AV[mx.array]]:
        low_memory = blocks != "kept"
        components = Components(
            {"transformer": self.source},
            Residency(default_dtype(), low_memory=low_memory),
        )
        mx.synchronize()
        before = mx.get_active_memory()
        with components.transformer() as predict:
            weights = mx.get_active_memory() - before
            forget = self.forget if blocks == "read, cold" else lambda: None
            x0, seconds = self.timed(predict, step, forget)
            peak = mx.get_peak_memory() - before
        return Result(step, blocks, seconds, weights, peak, True), x0

    def timed(
        self, predict: X0Model, step: str, forget: Callable[[], None]
    ) -> tuple[AV[mx.array], list[float]]:
        denoise = guided(predict, self.prompt, STRENGTHS[step], batched=True)
        seconds = []
        for _ in range(1 + self.repeats):
            forget()
            mx.reset_peak_memory()
            start = time.perf_counter()
            x0 = denoise(self.states, SIGMA)
            mx.eval(x0.values)
            seconds.append(time.perf_counter() - start)
        return x0, seconds[1:]

    def forget(self) -> None:
        """Let the system drop what it holds of the checkpoint (Linux; elsewhere it stays)."""
        for file in tensor_files(self.source.path):
            with open(file, "rb") as stream:
                if hasattr(os, "posix_fadvise"):
                    os.fsync(stream.fileno())
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def noise(tokens: int, channels: int) -> mx.array:
    x = mx.random.normal((1, tokens, channels))
    mx.eval(x)
    return x


def write_checkpoint(folder: Path, blocks: int, tiny: bool) -> Source:
    """A converted folder with the transformer alone."""
    block = json.loads(CONFIG.read_text())["config"]["transformer"]
    block |= TINY if tiny else {}
    block |= {"num_layers": blocks}
    model = LTXModel(LTXModelConfig.from_dict(block))
    weights = {
        name: random(value.shape, mx.float32 if "table" in name else mx.bfloat16)
        for name, value in tree_flatten(model.parameters())
    }
    save_folder(folder, weights, block)
    return Source.of(folder)


def random(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    return mx.random.normal(shape, dtype, scale=shape[-1] ** -0.5)


def table(results: list[Result], blocks: int) -> str:
    lines = [
        f"| step | blocks | median s | min - max | of all {ALL_BLOCKS}, s | weights GiB | peak GiB | same |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        s, whole = r.seconds, median(r.seconds) * ALL_BLOCKS / blocks
        lines.append(
            f"| {r.step} | {r.blocks} | {median(s):.3f} | {min(s):.3f} - {max(s):.3f} | {whole:.1f} "
            f"| {r.weights_bytes / 2**30:.2f} | {r.peak_bytes / 2**30:.2f} | {'yes' if r.same else 'NO'} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=12, help="of the checkpoint (12)")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps (3)")
    parser.add_argument("--folder", help="where to put the checkpoint (scratch space)")
    parser.add_argument("--json", type=Path, help="write every time here")
    parser.add_argument("--tiny", action="store_true", help="a miniature, for the CPU")
    arguments = parser.parse_args()
    mx.random.seed(0)
    clip = (TINY_CLIPS if arguments.tiny else CLIPS)[0]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        start = time.perf_counter()
        source = write_checkpoint(
            Path(scratch, "transformer"), arguments.blocks, arguments.tiny
        )
        size = sum(file.stat().st_size for file in tensor_files(source.path))
        seconds = time.perf_counter() - start
        print(
            f"{arguments.blocks} blocks, {size / 1e9:.1f} GB written in {seconds:.0f} s"
        )
        results = list(Bench(source, clip, arguments.repeats).run())
    print(table(results, arguments.blocks))
    if arguments.json:
        rows = [result._asdict() for result in results]
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
