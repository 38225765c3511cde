"""The job of job.py by diffusers' own pipelines, random weights, bfloat16: seconds and peak memory of each phase.

    python benchmarks/job_diffusers.py [--size 512x768x121] [--runs 2] [--compile] [--json PATH] [--tiny]

Gemma 3 12B, connectors, eight steps of the 19B transformer with sound at half the size, the x2 upsampler, three steps at
full size, both decoders, and the mp4 by diffusers' exporter. All parts stay on the device, as ``pipe.to("cuda")`` has
them; the last of the runs is reported, without any loading.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2LatentUpsamplePipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from diffusers.pipelines.ltx2.utils import (
    DISTILLED_SIGMA_VALUES,
    STAGE_2_DISTILLED_SIGMA_VALUES,
)
from diffusers.utils import encode_video
from sizes import GEMMA, TINY
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedTokenizerFast,
)

TOKENIZER = Path(__file__).resolve().parents[1] / "tests/fixtures/ltx2_tiny"
PROMPT = "a red ball rolls along a blue floor in the warm light of the evening"
FPS = 24.0
TINY_GEMMA = GEMMA | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 4096,
}
UNGUIDED = dict.fromkeys(
    (
        "guidance_scale",
        "modality_scale",
        "audio_guidance_scale",
        "audio_modality_scale",
    ),
    1.0,
) | dict.fromkeys(
    (
        "stg_scale",
        "audio_stg_scale",
        "guidance_rescale",
        "audio_guidance_rescale",
    ),
    0.0,
)
CUDA = torch.cuda.is_available()


def text_encoder(tiny: bool) -> Gemma3ForConditionalGeneration:
    text = TINY_GEMMA if tiny else GEMMA
    vision = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 2}
    config = Gemma3Config(text_config=text, vision_config=vision)
    return Gemma3ForConditionalGeneration(config).eval()


def connectors(tiny: bool) -> LTX2TextConnectors:
    sizes = {"caption_channels": 64, "text_proj_in_factor": 3} if tiny else {}
    for stream in ("video", "audio") if tiny else ():
        sizes[f"{stream}_connector_num_attention_heads"] = 2
        sizes[f"{stream}_connector_attention_head_dim"] = 32
    return LTX2TextConnectors(**sizes, rope_type="split")


def pipelines(tiny: bool) -> tuple[LTX2Pipeline, LTX2LatentUpsamplePipeline]:
    """The two pipelines; every part on the device with random weights."""
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.bfloat16)
    sizes = TINY | {"caption_channels": TINY_GEMMA["hidden_size"]} if tiny else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(TOKENIZER / "text_encoder" / "tokenizer.json"),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    with torch.device("cuda" if CUDA else "cpu"):
        transformer = LTX2VideoTransformer3DModel(**sizes, rope_type="split")
        for parameter in transformer.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        vae = AutoencoderKLLTX2Video(
            decoder_causal=False,
            spatial_compression_ratio=32,
            temporal_compression_ratio=8,
        )
        pipe = LTX2Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=vae,
            audio_vae=AutoencoderKLLTX2Audio(),
            text_encoder=text_encoder(tiny),
            tokenizer=tokenizer,
            connectors=connectors(tiny),
            transformer=transformer.eval(),
            vocoder=LTX2Vocoder(),
        )
        upsampler = LTX2LatentUpsamplerModel(
            mid_channels=64 if tiny else 1024, use_rational_resampler=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe, LTX2LatentUpsamplePipeline(vae=vae, latent_upsampler=upsampler)


def run(
    pipe: LTX2Pipeline,
    upsample: LTX2LatentUpsamplePipeline,
    size: tuple[int, int, int],
    path: Path,
) -> list[tuple[str, float, float]]:
    """(phase, seconds, peak GiB) of one job, whose clip is written to ``path``."""
    height, width, frames = size
    phases, started = [], time.perf_counter()

    def end(phase: str) -> None:
        nonlocal started
        peak = 0.0
        if CUDA:
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
        now = time.perf_counter()
        phases.append((phase, now - started, peak))
        started = now

    embeds, mask, *_ = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    end("encode the prompt")
    given = {
        "prompt_embeds": embeds,
        "prompt_attention_mask": mask,
        "num_frames": frames,
        "frame_rate": FPS,
        "use_cross_timestep": False,
        "return_dict": False,
        **UNGUIDED,
    }
    latents, sound = pipe(
        height=height // 2,
        width=width // 2,
        sigmas=DISTILLED_SIGMA_VALUES,
        num_inference_steps=len(DISTILLED_SIGMA_VALUES),
        output_type="latent",
        **given,
    )
    end("stage 1")
    (latents,) = upsample(latents=latents, output_type="latent", return_dict=False)
    end("upsample")
    stage_2 = {
        "latents": latents,
        "audio_latents": sound,
        "height": height,
        "width": width,
        "noise_scale": STAGE_2_DISTILLED_SIGMA_VALUES[0],
        "sigmas": STAGE_2_DISTILLED_SIGMA_VALUES,
        "num_inference_steps": len(STAGE_2_DISTILLED_SIGMA_VALUES),
    }
    video, waveform = pipe(
        **stage_2,
        output_type="np",
        callback_on_step_end=lambda _, i, *__: (
            (i + 1 == len(STAGE_2_DISTILLED_SIGMA_VALUES) and end("stage 2")) or {}
        ),
        **given,
    )
    end("decode sound and frames")
    rate = pipe.vocoder.config.output_sampling_rate
    encode_video(
        video[0],
        fps=FPS,
        audio=waveform[0].float().cpu(),
        audio_sample_rate=rate,
        output_path=str(path),
    )
    end("encode frames, finish the file")
    return phases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="512x768x121", help="height x width x frames")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the transformer's blocks"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--tiny", action="store_true", help="a small transformer and Gemma, to try it"
    )
    args = parser.parse_args()
    pipe, upsample = pipelines(args.tiny)
    if args.compile:
        pipe.transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
    size = tuple(map(int, args.size.split("x")))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.runs):
            path = Path(folder, f"{number}.mp4")
            phases = run(pipe, upsample, size, path)
        written = path.stat().st_size
    print("| phase | seconds | peak GiB |\n|---|---|---|")
    for phase, seconds, peak in phases:
        print(f"| {phase} | {seconds:.2f} | {peak:.2f} |")
    total, peak = sum(s for _, s, _ in phases), max(p for *_, p in phases)
    print(f"| all | {total:.2f} | {peak:.2f} |")
    print(f"\nThe file has {written / 1e6:.2f} MB.")
    if args.json:
        args.json.write_text(json.dumps(phases))


if __name__ == "__main__":
    main()
