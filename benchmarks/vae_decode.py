"""Decode and encode a clip with the full video autoencoder, bfloat16, random weights: this package beside diffusers.

    python benchmarks/vae_decode.py                      # LTX-2's
    python benchmarks/vae_decode.py --release 2.3
    python benchmarks/vae_decode.py --release 2.5        # the convolutional one, and the diffusion decoder
    python benchmarks/vae_decode.py --diffusion [--repeats 2] [--tile 8,4,4 4,4,8] [--band 48] [--tiles]
    python benchmarks/vae_decode.py --release 2.5 --tiny --repeats 1      # miniatures, on a CPU too

Each framework runs in a process of its own, one after the other, on the first GPU or else the CPU; ``--only`` names one.
"Whole" is the clip at once, as diffusers does it; "streamed" is what the pipeline does, each piece dropped once it is
made, and a clip of four times the length shows what that takes; "by frames" has each convolution as a sum of 2-D ones.
Peak memory includes the input and the weights: here those of the part at work, since the pipeline loads one at a time;
diffusers' model holds both parts.

``--diffusion`` is LTX-2.5's diffusion decoder alone: streamed, in each of the tiles of queries that are named, beside
the operations that it takes in each; and in official tiles. Diffusers' own runs in its default tiles, its blocks and its
attention (FlexAttention) compiled on a GPU, with masks that we make block by block and once, since its own would not fit;
what finds no memory is said and left out. Its other attention, NATTEN, comes from the hub and is not measured.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import chain, product
from pathlib import Path
from statistics import median
from typing import Callable, Iterator, NamedTuple

from dit_forward import timed

ROOT = Path(__file__).resolve().parents[1]
MANIFESTS = ROOT / "tests" / "fixtures" / "manifests"
PUBLISHED = ROOT / "mlx_video" / "models" / "ltx" / "checkpoint" / "published"
RELEASES = ("2", "2.3", "2.5")
DIFFUSION_FILE = "vae/ltx-2.5-video-vae-bf16.safetensors"
TINY_CHANNELS = 8
TINY_WIDTHS = (512, 256, 128, 128, 64)
TINY_DEPTHS = (1, 1, 1, 1, 2)
TINY_KERNELS = ((3, 3, 3),) * 4 + ((5, 5, 5),)
# What diffusers must be told of 2.3 and 2.5, whose convolutional ones are alike; its defaults are 2's.
DIFFUSERS_2_3 = {
    "block_out_channels": (256, 512, 1024, 1024),
    "layers_per_block": (4, 6, 4, 2, 2),
    "decoder_block_out_channels": (256, 512, 512, 1024),
    "decoder_layers_per_block": (4, 6, 4, 2, 2),
    "decoder_spatio_temporal_scaling": (True,) * 4,
    "decoder_inject_noise": (False,) * 5,
    "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
    "upsample_residual": (False,) * 4,
    "upsample_factor": (2, 2, 1, 2),
    "decoder_spatial_padding_mode": "zeros",
}


class Clip(NamedTuple):
    """A clip in pixels."""

    frames: int
    height: int
    width: int

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns."""
        return (self.frames - 1) // 8 + 1, self.height // 32, self.width // 32

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.frames}"


CLIPS = [Clip(121, 512, 768), Clip(121, 1024, 1536)]
LONG_CLIP = Clip(481, 512, 768)
TINY_CLIPS = [Clip(9, 96, 96), Clip(17, 128, 192)]
TINY_LONG_CLIP = Clip(65, 96, 96)


class Result(NamedTuple):
    """One framework's work on one clip: milliseconds of each run, bytes at the peak (``None`` where it cannot tell)."""

    framework: str
    work: str
    clip: str
    milliseconds: list[float]
    peak_bytes: int | None
    weights_bytes: int
    finite: bool


def run_mlx(options: argparse.Namespace) -> Iterator[Result]:
    import mlx_video  # noqa: F401  isort: skip  first: it chooses MLX's backend
    import mlx.core as mx

    from mlx_video.models.ltx.video_vae import VideoDecoder, VideoEncoder

    mx.random.seed(0)
    for part, works, draw in (
        (VideoDecoder, decode_works, draw_latent),
        (VideoEncoder, encode_works, draw_pixels),
    ):
        tiny, repeats = options.tiny, options.repeats
        model = mlx_model(part, options.release, tiny)
        named = works(model, options.elements * 10**6)
        for clip in TINY_CLIPS if tiny else CLIPS:
            yield from measured(model, named, clip, draw(model, clip), repeats)
        clip = TINY_LONG_CLIP if tiny else LONG_CLIP
        streamed = {k: v for k, v in named.items() if k.endswith("streamed")}
        yield from measured(model, streamed, clip, draw(model, clip), 2)
        del model


def measured(model, works: dict, clip: Clip, x, repeats: int) -> Iterator[Result]:
    """The results of works, functions from ``x`` to the pieces of what is made of it."""
    import mlx.core as mx
    from mlx.utils import tree_reduce

    weights = tree_reduce(lambda n, p: n + p.nbytes, model.parameters(), 0)
    for name, work in works.items():

        def run():
            for piece in work(x):
                mx.eval(piece)

        mx.clear_cache()
        mx.reset_peak_memory()
        times = timed(run, repeats)
        peak = mx.get_peak_memory()
        finite = all(mx.isfinite(piece).all().item() for piece in work(x))
        yield Result("mlx-video", name, str(clip), times, peak, weights, finite)


def decode_works(decoder, elements: int) -> dict:
    from mlx_video.models.ltx.video_vae.decoding import StreamPlan, decode_stream
    from mlx_video.models.ltx.video_vae.tiling import TilingConfig

    plan = StreamPlan(elements)
    return {
        "decode, streamed": lambda x: decode_stream(decoder, x, plan),
        "decode, whole": lambda x: map(decoder, [x]),
        "decode, streamed by frames": by_frames(
            lambda x: decode_stream(decoder, x, plan)
        ),
        "decode, default tiles": lambda x: decode_stream(
            decoder, x, TilingConfig.default()
        ),
    }


def encode_works(encoder, elements: int) -> dict:
    from mlx_video.models.ltx.pacing import each_piece_by_piece

    def streamed(x):
        return each_piece_by_piece(encoder.stream(x, elements))

    return {
        "encode, streamed": streamed,
        "encode, whole": lambda x: map(encoder, [x]),
        "encode, streamed by frames": by_frames(streamed),
    }


def by_frames(work: Callable) -> Callable:
    """The same work with the other form of convolution."""
    from mlx_video.models.ltx.video_vae import convolution

    def run(x):
        preferred = convolution.preferred_form
        convolution.preferred_form = lambda *_: convolution.by_frames
        try:
            yield from work(x)
        finally:
            convolution.preferred_form = preferred

    return run


def draw_latent(decoder, clip: Clip):
    import mlx.core as mx

    shape = 1, decoder.config.latent_channels, *clip.grid
    latent = mx.random.normal(shape, mx.bfloat16)
    mx.eval(latent)
    return latent


def draw_pixels(encoder, clip: Clip):
    import mlx.core as mx

    pixels = mx.random.uniform(-1, 1, (1, 3, *clip), mx.bfloat16)
    mx.eval(pixels)
    return pixels


def mlx_model(part, release: str, tiny: bool):
    """A VideoEncoder or VideoDecoder, evaluated in bfloat16."""
    import mlx.core as mx

    from mlx_video.models.ltx.vae_config import VideoVAEConfig

    published = json.loads((PUBLISHED / f"ltx-{release}.json").read_text())
    config = VideoVAEConfig.from_dict(published["vae"])
    if tiny:
        names = "latent_channels", "encoder_base_channels", "decoder_base_channels"
        config = replace(config, **dict.fromkeys(names, TINY_CHANNELS))
    model = part(config)
    model.set_dtype(mx.bfloat16)
    mx.eval(model.parameters())
    return model


# The diffusion decoder


def run_diffusion(options: argparse.Namespace) -> Iterator[Result]:
    import mlx_video  # noqa: F401  isort: skip  first: it chooses MLX's backend
    import mlx.core as mx

    from mlx_video.models.ltx.video_vae import diffusion_blocks, neighborhood
    from mlx_video.models.ltx.video_vae.decoding import StreamPlan, decode_stream
    from mlx_video.models.ltx.video_vae.tiling import TilingConfig

    mx.random.seed(0)
    diffusion_blocks.BAND = options.band * 10**6
    model = diffusion_model(options.tiny)
    plan = StreamPlan(options.elements * 10**6)
    for clip in TINY_CLIPS if options.tiny else CLIPS:
        latent = draw_latent(model, clip)
        for tile in options.tile:
            neighborhood.TILE = tile
            count = operations(model, clip, tile) / 1e12
            sizes = "x".join(map(str, tile))
            name = f"diffusion, streamed, queries {sizes}: {count:,.0f} TFLOP"
            works = {name: lambda x: decode_stream(model, x, plan)}
            yield from measured(model, works, clip, latent, options.repeats)
        planned = model.activation_bytes(latent.shape, plan) / 2**30
        print(f"{clip}: planned {planned:.2f} GiB beside the weights", file=sys.stderr)
        config = TilingConfig.default()
        works = {"diffusion, default tiles": lambda x: decode_stream(model, x, config)}
        if options.tiles:
            yield from measured(model, works, clip, latent, 1)


def diffusion_model(tiny: bool):
    """A DiffusionDecoder, evaluated in bfloat16."""
    import mlx.core as mx

    from mlx_video.models.ltx.video_vae import DiffusionDecoder

    files = json.loads((MANIFESTS / "ltx-2.5.config.json").read_text())
    config = DiffusionDecoder.CONFIG.from_dict(
        files[DIFFUSION_FILE]["metadata"]["config"]["vae"]
    )
    if tiny:
        config = replace(
            config,
            stage_channels=TINY_WIDTHS,
            stage_depths=TINY_DEPTHS,
            stage_kernels=TINY_KERNELS,
        )
    model = DiffusionDecoder(config)
    model.set_dtype(mx.bfloat16)
    mx.eval(model.parameters())
    return model


def operations(model, clip: Clip, tile: tuple[int, int, int]) -> float:
    """Floating-point operations of a decode: linear layers once for each cell, and scores as tiles of queries take them.

    What overlaps of pieces and bands compute twice is left out: a tenth, or less.
    """
    config, total = model.config, 0.0
    depths = [*map(len, model.det_stages), len(model.diff_blocks)]
    frames, *sides = clip.grid
    for stage, (width, depth) in enumerate(zip(config.stage_channels, depths)):
        time, *space = model.cells.per_latent(stage)
        cells = (frames + 1) * time + 1  # with the appendix of two latents
        if stage == len(depths) - 1:
            cells -= 2 * time
        for side, scale in zip(sides, space):
            cells *= side * scale
        seen = 1
        for queries, window in zip(tile, config.stage_kernels[stage]):
            seen *= queries + window - 1
        linear = 16 * width**2 + (width**2 if stage == len(depths) - 1 else 0)
        total += depth * cells * (2 * linear + 4 * width * seen)
        if stage < len(model.upsamples):
            total += 2 * cells * model.upsamples[stage].proj.weight.size
    return total


# diffusers


def run_diffusers(options: argparse.Namespace) -> Iterator[Result]:
    torch = prepared_torch()
    tiny, repeats = options.tiny, options.repeats
    model = diffusers_model(options.release, tiny)
    for clip in TINY_CLIPS if tiny else CLIPS:
        latent = torch.randn(1, model.config.latent_channels, *clip.grid)
        pixels = torch.rand(1, 3, *clip) * 2 - 1
        works = {
            "decode, whole": lambda: model.decode(latent).sample,
            "encode, whole": lambda: model.encode(pixels).latent_dist.mode(),
        }
        yield from measured_torch(model, "diffusers, eager", works, clip, repeats)


def run_diffusers_diffusion(options: argparse.Namespace) -> Iterator[Result]:
    torch = prepared_torch()
    model = diffusers_diffusion_model(options.tiny)
    for clip in TINY_CLIPS if options.tiny else CLIPS:
        latent = torch.randn(1, model.config.latent_channels, *clip.grid)
        works = {"diffusion, default tiles": lambda: model.decode(latent).sample}
        yield from measured_torch(
            model, "diffusers, torch.compile", works, clip, options.repeats
        )


def prepared_torch():
    """Torch without gradients, in bfloat16, on the first GPU if there is one."""
    import torch

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    return torch


def measured_torch(
    model, framework: str, works: dict, clip: Clip, repeats: int
) -> Iterator[Result]:
    """The results of works, functions that give a tensor; one that finds no memory is said, and gives none."""
    import torch

    cuda = torch.cuda.is_available()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    for name, work in works.items():
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

        def run():
            work()
            if cuda:
                torch.cuda.synchronize()

        try:
            times = timed(run, repeats)
        except torch.OutOfMemoryError as error:
            print(f"{framework}, {name}, {clip}: {error}", file=sys.stderr)
            continue
        peak = torch.cuda.max_memory_allocated() if cuda else None
        finite = work().isfinite().all().item()
        yield Result(framework, name, str(clip), times, peak, weights, finite)


def diffusers_model(release: str, tiny: bool):
    """AutoencoderKLLTX2Video: its defaults are LTX-2's sizes, but for the causality of the decoder."""
    from diffusers import AutoencoderKLLTX2Video

    sizes = {} if release == "2" else dict(DIFFUSERS_2_3)
    if tiny:
        sizes |= {"latent_channels": TINY_CHANNELS}
        for name in ("block_out_channels", "decoder_block_out_channels"):
            widths = sizes.get(
                name, (256, 512, 1024, 2048)[: -1 if "dec" in name else None]
            )
            sizes[name] = tuple(width // 128 * TINY_CHANNELS for width in widths)
    return AutoencoderKLLTX2Video(decoder_causal=False, **sizes).eval()


def diffusers_diffusion_model(tiny: bool):
    """LTX2VideoDiffusionDecoderModel, its blocks compiled: its defaults are LTX-2.5's sizes."""
    import torch
    from diffusers import LTX2VideoDiffusionDecoderModel
    from diffusers.models.autoencoders import ltx2_diffusion_decoder

    sizes = {
        "decoder_stage_channels": TINY_WIDTHS,
        "decoder_stage_depths": TINY_DEPTHS,
        "decoder_stage_kernels": TINY_KERNELS[:-1],
        "decoder_stage5_kernel": TINY_KERNELS[-1],
    }
    model = LTX2VideoDiffusionDecoderModel(**(sizes if tiny else {})).eval()
    if torch.cuda.is_available():  # on a CPU torch 2.13 cannot compile this attention
        torch._dynamo.config.recompile_limit = 64  # one for each stage and tile
        decoder = model.decoder
        for block in (*decoder.diff_blocks, *chain(*decoder.det_stages)):
            block.compile(dynamic=False)
    # Its own makes a mask of tokens by tokens first: 167 GiB for one stage.
    ltx2_diffusion_decoder._neighborhood_block_mask = cache(neighborhood_mask)
    model.enable_tiling()
    return model


def neighborhood_mask(
    frames: int, height: int, width: int, kernel: tuple[int, int, int], device
):
    """FlexAttention's mask of a window around each token, moved inwards at the borders, from the blocks that windows touch."""
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    grid = (frames, height, width)
    windows = [min(k, size) for k, size in zip(kernel, grid)]
    block, tokens = 128, frames * height * width
    assert windows[2] <= block

    def place(token):
        return token // (height * width), token // width % height, token % width

    def starts(query):
        for q, size, window in zip(place(query), grid, windows):
            yield torch.clamp(q - window // 2, 0, size - window)

    def mask(_, __, query, key):
        reach = zip(place(key), starts(query), windows)
        t, h, w = [(k >= start) & (k < start + window) for k, start, window in reach]
        return t & h & w

    query = torch.arange(tokens, device=device)
    t, h, w = starts(query)
    blocks, pairs = -(-tokens // block), []
    for dt, dh, dw in product(*map(range, windows[:2]), {0, windows[2] - 1}):
        key = ((t + dt) * height + h + dh) * width + w + dw
        pairs.append((query // block * blocks + key // block).unique())
    pairs = torch.cat(pairs).unique()
    row, seen = pairs // blocks, (pairs % blocks).int()
    counts = torch.bincount(row, minlength=blocks)
    rank = torch.arange(len(row), device=device) - (counts.cumsum(0) - counts)[row]
    indices = seen.new_zeros(blocks, int(counts.max()))
    indices[row, rank] = seen
    return BlockMask.from_kv_blocks(
        counts.int()[None, None],
        indices[None, None],
        BLOCK_SIZE=block,
        mask_mod=mask,
        seq_lengths=(tokens, tokens),
        compute_q_blocks=False,
    )


RUNNERS = {
    "mlx": run_mlx,
    "diffusers": run_diffusers,
    "diffusion": run_diffusion,
    "diffusers-diffusion": run_diffusers_diffusion,
}


def run_apart(name: str) -> Iterator[Result]:
    """What runner ``name`` measures in a process of its own."""
    command = [sys.executable, __file__, "--only", name, *sys.argv[1:]]
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
        "| framework | work | clip | median ms | min - max | peak GiB | weights GiB | finite |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        ms = r.milliseconds
        peak = "?" if r.peak_bytes is None else f"{r.peak_bytes / 2**30:.2f}"
        lines.append(
            f"| {r.framework} | {r.work} | {r.clip} | {median(ms):,.1f} "
            f"| {min(ms):,.1f} - {max(ms):,.1f} | {peak} | {r.weights_bytes / 2**30:.2f} "
            f"| {'yes' if r.finite else 'NO'} |"
        )
    return "\n".join(lines)


def triple(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", choices=RELEASES, default="2", help="of LTX (2)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs (5)")
    parser.add_argument("--json", type=Path, help="write every time here")
    parser.add_argument("--tiny", action="store_true", help="a miniature, for the CPU")
    parser.add_argument("--only", choices=RUNNERS, help="one framework, as JSON lines")
    parser.add_argument(
        "--elements", type=int, default=80, help="millions of elements of a piece (80)"
    )
    group = parser.add_argument_group("LTX-2.5's diffusion decoder")
    group.add_argument("--diffusion", action="store_true", help="that one alone")
    group.add_argument(
        "--tile",
        type=triple,
        nargs="+",
        default=[(8, 4, 4)],
        help="frames, rows and columns of queries (8,4,4)",
    )
    group.add_argument(
        "--band", type=int, default=48, help="millions of elements of a band (48)"
    )
    group.add_argument("--tiles", action="store_true", help="official tiles too")
    arguments = parser.parse_args()
    if arguments.only:
        for result in RUNNERS[arguments.only](arguments):
            print(json.dumps(result._asdict()), flush=True)
        return
    names = list(RUNNERS)[2 * arguments.diffusion :]
    if not arguments.diffusion and arguments.release != "2.5":
        names = names[:2]
    results = [result for name in names for result in run_apart(name)]
    print(table(results))
    if arguments.json:
        rows = [result._asdict() for result in results]
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
