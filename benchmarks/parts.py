"""The plan beside the truth: predicted and measured peak memory of each part at work, over a grid of clips.

    python benchmarks/parts.py [--full] [--tiny] [--release 2|2.3|2.5] [--dtype bfloat16] [--text-encoder [FOLDER]] [--json PATH]

Random weights, of a middling size (LTX-2 alone), or with --full of the release's own widths and two blocks, which a GPU
does in a minute: python benchmarks/parts.py --full --release 2.5. Every part works once unmeasured: while a GPU compiles
kernels, less of the work waits in its memory; then three times, and the most counts. A row ends with "off" where the plan, which
counts a part's weights too, is more than 15 % and 50 MB away from the truth. --text-encoder looks at Gemma alone, a random one and that in FOLDER, by default the tests', as they are
and quantized on load: these rows count the weights, and say how far the hidden states move.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Callable, Iterator, NamedTuple

try:
    import huggingface_hub  # noqa: F401
except ImportError:  # a GPU machine may lack it, and nothing is fetched here
    sys.modules["huggingface_hub"] = ModuleType("huggingface_hub")

sys.path.insert(0, str(Path(__file__).parent.parent))
import mlx_video  # noqa: E402,F401  isort: skip  first: it chooses MLX's backend
import mlx.core as mx
import mlx.nn as nn
import sizes
from mlx.utils import tree_flatten, tree_map

from mlx_video.conditioning.latent import LatentState
from mlx_video.models.ltx import patchify
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.connector import embed_prompts
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.parts import PARTS
from mlx_video.models.ltx.loading.residency import Residency, default_dtype
from mlx_video.models.ltx.pacing import SMALL, piece_by_piece
from mlx_video.models.ltx.video_vae.decoding import (
    Tiling,
    choose_tiling,
    decode_stream,
)
from mlx_video.models.ltx.x0 import X0Model
from mlx_video.plan import Footprint
from mlx_video.types import AV, TextFeatures, VideoPixelShape
from mlx_video.weights import save_folder

ROOT = Path(__file__).resolve().parents[1]
MANIFESTS = ROOT / "tests" / "fixtures" / "manifests"
TINY_GEMMA = ROOT / "tests" / "fixtures" / "ltx2_tiny" / "text_encoder"
CLIPS = [(9, 128, 192), (25, 256, 256), (49, 256, 384), (49, 512, 512)]
FULL_CLIPS = [(49, 512, 768), (121, 512, 768), (121, 1024, 1536)]
TINY_CLIPS = [(9, 64, 64)]
FPS = 24.0
PROMPT, CONTEXT = 128, 1024  # tokens
TEXT_LAYERS = 12
TEXT = 8 * "a red ball rolls along a blue floor in the warm light of the evening "
BITS = (None, 8, 4)
LIMIT = 16e9  # bytes that decoding may choose to take
TOLERANCE, FLOOR = 0.15, 50e6
RUNS = 3

# Of the 19B model's config, made middling.
TRANSFORMER = {
    "num_attention_heads": 8,
    "attention_head_dim": 64,
    "cross_attention_dim": 512,
    "audio_num_attention_heads": 8,
    "audio_attention_head_dim": 32,
    "audio_cross_attention_dim": 256,
    "caption_channels": 512,
    "connector_num_attention_heads": 8,
    "connector_attention_head_dim": 64,
}
# As deep as the connectors expect.
GEMMA = sizes.GEMMA | {
    "model_type": "gemma3_text",
    "num_hidden_layers": TEXT_LAYERS - 1,
}
GEMMA_MIDDLING = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "vocab_size": 8192,
}
VAE = {"encoder_base_channels": 32, "decoder_base_channels": 32}


class Result(NamedTuple):
    """Bytes beside the weights while a part works on a clip.

    weights  bytes that the plan counts with them; those of the text encoder are among the others
    moved    how far its hidden states are from those of the weights as they are, relatively
    """

    part: str
    clip: str
    predicted: float
    measured: int
    weights: int = 0
    moved: float = 0.0

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def of_all(self) -> float:
        """The error of what the plan says of the part, weights included."""
        return (self.predicted - self.measured) / (self.measured + self.weights)

    @property
    def off(self) -> bool:
        distance = abs(self.predicted - self.measured)
        return abs(self.of_all) > TOLERANCE and distance > FLOOR


class RandomComponents(Components):
    """Parts with random weights, as they would be lent from files; the text encoder from its file, once there is one."""

    text_layers = TEXT_LAYERS

    def fit(self, gemma: Source) -> None:
        """Lend this text encoder, and connectors as wide as it is."""
        config = gemma.config.get("text_config", gemma.config)
        self.text_layers = config["num_hidden_layers"] + 1
        connectors = self.sources["connectors"]
        width = {"caption_channels": config["hidden_size"]}
        self.sources["connectors"] = replace(
            connectors, config={**connectors.config, **width}
        )
        self.sources["text_encoder"] = gemma
        self._built.clear()  # of another text encoder

    def _network(self, name, source):
        if name == "text_encoder":
            return super()._network(name, source)
        config = PARTS[name].config(source)
        if name == "transformer":
            config = replace(config, model_type=self.model_type)
        if name == "connectors":
            config = replace(config, text_layers=self.text_layers)
        module = PARTS[name].network(source)(config)
        module.update(tree_map(self._cast, module.parameters()))
        return module, []

    def _cast(self, value: mx.array) -> mx.array:
        floating = mx.issubdtype(value.dtype, mx.floating)
        return value.astype(self.residency.dtype) if floating else value


def components(full: bool, dtype: mx.Dtype, release: str = "2") -> RandomComponents:
    blocks = published(release)
    blocks["transformer"]["num_layers"] = 2
    upsamplers = read("ltx-2-upscalers")
    upsampler = upsamplers["ltx-2-spatial-upscaler-x2-1.0.safetensors"]
    if not full:
        blocks["transformer"] |= TRANSFORMER
        blocks["vae"] |= VAE
        blocks["vocoder"]["upsample_initial_channel"] = 256
        blocks["audio_vae"]["model"]["params"]["ddconfig"]["ch"] = 32
        upsampler["config"]["mid_channels"] = 256
    sources = {
        part.name: Source(Path("random"), blocks[part.block])
        for part in PARTS.values()
        if part.block
    }
    sources["upsampler"] = Source(Path("random"), upsampler["config"])
    return RandomComponents(sources, Residency(dtype))


def published(release: str) -> dict:
    """The blocks of a release's config, whichever of its files each stands in."""
    if release != "2.5":
        return read({"2": "ltx-2-19b", "2.3": "ltx-2.3-22b"}[release])["config"]
    blocks = {}
    for name, file in read("ltx-2.5").items():
        if "duration" not in name and "metadata" in file:
            blocks |= file["metadata"].get("config", {})
    return blocks


def read(name: str) -> dict:
    return json.loads((MANIFESTS / f"{name}.config.json").read_text())


class Bench:
    """Every part at work on one clip, and what its footprint said before."""

    def __init__(self, lent: Components, shape: VideoPixelShape):
        self.lent, self.shape = lent, shape
        self.grid = lent.geometry.latents(shape)
        self.frames = lent.geometry.audio_frames(shape)
        self.footprint = Footprint(lent)

    def run(self) -> Iterator[Result]:
        shape, part = self.shape, self.footprint.part
        tokens = AV(self.grid.tokens, self.frames)
        model, mel_frames = part("transformer"), 4 * self.frames
        forward = model.held_bytes(tokens, 1, CONTEXT)
        forward += model.activation_bytes(tokens, 1, CONTEXT)
        image = part("video_encoder").activation_bytes(*shape[1:3])
        connected = part("connectors").activation_bytes(PROMPT, 1, CONTEXT)
        upsampled = part("upsampler").activation_bytes(4 * tokens.video)
        spectrogram = part("audio_decoder").activation_bytes(self.frames)
        sound = part("vocoder").activation_bytes(mel_frames)
        decoder = part("video_decoder")
        tiling = self.tiling(decoder, mx.zeros(self.grid))
        clip = decoder.activation_bytes(self.grid, tiling)
        works = {
            "connectors": (connected, self.connect),
            "video_encoder": (image, self.encode),
            "transformer": (forward, self.denoise),
            "upsampler": (upsampled, self.upsample),
            "audio_decoder": (spectrogram, self.decode_spectrogram),
            "vocoder": (sound, self.decode_sound),
            "video_decoder": (clip, self.decode_video),
        }
        for name, (predicted, work) in works.items():
            weights = self.footprint.weights(name)  # now: a part that was lent has none
            with self.lent.lend(name) as part:
                function, inputs = work(part)
                mx.eval(function(inputs))
                measured = peak(function, inputs)
            size = f"{shape.height}x{shape.width}x{shape.frames}"
            yield Result(name, size, predicted + SMALL, measured, weights)

    # Each gives a function and its inputs, which are there before.

    def connect(self, part: nn.Module):
        layers, width = part.config.text_layers + 1, part.config.caption_channels
        states = noise(layers, 1, PROMPT, width, dtype=self.lent.residency.dtype)
        mask = mx.arange(CONTEXT)[None] >= CONTEXT - PROMPT
        features = TextFeatures(states, mask.astype(mx.int32))
        return lambda x: embed_prompts(part, x).positive.values, features

    def encode(self, part: nn.Module):
        return piece_by_piece()(part), noise(1, 3, 1, *self.shape[1:3])

    def denoise(self, part: nn.Module):
        geometry = self.lent.geometry
        audio = patchify.audio_positions(self.frames, geometry.audio)
        positions = AV(patchify.video_positions(self.shape, geometry), audio)
        states = positions.map(
            lambda p: LatentState.fresh(noise(1, p.shape[2], 128), p)
        )
        own, config = part.config.streams, part.config
        projects = not config.caption_proj_before_connector
        width = config.caption_channels if projects else None
        context = own.map(lambda s: noise(1, CONTEXT, width or s.width))
        return lambda x: X0Model(part)(x, context, 0.7).values, states

    def upsample(self, part: nn.Module):
        return piece_by_piece()(part), noise(*self.grid)

    def decode_spectrogram(self, part: nn.Module):
        return part, noise(1, 8, self.frames, 16)

    def decode_sound(self, part: nn.Module):
        return part, noise(1, 2, 4 * self.frames, 64)

    def decode_video(self, part: nn.Module):
        def decode(latents: mx.array) -> None:
            for _ in decode_stream(part, latents, self.tiling(part, latents)):
                pass

        return decode, noise(*self.grid)

    def tiling(self, decoder: nn.Module, latents: mx.array) -> Tiling:
        budget = LIMIT - self.footprint.weights("video_decoder")
        return choose_tiling("auto", decoder, latents.shape, budget)


def encode_text(lent: RandomComponents, folder: Path, name: str) -> Iterator[Result]:
    """The text encoder in ``folder`` as it is, and quantized on load."""
    lent.fit(Source.of(folder))
    exact = None
    for bits in BITS:
        lent.residency, outputs = replace(lent.residency, quantize=bits), []
        foot = Footprint(lent)
        measured = peak(partial(encode, lent), outputs)
        states, tokens = outputs
        predicted = foot.weights("text_encoder") + foot.part(
            "text_encoder"
        ).activation_bytes(tokens.item())
        exact = states if bits is None else exact
        moved = mx.linalg.norm(states - exact) / mx.linalg.norm(exact)
        clip = f"{bits} bits" if bits else "as it is"
        yield Result(name, clip, predicted + SMALL, measured, moved=moved.item())


def encode(lent: Components, outputs: list[mx.array]) -> None:
    """The states in float32, one below another, and how many tokens they are of."""
    with lent.lend("text_encoder") as encoder:
        features = encoder.features([TEXT])
    states = features.hidden_states.astype(mx.float32)
    outputs += states.reshape(-1, states.shape[-1]), features.mask.sum()


def write_gemma(folder: Path, full: bool, dtype: mx.Dtype) -> Path:
    """A random Gemma as deep and wide as the connectors expect, norms at 1 each, with the tests' tokenizer."""
    from mlx_video.models.ltx.gemma import language_model

    width = 3840 if full else TRANSFORMER["caption_channels"]
    config = GEMMA | ({} if full else GEMMA_MIDDLING)
    config |= {"hidden_size": width, "intermediate_size": 4 * width}
    model = language_model(config)
    mx.random.seed(0)
    weights = {k: drawn(v, dtype) for k, v in tree_flatten(model.parameters())}
    save_folder(folder, weights, config)
    for file in TINY_GEMMA.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def drawn(value: mx.array, dtype: mx.Dtype) -> mx.array:
    if value.ndim == 1:
        return mx.zeros(value.shape, dtype)
    return mx.random.normal(value.shape, dtype, scale=value.shape[-1] ** -0.5)


def noise(*shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    x = mx.random.normal(shape, dtype)
    mx.eval(x)
    return x


def peak(function: Callable, inputs) -> int:
    """Bytes at the peak of ``function(inputs)``, above those before; the most of ``RUNS``, since what is queued varies."""
    mx.eval(inputs if isinstance(inputs, mx.array) else [])
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in range(RUNS):
        mx.eval(function(inputs))
        mx.synchronize()
    return mx.get_peak_memory() - before


def clips(lent: Components, chosen: list[tuple[int, int, int]]) -> Iterator[Result]:
    for clip in chosen:
        yield from Bench(lent, VideoPixelShape(*clip, FPS)).run()


def text_encoders(lent: RandomComponents, full: bool, given: Path) -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as scratch:
        random = write_gemma(Path(scratch, "gemma"), full, lent.residency.dtype)
        yield from encode_text(lent, random, "random Gemma")
    yield from encode_text(lent, given, str(given))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the 19B model's widths")
    parser.add_argument("--tiny", action="store_true", help="one small clip")
    parser.add_argument("--release", choices=("2", "2.3", "2.5"), default="2")
    parser.add_argument("--dtype", help="of the weights (the device's own)")
    parser.add_argument(
        "--text-encoder",
        type=Path,
        nargs="?",
        const=TINY_GEMMA,
        metavar="FOLDER",
        help="Gemma alone, quantized too: a random one, and that of FOLDER (the tests')",
    )
    parser.add_argument("--json", type=Path, help="write every figure here")
    arguments = parser.parse_args()
    dtype = getattr(mx, arguments.dtype) if arguments.dtype else default_dtype()
    lent = components(arguments.full, dtype, arguments.release)
    if arguments.text_encoder:
        found = text_encoders(lent, arguments.full, arguments.text_encoder)
    else:
        sizes = FULL_CLIPS if arguments.full else CLIPS
        found = clips(lent, TINY_CLIPS if arguments.tiny else sizes)
    print(
        "| part | clip | predicted MB | measured MB | error | with its weights | | states moved |\n|---|---|---|---|---|---|---|---|"
    )
    results = []
    for r in found:
        results.append(r)
        row = f"{r.predicted / 1e6:.0f} | {r.measured / 1e6:.0f} | {r.error:+.0%} | {r.of_all:+.0%}"
        moved = f"{r.moved:.2%}" if r.moved else ""
        off = "off" * r.off
        print(f"| {r.part} | {r.clip} | {row} | {off} | {moved} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([r._asdict() for r in results], indent=1))


if __name__ == "__main__":
    main()
