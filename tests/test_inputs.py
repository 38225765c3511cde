"""What a user gives: a new kind of input is one class, which pipeline, plan, record and terminal take as it is."""

import abc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image as Picture

from mlx_video import cli, pictures, recipes
from mlx_video.conditioning.latent import AppendedTokens, LatentState
from mlx_video.disk import full_path
from mlx_video.errors import UserError
from mlx_video.inputs import (
    Image,
    Input,
    Keyframes,
    Model,
    Option,
    Parts,
)
from mlx_video.models.ltx import enhance
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.releases import LTX_2
from mlx_video.models.ltx.config import LTXModelConfig
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.pacing import SMALL
from mlx_video.models.ltx.patchify import patchify_audio
from mlx_video.pipeline import Pipeline, Request
from mlx_video.plan import Work
from mlx_video.record import Job
from mlx_video.types import AV, VideoPixelShape
from tests.media_reading import read_clip
from tests.reference import FIXTURES, checkpoint, error, vectors

SHAPE = VideoPixelShape(17, 64, 128, 24.0)


def check(*inputs: Input) -> None:
    request = Request("a ball", SHAPE, inputs=inputs)
    request.check(recipes.distilled(), Model(LTX_2.geometry))


@pytest.fixture
def tune():
    """A made-up kind of input: a spectrogram in a file is the clip's sound, and its mean one more token of video."""

    @dataclass(frozen=True)
    class Tune(Input):
        path: str
        kind: Literal["tune"] = field(default="tune", kw_only=True)

        needs = ("audio_encoder",)
        option = Option("--tune", ("PATH",), "a spectrogram to hear")

        @classmethod
        def typed(cls, words):
            return cls(full_path(words[0]))

        @property
        def files(self):
            return (self.path,)

        def check(self, shape, model, opens):
            if opens and np.load(self.path).ndim != 4:
                raise UserError(f"{self.path} is no spectrogram.")

        def moved(self, factor, start, end):
            return self

        def tokens(self, grid):
            return AV(1)

        def encode(self, parts, shape):
            mel = mx.array(np.load(self.path))
            heard = patchify_audio(parts.networks["audio_encoder"](mel))

            def video(state: LatentState) -> LatentState:
                token = mx.full((1, 1, state.latent.shape[2]), heard.mean())
                return AppendedTokens(token, state.positions[:, :, :1])(state)

            def sound(state: LatentState) -> LatentState:
                kept, mask = heard[:, : state.latent.shape[1]], state.denoise_mask
                return state._replace(clean_latent=kept, denoise_mask=0 * mask)

            return AV([video], [sound])

    yield Tune
    del Input.kinds["tune"]


def spectrogram(file: Path, level: float) -> str:
    np.save(file, np.full((1, 2, 45, 64), level, np.float32))
    return str(file)


@pytest.mark.slow
def test_a_new_kind_of_input_is_one_class(tune, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    size = ["-W", "128", "-H", "64", "-n", "9", "-s", "1", "--model", str(model)]
    typed = ["-p", "a ball", *size, "--tune"]
    np.save("x.npy", np.zeros(3))
    assert cli.main(["generate", *typed, "x.npy"]) == 2
    assert "x.npy is no spectrogram" in capsys.readouterr().err
    for name, level in (("a", -1.0), ("b", 1.0)):
        file = spectrogram(tmp_path / f"{name}.npy", level)
        assert cli.main(["generate", *typed, file, "-o", f"{name}.mp4"]) == 0
    again = ["generate", "--from-record", "a.json", "-o", "c.mp4", "--yes"]
    assert cli.main(again) == 0
    a, b, c = (np.stack(read_clip(tmp_path / f"{name}.mp4")[0]) for name in "abc")
    assert np.array_equal(a, c) and not np.array_equal(a, b)
    job = Job.from_record(tmp_path / "a.json")
    assert job.request.inputs == (tune(str(tmp_path / "a.npy")),)
    work = Work(job.request, job.recipe)
    assert work.tokens(1, LTX_2.geometry).video == 2 * 2 * 4 + 1


@pytest.mark.slow
def test_the_plan_weighs_whatever_networks_an_input_needs(tune, model, tmp_path):
    given = tune(spectrogram(tmp_path / "a.npy", 0.0))
    request = Request("a ball", SHAPE, audio=True, inputs=(given,))
    job = Job(request, recipes.distilled(), Files(model, dtype="float32"))
    phase = next(p for p in job.plan().phases if p.name == "encode inputs")
    with job.components().lend("audio_encoder") as encoder:
        stored = sum(value.nbytes for _, value in tree_flatten(encoder.parameters()))
        assert phase.weights == stored
        frames = LTX_2.geometry.audio.mel_frames * LTX_2.geometry.audio_frames(SHAPE)
        assert phase.activations == encoder.activation_bytes(frames) + SMALL
    assert "video_encoder" not in request.needs(job.recipe)


def test_only_a_picture_makes_the_rewritten_prompt_begin_with_one(tune, monkeypatch):
    for name in ("enhance_t2v", "enhance_i2v"):
        monkeypatch.setattr(enhance, name, lambda *_, name=name, **options: name)
    for given, writer in ((tune("a.npy"), "enhance_t2v"), (Image("a"), "enhance_i2v")):
        request = Request("a ball", SHAPE, inputs=(given,), enhance=True)
        assert Pipeline._enhanced(None, request, encoder=None) == writer


def test_a_kind_that_does_not_say_how_it_moves_cannot_be_made(tune, monkeypatch):
    """Else a round of DFR would leave it out without a word."""
    monkeypatch.delattr(tune, "moved")
    abc.update_abstractmethods(tune)
    with pytest.raises(TypeError, match="abstract method '?moved"):
        tune("a.npy")


# Pictures


@pytest.fixture
def picture(tmp_path) -> str:
    Picture.new("RGB", (128, 64), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def test_a_picture_is_typed_in_words(picture, monkeypatch):
    monkeypatch.chdir(Path(picture).parent)
    assert Image.typed(["red.png", "8", ".5"]) == Image(picture, 8, 0.5)
    assert Image.typed(["no.png"]) == Image("no.png")
    for words in (["a.png", "late"], ["a.png", "0", "1", "2"]):
        with pytest.raises(UserError, match="--image needs PATH"):
            Image.typed(words)


def test_pictures_say_what_they_add(picture):
    grid = LTX_2.geometry.latents(SHAPE)
    assert Image(picture).tokens(grid) == AV(0)
    assert Image(picture, 8).tokens(grid) == AV(8)
    assert Image.needs == ("video_encoder",)
    assert Image(picture).files == (picture,)


@pytest.mark.parametrize(
    "given, sentence",
    [
        ((Image("p", 3),), "frame 0, 8, 16, ... below 17; got 3 .* Nearest: 0"),
        ((Image("p", 17),), "frame 0, 8, 16, ... below 17; got 17 .* Nearest: 16"),
        ((Image("p", 24),), "below 17; got 24"),
        ((Image("p", 0, 2.0),), "strength must be from 0 to 1; got 2.0"),
        ((Image("p"), Image("p", 8), Image("p")), "same place, frame 0"),
    ],
)
def test_pictures_that_cannot_stand_there(given, sentence, picture):
    given = tuple(Image(picture, image.frame, image.strength) for image in given)
    with pytest.raises(UserError, match=sentence):
        check(*given)


@pytest.mark.slow
def test_a_missing_picture_is_refused_by_its_place_unless_no_file_may_be_opened():
    request = Request("a ball", SHAPE, inputs=(Image("no.png"),))
    recipe, model = recipes.distilled(), Model(LTX_2.geometry)
    request.check(recipe, model, opens=False)
    with pytest.raises(UserError, match="no file or folder no.png") as refused:
        request.check(recipe, model)
    assert refused.value.place == ("inputs", "0", "path")


def test_a_picture_is_read_once_in_a_run(picture, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read, count = pictures.read_picture, []
    monkeypatch.setattr(
        pictures, "read_picture", lambda path: count.append(path) or read(path)
    )
    typed = "-p ball -W 128 -H 64 -n 9 --no-audio --model".split() + [str(model)]
    assert cli.main(["generate", *typed, "--image", picture, "-o", "a.mp4"]) == 0
    assert len(count) == 1
    Picture.new("RGB", (128, 64), "blue").save(picture)
    assert cli.main(["generate", *typed, "--image", picture, "-o", "b.mp4"]) == 0
    assert len(count) == 2


# Keyframes that the model generates

TWO = Keyframes(2)
SHAPE_2_5 = VideoPixelShape(17, 64, 96, 24.0)


def test_generated_keyframes_are_the_official_slots():
    (condition,) = TWO.encode(Parts({}, LTX_2.geometry, 33), SHAPE_2_5).video
    official = vectors("conditions", "ltx2_modes")
    state = LatentState.fresh(official["initial.latent"], official["initial.positions"], 6)  # fmt: skip
    state = condition(state)
    assert error(state.positions, official["slots.positions"]) < 1e-6
    assert mx.array_equal(state.keyframes_mask, official["slots.keyframes_mask"])
    grid = LTX_2.geometry.latents(SHAPE_2_5)
    assert TWO.tokens(grid) == AV(state.latent.shape[1] - grid.tokens)


def test_only_the_first_stage_takes_generated_keyframes():
    image = Image("x.png", 8)
    both = Request("a cat", SHAPE, inputs=(image, TWO))
    assert both.inputs_of(0) == [image, TWO] and both.inputs_of(1) == [image]
    shape = VideoPixelShape(17, 128, 192, 24.0)
    work = Work(Request("a cat", shape, inputs=(TWO,)), recipes.distilled())
    first, second = (work.tokens(n, LTX_2.geometry).video for n in (0, 1))
    assert (first, second) == (18 + 2 * 6, 72)


@pytest.mark.parametrize(
    "given, sentence",
    [
        ("many", "--keyframes needs a whole number; got 'many'"),
        ("0", "from 1 to 15 generated keyframes; got 0"),
        ("16", "from 1 to 15 generated keyframes; got 16"),
    ],
)
def test_numbers_of_keyframes_that_make_no_sense_are_refused(given, sentence):
    with pytest.raises(UserError, match=sentence):
        check(Keyframes.typed([given]))
    with pytest.raises(UserError, match="same place, all generated keyframes"):
        check(TWO, Keyframes(3))


def test_many_inputs_are_compared_at_once(monkeypatch):
    """A record of a megabyte names some 15,000."""
    asked = []
    monkeypatch.setattr(Image, "place", property(lambda image: asked.append(image)))
    pictures = [Image("a", frame) for frame in range(0, 800, 8)]
    request = Request("a cat", VideoPixelShape(801, 64, 64, 24.0), inputs=pictures)
    request.check(recipes.distilled(), opens=False)
    assert 100 <= len(asked) <= 300


def test_a_model_that_knows_no_keyframes_is_told_at_once(model):
    request = Request("a cat", SHAPE, inputs=(TWO,))
    pipeline = Pipeline(Components.open(model), recipes.distilled())
    with pytest.raises(UserError, match="cannot generate keyframes; LTX-2.5 can"):
        pipeline.check(request)


def test_a_model_that_knows_them_is_not():
    _, config = checkpoint(FIXTURES / "ltx25_tiny" / "ltx-2.5-tiny-transformer-bf16.safetensors")  # fmt: skip
    model = Model(None, LTXModelConfig.from_dict(config["transformer"]))
    TWO.check(SHAPE, model, opens=True)
