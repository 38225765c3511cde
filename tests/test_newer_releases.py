"""LTX-2.3 and 2.5 from a prompt to latents and a clip, as they are published and as ``convert`` writes them."""

import contextlib
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image as Picture

from mlx_video import recipes
from mlx_video.cli import main
from mlx_video.convert import convert
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.loading.components import Components
from mlx_video.pipeline import Pipeline, Request
from mlx_video.types import AV, Sample, VideoPixelShape
from tests.media_reading import read_clip
from tests.reference import FIXTURES, error
from tests.tiny_tokenizer import make_text_encoder_folder

pytestmark = pytest.mark.slow

MORE = partial(pytest.param, marks=pytest.mark.thorough)
UPSCALER = FIXTURES / "ltx23_tiny" / "ltx-2.3-tiny-spatial-upscaler-x2.safetensors"
GUIDANCE = replace(recipes.VIDEO_GUIDANCE, stg_blocks=(1,))
RECIPE = recipes.dev(1, AV(GUIDANCE, replace(GUIDANCE, cfg=7.0)))
REQUEST = Request("A cat walks.", VideoPixelShape(9, 64, 64, 24.0), audio=True)


@pytest.fixture(scope="module", params=[MORE("2.3"), "2.5"])
def model(request, tmp_path_factory) -> Path:
    """A release as it lies in a folder: 2.3 in one file with a Gemma 3 beside it, 2.5 in a file a part."""
    folder = tmp_path_factory.mktemp("model")
    if request.param == "2.3":
        shutil.copy(FIXTURES / "ltx23_tiny" / "ltx-2.3-tiny.safetensors", folder)
        shutil.copy(UPSCALER, folder)
        make_text_encoder_folder(folder / "text_encoder")
    else:
        for file in (FIXTURES / "ltx25_tiny").glob("*-bf16.safetensors"):
            shutil.copy(file, folder)
    return folder


def opened(model: Path, **options) -> Pipeline:
    needs = REQUEST.needs(RECIPE)
    parts = Components.open(
        Files(model, dtype="float32", **options), variant="dev", needs=needs
    )
    return Pipeline(parts, RECIPE, health=False)


def sampled(pipeline: Pipeline) -> AV[mx.array]:
    events = pipeline.stream(REQUEST)
    return next(event for event in events if isinstance(event, Sample)).latents


@pytest.fixture(scope="module")
def latents(model) -> AV[mx.array]:
    return sampled(opened(model))


@pytest.mark.thorough  # test_releases.py makes one of such a recipe too
def test_a_clip_is_made(model, latents):
    clip = opened(model).decode(latents, REQUEST)
    frames = np.stack(list(clip.frames))
    assert frames.shape == (9, 64, 64, 3) and frames.std() > 0
    assert clip.audio.sample_rate == 48000
    assert abs(clip.audio.samples.shape[1] / 48000 - 9 / 24) < 0.05


def test_converted_it_samples_the_same(model, latents, tmp_path):
    converted = convert(model, tmp_path / "mlx", variant="dev")
    again = sampled(opened(converted))
    assert mx.array_equal(again.video, latents.video)
    assert mx.array_equal(again.audio, latents.audio)


@pytest.mark.thorough  # test_residency.py and test_journeys.py show it of LTX-2
def test_low_memory_samples_the_same(model, latents):
    again = sampled(opened(model, low_memory=True))
    assert error(again.video, latents.video) < 1e-4
    assert error(again.audio, latents.audio) < 1e-4


# From the command line, by the release's own two distilled stages


USUAL = "generate -p cat -n 9 -W 64 -H 64 --seed 1 --quiet --no-health-check"


@pytest.fixture
def here(here) -> Path:
    Picture.new("RGB", (64, 64), "red").save("red.png")
    return here


@pytest.fixture(scope="module")
def made(model, tmp_path_factory) -> Path:
    """The folder of b.mp4, a clip with sound, and of plain.safetensors, the latents that it was decoded from.

    Random weights make garbage, which is not looked at.
    """
    folder, decoding = tmp_path_factory.mktemp("made"), Pipeline.decoding

    def kept_too(*given):
        shutil.copy("b.latents.safetensors", "plain.safetensors")
        return decoding(*given)

    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "decoding", kept_too)
        assert main([*USUAL.split(), "--model", str(model), "-o", "b.mp4"]) == 0
    return folder


def kept(model: Path, words: str, name: str) -> Path:
    """The latents of a run that is killed before it decodes."""

    def killed(*_):
        raise KeyboardInterrupt
        yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "decoding", killed)
        words = [*USUAL.split(), *words.split(), "--model", str(model)]
        assert main([*words, "-o", f"{name}.mp4"]) == 130
    return Path(f"{name}.latents.safetensors")


def differs(one: Path, other: Path) -> bool:
    one, other = mx.load(str(one)), mx.load(str(other))
    assert one.keys() == other.keys() > set()
    return not all(mx.array_equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def plain(made) -> Path:
    return made / "plain.safetensors"


@pytest.mark.parametrize(
    "words",
    [
        MORE("--image red.png"),
        "--image red.png 8 0.9",
        MORE("--quantize 8"),
        MORE("--low-memory"),
    ],
)
def test_pictures_and_quantized_weights_make_clips_of_their_own(
    words, model, plain, here
):
    assert differs(kept(model, words, "b"), plain) == (words != "--low-memory")


def test_generated_keyframes_need_2_5(model, plain, here, capsys):
    if "transformer" in {file.stem.split("-")[-2] for file in model.glob("*-bf16*")}:
        assert differs(kept(model, "--keyframes 2", "a"), plain)
    else:
        words = ["generate", "-p", "cat", "--model", str(model), "--keyframes", "2"]
        assert main(words) == 2
        assert "cannot generate keyframes" in capsys.readouterr().err


def test_what_was_sampled_is_decoded_later(made, plain, here):
    shutil.copy(plain, "b.latents.safetensors")
    words = ["decode", "b.latents.safetensors", "--yes", "--no-health-check"]
    assert main([*words, "--quiet"]) == 0
    once, later = read_clip(made / "b.mp4"), read_clip(Path("b.mp4"))
    assert len(once.frames) == 9 and once.audio is not None
    assert np.array_equal(np.stack(later.frames), np.stack(once.frames))
