"""A miniature LTX-2 on the CPU, float32, random weights of the same sizes: this package beside diffusers.

    python benchmarks/cpu.py [--diffusers PYTHON] [--threads N] [--repeats N] [--json PATH]

The prompt's way to the transformer, one forward, each decoder, and a whole job of eight steps, up to frames and sound
in memory. Each framework runs in a process of its own, diffusers by another PYTHON if one is named, and keeps its parts
loaded. Milliseconds are the least of the calls after the first: on the clock, and of work on all cores, which other
processes change less. As in a run on a CPU, MLX compiles nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

from dit_forward import CONFIG, FPS, ROOT, SIGMA, Clip, diffusers_inputs

CLIP = Clip(frames=9, height=128, width=192, audio_tokens=9)
PROMPT = "a red ball rolls along a blue floor in the warm light of the evening"
SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)
TOKENIZER = ROOT / "tests" / "fixtures" / "ltx2_tiny" / "text_encoder"

# An eighth of LTX-2's width, but for the audio autoencoder, which diffusers has in one width.
HEADS, HEAD_DIM, AUDIO_HEAD_DIM, CAPTION = 8, 64, 32, 512
TRANSFORMER = {
    "num_layers": 4,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_DIM,
    "cross_attention_dim": HEADS * HEAD_DIM,
    "audio_num_attention_heads": HEADS,
    "audio_attention_head_dim": AUDIO_HEAD_DIM,
    "audio_cross_attention_dim": HEADS * AUDIO_HEAD_DIM,
    "caption_channels": CAPTION,
}
CONNECTOR = {
    "connector_num_attention_heads": CAPTION // HEAD_DIM,
    "connector_attention_head_dim": HEAD_DIM,
    "connector_num_layers": 2,
}
VIDEO_CHANNELS, VOCODER_CHANNELS = 16, 128
GEMMA = {
    "model_type": "gemma3_text",
    "vocab_size": 300,
    "hidden_size": CAPTION,
    "intermediate_size": 4 * CAPTION,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": HEAD_DIM,
    "query_pre_attn_scalar": HEAD_DIM,
    "sliding_window": 512,
}

Works = dict[str, Callable[[], object]]


class Result(NamedTuple):
    """Seconds of each call of one framework's work, the first one included: on the clock, and of work on all cores."""

    framework: str
    work: str
    wall: list[float]
    cpu: list[float]


def timed(work: Callable[[], object], calls: int) -> tuple[list[float], list[float]]:
    wall, cpu = [time.perf_counter()], [time.process_time()]
    for _ in range(calls):
        work()
        wall.append(time.perf_counter())
        cpu.append(time.process_time())
    return steps(wall), steps(cpu)


def steps(readings: list[float]) -> list[float]:
    return [after - before for before, after in zip(readings, readings[1:])]


# This package


def mlx_works() -> Works:
    import mlx_video  # noqa: F401  isort: skip  first: it finds MLX a fast BLAS
    import mlx.core as mx

    from mlx_video.backend import suit_cpu
    from mlx_video.models.ltx.connector import embed_prompts
    from mlx_video.pipeline import Pipeline, Request
    from mlx_video.recipes import Recipe, Stage
    from mlx_video.types import VideoPixelShape

    suit_cpu(0)
    parts = mlx_components()
    shape = VideoPixelShape(CLIP.frames, CLIP.height, CLIP.width, FPS)
    request = Request(PROMPT, shape, audio=True, tiling="none")
    recipe = Recipe("distilled", (Stage((*SIGMAS, 0.0)),))
    pipeline = Pipeline(parts, recipe, health=False)
    video = mx.random.normal((1, 128, *CLIP.grid))
    sound = mx.random.normal((1, 8, CLIP.audio_tokens, 16))
    log_mel = parts.part("audio_decoder")(sound)

    def embed():
        features = parts.part("text_encoder").features([PROMPT])
        embeddings = embed_prompts(parts.part("connectors"), features)
        mx.eval(embeddings.positive.values)

    return {
        "prompt": embed,
        "transformer": mlx_forward(parts.part("transformer")),
        "video decoder": lambda: mx.eval(parts.part("video_decoder")(video)),
        "audio decoder": lambda: mx.eval(parts.part("audio_decoder")(sound)),
        "vocoder": lambda: mx.eval(parts.part("vocoder")(log_mel)),
        "job": lambda: list(pipeline(request).frames),
    }


def mlx_components():
    """The nine parts, drawn when they are first used and then kept, as those of diffusers are."""
    import mlx.core as mx
    from job import RandomComponents

    from mlx_video.models.ltx.checkpoint.source import Source
    from mlx_video.models.ltx.loading.parts import PARTS
    from mlx_video.models.ltx.loading.residency import Residency

    class KeptComponents(RandomComponents):
        kept = {}  # also by copies, which the pipeline makes

        def part(self, name):
            if name not in self.kept:
                self.kept[name] = self._load(name)
            return self.kept[name]

        @contextmanager
        def lend(self, name, *_):
            yield self.part(name)

    config = json.loads(CONFIG.read_text())["config"]
    config["transformer"] |= TRANSFORMER | CONNECTOR
    config["vae"]["decoder_base_channels"] = VIDEO_CHANNELS
    config["vocoder"]["upsample_initial_channel"] = VOCODER_CHANNELS
    blocks = {part.name: config.get(part.block, {}) for part in PARTS.values()}
    blocks["text_encoder"] = {"model_type": "gemma3", "text_config": GEMMA}
    sources = {name: Source(Path(), block) for name, block in blocks.items()}
    return KeptComponents(sources, Residency(mx.float32))


def mlx_forward(model) -> Callable[[], None]:
    """As a sampler calls it; rotary tables and projected prompts are kept from the first call on."""
    import mlx.core as mx
    from dit_forward import mlx_positions

    from mlx_video.conditioning.latent import LatentState
    from mlx_video.models.ltx.x0 import X0Model
    from mlx_video.types import AV

    tokens = AV(CLIP.video_tokens, CLIP.audio_tokens)
    latents = tokens.map(lambda count: mx.random.normal((1, count, 128)))
    states = latents.map(LatentState.fresh, mlx_positions(CLIP))
    context = tokens.map(lambda _: mx.random.normal((1, CLIP.text_tokens, CAPTION)))
    predict = X0Model(model)
    return lambda: mx.eval(predict(states, context, SIGMA).values)


# Diffusers


def diffusers_works() -> Works:
    import torch

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    pipeline = diffusers_pipeline()
    given = diffusers_inputs(pipeline.transformer.config, CLIP)
    video = torch.randn(1, 128, *CLIP.grid)
    sound = torch.randn(1, 8, CLIP.audio_tokens, 16)
    log_mel = pipeline.audio_vae.decode(sound).sample

    def embed():
        states, mask, *_ = pipeline.encode_prompt(
            PROMPT, do_classifier_free_guidance=False
        )
        pipeline.connectors(states, mask, padding_side="left")

    return {
        "prompt": embed,
        "transformer": lambda: pipeline.transformer(**given),
        "video decoder": lambda: pipeline.vae.decode(video),
        "audio decoder": lambda: pipeline.audio_vae.decode(sound),
        "vocoder": lambda: pipeline.vocoder(log_mel),
        "job": lambda: pipeline(
            PROMPT,
            height=CLIP.height,
            width=CLIP.width,
            num_frames=CLIP.frames,
            frame_rate=FPS,
            sigmas=list(SIGMAS),
            num_inference_steps=len(SIGMAS),
            guidance_scale=1.0,
            audio_guidance_scale=1.0,
            stg_scale=0.0,
            audio_stg_scale=0.0,
            modality_scale=1.0,
            audio_modality_scale=1.0,
            output_type="np",
        ),
    }


def diffusers_pipeline():
    """LTX2Pipeline of the same sizes; the models' defaults are LTX-2's."""
    import diffusers
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
    from transformers import AutoTokenizer

    connector = {
        name.replace("connector_", f"{modality}_connector_", 1): value
        for name, value in CONNECTOR.items()
        for modality in ("video", "audio")
    }
    pipeline = diffusers.LTX2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKLLTX2Video(
            decoder_causal=False,
            decoder_block_out_channels=tuple(VIDEO_CHANNELS * n for n in (2, 4, 8)),
        ),
        audio_vae=diffusers.AutoencoderKLLTX2Audio(),
        text_encoder=diffusers_gemma(),
        tokenizer=AutoTokenizer.from_pretrained(TOKENIZER),
        connectors=LTX2TextConnectors(
            caption_channels=CAPTION,
            text_proj_in_factor=GEMMA["num_hidden_layers"] + 1,
            rope_type="split",
            **connector,
        ),
        transformer=diffusers.LTX2VideoTransformer3DModel(
            rope_type="split", **TRANSFORMER
        ),
        vocoder=LTX2Vocoder(hidden_channels=VOCODER_CHANNELS),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def diffusers_gemma():
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=GEMMA, vision_config=vision)
    return Gemma3ForConditionalGeneration(config).eval()


# The run

WORKS = {"mlx-video": mlx_works, "diffusers": diffusers_works}


def run_apart(
    framework: str, python: str, threads: int, repeats: int
) -> Iterator[Result]:
    """What ``framework`` takes, in a process of its own."""
    command = [python, __file__, "--only", framework, "--repeats", str(repeats)]
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    environment = os.environ | limits | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=environment, check=True
    )
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            yield Result(**json.loads(line))


def table(ours: list[Result], theirs: list[Result]) -> str:
    lines = [
        "| work | mlx-video | diffusers | ratio | mlx-video, CPU | diffusers, CPU | ratio | first calls |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for a, b in zip(ours, theirs):
        columns = [a.work]
        for mine, other in ((a.wall, b.wall), (a.cpu, b.cpu)):
            best, rival = min(mine[1:]), min(other[1:])
            columns += [f"{1000 * best:,.0f}", f"{1000 * rival:,.0f}"]
            columns.append(f"{best / rival:.2f}")
        columns.append(f"{1000 * a.wall[0]:,.0f} and {1000 * b.wall[0]:,.0f}")
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--diffusers", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--threads", type=int, default=2, help="of each framework (2)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls (5)")
    parser.add_argument("--json", type=Path, help="write every time here")
    parser.add_argument("--only", choices=WORKS, help="one framework, as JSON lines")
    arguments = parser.parse_args()
    if arguments.only:
        for name, work in WORKS[arguments.only]().items():
            result = Result(arguments.only, name, *timed(work, arguments.repeats + 1))
            print(json.dumps(result._asdict()), flush=True)
        return
    pythons = {"mlx-video": sys.executable, "diffusers": arguments.diffusers}
    results = [
        list(run_apart(framework, python, arguments.threads, arguments.repeats))
        for framework, python in pythons.items()
    ]
    print(table(*results))
    if arguments.json:
        rows = [result._asdict() for group in results for result in group]
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
