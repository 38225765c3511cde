"""One forward of a full transformer (19B or 22B) with sound, bfloat16, random weights: this package beside diffusers.

    python benchmarks/dit_forward.py --compile                   # the 19B of LTX-2
    python benchmarks/dit_forward.py --compile --release 2.3     # the 22B; or 2.5
    python benchmarks/dit_forward.py --compile --release 2.3 --tiny --repeats 1      # a miniature, on a CPU too
    python benchmarks/dit_forward.py --only mlx --quantize 8 4 mxfp8 mxfp4 nvfp4     # this package alone; or diffusers-compiled
    python benchmarks/dit_forward.py --only floor                 # the products and attentions of a forward, nothing else
    python benchmarks/dit_forward.py --only mlx --marks all sublayers block none     # what marks of pieces give
    python benchmarks/dit_forward.py --host [--tiny] [--release 2.3]

Each framework runs in a process of its own, one after the other, on the first GPU or else the CPU. A forward is what a
sampler calls once per step: diffusers computes rotary tables and caption projections in every one, this package once
per stage and prompt, before. "Image to video" has a first latent frame without noise; a guided step is four forwards.
Peak memory includes the weights. ``--host`` measures what the Python of one block takes, with nothing evaluated: a short
forward waits for it. It needs no GPU, but queues other arrays there than on a CPU.
"""

import argparse
import gc
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Callable, Iterator, NamedTuple, Sequence

from sizes import TINY

if TYPE_CHECKING:
    import mlx.core as mx

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "tests" / "fixtures" / "manifests" / "ltx-2-19b.config.json"
PUBLISHED = ROOT / "mlx_video" / "models" / "ltx" / "checkpoint" / "published"
RELEASES = ("2", "2.3", "2.5")
SIGMA = 0.725
HOST_ROUNDS, HOST_BLOCKS = 50, 20
FPS = 24.0
# What diffusers must be told of the 22B; its defaults are the 19B's.
DIFFUSERS_22B = {
    "gated_attn": True,
    "audio_gated_attn": True,
    "cross_attn_mod": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
}
DIFFUSERS_SIZES = {
    "2": {},
    "2.3": DIFFUSERS_22B,
    "2.5": DIFFUSERS_22B | {"ff_bias": False, "use_keyframes_abs_pos_embedding": True},
}


class Clip(NamedTuple):
    """A clip in pixels, its sound in latents, its prompt in tokens."""

    frames: int
    height: int
    width: int
    audio_tokens: int = 126
    text_tokens: int = 1024

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns."""
        return (self.frames - 1) // 8 + 1, self.height // 32, self.width // 32

    @property
    def video_tokens(self) -> int:
        frames, rows, columns = self.grid
        return frames * rows * columns

    @property
    def tokens_per_frame(self) -> int:
        _, rows, columns = self.grid
        return rows * columns

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.frames}"


class Format(NamedTuple):
    """How weights are quantized: MLX's mode, bits, and weights that share a scale."""

    mode: str
    bits: int
    group_size: int


FORMATS = {
    "8": Format("affine", 8, 64),
    "4": Format("affine", 4, 64),
    "mxfp8": Format("mxfp8", 8, 32),
    "mxfp4": Format("mxfp4", 4, 32),
    "nvfp4": Format("nvfp4", 4, 16),
}
CLIPS = [Clip(121, 512, 768), Clip(121, 1024, 1536)]
TINY_CLIPS = [Clip(9, 64, 96, 9, 16), Clip(17, 128, 192, 18, 16)]


# Which modules' marks of pieces do nothing. Those in ``ltx`` end a block, in ``transformer`` its sublayers.
MARKS = {
    "all": (),
    "sublayers": ("attention",),
    "block": ("attention", "transformer"),
    "none": ("attention", "transformer", "ltx"),
}


class Result(NamedTuple):
    """One framework on one clip: milliseconds of each forward, bytes at the peak (``None`` where it cannot tell).

    error  of the velocities beside those of bfloat16 weights; ``None`` for the weights as they are
    """

    framework: str
    clip: str
    video_tokens: int
    milliseconds: list[float]
    peak_bytes: int | None
    finite: bool
    error: float | None = None


def timed(forward: Callable[[], None], repeats: int, warmup: int = 2) -> list[float]:
    """Milliseconds of each of ``repeats`` forwards, which return when the device is done."""
    times = []
    for _ in range(warmup + repeats):
        start = time.perf_counter()
        forward()
        times.append(1000 * (time.perf_counter() - start))
    return times[warmup:]


# This package


def run_mlx(
    clips: list[Clip],
    tiny: bool,
    repeats: int,
    formats: Sequence[str] = (),
    release: str = RELEASES[0],
    whole_blocks: bool = False,
    marks: Sequence[str] = (),
) -> Iterator[Result]:
    import mlx_video  # noqa: F401  isort: skip  first: it chooses MLX's backend
    import mlx.core as mx

    model = mlx_model(tiny, release)
    for kept, clip in product(marks, clips):
        keep_marks(kept)
        forward = mlx_forward(model, clip)
        yield time_mlx(f"mlx-video, marks: {kept}", forward, clip, repeats)[0]
    if marks:
        return
    exact = []
    for clip in clips:
        forward = mlx_forward(model, clip)
        result, velocity = time_mlx("mlx-video", forward, clip, repeats)
        exact.append(velocity)
        yield result
        forward = mlx_forward(model, clip, pinned=clip.tokens_per_frame)
        yield time_mlx("mlx-video, image to video", forward, clip, repeats)[0]
        forward = mlx_guided_step(model, clip)
        yield time_mlx("mlx-video, guided step", forward, clip, repeats)[0]
    if whole_blocks:
        model.transformer_blocks = CompiledBlocks(model.transformer_blocks)
        for clip, reference in zip(clips, exact):
            forward = mlx_forward(model, clip)
            name = "mlx-video, compiled blocks"
            result, velocity = time_mlx(name, forward, clip, repeats)
            yield result._replace(error=distance(velocity, reference))
    for name in formats:
        del model, forward  # which holds it
        mx.clear_cache()
        model = mlx_model(tiny, release)
        try:
            quantize_mlx(model, FORMATS[name])
            for clip, reference in zip(clips, exact):
                forward = mlx_forward(model, clip)
                result, velocity = time_mlx(
                    f"mlx-video, {name}", forward, clip, repeats
                )
                yield result._replace(error=distance(velocity, reference))
        except (RuntimeError, ValueError) as error:
            print(f"{name} is not to be had here: {error}", file=sys.stderr)


def keep_marks(kept: str) -> None:
    """Let ``end_piece`` do nothing in the modules of ``MARKS``."""
    from mlx_video.models.ltx import attention, ltx, pacing, transformer

    unmarked = lambda *arrays: arrays if len(arrays) > 1 else arrays[0]
    for module in (attention, transformer, ltx):
        ends = module.__name__.rpartition(".")[2] not in MARKS[kept]
        module.end_piece = pacing.end_piece if ends else unmarked


def mlx_model(tiny: bool, release: str = RELEASES[0]):
    """The transformer with random weights, the same in every call."""
    import mlx.core as mx

    from mlx_video.models.ltx.ltx import LTXModel

    mx.random.seed(0)
    model = LTXModel(mlx_config(tiny, release))
    draw_mlx_weights(model)
    return model


def mlx_config(tiny: bool, release: str, **changes):
    """The transformer's published config; of a miniature, if ``tiny``."""
    from mlx_video.models.ltx.config import LTXModelConfig

    config = json.loads((PUBLISHED / f"ltx-{release}.json").read_text())
    sizes = TINY if tiny else {}
    return replace(LTXModelConfig.from_dict(config["transformer"]), **(sizes | changes))


def time_mlx(
    name: str, forward: Callable[[], Sequence], clip: Clip, repeats: int
) -> tuple[Result, list["mx.array"]]:
    """What a forward takes, and the arrays it gives."""
    import mlx.core as mx

    mx.clear_cache()
    mx.reset_peak_memory()
    outputs = []

    def evaluated():
        outputs[:] = forward()
        mx.eval(outputs)

    times = timed(evaluated, repeats)
    peak = mx.get_peak_memory()
    finite = all(mx.isfinite(x).all().item() for x in outputs)
    return Result(name, str(clip), clip.video_tokens, times, peak, finite), outputs


def mlx_forward(model, clip: Clip, pinned: int = 0) -> Callable[[], Sequence]:
    """One forward, piece by piece as a sampler has it run; the first ``pinned`` video tokens have no noise."""
    from mlx_video.models.ltx.pacing import piece_by_piece
    from mlx_video.models.ltx.x0 import PACE

    inputs = mlx_inputs(model, clip, pinned)

    def forward():
        with piece_by_piece(**PACE):
            return model(inputs).values

    return forward


def run_floor(
    clips: list[Clip],
    tiny: bool,
    repeats: int,
    release: str = RELEASES[0],
) -> Iterator[Result]:
    import mlx_video  # noqa: F401  isort: skip  first: it chooses MLX's backend

    model = mlx_model(tiny, release)
    for clip in clips:
        forward = mlx_floor(model, clip)
        yield time_mlx("products and attention alone", forward, clip, repeats)[0]


def mlx_floor(model, clip: Clip) -> Callable[[], Sequence]:
    """The matrix products and attentions of a forward, and nothing between them."""
    from mlx_video.models.ltx.attention import _attend
    from mlx_video.models.ltx.pacing import SMALL, end_piece, piece_by_piece
    from mlx_video.models.ltx.x0 import PACE
    from mlx_video.types import AV

    tokens = AV(clip.video_tokens, clip.audio_tokens)
    x = tokens.map(lambda n, own: noise(n, own.width), model.config.streams)
    text = model.project_context(mlx_contexts(model, clip))

    def attended(attention, x, context):
        q, k, v = attention.to_q(x), attention.to_k(context), attention.to_v(context)
        out = _attend(q, k, v, None, attention.heads, attention.scale)
        return attention.to_out(out)

    sublayers = (
        lambda block, x, other, text: attended(block.attn1, x, x),
        lambda block, x, other, text: attended(block.attn2, x, text),
        lambda block, x, other, text: attended(block.cross_attn, x, other),
        lambda block, x, other, text: block.ff.proj_out(block.ff.proj_in(x)),
    )

    def forward():
        with piece_by_piece(**PACE):
            for block, sublayer in product(model.transformer_blocks, sublayers):
                last = block.streams.map(sublayer, x, x.swapped, text).values
                end_piece(*last, takes=SMALL)  # the next does not depend on it
        return last

    return forward


def mlx_guided_step(model, clip: Clip) -> Callable[[], Sequence]:
    """A step with every guided pass in turn: prompt, negative prompt, STG and the modalities apart."""

    from mlx_video.conditioning.latent import LatentState
    from mlx_video.models.ltx.x0 import X0Model
    from mlx_video.recipes import AUDIO_GUIDANCE, VIDEO_GUIDANCE
    from mlx_video.sampling.guidance import guided
    from mlx_video.types import AV, PromptEmbeddings

    prompt, negative = mlx_contexts(model, clip), mlx_contexts(model, clip)
    positions = mlx_positions(clip)
    states = AV(
        LatentState.fresh(noise(clip.video_tokens, 128), positions.video),
        LatentState.fresh(noise(clip.audio_tokens, 128), positions.audio),
    )
    block = model.config.num_layers * 29 // 48
    strengths = AV(VIDEO_GUIDANCE, AUDIO_GUIDANCE).map(
        lambda strength: replace(strength, stg_blocks=(block,))
    )
    step = guided(X0Model(model), PromptEmbeddings(prompt, negative), strengths)
    return lambda: step(states, SIGMA).values


class CompiledBlocks:
    """A transformer's blocks, each one call of the same compiled function: what that would give.

    Queueing a block takes a third of the time, but nothing inside it can be evaluated as a piece of its own.
    """

    def __init__(self, blocks):
        import mlx.core as mx

        self.blocks = list(blocks)
        self.weights = [block.parameters() for block in self.blocks]
        self.compiled = mx.compile(self._run)

    def __iter__(self):
        return (partial(self._block, weights) for weights in self.weights)

    def _block(self, weights, x, conditioning, *perturbed):
        from mlx_video.types import AV

        given = [tuple(c)[:2] + tuple(c)[3:] for c in conditioning.values]
        return AV(*self.compiled(weights, x.values, given))

    def _run(self, weights, x, given):
        from mlx_video.models.ltx import pacing
        from mlx_video.models.ltx.adaln import Modulation
        from mlx_video.models.ltx.transformer import Conditioning, RopeTables
        from mlx_video.types import AV

        conditioning = AV(
            *(
                Conditioning(
                    context,
                    RopeTables(*rope),
                    True,
                    *(m and Modulation(*m) for m in modulations),
                    bias,
                )
                for context, rope, *modulations, bias in given
            )
        )
        block = self.blocks[0]  # the others differ by nothing but their weights
        own, unpaced = block.parameters(), pacing._pacer.set(None)
        block.update(weights)
        out = block(AV(*x), conditioning).values
        block.update(own)
        pacing._pacer.reset(unpaced)
        return out


def quantize_mlx(model, kind: Format) -> None:
    from mlx_video.models.ltx.loading.components import quantize_blocks
    from mlx_video.weights import materialize

    quantize_blocks(model, kind.group_size, kind.bits, kind.mode)
    materialize(model)


def distance(a: list["mx.array"], b: list["mx.array"]) -> float:
    """|a - b| / |b| over all the arrays."""
    import mlx.core as mx

    def square(arrays) -> float:
        return sum(mx.square(x.astype(mx.float32)).sum().item() for x in arrays)

    return (square([x - y for x, y in zip(a, b)]) / square(b)) ** 0.5


def draw_mlx_weights(model) -> None:
    """Random weights made on the device one by one; tables in float32, as in the real file."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    weights = []
    for name, parameter in tree_flatten(model.parameters()):
        dtype = mx.float32 if "scale_shift_table" in name else mx.bfloat16
        scale = parameter.shape[-1] ** -0.5
        weights.append((name, mx.random.normal(parameter.shape, dtype, scale=scale)))
        mx.eval(weights[-1][1])
    model.load_weights(weights)


def mlx_inputs(model, clip: Clip, pinned: int = 0, evaluated: bool = True):
    """AV[ModalityInput] of noise, everything evaluated if so asked; the same in every call."""
    import mlx.core as mx

    from mlx_video.models.ltx.transformer import ModalityInput, Timesteps
    from mlx_video.types import AV

    mx.random.seed(1)
    config = model.config
    latents = AV(
        noise(clip.video_tokens, config.in_channels),
        noise(clip.audio_tokens, config.audio_in_channels),
    )
    contexts = model.project_context(mlx_contexts(model, clip))
    ropes = model.rope(mlx_positions(clip))
    masks = latents.map(lambda x: mx.ones((*x.shape[:2], 1)))
    masks.video[:, :pinned] = 0
    levels = masks.map(lambda mask: Timesteps.from_mask(SIGMA, mask))
    if evaluated:
        mx.eval(latents.values, contexts.values, ropes.values)
    first_frame = mx.arange(clip.video_tokens)[None, :, None] < clip.tokens_per_frame
    both = AV(True, True)
    return latents.map(ModalityInput, levels, contexts, ropes, both, AV(first_frame))


def mlx_contexts(model, clip: Clip):
    """AV of what the connectors make of a prompt: as wide as its stream from LTX-2.3 on."""
    config = model.config
    wide = config.caption_proj_before_connector
    return config.streams.map(
        lambda own: noise(
            clip.text_tokens, own.context_dim if wide else config.caption_channels
        )
    )


def noise(tokens: int, channels: int):
    import mlx.core as mx

    return mx.random.normal((1, tokens, channels), mx.bfloat16)


def mlx_positions(clip: Clip):
    from mlx_video.models.ltx import patchify
    from mlx_video.models.ltx.checkpoint.releases import LTX_2
    from mlx_video.types import AV

    geometry = LTX_2.geometry
    return AV(
        patchify.position_grid(clip.grid, geometry.video, FPS),
        patchify.audio_positions(clip.audio_tokens, geometry.audio),
    )


def host_time(tiny: bool, release: str) -> str:
    """What Python and MLX take to queue one block, in CPU time, and how many arrays they make."""
    import mlx_video  # noqa: F401  isort: skip  first: it chooses MLX's backend
    import mlx.core as mx

    block, x, conditioning = one_block(tiny, release)
    gc.disable()
    times = []
    for _ in range(HOST_ROUNDS):
        start = time.process_time()
        for _ in range(HOST_BLOCKS):
            once = block(x, conditioning)
        times.append((time.process_time() - start) / HOST_BLOCKS * 1e6)
    more = arrays_in(block(once, conditioning)) - arrays_in(once)
    return (
        f"{mx.default_device()}: {min(times):.0f} microseconds a block at least, {median(times):.0f} in the median of "
        f"{HOST_ROUNDS} rounds of {HOST_BLOCKS}; {more} arrays"
    )


def one_block(tiny: bool, release: str):
    """A block of the transformer, and what it gets; nothing of it is evaluated."""
    import mlx.core as mx

    from mlx_video.models.ltx.ltx import LTXModel

    model = LTXModel(mlx_config(tiny, release, num_layers=1))
    model.set_dtype(mx.bfloat16)
    clip = (TINY_CLIPS if tiny else CLIPS)[0]
    x, conditioning = model.embed(mlx_inputs(model, clip, evaluated=False))
    return model.transformer_blocks[0], x, conditioning


def arrays_in(values) -> int:
    """How many arrays a pair of outputs is made of."""
    import mlx.core as mx

    drawing = io.StringIO()
    mx.export_to_dot(drawing, *values.values)
    return drawing.getvalue().count("shape=rectangle")


# Diffusers


def run_diffusers(
    clips: list[Clip],
    tiny: bool,
    repeats: int,
    release: str = RELEASES[0],
    compiled: bool = False,
) -> Iterator[Result]:
    import torch
    from diffusers import LTX2VideoTransformer3DModel

    cuda = torch.cuda.is_available()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if cuda else "cpu"):
        sizes = DIFFUSERS_SIZES[release] | (TINY if tiny else {})
        model = LTX2VideoTransformer3DModel(**sizes, rope_type="split").eval()
        inputs = [diffusers_inputs(model.config, clip) for clip in clips]
    for parameter in model.parameters():
        parameter.normal_(std=parameter.shape[-1] ** -0.5)
    if compiled:
        model.compile_repeated_blocks(fullgraph=True, dynamic=False)
    for clip, given in zip(clips, inputs):
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        outputs = []

        def forward():
            outputs[:] = model(**given)
            if cuda:
                torch.cuda.synchronize()

        times = timed(forward, repeats)
        peak = torch.cuda.max_memory_allocated() if cuda else None
        finite = all(x.isfinite().all().item() for x in outputs)
        name = "diffusers, torch.compile" if compiled else "diffusers, eager"
        yield Result(name, str(clip), clip.video_tokens, times, peak, finite)


def diffusers_inputs(config, clip: Clip) -> dict:
    import torch

    frames, height, width = clip.grid
    shared = config.use_prompt_embeddings  # projects what both streams get, as LTX-2
    video_text = config.caption_channels if shared else config.cross_attention_dim
    audio_text = config.caption_channels if shared else config.audio_cross_attention_dim
    level = torch.tensor([1000 * SIGMA], dtype=torch.float32)
    given = {
        "hidden_states": torch.randn(1, clip.video_tokens, config.in_channels),
        "audio_hidden_states": torch.randn(
            1, clip.audio_tokens, config.audio_in_channels
        ),
        "encoder_hidden_states": torch.randn(1, clip.text_tokens, video_text),
        "audio_encoder_hidden_states": torch.randn(1, clip.text_tokens, audio_text),
        "timestep": level,
        "sigma": level,
        "num_frames": frames,
        "height": height,
        "width": width,
        "fps": FPS,
        "audio_num_frames": clip.audio_tokens,
        "return_dict": False,
    }
    if config.use_keyframes_abs_pos_embedding:
        first_frame = torch.arange(clip.video_tokens) < clip.tokens_per_frame
        given["video_keyframes_mask"] = first_frame[None, :, None]
    return given


# The run

RUNNERS = {
    "mlx": run_mlx,
    "floor": run_floor,
    "diffusers": run_diffusers,
    "diffusers-compiled": partial(run_diffusers, compiled=True),
}


def run_apart(name: str, arguments: argparse.Namespace) -> Iterator[Result]:
    """What runner ``name`` measures in a process of its own."""
    command = [sys.executable, __file__, "--only", name]
    if arguments.quantize:
        command += ["--quantize", *arguments.quantize]
    command += ["--repeats", str(arguments.repeats)] + ["--tiny"] * arguments.tiny
    command += ["--release", arguments.release]
    command += ["--whole-blocks"] * arguments.whole_blocks
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        for line in process.stdout:
            if line.startswith("{"):
                yield Result(**json.loads(line))
    if process.returncode:
        print(f"{name} stopped with exit code {process.returncode}", file=sys.stderr)


def table(results: list[Result]) -> str:
    lines = [
        "| framework | clip | video tokens | median ms | min - max | peak GiB | finite | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        ms = r.milliseconds
        error = "" if r.error is None else f"{r.error:.2%}"
        peak = "?" if r.peak_bytes is None else f"{r.peak_bytes / 2**30:.2f}"
        lines.append(
            f"| {r.framework} | {r.clip} | {r.video_tokens:,} | {median(ms):,.1f} "
            f"| {min(ms):,.1f} - {max(ms):,.1f} | {peak} | {'yes' if r.finite else 'NO'} | {error} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--compile", action="store_true", help="also diffusers with torch.compile"
    )
    parser.add_argument(
        "--quantize",
        nargs="+",
        choices=FORMATS,
        default=[],
        help="also this package with its blocks' weights in these formats",
    )
    parser.add_argument(
        "--release",
        type=lambda name: name.removeprefix("ltx-"),
        choices=RELEASES,
        default=RELEASES[0],
        help="whose transformer",
    )
    parser.add_argument(
        "--whole-blocks",
        action="store_true",
        help="also this package with every block compiled as one function",
    )
    parser.add_argument(
        "--marks",
        nargs="+",
        choices=MARKS,
        default=[],
        help="with --only mlx: a plain forward for each, with these of the marks that end a piece, and nothing else",
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed forwards (5)")
    parser.add_argument("--json", type=Path, help="write every time here")
    parser.add_argument("--tiny", action="store_true", help="a miniature, for the CPU")
    parser.add_argument(
        "--host", action="store_true", help="only what the Python of one block takes"
    )
    parser.add_argument("--only", choices=RUNNERS, help="one framework, as JSON lines")
    arguments = parser.parse_args()
    if arguments.host:
        return print(host_time(arguments.tiny, arguments.release))
    if arguments.only:
        clips = TINY_CLIPS if arguments.tiny else CLIPS
        runner = partial(RUNNERS[arguments.only], release=arguments.release)
        if arguments.only == "mlx":
            runner = partial(runner, formats=arguments.quantize)
            runner = partial(runner, whole_blocks=arguments.whole_blocks)
            runner = partial(runner, marks=arguments.marks)
        for result in runner(clips, arguments.tiny, arguments.repeats):
            print(json.dumps(result._asdict()), flush=True)
        return
    names = list(RUNNERS)[: 4 if arguments.compile else 3]
    results = [result for name in names for result in run_apart(name, arguments)]
    print(table(results))
    if arguments.json:
        rows = [result._asdict() for result in results]
        arguments.json.write_text(json.dumps(rows, indent=1))
    if len(results) < len(names) * len(CLIPS):
        sys.exit(1)


if __name__ == "__main__":
    main()
