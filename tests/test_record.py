"""Records: what is read is checked, and what is wrong gets one sentence that names the file and the field."""

import json
import os
import re
from copy import deepcopy
from dataclasses import replace

import mlx.core as mx
import pytest

from mlx_video import cli, recipes, record
from mlx_video.backend import load_blas
from mlx_video.errors import UserError
from mlx_video.inputs import Image
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.find import DEMO
from mlx_video.models.ltx.loading.components import Components
from mlx_video.pipeline import Request
from mlx_video.plan import Phase, Plan
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


@pytest.mark.parametrize("value, told", [(None, "null"), (True, "true"), ("x", "'x'")])
def test_a_wrong_value_is_shown_as_the_file_has_it(value, told, read):
    with pytest.raises(UserError, match=f"seed must be a valid integer; got {told}."):
        read(set_at("request.seed", value))


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


def test_a_file_far_larger_than_any_record_is_not_parsed(read):
    assert read(text=JOB.record().ljust(2**20)) == JOB
    with pytest.raises(UserError, match="x.json is too large: 1,048,577 bytes"):
        read(text=JOB.record().ljust(2**20 + 1))


GUIDANCE = "recipe.stages.0.guidance"
SENSELESS = [
    ("request.prompt", " ", "The prompt is empty.* for example 'a cat"),
    ("request.seed", -1, r"seed must be from 0 to \d+; got -1\. For example: 10\."),
    ("request.seed", 10**400, r"seed .* got \.\.\.0+\. For example: 10\."),
    ("request.shape.0", 0, "at least 1 frame .* For example: 121 frames"),
    ("request.shape.0", 10**9, "at most .* 144,001 frames; .* For example: 121 frames"),
    ("request.shape.1", 0, "1 pixel a side; got 9 frames of 128x0"),
    ("request.shape.2", -64, "1 pixel a side; got 9 frames of -64x64"),
    ("request.shape.2", 2**20, "at most 16,384 pixels a side"),
    ("request.shape.3", 0.0, "fps must be from 1 to 240 .* got 0.0. .* 24"),
    ("request.shape.3", 1e300, "fps must be from 1 to 240"),
    ("request.tiling", "wild" * 999, "tiling must be one of auto"),
    ("request.inputs.0.strength", 7.0, "strength must be from 0 to 1; got 7.0"),
    ("request.inputs.0.strength", -0.1, "strength must be from 0 to 1; got -0.1"),
    ("request.inputs.0.frame", 9, "got 9 for /a.png. Nearest: 8"),
    ("request.inputs.0.frame", -(10**99), r"got \.\.\.0+ for /a.png. Nearest: 0"),
    ("request.inputs.0.path", "", "path is empty; give the name of a file"),
    ("request.inputs.0.path", "a\nb", r"path holds a control character, '\\n'"),
    ("request.inputs.0", {"kind": "keyframes", "count": 0}, "from 1 to 7 .* got 0"),
    ("request.inputs.0", {"kind": "keyframes", "count": 8}, "from 1 to 7 .* got 8"),
    ("files.model", "a\nb", r"model's name holds a control character, '\\n'"),
    ("files.model", "", "model's name is empty; give the name of a file"),
    ("files.text_encoder", "a\tb", "text encoder's name holds a control character"),
    ("files.dtype", "load", "dtype must be one of bfloat16"),
    ("files.quantize", 3, "quantize must be 8 or 4"),
    ("files.loras.0", ["a\nb", 1.0], "LoRA's name holds a control character"),
    ("files.loras.0", ["a", 1e300], r"must be from -100 to 100, such as 0.8; got 1e\+300"),
    ("recipe.variant", "fast", "distilled or dev"),
    ("recipe.sound", 2, "from 0 to 1, or -1 for the last; got 2"),
    ("recipe.stages", [], "at least one stage"),
    ("recipe.stages.0.sigmas", [1.0], r"at least two.* For example: \[1.0, 0.5, 0.0\]"),
    ("recipe.stages.0.sigmas", [0.5, 1.0], "A stage needs .* sigmas, descending"),
    ("recipe.stages.1.sigmas", [1.0, 2.0, 0.0], "descend"),
    ("recipe.stages.1.sigmas", [1 - i / 1e5 for i in range(10_002)], "at most 10,000 steps; got 10,001. The usual number is 40"),
    ("recipe.stages.0.scale", 0.0, r"scales must be \[0.5, 1.0\]; got \[0.0, 1.0\]"),
    ("recipe.stages.0.scale", 5e-324, r"scales must be \[0.5, 1.0\]"),
    ("recipe.stages.1.scale", 0.5, r"scales must be \[0.5, 1.0\]"),
    ("recipe.stages.0.upsampler", "temporal_upsampler", "take the upsampler and"),
    ("recipe.stages.0.upsampler", "\x1b", r"got '\\x1b'"),
    ("recipe.stages.1.detailing", 0.5, "Only DFR uses the detailing LoRA"),
    ("recipe.stages.1.distilled_lora", -1e9, "from -100 to 100, such as 0.5"),
    ("recipe.stages.0.sampler.name", "zz", r"sampler 'zz'; .*res_2s\."),
    ("recipe.stages.0.sampler.eta", 2.0, "eta must be from 0 to 1, such as 0.5; got 2.0"),
    (f"{GUIDANCE}.video", None, "Guidance is missing"),
    (f"{GUIDANCE}.video.cfg", 1e300, r"cfg must be from -100 to 100, such as 3; got"),
    (f"{GUIDANCE}.audio.modality", -101.0, "modality must be from -100 to 100"),
    (f"{GUIDANCE}.video.rescale", 99, "rescale must be from 0 .* got 99"),
    (f"{GUIDANCE}.audio.skip_step", -1, "skip_step must be 0 or more"),
    (f"{GUIDANCE}.video.stg_blocks", [-1], "counted from 0; got block -1. The usual one"),
    ("recipe.rounds", [{"sigmas": [1.0, 0.0]}] * 3, "from 0 to 2 rounds; got 3"),
]  # fmt: skip


@pytest.mark.parametrize("field, value, sentence", SENSELESS)
def test_values_that_make_no_sense_are_refused_before_anything_is_opened(
    field, value, sentence, read
):
    with pytest.raises(UserError, match=sentence) as refused:
        read(set_at(field, deepcopy(value)))
    told = str(refused.value)
    place = re.search(r"x\.json( .* read\.|:) job\.([\w.]+): [A-Za-z]", told)[2]
    assert field in place or place in field
    assert len(told) < 450 and told.isprintable()
    assert not re.search("Value error|; got$", told)


@pytest.mark.parametrize("model", [DEMO, "Lightricks/LTX-2.5"])
def test_the_grid_of_a_known_model_is_known(model, read):
    def change(job):
        job["files"]["model"] = model
        job["request"]["shape"] = [10, 64, 100, 24.0]

    place = r"x\.json: job\.request\.shape: A clip of 10 frames .* Nearest: 9 frames of 128x64"
    with pytest.raises(UserError, match=place):
        read(change)


@pytest.mark.parametrize("command", ["generate", "plan"])
def test_what_only_its_model_shows_wrong_is_told_of_the_record(
    command, read, model, tmp_path, capsys
):
    def change(job):
        job["files"] = {"model": str(model)}
        job["request"] |= {"shape": [10, 64, 128, 24.0], "inputs": []}
        for strengths in job["recipe"]["stages"][0]["guidance"].values():
            strengths["stg_blocks"] = [1]

    assert read(change).request.shape.frames == 10  # the model was not opened
    words = [command, "--from-record", str(tmp_path / "x.json"), "--yes"]
    assert cli.main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(
        r"x\.json: job\.request\.shape: A clip of 10 frames .* Nearest: 9", error
    )


def test_a_typed_file_is_not_blamed_on_the_record(read, tmp_path, capsys):
    read()
    words = ["generate", "--from-record", str(tmp_path / "x.json"), "--lora", "a", "inf"]  # fmt: skip
    assert cli.main([*words, "--yes"]) == 2
    assert "error: The strength of" in capsys.readouterr().err


def test_what_is_sampled_needs_the_decoders_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(Components, "open", lambda *_, needs, **__: asked.append(needs))
    JOB.components(sampled=True)
    JOB.components()
    assert asked[0] == ["video_decoder", "audio_decoder", "vocoder"]
    assert {"transformer", "text_encoder", *asked[0]} < set(asked[1])


def test_a_pipeline_is_as_its_job_and_its_plan_say(monkeypatch):
    made = []
    monkeypatch.setattr(record, "pipeline_for", lambda *_, **given: made.append(given))
    planned = Plan((Phase("libraries", 0, 0.0),), 5e9, None, previews=True)
    JOB.pipeline(planned, health=False)
    expected = {"health": False, "batched": True, "memory": 5e9, "previews": True}
    assert made == [expected]
