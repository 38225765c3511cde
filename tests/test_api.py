"""The short way in Python: a sentence in, a clip out, saved with its record."""

import json
import re
import warnings
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

import mlx_video
from mlx_video import api, cli, media, recipes
from mlx_video.api import LTXPipeline
from mlx_video.errors import UserError
from mlx_video.events import Warned
from mlx_video.inputs import Image, Keyframes
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.loading.components import Components
from mlx_video.pipeline import Request
from mlx_video.record import Job
from mlx_video.run import Options
from mlx_video.types import Clip, Step, VideoPixelShape
from tests.checkpoints import tiny_folder
from tests.media_reading import read_clip

SIZE = {"frames": 9, "height": 64, "width": 128}
SHAPE = VideoPixelShape(9, 64, 128, 24.0)
RED = np.full((64, 128, 3), (200, 0, 0), np.uint8)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> LTXPipeline:
    return mlx_video.load(tiny_folder(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.mark.slow
def test_a_sentence_becomes_a_clip_whose_record_makes_it_again(pipeline, here):
    steps: list[Step] = []
    clip = pipeline("a red ball", seed=7, audio=True, on_step=steps.append, **SIZE)
    assert {"stage 1", "stage 2"} <= {step.phase for step in steps}
    assert (clip.prompt, clip.seed, clip.shape) == ("a red ball", 7, SHAPE)
    assert (
        repr(clip) == "<clip of 'a red ball': 9 frames of 128x64, with sound, seed 7>"
    )
    assert clip.save("made/ball.mp4") == clip.path == Path("made/ball.mp4")
    assert steps[-1] == Step("decode video", 9, 9)
    assert Job.from_record("made/ball.json") == Job.from_record("made/ball.mp4")
    again = ["generate", "--from-record", "made/ball.json", "-o", "again.mp4", "--yes"]
    assert cli.main(again) == 0
    assert Path("again.mp4").read_bytes() == Path("made/ball.mp4").read_bytes()


@pytest.mark.slow
def test_a_stream_is_the_run_of_a_call(pipeline, monkeypatch):
    request = Request("a red ball", SHAPE, seed=7)
    monkeypatch.setattr(
        "mlx_video.pipeline.Pipeline.cautions", lambda *_: iter(["It is red."])
    )
    with pytest.warns(UserWarning, match="It is red.") as told:
        *steps, sampled, clip = pipeline.stream(request)
    assert [warning.filename for warning in told] == [__file__]
    with pytest.warns(UserWarning, match="It is red.") as told:
        frames = [*pipeline(request).frames]
    assert [warning.filename for warning in told] == [__file__]
    assert {"stage 1", "stage 2"} <= {step.phase for step in steps}
    assert sampled.prompt == "a red ball" and sampled.latents.audio is None
    assert all(np.array_equal(a, b) for a, b in zip(clip.frames, frames, strict=True))
    tight = LTXPipeline(pipeline.files, pipeline.recipe, pipeline.defaults, Options(memory_limit=1e5))  # fmt: skip
    with pytest.raises(UserError, match="need .* GB in "):
        next(tight.stream(request))


@pytest.mark.slow
def test_a_clip_is_saved_as_often_as_wanted_and_its_frames_are_taken_once(
    pipeline, here
):
    clip = pipeline("a red ball", seed=3, audio=True, **SIZE)
    assert [clip.save(), clip.save()] == [
        Path("a-red-ball-3.mp4"),
        Path("a-red-ball-3-2.mp4"),
    ]
    with pytest.raises(UserError, match="a-red-ball-3.mp4 exists"):
        clip.save("a-red-ball-3.mp4")
    clip.save("a-red-ball-3.mp4", overwrite=True)
    with pytest.warns(UserWarning, match="will be silent"):
        clip.save("a-red-ball-3.GIF")
    found = Job.from_record("a-red-ball-3.GIF.json")
    assert found == Job.from_record("a-red-ball-3.json")
    assert clip.audio.seconds == pytest.approx(9 / 24, abs=0.02)
    assert len(list(clip.frames)) == 9
    with pytest.raises(UserError, match="already read; they are decoded only once"):
        list(clip.frames)


@pytest.mark.slow
def test_a_notebook_shows_it(pipeline, here):
    clip = pipeline('<a> "red" ball', seed=3, audio=False, **SIZE)

    def shown() -> bytes:
        page = clip._repr_html_()
        assert page.startswith("<video controls") and "<a>" not in page
        return b64decode(re.search('base64,([^"]+)', page)[1])

    Path("unsaved.mp4").write_bytes(shown())
    assert list(here.iterdir()) == [here / "unsaved.mp4"]
    assert len(read_clip("unsaved.mp4")[0]) == 9
    assert shown() == clip.save("saved.mp4").read_bytes()


@pytest.mark.slow
def test_several_prompts_and_seeds_are_each_with_each(pipeline, monkeypatch):
    loaded, load = [], Components._load
    loading = lambda self, name, *rest: loaded.append(name) or load(self, name, *rest)
    monkeypatch.setattr(Components, "_load", loading)
    clips = pipeline(["a ball", "a star"], seed=range(2), audio=False, **SIZE)
    made = [(clip.prompt, clip.seed) for clip in clips]
    assert made == [("a ball", 0), ("a ball", 1), ("a star", 0), ("a star", 1)]
    assert loaded.count("transformer") == loaded.count("text_encoder") == 1
    alone = pipeline("a star", seed=1, audio=False, **SIZE)
    assert loaded.count("transformer") == 2
    assert np.array_equal(list(clips[3].frames), list(alone.frames))
    assert len(pipeline(["a ball"], audio=False, **SIZE)) == 1


def test_seeds_are_random_where_none_is_given(pipeline):
    seeds = {pipeline.request("a ball").seed for _ in range(5)}
    assert len(seeds) == 5 and max(seeds) < 2**32


@pytest.mark.slow
@pytest.mark.parametrize(
    "image",
    [
        RED,
        pytest.param(RED / 255, marks=pytest.mark.thorough),
        pytest.param(Picture.fromarray(RED), marks=pytest.mark.thorough),
    ],
    ids=["uint8", "float", "PIL"],
)
def test_pictures_without_a_file_are_kept_beside_the_clip(image, pipeline, here):
    clip = pipeline("a ball", seed=1, image=image, audio=False, **SIZE)
    clip.save("clip.mp4")
    (kept,) = Job.from_record("clip.mp4").request.inputs
    assert kept == Image(str(here / "clip.0.png"))
    assert np.array_equal(media.Image.open("clip.0.png"), RED)
    with pytest.raises(UserError, match="clip.0.png exists"):
        Path("clip.mp4").unlink(), Path("clip.json").unlink(), clip.save("clip.mp4")
    clip.save("clip.mp4", overwrite=True)
    assert cli.main(["generate", "--from-record", "clip.mp4", "-o", "a.mp4", "--yes"]) == 0  # fmt: skip
    assert Path("a.mp4").read_bytes() == Path("clip.mp4").read_bytes()


def test_pictures_are_named_in_every_way_that_is_clear(pipeline, here):
    media.Image.fromarray(RED).save("red.png")
    full = str(here / "red.png")
    given = ["red.png", Path("red.png"), Image(Path("red.png"), 8, 0.5), Keyframes(1)]
    inputs = pipeline.request("a ball", image=given).inputs
    assert inputs == (Image(full), Image(full), Image("red.png", 8, 0.5), Keyframes(1))
    for strange in (RED[0], RED.astype(int), 2.0 * RED, 7):
        with pytest.raises(UserError, match="A picture is a path, a PIL image, or"):
            pipeline.request("a ball", image=strange)
    assert pipeline.request("a ball", image=None).inputs == ()


def test_types_are_forgiven_where_the_meaning_is_clear(here):
    sizes = np.array([9, 64, 128, 24])
    request = Request("a ball", sizes, seed=sizes[0], inputs=["x.png", Path("y.png")])
    plain = Request("a ball", SHAPE, seed=9, inputs=(Image("x.png"), Image("y.png")))
    assert request == plain and request.shape.seconds == 0.375
    job = Job(request, recipes.distilled())
    assert json.loads(job.record())["job"]["request"]["seed"] == 9
    file = Path("x.safetensors")
    file.touch()
    named = Files(file, "owner/name", upsampler=file, loras=[(file, 0.5)]).resolved()
    full = str(here / file)
    assert named == Files(full, "owner/name", upsampler=full, loras=((full, 0.5),))
    files = Files(Path("a/b"), loras=[(Path("c"), 1)])
    assert files == Files("a/b", loras=(("c", 1),))


def test_every_public_name_is_there():
    assert {"load", "LTXPipeline", "Files", "Options"} <= set(mlx_video.__all__)
    assert all(getattr(mlx_video, name) for name in mlx_video.__all__)


@pytest.mark.slow
def test_a_request_is_taken_as_it_is(pipeline):
    request = Request("a ball", SHAPE, seed=4)
    assert pipeline(request).job.request == request
    assert [clip.seed for clip in pipeline(request, seed=[5])] == [5]
    with pytest.raises(UserError, match="A Request already holds .*leave out frames"):
        pipeline(request, frames=9)
    with pytest.raises(TypeError, match="no num_frames; did you mean frames?"):
        pipeline("a ball", num_frames=9)


def test_what_cannot_be_done_is_said_before_weights_are_read(
    pipeline, monkeypatch, caplog
):
    monkeypatch.setattr(
        "mlx_video.models.ltx.loading.components.materialize", pytest.fail
    )
    with pytest.raises(UserError, match="Nearest: 9 frames of 128x64"):
        pipeline("a ball", frames=9, height=60, width=128)
    assert pipeline.request("a ball", frames=10).shape.frames == 9
    assert "10 frames became 9: frames must be 1 + a multiple of 8." in caplog.text
    with pytest.raises(UserError, match="The prompt is empty"):
        pipeline(["a ball", ""], **SIZE)
    small = LTXPipeline(
        pipeline.files, pipeline.recipe, pipeline.defaults, Options(memory_limit=1e5)
    )
    with pytest.raises(UserError, match="need .* GB in "):
        small("a ball", **SIZE)


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda p: p(None), "prompt must be text; got None"),
        (lambda p: p([b"a"]), "prompt must be text; got b'a'"),
        (lambda p: p("a", seed=1.0), "seed must be a whole number; got 1.0"),
        (lambda p: p("a", frames="9"), "frames must be a whole number; got '9'"),
        (lambda p: p("a", fps="24"), "fps must be a number; got '24'"),
        (lambda p: p("a", audio="no"), "audio must be True or False; got 'no'"),
        (lambda p: p("a", image=np.zeros((0, 9, 3), np.uint8)), "A picture is a path"),
        (lambda p: p("a", image=5), r"numbers from 0 to 1; got 5\."),
        (lambda p: mlx_video.load(5), "model must be a path or a name; got 5"),
        (lambda p: mlx_video.load("x", "dev"), "recipe must be of type Recipe"),
        (lambda p: mlx_video.load("nope"), "no file or folder nope. For a repository"),
        (lambda p: mlx_video.load("./nope"), "There is no file or folder ./nope."),
        (lambda p: mlx_video.load("nope.safetensors"), "no file nope.safetensors"),
        (lambda p: mlx_video.Files(loras=["x"]), "loras must be pairs"),
        (lambda p: Options(memory_limit="24GB"), "a number of bytes .* got '24GB'"),
        (lambda p: Request("a", (9, 64)), "shape must be frames, height, width and"),
    ],
)
def test_values_of_a_wrong_kind_are_answered_in_a_sentence(call, sentence, pipeline):
    with pytest.raises(UserError, match=sentence):
        call(pipeline)


def test_frames_are_taken_once_from_any_clip():
    clip = Clip(iter([RED] * 3), SHAPE)
    first = next(clip.frames)
    assert np.array_equal(first, RED) and len(list(clip.frames)) == 2
    with pytest.raises(UserError, match="already read"):
        iter(clip.frames)


def test_a_warning_of_a_run_is_pythons():
    def events():
        yield Warned("the clip may flicker")
        return 7

    with pytest.warns(UserWarning, match="the clip may flicker"):
        assert api._followed(events(), None) == 7


@pytest.mark.slow
def test_only_warnings_are_heard(pipeline, capsys):
    with warnings.catch_warnings(action="error"):
        pipeline("a ball", seed=1, audio=False, **SIZE)
    assert capsys.readouterr() == ("", "")
