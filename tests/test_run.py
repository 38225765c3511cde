"""A run as events: what it yields, what it keeps, and that nothing is lost whatever ends it."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_video import disk, hub, recipes, resume
from mlx_video.errors import DiskFullError, UserError
from mlx_video.events import Planned, Saved, Took, Warned, Written
from mlx_video.inputs import Image
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.loading.residency import Shelf
from mlx_video.output import Output
from mlx_video.pipeline import Request
from mlx_video.plan import Plan, plan
from mlx_video.record import Job
from mlx_video.run import Options, Sampled, _prepared, finish, run, write
from mlx_video.types import AV, Step, VideoPixelShape
from tests.media_reading import read_clip

ROOT = Path(__file__).parent.parent
SHAPE = VideoPixelShape(9, 64, 128, 24.0)
MORE = partial(pytest.param, marks=pytest.mark.thorough)
GUIDANCE = replace(recipes.VIDEO_GUIDANCE, stg_blocks=(1,))


def job(model: Path, recipe=recipes.distilled(), **changes) -> Job:
    request = Request(**{"prompt": "a red ball", "shape": SHAPE, **changes})
    return Job(request, recipe, Files(str(model)))


def guided(steps: int = 4) -> recipes.Recipe:
    return recipes.dev(steps, AV(GUIDANCE, GUIDANCE))


def pixels(path: Path) -> np.ndarray:
    return np.stack(read_clip(path)[0])


# Events


def test_a_run_is_a_stream_of_plain_events(model, here, capsys):
    events = list(run(job(model, audio=True), Output(Path("x.mp4"))))
    planned, *_, last = events
    assert isinstance(planned, Planned) and planned.path == "x.mp4"
    assert planned.job.files.model == str(model) and planned.plan.phases
    assert isinstance(last, Written) and last.path == "x.mp4" and last.seconds > 0
    steps = [event for event in events if isinstance(event, Step)]
    phases = list(dict.fromkeys(step.phase for step in steps))
    assert phases == [event.phase for event in events if isinstance(event, Took)]
    assert phases[-2:] == ["decode sound", "decode video"]
    decoded = [step.index for step in steps if step.phase == "decode video"]
    assert decoded == list(range(10))
    (saved,) = (event for event in events if isinstance(event, Saved))
    assert saved == Saved("x.latents.safetensors", None)
    assert capsys.readouterr() == ("", "")
    assert sorted(os.listdir()) == ["x.json", "x.mp4"]
    plain = [e for e in events if not isinstance(e, Planned)]
    assert json.loads(json.dumps(plain)) == [list(e) for e in plain]


def test_a_silent_file_is_told_before_anything_is_made(model, here):
    sounding, gif = job(model, audio=True), Output(Path("x.gif"))
    with contextlib.closing(run(sounding, gif)) as events:
        assert any("x.gif will be silent" in e.text for e in warned(events))
    written = write(Sampled(sounding, AV(), None), gif)
    assert "x.gif will be silent" in next(written).text


def warned(events) -> Iterator[Warned]:
    """The warnings of a run before its first step."""
    begun = itertools.takewhile(lambda e: not isinstance(e, Step), events)
    return (event for event in begun if isinstance(event, Warned))


def test_room_for_a_clip_is_checked_before_it_is_decoded(model, here, monkeypatch):
    full = DiskFullError("The disk is full.")
    monkeypatch.setattr(Output, "check_space", lambda *_: raised(full))
    with pytest.raises(DiskFullError):
        list(write(Sampled(job(model), AV(), None), Output(Path("deep/x.mp4"))))
    assert os.listdir() == []


def raised(error: Exception):
    raise error


@pytest.mark.parametrize(
    "device, limit, most", [(mx.cpu, 60e9, 2**26), (mx.gpu, 60e9, 4 * 2**30)]
)
def test_freed_memory_is_kept_as_far_as_it_saves_time(
    device, limit, most, model, monkeypatch
):
    """More was seen to gain nothing, and it is lost to other programs: on a GPU a lent part of some GB."""
    monkeypatch.setattr(mx, "default_device", lambda: device)
    preparing = _prepared(job(model), Options(memory_limit=limit))
    with pytest.raises(StopIteration) as end:
        next(preparing)
    _, plan, pipeline = end.value.value
    assert most / 4 <= pipeline.components.cache_limit <= most < plan.spare


def test_a_run_uses_the_shelf_and_frees_what_is_not_its_own_there(model):
    shelf, of_another = Shelf(), nn.Linear(2, 2)
    shelf.put("transformer", "of another model", SimpleNamespace(network=of_another))
    preparing = _prepared(job(model), Options(shelf=shelf))
    with pytest.raises(StopIteration) as end:
        next(preparing)
    _, _, pipeline = end.value.value
    assert pipeline.components.shelf is shelf
    assert not shelf.names and not of_another.parameters()


@pytest.mark.slow
def test_a_run_that_nobody_follows_leaves_its_work(model, here):
    events = run(job(model), Output(Path("x.mp4")))
    next(e for e in events if isinstance(e, Saved))
    events.close()
    assert os.listdir() == ["x.latents.safetensors"]


@pytest.mark.slow
def test_a_download_is_told_before_it_begins(model, here, monkeypatch):
    plans = [
        hub.DownloadPlan("a/b", ("*",), {"x": 5}),
        hub.DownloadPlan("c/d", ("*",), {"y": 7}),
    ]
    fetched, components = [], Job.components

    def found(self, notify, sampled):
        for plan in plans:
            if plan.repo not in fetched:
                notify(plan)
                fetched.append(plan.repo)
        return components(self)

    monkeypatch.setattr(Job, "components", found)
    told = []
    hear = Options(notify=lambda plan: told.append((plan.repo, list(fetched))))
    next(run(job(model), Output(Path("x.mp4")), hear))
    assert told == [("a/b", []), ("c/d", ["a/b"])]


# Names


@pytest.mark.slow
def test_a_live_run_owns_its_name_and_a_dead_one_does_not(model, here):
    first = run(job(model), Output(Path("x.mp4")))
    next(first)
    with pytest.raises(UserError, match="Another run is writing x.mp4"):
        next(run(job(model), Output(Path("x.mp4"))))
    first.close()
    assert os.listdir() == []
    (here / ".x.mlx-video.lock").touch()  # of a process that was killed
    (here / ".x.mp4.partial-0123.mp4").touch()
    (here / ".x.y.mp4.partial-0123.mp4").touch()  # of another name
    (here / ".z.mlx-video.lock").touch()
    (here / ".z.latents.safetensors.partial-01.safetensors").touch()
    *_, last = run(job(model), Output(Path("x.mp4")))
    assert last.path == "x.mp4"
    assert sorted(os.listdir()) == [".x.y.mp4.partial-0123.mp4", "x.json", "x.mp4"]


@pytest.mark.slow
def test_a_loser_keeps_its_work_and_says_where(model, here):
    events = run(job(model), Output(Path("x.mp4")))
    next(e for e in events if isinstance(e, Step) and e[:2] == ("decode video", 3))
    (here / "x.mp4").write_bytes(b"somebody's")
    with pytest.raises(UserError, match="own result is in x-2.mp4"):
        list(events)
    assert (here / "x.mp4").read_bytes() == b"somebody's"
    assert len(read_clip(here / "x-2.mp4")[0]) == 9


@pytest.mark.parametrize("overwrite", [False, True])
def test_work_of_an_unfinished_run_is_never_replaced(overwrite, model, here):
    output = Output(Path("x.mp4"), overwrite=overwrite)
    for name in ("x.latents.safetensors", "x.state.safetensors"):
        (here / name).write_bytes(b"hours of work")
        with pytest.raises(UserError, match=f"{name} was left by a run"):
            list(run(job(model), output))
        assert (here / name).read_bytes() == b"hours of work"
        (here / name).unlink()


def test_a_dangling_link_is_not_replaced_unasked(model, here):
    (here / "x.mp4").symlink_to("nowhere")
    with pytest.raises(UserError, match="x.mp4 exists"):
        list(run(job(model), Output(Path("x.mp4"))))
    assert (here / "x.mp4").is_symlink()


def test_four_bits_that_nobody_asked_for_are_said_and_recorded(
    model, here, monkeypatch
):
    def pressed(components, work, limit=None) -> Plan:
        kept = replace(components.residency, quantize=4)
        found = plan(components, work, limit)
        lent = components.under(kept)
        return replace(found, components=lent, chosen="weights in 4 bits")

    monkeypatch.setattr("mlx_video.plan.plan", pressed)
    events = run(job(model), Output(here / "a.mp4"))
    said = "This fits only with the weights in 4 bits; some quality is lost."
    assert next(events) == Warned(said)
    assert next(events).job.files.quantize == 4
    events.close()
    asked = replace(job(model), files=Files(str(model), quantize=4))
    monkeypatch.setattr("mlx_video.plan.plan", plan)
    assert isinstance(next(run(asked, Output(here / "a.mp4"))), Planned)


@pytest.mark.slow
def test_missing_folders_are_made_and_go_where_the_run_is_refused(model, here):
    path = here / "a" / "b" / "x.mp4"
    with pytest.raises(UserError, match="the limit is"):
        list(run(job(model), Output(path), Options(memory_limit=1e3)))
    assert not (here / "a").exists()
    *_, last = run(job(model), Output(path))
    assert last.path == str(path) and path.exists()


def test_a_picture_that_the_clip_is_made_from_is_not_replaced(model, here):
    folder = here / "frames"
    folder.mkdir()
    picture = folder / "frame_0000.png"
    from PIL import Image as Picture

    Picture.new("RGB", (128, 64), "red").save(picture)
    made_from = job(model, inputs=(Image(str(picture)),))
    output = Output(Path("x.mp4"), frames=folder, overwrite=True)
    with pytest.raises(
        UserError, match="frame_0000.png is an input of this clip and would be replaced"
    ):
        list(run(made_from, output))
    assert picture.exists()


# Room


def test_room_is_checked_before_sampling(model, here, monkeypatch):
    usage = shutil.disk_usage(here)._replace(free=1000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(
        "mlx_video.models.ltx.loading.components.materialize", pytest.fail
    )
    with pytest.raises(UserError, match="0.00 MB free.*Free some space"):
        list(run(job(model), Output(Path("x.mp4"))))
    assert os.listdir() == []


@pytest.mark.slow
def test_latents_that_cannot_be_saved_do_not_end_a_run(model, here, monkeypatch):
    def full(*_):
        raise RuntimeError("No space left")

    monkeypatch.setattr("mlx_video.weights.mx.save_safetensors", full)
    events = list(run(job(model), Output(Path("x.mp4"))))
    (warned,) = (event for event in events if isinstance(event, Warned))
    assert "x.latents.safetensors cannot be written: the disk is full" in warned.text
    assert sorted(os.listdir()) == ["x.json", "x.mp4"]


def test_the_room_of_latents_is_taken_before_sampling(model, here, monkeypatch):
    monkeypatch.setattr(
        "mlx_video.models.ltx.loading.components.materialize", pytest.fail
    )
    events = run(job(model), Output(Path("x.mp4")))
    next(event for event in events if isinstance(event, Step))
    (room,) = here.glob(".x.latents.*partial-*")
    assert room.stat().st_size > 2**20
    events.close()
    assert os.listdir() == []


@pytest.fixture
def small_world(model, tmp_path) -> Path:
    """The model with a text encoder that says how little it knows."""
    small = shutil.copytree(model, tmp_path / "small")
    known = {"name": "small", "draws": "a cat", "things": ["cat", "car"]}
    (small / "text_encoder" / "knows.json").write_text(json.dumps(known))
    return small


@pytest.mark.slow
def test_unknown_words_are_answered_before_anything_is_sampled(
    small_world, here, monkeypatch
):
    monkeypatch.setattr(
        "mlx_video.models.ltx.loading.components.materialize", pytest.fail
    )
    events = run(job(small_world, prompt="a cat and a zebu"), Output(Path("x.mp4")))
    assert isinstance(next(events), Planned)
    assert next(events) == Warned("small does not know: zebu. It draws a cat.")
    events.close()


def test_unknown_words_are_a_warning_in_python(small_world, here):
    wanted = job(small_world)
    pipeline = wanted.pipeline(wanted.plan())
    with pytest.warns(UserWarning, match="nothing in this prompt .*not know: zebu"):
        next(pipeline.stream(Request("zebu", SHAPE)))
    with warnings.catch_warnings(action="error"):
        next(pipeline.stream(Request("black cat", SHAPE)))


# Going on


def stopped(model: Path, recipe, after: Step, **changes) -> BaseException:
    """What ends a run that is stopped after a step."""
    options = Options(save_every=0)
    try:
        for event in run(job(model, recipe, **changes), Output(Path("x.mp4")), options):
            if isinstance(event, Step) and event[:2] == after[:2]:
                raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        return error


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe, after, audio",
    [
        MORE(guided(), Step("stage 1", 3, 4), True),  # without sound it is below
        MORE(recipes.distilled(), Step("stage 1", 5, 8), False),
        (recipes.distilled(), Step("stage 2", 2, 3), True),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bytes(recipe, after, audio, model, here):
    *_, whole = run(job(model, recipe, audio=audio), Output(Path("whole.mp4")))
    stopped(model, recipe, after, audio=audio)
    assert "x.state.safetensors" in os.listdir()
    state = Path("x.state.safetensors")
    again = Job.from_record(state)
    events = list(run(again, Output(Path("x.mp4")), Options(resume=state)))
    steps = [e for e in events if isinstance(e, Step) and e.phase == after.phase]
    assert steps[0].index == after.index - 1
    assert np.array_equal(pixels(here / "whole.mp4"), pixels(here / "x.mp4"))
    assert not state.exists() and not list(here.glob("*latents*"))


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(model, here):
    recipe = guided(6)
    *_, whole = run(job(model, recipe), Output(Path("whole.mp4")))
    code = (
        "from pathlib import Path\n"
        "from mlx_video.output import Output\n"
        "from mlx_video.record import Job\n"
        "from mlx_video.run import Options, run\n"
        "events = run(Job.from_record('whole.json'), Output(Path('x.mp4')), Options(save_every=0))\n"
        "for event in events:\n"
        "    print(event.__class__.__name__, flush=True)\n"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    for line in process.stdout:
        if line == b"Saved\n":
            break
    process.kill()
    process.wait()
    assert (here / ".x.mlx-video.lock").exists()
    state = here / "x.state.safetensors"
    *_, last = run(Job.from_record(state), Output(Path("x.mp4")), Options(resume=state))
    assert np.array_equal(pixels(here / "whole.mp4"), pixels(here / last.path))
    names = ["whole.json", "whole.mp4", "x.json", "x.mp4"]
    assert sorted(os.listdir()) == names


@pytest.mark.slow
def test_the_state_is_saved_as_a_run_is_stopped_and_noted(model, here, monkeypatch):
    def interrupted(strengths, step):
        if step == 3:
            raise KeyboardInterrupt
        return True

    monkeypatch.setattr(resume, "WORTH_SAVING", -1.0)
    monkeypatch.setattr("mlx_video.pipeline.may_start", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        list(run(job(model, guided()), Output(Path("x.mp4"))))
    assert caught.value.__notes__ == [
        "What was sampled is kept. Continue with `mlx-video generate --resume x.state.safetensors`."
    ]
    assert os.listdir() == ["x.state.safetensors"]


@pytest.fixture(scope="module")
def left(model, tmp_path_factory) -> Path:
    """A folder with the state of a run with sound and the latents of another."""
    folder = tmp_path_factory.mktemp("left")
    with contextlib.chdir(folder):
        events = run(job(model, audio=True), Output(Path("x.mp4")))
        next(e for e in events if isinstance(e, Saved))
        events.close()
        shutil.move("x.latents.safetensors", "kept")
        stopped(model, guided(), Step("stage 1", 3, 4), audio=True)
        shutil.move("kept", "x.latents.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            lambda tensors, words: words.update(step="9"),
            "is not the saved state of a run",
        ),
        (
            lambda tensors, words: words.update(stage="-1"),
            "is not the saved state of a run",
        ),
        (lambda tensors, words: words.pop("stage"), "is not the saved state of a run"),
        (
            lambda tensors, words: tensors.pop("audio"),
            "is not the saved state of a run",
        ),
        (
            lambda tensors, words: tensors.update(video=tensors["video"][:, :2]),
            "does not match its record",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, sentence, left, here):
    state = here / "x.state.safetensors"
    tensors, words = mx.load(str(left / state.name), return_metadata=True)
    change(tensors, words)
    mx.save_safetensors(str(state), tensors, words)
    with pytest.raises(UserError, match=sentence):
        list(run(Job.from_record(state), Output(Path("x.mp4")), Options(resume=state)))
    assert state.exists()


@pytest.mark.slow
def test_a_state_keeps_the_sound_of_a_stage_that_is_done(model, here):
    recipe = replace(recipes.distilled(), sound=0)
    stopped(model, recipe, Step("stage 2", 2, 3), audio=True)
    state = here / "x.state.safetensors"
    again = Job.from_record(state)
    assert resume.load_state(state, again).sound.shape == (1, 8, 9, 16)
    tensors, words = mx.load(str(state), return_metadata=True)
    mx.eval(tensors)
    del tensors["sound"]
    mx.save_safetensors(str(state), tensors, words)
    with pytest.raises(UserError, match="is not the saved state of a run"):
        resume.load_state(state, again)


# Finishing


@pytest.fixture
def latents(left, here) -> Path:
    """Those that a run with sound left."""
    return Path(shutil.copy(left / "x.latents.safetensors", here))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda t: t.update(video=t["video"][..., :-1]), "does not match its record"),
        (lambda t: t.pop("audio"), "does not match its record"),
        (lambda t: t.pop("video"), "holds no video latents"),
        (
            lambda t: t.update(audio=t["audio"].astype(mx.int32)),
            "holds mlx.core.int",
        ),
        (lambda t: t.update(video=t["video"] * 0), "There is nothing in the video"),
    ],
)
def test_latents_that_do_not_fit_are_refused_before_weights_are_read(
    change, sentence, latents, monkeypatch
):
    tensors, words = mx.load(str(latents), return_metadata=True)
    mx.eval(tensors)
    change(tensors)
    mx.save_safetensors(str(latents), tensors, words)
    monkeypatch.setattr(
        "mlx_video.models.ltx.loading.components.materialize", pytest.fail
    )
    with pytest.raises((UserError, RuntimeError), match=sentence):
        list(finish(Job.from_record(latents), latents, Output(Path("y.mp4"))))
    assert os.listdir() == ["x.latents.safetensors"]


@pytest.mark.slow
def test_latents_are_finished_with_sound_and_frames_too(latents, here):
    output = Output(Path("x.mp4"), Path("deep/x.wav"), Path("frames"))
    *_, last = finish(Job.from_record(latents), latents, output)
    assert last.path == "x.mp4" and not latents.exists()
    assert (here / "deep/x.wav").exists()
    assert len(list((here / "frames").glob("*.png"))) == 9


@pytest.mark.slow
def test_decoding_is_planned_and_refused_where_it_does_not_fit(latents, here):
    job, output = Job.from_record(latents), Output(Path("x.mp4"))
    with pytest.raises(
        UserError,
        match="in the phase 'decode sound'; the limit is 0.20 GB.*At this size: --memory-limit",
    ):
        list(finish(job, latents, output, Options(memory_limit=2e8)))
    assert os.listdir() == [latents.name]
    (planned,) = (e for e in finish(job, latents, output) if isinstance(e, Planned))
    assert [p.name for p in planned.plan.phases][1:] == ["decode sound", "decode video"]


@pytest.mark.slow
def test_latents_and_states_remember_the_files_of_their_run(model, here):
    output = Output(Path("x.mp4"), Path("sound.wav"), Path("frames"))
    events = run(job(model, audio=True), output, Options(save_every=0))
    for kind in ("state", "latents"):
        next(e for e in events if isinstance(e, Saved) and kind in e.path)
        left = Path(f"x.{kind}.safetensors")
        assert Output.recalled(left, resume.load_tensors(left)[1]) == output
    events.close()


@pytest.mark.parametrize("name", ["output", "audio", "frames"])
def test_a_path_that_cannot_be_is_refused_where_it_is_read(name):
    with pytest.raises(UserError, match="holds a zero byte"):
        Output.recalled(Path("x.latents.safetensors"), {name: "a\0b"})
    named = Output.recalled(Path("x.latents.safetensors"), {"output": "/"})
    assert named == Output(Path("x.mp4"))


@pytest.mark.slow
def test_a_lora_is_told(model, here):
    from tests.checkpoints import write_lora

    lora = write_lora(
        here / "lora.safetensors",
        "diffusion_model.transformer_blocks.0.attn1.to_q",
    )
    tuned = job(model)
    tuned = replace(tuned, files=replace(tuned.files, loras=((str(lora), 0.5),)))
    with contextlib.closing(run(tuned, Output(Path("x.mp4")))) as events:
        assert any(isinstance(e, str) and "at 0.5" in e for e in events)
