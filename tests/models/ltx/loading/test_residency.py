"""Blocks read as they are used: the same numbers, a fraction of the memory, one read for all passes of a step."""

import weakref
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_video.conditioning.latent import LatentState
from mlx_video.convert import convert
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.config import LTXModelType
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.parts import NEEDED
from mlx_video.models.ltx.loading.residency import BlockStream, Residency
from mlx_video.models.ltx.x0 import X0Model
from mlx_video.sampling.guidance import Guidance, guided
from mlx_video.types import AV, Perturbation, PromptEmbeddings
from tests.checkpoints import tiny_folder, write_lora
from tests.memory import Memory
from tests.models.ltx.dit import CONTEXTS, LATENTS, NEGATIVES, POSITIONS, SIGMA

ONLY_VIDEO = LTXModelType.VideoOnly
ATTENTION = "diffusion_model.transformer_blocks.{}.attn1.to_q"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tiny_folder(tmp_path_factory.mktemp("streaming") / "model")
    names = [ATTENTION.format(block) for block in range(3)]
    write_lora(folder / "tiny-distilled-lora.safetensors", *names)
    return folder


def states(model_type=LTXModelType.AudioVideo) -> AV[LatentState]:
    every = LATENTS.map(
        lambda x, p: LatentState(x, x, mx.ones((*x.shape[:2], 1)), p), POSITIONS
    )
    return AV(every.video) if model_type is ONLY_VIDEO else every


def same(a: AV[mx.array], b: AV[mx.array]) -> bool:
    assert a.present == b.present
    return all(map(mx.array_equal, a.values, b.values))


def x0(
    path: Path,
    low_memory: bool,
    model_type=LTXModelType.AudioVideo,
    lora=0.0,
    needs=NEEDED,
    **how,
):
    """x0 of the second of two forwards, so that every block was read twice."""
    components = Components.open(Files(path, low_memory=low_memory, **how), needs=needs)
    with components.streaming(model_type).transformer(lora) as predict:
        for sigma in (1.0, SIGMA):
            x = predict(
                states(model_type), CONTEXTS, sigma, (Perturbation(AV({1}, {1})),)
            )
            mx.eval(x.values)
    return x


def assert_streams_alike(path: Path, *given, **how) -> None:
    assert same(x0(path, True, *given, **how), x0(path, False, *given, **how))


# The same numbers


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [LTXModelType.AudioVideo, ONLY_VIDEO])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_computes_what_resident_blocks_do(folder, model_type, dtype):
    assert_streams_alike(folder, model_type, dtype=dtype)


@pytest.mark.slow
def test_loras_are_fused_in_every_reading(folder):
    lora = folder / "tiny-distilled-lora.safetensors"
    needs = ("transformer", "distilled_lora")
    assert_streams_alike(folder, loras=[(lora, 0.5)])
    assert_streams_alike(folder, lora=1.0, needs=needs)
    components = Components.open(Files(folder, loras=[(lora, 0.5)], low_memory=True))
    with components.transformer() as predict:
        for sigma in (1.0, SIGMA):
            with_lora = predict(states(), CONTEXTS, sigma)
    assert not same(with_lora, x0(folder, True))
    assert len(components.fusions) == 1


@pytest.mark.slow
@pytest.mark.parametrize("bits", [pytest.param(8, marks=pytest.mark.thorough), 4])
def test_quantized_folders_stream(folder, tmp_path, bits):
    convert(folder, tmp_path / "q", quantize=True, q_bits=bits, q_group_size=32)
    assert_streams_alike(tmp_path / "q")


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [LTXModelType.AudioVideo, ONLY_VIDEO])
def test_guided_passes_share_one_reading(folder, model_type):
    strength = Guidance(cfg=3.0, stg=1.0, modality=3.0, rescale=0.7, stg_blocks=(1,))
    guidance = states(model_type).map(lambda _: strength)
    prompt = PromptEmbeddings(CONTEXTS, NEGATIVES)
    readings, results = [], []
    for low_memory in (True, False):
        components = Components.open(Files(folder, low_memory=low_memory))
        with components.streaming(model_type).transformer() as predict:
            if low_memory:
                count_readings(predict, readings)
            denoise = guided(predict, prompt, guidance, batched=True)
            results.append(denoise(states(model_type), SIGMA))
            mx.eval(results[-1].values)
    assert same(*results) and len(readings) == 1


def count_readings(predict: X0Model, readings: list) -> None:
    blocks = predict.model.transformer_blocks
    build = blocks.build
    blocks.build = lambda: readings.append(1) or build()


# A fraction of the memory


def test_a_block_is_gone_when_the_next_is_taken():
    def build() -> list[nn.Module]:
        blocks = [Double() for _ in range(4)]
        alive[:] = map(weakref.ref, blocks)
        return blocks

    alive: list[weakref.ref] = []
    stream = BlockStream(build)
    for _ in range(2):
        x = AV(mx.ones(3))
        for index, block in enumerate(stream):
            assert all(gone() is None for gone in alive[:index])
            assert all(still() is not None for still in alive[index:])
            x = block(x)
        assert x.video.tolist() == [16.0] * 3


class Double(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = mx.full((3,), 2.0)

    def __call__(self, x: AV[mx.array]) -> AV[mx.array]:
        return x.map(lambda x: x * self.factor)


def peak_of_a_forward(source: Source, low_memory: bool) -> int:
    """Bytes at the peak of a forward beyond what was active before."""
    components = Components(
        {"transformer": source}, Residency(mx.float32, low_memory=low_memory)
    )
    memory = Memory()
    with components.transformer() as predict:
        mx.eval(predict(states(), CONTEXTS, SIGMA).values)  # prompts, rotary tables
        memory.forget_peak()
        mx.eval(predict(states(), CONTEXTS, SIGMA).values)
        return memory.peak


@pytest.mark.slow
def test_only_a_few_blocks_are_in_memory(large):
    streamed, resident = (peak_of_a_forward(large, low) for low in (True, False))
    assert streamed < 0.4 * resident


# Refusals


@pytest.mark.slow
def test_quantizing_what_does_not_stay_is_refused(folder, tmp_path):
    convert(folder, tmp_path / "q", quantize=True)
    gemma = tmp_path / "q" / "text_encoder"
    with pytest.raises(ValueError, match="Drop one of the two, or convert"):
        Components.open(Files(folder, text_encoder=gemma, quantize=8, low_memory=True))


def test_beside_a_streamed_transformer_gemma_can_be_quantized(folder):
    components = Components.open(Files(folder, quantize=8, low_memory=True))
    gemma = components.sketch("text_encoder"), components.sources["text_encoder"]
    assert components.residency.bits(*gemma) == 8
    blocks = components.sketch("transformer").transformer_blocks
    names = [name for block in blocks for name, _ in tree_flatten(block.parameters())]
    assert names and not any("scales" in name for name in names)
