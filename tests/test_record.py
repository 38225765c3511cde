"""Records: what is read is checked, and what is wrong gets one sentence that names the file and the field."""

import json
import os
import re
from copy import deepcopy
from dataclasses import replace

import mlx.core as mx
import pytest

from mlx_video import recipes
from mlx_video.backend import load_blas
from mlx_video.errors import UserError
from mlx_video.inputs import Image
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.pipeline import Request
from mlx_video.record import Job
from mlx_video.types import VideoPixelShape

JOB = Job(
    Request(
        "a red ball",
        VideoPixelShape(9, 64, 128, 24.0),
        seed=2**64 - 1,
        audio=True,
        inputs=(Image("/a.png", 8, 0.5),),
    ),
    recipes.dev(steps=3, two_stage=True),
    Files("somewhere", loras=(("style.safetensors", 0.8),), quantize=8),
    batch_guidance=True,
)


@pytest.fixture
def read(tmp_path):
    """Reads a record after a change to its data, or another text in its place."""
    file = tmp_path / "x.json"

    def read(change=lambda job: None, text: str | None = None) -> Job:
        data = json.loads(JOB.record())
        change(data["job"])
        file.write_text(json.dumps(data) if text is None else text)
        return Job.from_record(file)

    return read


def test_a_record_says_what_ran_it(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    kept = json.loads(JOB.record())
    assert kept["versions"].keys() == {"mlx_video", "mlx"}
    if mx.default_device() == mx.cpu and load_blas():
        assert int(kept["blas_threads"]) > 0


def test_a_record_gives_the_job_back(read):
    assert read() == JOB


def test_a_field_that_was_not_there_yet_may_be_missing(read):
    def before(job):
        del job["batch_guidance"]

    assert read(before) == replace(JOB, batch_guidance=False)


@pytest.mark.parametrize(
    "place, value, said",
    [
        ("request.seed", -1, r"x\.json: seed must be from 0 to \d+; got -1\."),
        ("request.seed", 10**400, r"x\.json: seed .* got \.\.\.0+\. For example: 10\."),
        ("recipe.stages.0.sigmas", [0.5, 1.0], r"x\.json: A stage needs .* sigmas"),
        ("recipe.stages.0.sampler.name", "zz", r"x\.json.*sampler.*res_2s\."),
    ],
)
def test_a_value_out_of_range_names_file_and_field_shortly(read, place, value, said):
    with pytest.raises(UserError, match=said) as refused:
        read(set_at(place, value))
    assert len(str(refused.value)) < 300
    assert not re.search("Value error|; got$", str(refused.value))


def set_at(path: str, value):
    def change(job):
        *places, last = path.split(".")
        for place in places:
            job = job[int(place) if place.isdigit() else place]
        job[int(last) if last.isdigit() else last] = value

    return change


def named(name: str, value):
    return lambda job: job["request"].update({name: value})


def test_a_long_key_is_cut(read, tmp_path):
    with pytest.raises(UserError, match=r"request\.aaa.*\.\.\. is unknown"):
        read(named("a" * 9000, 1))
    with pytest.raises(UserError, match="inputs.0: its kind must be one of 'image'"):
        read(named("inputs", [{"kind": "b" * 9000}]))
    with pytest.raises(UserError, match=r"inputs\.0 has no kind\."):
        read(named("inputs", [{"path": "a.png"}]))


WRONG = {
    "request.prompt": [3, None, ["a"], {"a": 1}],
    "request.seed": ["x", 1.5, None, True],
    "request.shape": [None, 3, "big", [1, 2, 3], [9, 64, "128", 24.0]],
    "request.shape.0": [1.5, "9", None],
    "request.shape.3": ["24", None],
    "request.audio": ["yes", 1, None],
    "request.enhance": [0],
    "request.tiling": [1],
    "request.inputs": [None, "a.png", [3], [{}]],
    "request.inputs.0.path": [3, None],
    "request.inputs.0.frame": ["8", 8.5],
    "request.inputs.0.strength": ["1", None],
    "request.surprise": [1],
    "recipe": [None, [], "dev"],
    "recipe.variant": [None, 3],
    "recipe.stages": [None, 3, [3]],
    "recipe.sparkle": [1],
    "recipe.stages.0.sigmas": [None, 1.0, ["a"], "10"],
    "recipe.stages.0.scale": ["half", None],
    "recipe.stages.0.guidance": [None, [], {"smell": None}],
    "recipe.stages.0.guidance.video.cfg": ["3", None],
    "recipe.stages.0.guidance.video.stg_blocks": [3, ["a"]],
    "recipe.stages.0.distilled_lora": ["1", None],
    "files": [None, [], 3],
    "files.model": [3, []],
    "files.loras": [3, [["a"]], [["a", "b"]], [[1, 1.0]], [["a", 1.0, 2]]],
    "files.quantize": ["8", 1.5],
    "files.low_memory": ["no"],
    "batch_guidance": ["no", 1],
}


@pytest.mark.parametrize("field", WRONG)
def test_a_field_of_a_wrong_kind_is_named(field, read, tmp_path):
    for value in WRONG[field]:
        with pytest.raises(UserError) as caught:
            read(set_at(field, value))
        told = str(caught.value)
        assert str(tmp_path / "x.json") in told and len(told) < 400, told
        name = field.split(".")[-1]
        assert re.search(rf"\b{name}\b", told), told
        assert "\n" not in told


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "3",
        "{}",
        '{"job": {}}',
        '{"job": null}',
        "[" * 100_000,
        '{"a":' * 5_000,
        '{"job": {"request": {"seed": 1e999}}}',
        "\ufeff{}",
        "x" * 2**21,
    ],
)
def test_what_is_no_record_gets_a_sentence(text, read):
    with pytest.raises(UserError) as caught:
        read(text=text)
    assert "x.json" in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_are_finite(number, read):
    text = JOB.record().replace('"fps"', "").replace("24.0", number)
    with pytest.raises(UserError, match="finite number"):
        read(text=text)


@pytest.mark.parametrize("words", ["\x1b[31mred", "a\x07", "a\u202eb"])
def test_control_characters_are_named_and_not_echoed(words, read):
    for field in ("request.prompt", "files.model", "request.inputs.0.path"):
        with pytest.raises(UserError, match="holds a control character") as caught:
            read(set_at(field, words))
        assert field in str(caught.value) and str(caught.value).isprintable()


def test_a_prompt_may_have_lines(read):
    job = read(set_at("request.prompt", "a ball\nrolls\taway"))
    assert job.request.prompt == "a ball\nrolls\taway"


def test_a_file_that_is_not_text_or_no_file_at_all(tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="x.json is not UTF-8 text, from byte 0"):
        Job.from_record(file)
    for suffix in (".json", ".mp4", ".latents.safetensors"):
        os.mkfifo(tmp_path / f"pipe{suffix}")
        with pytest.raises(UserError, match="is not a regular file"):
            Job.from_record(tmp_path / f"pipe{suffix}")
        with pytest.raises(UserError, match="There is no file"):
            Job.from_record(tmp_path / f"nothing{suffix}")
    with pytest.raises(UserError, match="is not a regular file"):
        Job.from_record(tmp_path)


SENSELESS = {
    "files.dtype": ("load", "dtype must be one of bfloat16"),
    "files.quantize": (3, "quantize must be 8 or 4"),
    "recipe.stages.0.sigmas": ([1.0], "at least two"),
    "recipe.stages.1.sigmas": ([1.0, 2.0, 0.0], "descend"),
    "recipe.stages.0.scale": (0.0, "scale"),
    "recipe.stages.0.upsampler": ("temporal_upsampler", "take the upsampler and"),
    "recipe.stages.1.detailing": (0.5, "Only DFR uses the detailing LoRA"),
    "recipe.stages.0.guidance.video.rescale": (99, "rescale must be from 0 .* got 99"),
    "recipe.stages.0.guidance.audio.skip_step": (-1, "skip_step must be 0 or more"),
    "recipe.stages": ([], "at least one stage"),
    "recipe.variant": ("fast", "distilled or dev"),
}


@pytest.mark.parametrize("field", SENSELESS)
def test_values_that_make_no_sense_are_refused_before_anything_is_opened(field, read):
    value, sentence = SENSELESS[field]
    with pytest.raises(UserError, match=r"x\.json: .*" + sentence):
        read(set_at(field, deepcopy(value)))
