"""Clips as long as was asked for in seconds, or as their prompt asks for: from the command line to the record."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from PIL import Image as PILImage

from mlx_video import cli, recipes
from mlx_video.clip_limits import Grid
from mlx_video.convert import convert
from mlx_video.errors import UserError
from mlx_video.events import Planned
from mlx_video.inputs import Image
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.releases import LTX_2_5
from mlx_video.models.ltx.duration import DurationConfig, DurationHead
from mlx_video.models.ltx.loading.components import Components
from mlx_video.output import Output
from mlx_video.pipeline import Pipeline, Request
from mlx_video.record import Job
from mlx_video.run import run
from mlx_video.types import Step, VideoPixelShape
from mlx_video.weights import save_folder
from tests.media_reading import read_clip
from tests.reference import FIXTURES, vectors

SHAPE = VideoPixelShape(9, 64, 128, 24.0)


@pytest.fixture(scope="module")
def telling(model, tmp_path_factory) -> Path:
    """The model converted, with a duration head that answers 1.5 seconds whatever it reads."""
    folder = convert(str(model), str(tmp_path_factory.mktemp("telling") / "mlx"))
    widths = {"cross_attention_dim": 48, "audio_cross_attention_dim": 48}
    config = {"transformer": widths, "duration_head": {}}
    head = DurationHead(DurationConfig.from_dict(config))
    head.mlp_out.weight = mx.zeros_like(head.mlp_out.weight)
    head.mlp_out.bias = mx.log(mx.array([1.5]))
    save_folder(folder / "duration_head", dict(tree_flatten(head.parameters())), config)
    return folder


def drained(events) -> tuple[list, object]:
    seen = []
    while True:
        try:
            seen.append(next(events))
        except StopIteration as end:
            return seen, end.value


@pytest.mark.slow
def test_official_frames_from_prompt_to_grid():
    """LTX-2.5's own files: Gemma 4, its projection and connectors, and the duration head."""
    needs = ("text_encoder", "connectors", "duration_head")
    parts = Components.open(
        Files(FIXTURES / "ltx25_tiny", dtype="float32"), needs=needs
    )
    parts.geometry = LTX_2_5.geometry  # which the transformer's file would confirm
    prompt = bytes(memoryview(vectors("text", "ltx25_tiny")["a.prompt_utf8"])).decode()
    for fps in (24, 25, 50):
        request = Request(prompt, SHAPE._replace(fps=float(fps)), timed=True)
        steps, timed = drained(Pipeline(parts, recipes.distilled()).timed(request))
        official = vectors("duration", "ltx25_tiny")[f"a.frames_fps{fps}"].item()
        assert timed.shape == request.shape._replace(frames=official)
        assert not timed.timed and timed.audio is request.audio
        assert steps[-1] == Step("predict duration", 1, 1)


@pytest.mark.slow
def test_a_run_is_as_long_as_its_prompt_asks_for(telling, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = Request("a red ball", SHAPE, timed=True)
    job = Job(request, recipes.distilled(), Files(str(telling)))
    events = list(run(job, Output(Path("x.mp4"))))
    planned = next(event for event in events if isinstance(event, Planned))
    assert "predict duration" in {phase.name for phase in job.plan().phases}
    assert planned.job.request == replace(request, shape=SHAPE._replace(frames=33), timed=False)  # fmt: skip
    assert len(read_clip(Path("x.mp4"))[0]) == 33
    assert Job.from_record("x.json").request.shape.frames == 33


def test_an_image_beyond_the_length_that_was_chosen_is_refused(telling, tmp_path):
    PILImage.new("RGB", (64, 32), "red").save(tmp_path / "red.png")
    late = Image(str(tmp_path / "red.png"), frame=40)
    request = Request("a ball", SHAPE._replace(frames=49), inputs=(late,), timed=True)
    job = Job(request, recipes.distilled(), Files(str(telling)))
    with pytest.raises(UserError, match="below 33; got 40") as refused:
        list(run(job, Output(tmp_path / "x.mp4")))
    assert refused.value.place == ("request", "inputs", "0", "frame")


@pytest.mark.slow
def test_a_pipeline_in_python_tells_too(telling):
    request = Request("a red ball", SHAPE, timed=True)
    job = Job(request, recipes.distilled(), Files(str(telling)))
    *_, clip = job.pipeline(job.plan()).stream(request)
    assert clip.shape.frames == 33


def test_a_release_without_a_head_is_refused_before_it_is_fetched(monkeypatch):
    monkeypatch.setattr("mlx_video.hub.plan", pytest.fail)
    job = Job(Request("a cat", SHAPE, timed=True), recipes.distilled(), Files("ltx-2"))
    with pytest.raises(UserError, match="has no duration head.*--num-frames"):
        list(run(job, Output(Path("x.mp4"))))


def test_a_model_without_a_head_is_refused_before_weights(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "mlx_video.models.ltx.loading.components.materialize", pytest.fail
    )
    job = Job(
        Request("a cat", SHAPE, timed=True), recipes.distilled(), Files(str(model))
    )
    with pytest.raises(UserError, match="has no duration head.*--num-frames"):
        list(run(job, Output(Path("x.mp4"))))


@pytest.mark.parametrize(
    "seconds, fps, frames", [(5, 24, 121), (1, 24, 25), (2.5, 30, 73), (0.01, 24, 1)]
)
def test_the_nearest_number_of_frames(seconds, fps, frames):
    assert Grid(8, 32, 32).frames_of(seconds, fps) == frames


@pytest.mark.slow
def test_seconds_on_the_command_line(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    size = ["-p", "a cat", "--model", str(model), "-W", "128", "-H", "64", "--no-audio"]
    words = ["generate", *size, "--seconds", "0.7", "-o", "x.mp4", "--json"]
    assert cli.main(words) == 0
    assert json.loads(Path("x.json").read_text())["job"]["request"]["shape"][0] == 17
    assert json.loads(capsys.readouterr().out)["path"] == "x.mp4"


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--duration", "long"], "must be auto, or seconds, such as 5; got long."),
        (["--seconds", "nan"], "must be auto, or seconds, such as 5; got nan."),
        (["--seconds", "601"], "above 0 and at most 600 seconds, such as 5; got 601."),
        (["--seconds", "inf"], "above 0 and at most 600 seconds, such as 5; got inf."),
        (["--seconds", "0"], "above 0 and at most 600 seconds, such as 5; got 0."),
        (["--seconds", "5", "--fps", "inf"], "fps must be from 1 to 240"),
        (["--seconds", "5", "-n", "9"], "leave out one of them"),
        (["--duration", "auto", "-n", "9"], "leave out one of them"),
    ],
)
def test_durations_that_make_no_sense(words, sentence, capsys):
    try:
        code = cli.main(["generate", "-p", "a cat", *words])
    except SystemExit as end:
        code = end.code
    assert code == 2 and sentence in capsys.readouterr().err
