"""What a run will take, foreseen: by hand, beside the truth, and what is done about it."""

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import mlx.core as mx
import PIL.Image
import pytest
from mlx.utils import tree_flatten

from mlx_video import cli, postprocess, recipes, weights
from mlx_video.events import Planned, Took
from mlx_video.inputs import COMPRESSED, Image
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.find import PACKAGED
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.config import LTXModelType
from mlx_video.models.ltx.gemma import Gemma3
from mlx_video.models.ltx.gemma_config import Gemma3Config
from mlx_video.models.ltx.loading import memory_table
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.memory_table import (
    CPU,
    FLOAT32,
    GPU,
    QUEUED,
    QUEUED_FINER,
)
from mlx_video.models.ltx.loading.parts import PARTS, Network
from mlx_video.models.ltx.loading.residency import Residency
from mlx_video.models.ltx.pacing import SMALL
from mlx_video.models.ltx.text_encoder import GemmaTextEncoder
from mlx_video.models.ltx.text_folder import MAX_TOKENS
from mlx_video.models.ltx.tokenizer import PromptTokenizer
from mlx_video.models.ltx.video_vae import decoder as video_decoder
from mlx_video.models.ltx.video_vae.decoding import WHOLE, StreamPlan
from mlx_video.models.ltx.video_vae.tiling import (
    TilingConfig,
    held_pixels,
)
from mlx_video.output import Output
from mlx_video.pipeline import Request
from mlx_video.plan import (
    GB,
    LIBRARY_BYTES,
    Footprint,
    Phase,
    Plan,
    Work,
    machine_bytes,
    plan,
)
from mlx_video.record import Job
from mlx_video.run import Options, run
from mlx_video.types import AV, Doing, VideoPixelShape, VideoScale
from tests.checkpoints import MODEL, wide_gemma
from tests.memory import Memory, most_taken
from tests.models.ltx.video_vae.tiny import iterate_decode
from tests.reference import FIXTURES
from tests.tiny_tokenizer import make_text_encoder_folder

GEMMA_12B = {
    "hidden_size": 3840,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 15360,
}
CLIP = VideoPixelShape(121, 512, 768, 24.0)
SIZE = ["-W", "128", "-H", "64", "-n", "9"]
GUIDED = AV(replace(recipes.VIDEO_GUIDANCE, stg_blocks=(1,)), recipes.Guidance())
PROMPT = ["--prompt", "a red ball on a blue floor"]


class Laid(Components):
    """The 19B model and Gemma 12B in bfloat16, of which there are no files."""

    def _network(self, name, source):
        if name == "text_encoder":
            return GemmaTextEncoder(gemma(self.residency.dtype), None), []
        return full_size(name, self.residency.dtype), []


@cache
def gemma(dtype: mx.Dtype) -> Gemma3:
    model = Gemma3(Gemma3Config(**GEMMA_12B))
    model.set_dtype(dtype)
    return model


@cache
def full_size(name: str, dtype: mx.Dtype) -> Network:
    """A part of the 19B model; nothing that plans changes it."""
    source = full_sources()[name]
    module = PARTS[name].network(source)(PARTS[name].config(source))
    cast = [(k, v.astype(dtype)) for k, v in tree_flatten(module.parameters())]
    module.load_weights(cast)
    return module


def asked(shape=CLIP, recipe=recipes.distilled(), **wanted) -> Work:
    """A run with the longest prompt."""
    return Work(Request("a ball", shape, enhance=True, **wanted), recipe)


@pytest.fixture
def full(monkeypatch) -> Components:
    """Seen as on a GPU."""
    monkeypatch.setattr(memory_table, "live", lambda *_: GPU)
    return Laid(full_sources(), Residency(mx.bfloat16))


def full_sources() -> dict[str, Source]:
    manifests = FIXTURES / "manifests"
    blocks = json.loads((manifests / "ltx-2-19b.config.json").read_text())["config"]
    upsampler = json.loads((manifests / "ltx-2-upscalers.config.json").read_text())
    sources = {
        p.name: Source(Path(p.name), blocks[p.block]) for p in PARTS.values() if p.block
    }
    file = upsampler["ltx-2-spatial-upscaler-x2-1.0.safetensors"]
    sources["upsampler"] = Source(Path("upsampler"), file["config"])
    sources["text_encoder"] = Source(Path("text_encoder"), {})
    return sources


# By hand


def test_a_forward_of_the_full_model(full):
    model = full.sketch("transformer")
    tokens = AV(6144, 126)
    streams = 6144 * 4096 + 126 * 2048
    waiting = 7 * streams * 2  # as many results as QUEUED holds
    assert 7 * streams * 2 < QUEUED < 8 * streams * 2
    assert model.activation_bytes(tokens, 1, 1024) == GPU.tokens * streams * 2 + waiting
    tables = 4 * (6144 * (4096 + 2048) + 126 * (2048 + 2048))
    assert (
        model.activation_bytes(tokens, 4, 1024)
        == 4 * GPU.tokens * streams * 2 + waiting
    )
    assert (
        model.activation_bytes(AV(64), 1, 1024)
        == (GPU.tokens + GPU.queued) * 64 * 4096 * 2
    )
    contexts = 5 * 1024 * (4096 + 2048) * 2
    assert model.held_bytes(tokens, 1, 1024) == tables + contexts
    assert model.held_bytes(AV(6144), 1, 1024) == 4 * 6144 * 4096 + 5 * 1024 * 4096 * 2


@pytest.mark.slow
@pytest.mark.parametrize("tokens, peak", [(6144, 36.30), (24576, 37.83)])
def test_a_forward_of_the_full_model_on_an_h200(full, tokens, peak):
    """GiB measured with its weights (docs/measurements/2026-11.md), of which 35.16 are weights; to 15 % of the rest."""
    model, size = full.sketch("transformer"), AV(tokens, 126)
    above = (peak - 35.16) * 2**30
    held = model.held_bytes(size, 1, 1024)
    assert held + model.activation_bytes(size, 1, 1024) == pytest.approx(
        above, rel=0.15
    )


@pytest.mark.slow
def test_a_cpu_keeps_the_scores(full, monkeypatch):
    monkeypatch.setattr(memory_table, "live", lambda *_: CPU)
    model = full.streaming(LTXModelType.VideoOnly).sketch("transformer")
    scores = 32 * 6144**2
    assert model.activation_bytes(AV(6144), 1, 1024) == 2 * (
        CPU.tokens * 6144 * 4096 + scores
    )


def test_operations_of_the_full_model(full):
    """Within 5 % of what filled a H200 for 252 ms at 790 TFLOP/s."""
    model = full.sketch("transformer")
    assert model.operations(AV(6144, 126), 1024) == pytest.approx(
        0.252 * 790e12, rel=0.05
    )


@pytest.mark.slow
def test_operations_are_as_slow_as_measured(full, monkeypatch):
    """Of the decoder beside the transformer, on an H200; docs/performance.md."""
    monkeypatch.setattr(video_decoder, "on_gpu", lambda: True)
    speed = full.sketch("transformer").operations(AV(6144, 126), 1024) / 0.342
    whole = full.sketch("video_decoder").operations((1, 128, 16, 16, 24))
    assert whole / speed == pytest.approx(0.181, rel=0.1)


def test_the_other_parts(full):
    upsampler = full.sketch("upsampler")
    assert upsampler.activation_bytes(64) == GPU.finer * 64 * 1024 * 2
    assert upsampler.activation_bytes(24576) == QUEUED_FINER
    assert upsampler.activation_bytes(4 * 24576) == GPU.upsample * 4 * 24576 * 1024 * 2
    decoder, vocoder = full.sketch("audio_decoder"), full.sketch("vocoder")
    assert decoder.activation_bytes(126) == GPU.spectrogram * 4 * 126 * 64 * 128 * 2
    assert vocoder.activation_bytes(4 * 126) == GPU.sound * 4 * 126 * 240 * 32 * 4


def test_the_video_decoder_says_what_it_takes(full):
    found = Footprint(full.streaming(LTXModelType.VideoOnly))
    decoder, shape = found.part("video_decoder"), VideoPixelShape(121, 1024, 1536, 24.0)
    latents = 1, 128, 16, 32, 48
    tiles = decoder.activation_bytes(latents, TilingConfig.default())

    def decoding(mode: str, room: float) -> float:
        work = Work(Request("a", shape, tiling=mode), recipes.distilled(), sampled=True)
        (phase,) = found.phases(work, room)
        return phase.activations - SMALL

    assert decoding("default", 80 * GB) == tiles
    least = decoder.activation_bytes(latents, TilingConfig.aggressive())
    assert decoding("auto", 1) == least  # nothing fits
    pieces = decoder.activation_bytes(latents, StreamPlan())
    assert decoding("auto", 80 * GB) == pieces < tiles


@pytest.mark.slow
def test_weights_are_those_of_the_files(model):
    """In the dtype of the run; of the transformer only the streams that it takes."""
    components = Components.open(Files(model, dtype="float32"))
    header = weights.read_header(model / MODEL).tensors
    sizes = {name: 4 * mx.zeros(entry["shape"]).size for name, entry in header.items()}
    found = Footprint(components)
    for name, prefix in (("vocoder", "vocoder."), ("audio_decoder", "audio_vae.dec")):
        stored = sum(size for key, size in sizes.items() if key.startswith(prefix))
        statistics = 2 * 128 * 4 if name == "audio_decoder" else 0
        assert found.weights(name) == stored + statistics
    alone = Footprint(components.streaming(LTXModelType.VideoOnly))
    assert alone.weights("transformer") < 0.9 * found.weights("transformer")
    with components.lend("text_encoder") as encoder:
        kept = tree_flatten(encoder.model.parameters())
        assert found.weights("text_encoder") == sum(v.nbytes for _, v in kept)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("bits", [8, 4])
def test_weights_of_a_quantized_gemma_are_those_it_holds(tmp_path, bits, dtype):
    wide_gemma(make_text_encoder_folder(tmp_path))
    source = {"text_encoder": Source.of(tmp_path)}
    lent = Components(source, Residency(dtype, bits))
    found = Footprint(lent).weights("text_encoder")
    with lent.lend("text_encoder") as encoder:
        kept = tree_flatten(encoder.model.parameters())
        assert found == sum(value.nbytes for _, value in kept)


@pytest.mark.slow
@pytest.mark.parametrize("quantize, peak", [(None, 23.7), (8, 13.6), (4, 8.2)])
def test_the_prompt_of_the_full_model(full, quantize, peak):
    """GB of Gemma 12B, whose 2 GB of embeddings stay as they are, and of a short prompt's states."""
    full.residency = Residency(mx.bfloat16, quantize)
    request = Request("x" * 126, CLIP, negative_prompt="")  # 128 tokens
    work = Work(request, recipes.distilled())
    phase = plan(full, work, 80 * GB).phases[1]
    assert phase.name == "encode prompt"
    assert phase.peak == pytest.approx(peak * GB, rel=0.01)


@pytest.mark.slow
def test_streamed_and_quantized_blocks(full):
    def size(**residency) -> int:
        tried = Residency(mx.bfloat16, **residency)
        return Footprint(full, tried).weights("transformer")

    whole = size()
    assert whole == pytest.approx(37.75e9, rel=0.001)
    assert size(quantize=8) == pytest.approx(whole * (8 + 0.5) / 16, rel=0.02)
    assert size(low_memory=True) < 3 * 2**30


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/memory.md"])
def test_pages_say_what_is_planned(full, monkeypatch, page):
    """For each setting of their tables on a GPU, and for a CPU, which computes in float32."""
    text = (Path(__file__).parents[1] / page).read_text()

    def planned(setting: str, dtype: mx.Dtype) -> float:
        bits = next((n for n in (8, 4) if f"quantize {n}" in setting), None)
        lent = Laid(full.sources, Residency(dtype, bits, "low-memory" in setting))
        work = Work(Request("a ball", CLIP, audio=True), recipes.distilled())
        largest = plan(lent, work, 200 * GB).largest
        return (largest.peak + LIBRARY_BYTES) / GB

    rows = re.findall(r"\| (none|`--[^`]*`)[^|]*\| (?:about )?([\d.]+) GB", text)
    assert len(rows) >= 4
    for setting, stated in rows:
        assert float(stated) == pytest.approx(planned(setting, mx.bfloat16), rel=0.03)
    monkeypatch.setattr(memory_table, "live", lambda *_: CPU)
    (stated,) = re.findall(r"(\d+) GB(?: in float32)?, or (\d+) GB with", text)
    found = [round(planned(said, mx.float32)) for said in ("", "--quantize 8")]
    assert [*map(int, stated)] == found


# Beside the truth


@pytest.mark.slow
def test_the_tiny_model_takes_what_was_foreseen(model, tmp_path, monkeypatch):
    """Above what the tests before it have left in memory; to 12 MB, for its stages are small."""
    monkeypatch.chdir(tmp_path)
    shape = VideoPixelShape(9, 256, 256, 24.0)
    request = Request("a ball", shape, audio=True)
    job = Job(request, recipes.distilled(), Files(str(model)))
    plan = job.plan()
    foreseen = {phase.name: phase.peak for phase in plan.phases}
    memory = Memory()
    measured, phase = {}, None
    for event in job.pipeline(plan, health=False).stream(request):
        if getattr(event, "phase", None) not in (None, phase):
            phase = event.phase
            memory.forget_peak()
        measured[phase] = memory.peak
    for name in ("stage 1", "upsample", "stage 2"):
        assert foreseen[name] == pytest.approx(measured[name], rel=0.15, abs=12e6), name


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [recipes.distilled(), recipes.dev(2, GUIDED)])
def test_a_run_has_the_phases_of_its_plan(model, tmp_path, recipe):
    """Each books what it takes itself: decoding is not counted as sampling."""
    PIL.Image.new("RGB", (128, 64)).save(tmp_path / "a.png")
    given = (Image(str(tmp_path / "a.png")),)
    shape = VideoPixelShape(9, 64, 128, 24.0)
    request = Request("a ball", shape, audio=True, inputs=given)
    job = Job(request, recipe, Files(str(model)))
    events = list(run(job, Output(tmp_path / "a.mp4"), Options(health=False)))
    planned = next(e for e in events if isinstance(e, Planned)).plan.phases
    took = [e for e in events if isinstance(e, Took) and "load" not in e.phase]
    assert [e.phase for e in took] == [
        p.name for p in planned if p.name != Doing.LIBRARIES
    ]
    peaks = {e.phase: e.peak for e in took}
    last = peaks[recipe.phase(len(recipe.stages) - 1)]
    assert peaks["decode video"] > last > 0 < peaks["decode sound"]


@pytest.mark.slow
@pytest.mark.parametrize("frames", [25, 49])
def test_blending_takes_what_was_foreseen(frames):
    """With a decoder that takes nothing itself."""
    scale, tiling = VideoScale(8, 32, 32), TilingConfig.aggressive()

    def decode(cells: mx.array) -> mx.array:
        F, H, W = cells.shape[2:]
        return mx.zeros((1, 3, 8 * (F - 1) + 1, 32 * H, 32 * W)) + cells.min()

    latents = mx.zeros((1, 1, (frames - 1) // 8 + 1, 12, 12))
    mx.eval(latents)

    def blend() -> None:
        for _ in postprocess.frames(iterate_decode(decode, latents, tiling, scale)):
            pass

    grid = tiling.grid(latents.shape[2:], scale)
    foreseen = 3 * FLOAT32 * held_pixels(grid)[2]
    assert foreseen == pytest.approx(most_taken(blend, 1, foreseen), rel=0.15)


# What is done about it


@pytest.mark.parametrize(
    "limit, chosen",
    [
        (80, ""),
        (30, "weights in 8 bits"),
        (15, "transformer read in each step and the text encoder in 8 bits"),
        (12, "transformer read in each step and the text encoder in 4 bits"),
    ],
)
def test_the_best_residency_that_fits(full, limit, chosen):
    found = plan(full, asked(audio=True), limit * GB)
    assert (found.chosen, found.refusal) == (chosen, "")
    assert found.largest.peak <= limit * GB
    bits = next((bits for bits in (8, 4) if str(bits) in chosen), None)
    assert found.components.residency.quantize == bits
    assert found.components.residency.low_memory == ("read" in chosen)
    assert (full.residency.quantize, full.residency.low_memory) == (None, False)


def test_components_are_copied_for_the_chosen_residency_alone(full, monkeypatch):
    copied, under = [], Components.under
    monkeypatch.setattr(
        Components, "under", lambda self, r: copied.append(r) or under(self, r)
    )
    found = plan(full, asked(audio=True), 12 * GB)
    assert copied == [found.components.residency] != [full.residency]


@pytest.mark.slow
def test_gemma_stays_exact_where_only_the_transformer_is_too_large(full):
    work = asked(VideoPixelShape(481, 1024, 1536, 24.0))
    found = plan(full, work, 28 * GB)
    assert (found.chosen, found.refusal) == ("transformer read in each step", "")


@pytest.mark.slow
def test_gemma_is_quantized_beside_a_transformer_that_streams_already(full):
    full.residency = Residency(mx.bfloat16, low_memory=True)
    found = plan(full, asked(), 15 * GB)
    assert (found.chosen, found.refusal) == ("text encoder in 8 bits", "")
    kept = found.components.residency
    assert (kept.quantize, kept.low_memory) == (8, True)


@pytest.mark.slow
def test_gemma_is_quantized_beside_a_transformer_that_is_quantized_already(full):
    full.sources["transformer"] = replace(
        full.sources["transformer"], quantization={"bits": 8}
    )
    found = plan(full, asked(), 15 * GB)
    assert found.chosen == (
        "transformer read in each step and the text encoder in 8 bits"
    )
    kept = found.components.residency
    assert (kept.quantize, kept.low_memory) == (8, True)


@pytest.mark.slow
def test_what_is_quantized_already_is_only_read_in_each_step(full):
    for name in ("transformer", "text_encoder"):
        full.sources[name] = replace(full.sources[name], quantization={"bits": 8})
    found = plan(full, asked(), 25 * GB)
    assert (found.chosen, found.refusal) == ("transformer read in each step", "")
    kept = found.components.residency
    assert (kept.quantize, kept.low_memory) == (None, True)


@pytest.mark.slow
def test_what_the_user_chose_stays(full):
    full.residency = Residency(mx.bfloat16, 8)
    found = plan(full, asked(), 15 * GB)
    assert not found.chosen
    assert "At this size: --low-memory --quantize 8 or --memory" in found.refusal
    full.residency = Residency(mx.bfloat16, 8, low_memory=True)
    assert not plan(full, asked(), 15 * GB).refusal


@pytest.mark.slow
def test_a_refusal_names_the_nearest_that_fits(full):
    full.residency = Residency(mx.bfloat16, 8)
    work = lambda *size: asked(VideoPixelShape(*size, 24.0), recipes.dev(), audio=True)
    found = plan(full, work(481, 1024, 1536), 26 * GB)
    with pytest.raises(ValueError, match="481 frames of 1536x1024 need") as refused:
        found.check()
    named = re.findall(r"(\d+) frames of (\d+)x(\d+)", str(refused.value))[1:]
    (frames, *same), (all_frames, width, height) = [tuple(map(int, n)) for n in named]
    assert same == [1536, 1024] and all_frames == 481
    for shape, larger in (
        ((frames, 1024, 1536), (frames + 8, 1024, 1536)),
        ((481, height, width), (481, height + 32, round(1.5 * (height + 32)))),
    ):
        fits = [
            plan(full, work(*size), 26 * GB).refusal == "" for size in (shape, larger)
        ]
        assert fits == [True, False]


def test_a_refusal_names_the_tiling_that_fits():
    request = Request("a ball", VideoPixelShape(25, 512, 768, 24.0), tiling="none")
    job = Job(request, recipes.distilled(), Files(str(PACKAGED)))
    refusal = job.plan(limit=0.55 * GB).refusal
    assert "What fits: " in refusal and "At this size: --tiling auto or" in refusal
    assert "--low-memory" not in refusal and "--quantize" not in refusal


def test_a_plan_that_does_not_fit_shows_what_its_refusal_names():
    """Tiles are tried where no exact pieces fit, and what needs least is what counts."""
    request = Request("a ball", VideoPixelShape(49, 256, 256, 24.0), audio=True)
    found = Job(request, recipes.distilled(), Files(str(PACKAGED))).plan(limit=0.3 * GB)
    needed = re.search(r"need (\d+\.\d\d) GB in the phase", found.refusal)
    largest = found.largest.peak + found.phases[0].peak
    assert float(needed[1]) == pytest.approx(largest / GB, abs=0.01)


def test_what_fits_a_limit_fits_every_larger_one():
    request = Request("a ball", VideoPixelShape(25, 512, 768, 24.0), audio=False)
    footprint = Footprint(
        Job(request, recipes.distilled(), Files(str(PACKAGED))).components()
    )
    work = Work(request, recipes.distilled(), sampled=True)
    fits = [footprint.fits(work, mb * 10**6) for mb in range(280, 720, 4)]
    assert not fits[0] and fits[-1] and fits == sorted(fits)


@pytest.mark.slow
def test_libraries_count_as_part_of_the_limit(full):
    work = asked()
    found = plan(full, work, 900 * GB)
    assert found.phases[0][:3] == (Doing.LIBRARIES, 0, LIBRARY_BYTES)
    peak = found.largest.peak
    assert plan(full, work, peak + LIBRARY_BYTES).chosen == ""
    assert plan(full, work, peak + LIBRARY_BYTES - 1).chosen != ""


def test_a_picture_is_read_while_its_encoder_is_there(full, tmp_path):
    PIL.Image.new("RGB", (9000, 600)).save(tmp_path / "a.png")
    given = (Image(str(tmp_path / "a.png")),)
    work = asked(VideoPixelShape(9, 64, 64, 24.0), inputs=given)
    phase = next(
        p for p in plan(full, work, 80 * GB).phases if p.name == "encode inputs"
    )
    assert phase.activations == pytest.approx(COMPRESSED * 9000 * 600 * 3 + SMALL)
    assert phase.weights > 0


@pytest.mark.slow
def test_a_refusal_names_the_least_limit_after_trying_all_settings(full):
    refusal = plan(full, asked(), 5 * GB).refusal
    assert "No smaller clip fits." in refusal
    least = re.search(r"At this size: --memory-limit (\d+\.\d\d)GB\.", refusal)
    assert "and the text encoder in 4 bits; the limit is 5.00 GB" in refusal
    least = float(least[1]) * GB
    assert not plan(full, asked(), least).refusal
    assert plan(full, asked(), least - GB / 100).refusal


def test_a_refusal_shows_figures_that_differ():
    request = Request("a ball", VideoPixelShape(9, 64, 64, 24.0))
    job = Job(request, recipes.distilled(), Files(str(PACKAGED)))
    needed = re.search(r"--memory-limit ([\d.]+)GB", job.plan(limit=1e8).refusal)
    limit = (float(needed[1]) - 0.01) * GB + 1e3
    shown = re.findall(r"[\d.]+ GB", job.plan(limit=limit).refusal)
    assert shown == [f"{needed[1]} GB", f"{float(needed[1]) - 0.01:.2f} GB"]


@pytest.mark.slow
def test_batched_passes_and_keyframes_take_more(full):
    def stage(batched=False, **options) -> float:
        work = asked(recipe=recipes.dev(), audio=True, **options)
        work = work._replace(batched=batched)
        steps = plan(full, work, 80 * GB).phases
        return next(phase for phase in steps if phase.name == "stage 1").activations

    assert stage(batched=True) > 2 * stage()
    assert stage(inputs=(Image("a", 8),)) > stage() == stage(inputs=(Image("a"),))


@pytest.mark.slow
def test_a_tight_limit_decodes_in_smaller_pieces(full):
    def video(limit: float) -> float:
        return plan(full, asked(), limit * GB).phases[-1].peak

    assert video(80) > video(3.5)


@pytest.mark.slow
def test_previews_are_planned_and_change_nothing_else(full):
    clip = VideoPixelShape(121, 512, 768, 24.0)
    work = asked(clip, audio=True)
    plain = plan(full, work, 80 * GB)
    shown = plan(full, work._replace(previews=True), 80 * GB)
    part = full.sketch("video_decoder")
    weights = Footprint(shown.components).weights("video_decoder")
    frames = {
        "stage 1": part.activation_bytes((1, 128, 1, 8, 12), WHOLE),
        "stage 2": part.activation_bytes((1, 128, 1, 16, 24), WHOLE),
    }
    assert shown.previews and not plain.previews and shown.chosen == plain.chosen == ""
    for before, after in zip(plain.phases, shown.phases):
        assert after.weights - before.weights in (weights, 0), after.name
        # On a GPU a frame is computed while a step ends.
        frame = frames.get(after.name, 0)
        assert after.activations == pytest.approx(before.activations + frame)
    assert shown.components.residency.keep == {"video_decoder"}
    tight = (plain.largest.peak + shown.largest.peak) / 2
    assert not plan(full, work._replace(previews=True), tight).previews
    halved = plan(full, work._replace(previews=True), 30 * GB)
    assert halved.previews and halved.chosen == "weights in 8 bits"
    # A frame that takes more than a step is counted.
    large = asked(clip._replace(frames=9, height=4096, width=4096), recipes.dev())
    stages = [
        next(p for p in plan(full, w, 900 * GB).phases if p.name == "stage 1")
        for w in (large, large._replace(previews=True))
    ]
    assert stages[1].activations >= part.activation_bytes((1, 128, 1, 128, 128), WHOLE)
    assert stages[1].activations > stages[0].activations


@pytest.mark.slow
def test_what_stays_loaded_is_planned(full):
    work = asked(audio=True)._replace(keep=True)
    limit, kept = 80 * GB, []
    for _ in range(3):
        found = plan(full, work, limit)
        weights = Footprint(found.components).weights
        held = sum(map(weights, found.components.residency.keep))
        assert all(phase.weights >= held for phase in found.phases[1:])
        assert found.chosen == "" and found.largest.peak <= limit
        kept.append(set(found.components.residency.keep))
        limit = found.largest.peak - 1
    assert kept == [{"transformer", "text_encoder"}, {"transformer"}, set()]


def test_what_is_loaded_already_is_not_taken_from_the_machine(monkeypatch):
    ones = mx.ones(1000)
    mx.eval(ones)
    info = {"free_memory": 10**9, "total_memory": 2 * 10**9}
    monkeypatch.setattr(mx, "device_info", lambda: info)
    assert machine_bytes() >= 10**9 + ones.nbytes


def test_no_prompt_has_more_tokens_than_planned():
    tokenizer = PromptTokenizer.load(PACKAGED / "text_encoder")
    for text in ("7" * 600, "a b c d " * 100, "球" * 300, "a red ball"):
        work = Work(Request("x", CLIP, negative_prompt=text), recipes.dev())
        assert len(tokenizer.encode(text)) <= work.prompt_tokens
    enhanced = Work(Request("x", CLIP, enhance=True), recipes.dev())
    assert enhanced.prompt_tokens == MAX_TOKENS


def test_a_negative_prompt_is_planned_only_where_it_is_encoded():
    request = Request("a red ball", CLIP, negative_prompt="z" * 300)
    assert Work(request, recipes.distilled()).prompt_tokens == 12
    assert Work(request, recipes.dev()).prompt_tokens == 302


def test_a_huge_clip_is_refused_without_counting_every_limit(full, monkeypatch):
    tried = []
    monkeypatch.setattr(
        Footprint, "fits", lambda self, work, room: tried.append(room) or room > 1e14
    )
    phases = Phase("libraries", 0, 0.0), Phase("stage 1", 0, 1e15)
    huge = Plan(phases, 8 * GB, full)
    least = Footprint(full).least_limit(asked(), huge)
    assert 1e14 < least <= 1e14 + GB
    assert len(tried) < 60


def test_a_huge_clip_is_refused_without_trying_every_length(full, monkeypatch):
    tried = []
    pixels = lambda work: work.shape.frames * work.shape.height * work.shape.width
    monkeypatch.setattr(
        Footprint,
        "fits",
        lambda self, work, room: tried.append(work) or pixels(work) <= room,
    )
    huge = asked(VideoPixelShape(28801, 512, 768, 240.0))
    named = [*Footprint(full).nearest_sizes(huge, 121 * 512 * 768)]
    assert named == [VideoPixelShape(121, 512, 768, 240.0)]
    assert 2 < len(tried) < 30


def test_a_run_may_use_most_of_the_machine_and_no_more(monkeypatch):
    monkeypatch.setattr("mlx_video.plan.machine_bytes", lambda: 10 * GB)
    job = Job(Request("a ball", CLIP), recipes.distilled(), Files(str(PACKAGED)))
    assert job.plan().limit == pytest.approx(9.5 * GB)
    assert job.plan(limit=3 * GB).limit == 3 * GB


def test_what_is_spare_is_free_in_every_phase():
    heads = Phase(Doing.LIBRARIES, 0, 1 * GB), Phase("a", 3 * GB, 0), Phase("b", 0, GB)
    assert Plan(heads, 6 * GB, None).spare == 2 * GB
    assert Plan(heads, 3 * GB, None).spare == 0


def test_a_stage_is_as_long_as_its_steps():
    """By it the time left is told."""
    job = Job(Request("a ball", CLIP), recipes.dev(10), Files(str(PACKAGED)))
    longer = replace(job, recipe=recipes.dev(20))
    short, long = (
        next(p for p in j.plan(limit=80 * GB).phases if p.operations).operations
        for j in (job, longer)
    )
    assert long == 2 * short > 0


def test_decoding_takes_a_share_of_a_pass_of_the_last_stage():
    """From 0.3 of the demo model's on a CPU to 0.7 of the 19B model's on an H200; the time left is told by it."""
    job = Job(Request("a ball", CLIP), recipes.distilled(), Files(str(PACKAGED)))
    *_, stage, decode = job.plan(limit=80 * GB).phases
    passes = len(recipes.distilled().stages[-1].sigmas) - 1
    assert (stage.name, decode.name) == ("stage 2", "decode video")
    assert 0.3 <= decode.operations / (stage.operations / passes) <= 0.7


def test_the_guided_passes_of_a_job_are_planned_as_it_runs_them(monkeypatch):
    works = []
    monkeypatch.setattr(
        "mlx_video.plan.plan", lambda _, work, limit: works.append(work)
    )
    request = Request("a ball", CLIP)
    Job(request, recipes.dev(), Files(str(PACKAGED)), batch_guidance=True).plan()
    assert works == [Work(request, recipes.dev(), batched=True)]


def test_the_record_keeps_what_was_chosen(full):
    lent = Laid(full.sources, Residency(mx.bfloat16, 8))
    job = Job(Request("a", CLIP), recipes.distilled()).planned(Plan((), 1.0, lent))
    assert (job.files.quantize, job.files.low_memory) == (8, False)


def test_the_machine_has_memory():
    assert 2**28 < machine_bytes() < 2**50


# The command


def typed(command: str, model: Path, *words) -> int:
    return cli.main([command, *PROMPT, *SIZE, "--model", str(model), *words])


def test_plan_prints_each_phase_and_loads_nothing(model, capsys, monkeypatch):
    monkeypatch.setattr(
        "mlx_video.models.ltx.loading.components.materialize", pytest.fail
    )
    assert typed("plan", model) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line[:20].strip() for line in lines[1:-1]]
    assert names[:2] == ["libraries", "encode prompt"] and names[-1] == "decode video"
    assert {"stage 1", "upsample", "stage 2", "decode sound"} <= set(names)
    assert lines[-1].startswith("plan: at most 0.")


def test_a_plan_is_one_object_for_a_program(model, capsys):
    assert typed("plan", model, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    libraries, *own = [phase["peak"] for phase in plan["phases"]]
    assert 0 < plan["peak"] == max(own) < plan["limit"]
    assert [p["name"] for p in plan["phases"]][-1] == "decode video"
    assert typed("plan", model, "--json", "--memory-limit", "0.001") == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert "9 frames of 128x64 need" in error and "the limit is 1.00 MB" in error


def test_what_cannot_fit_is_refused(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "mlx_video.models.ltx.loading.components.materialize", pytest.fail
    )
    assert typed("generate", model, "--memory-limit", "0.001") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "9 frames of 128x64 need" in error and "the limit is 1.00 MB" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_plan_is_said_before_a_run(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert typed("generate", model, "--memory-limit", "4") == 0
    making, plan, *_ = capsys.readouterr().err.splitlines()
    assert re.match(r"plan: at most 0\.\d\d GB.* of 4\.00 GB", plan)
    assert re.match(
        r"making a-red-ball-on-a-blue-floor-\d+.mp4: 'a red ball on a blue floor', 9 frames of 128x64, 0.4 s "
        r"with sound, seed \d+",
        making,
    )
    assert typed("generate", model, "--quiet", "--no-audio", "-o", "b.mp4") == 0
    assert "plan" not in capsys.readouterr().err


def test_a_limit_must_be_above_zero(model, capsys):
    assert typed("plan", model, "--memory-limit", "0") == 2
    assert (
        "must be an amount of memory above 0, such as 24GB" in capsys.readouterr().err
    )
