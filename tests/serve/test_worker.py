"""The process that makes the clips: what it says of each, line by line, and what it keeps and lets go."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlx_video import clip_limits, hub, previews
from mlx_video.clip_settings import ClipSettings
from mlx_video.disk import short
from mlx_video.errors import DiskFullError, UserError
from mlx_video.events import Planned, Warned
from mlx_video.health import HealthError
from mlx_video.inputs import Model
from mlx_video.media import save_still
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.loading.components import Components
from mlx_video.output import Output
from mlx_video.plan import Phase, Plan
from mlx_video.record import Job
from mlx_video.run import run
from mlx_video.serve import worker
from mlx_video.serve.schema import VideoRequest
from mlx_video.serve.worker import Settings, Worker
from mlx_video.types import Step
from tests.checkpoints import write_lora
from tests.fake_hub import official

UPLOAD = f"picture_{'0af1' * 8}"
DECIDED = {
    "prompt": "a red ball",
    "model": "tiny",
    "width": 128,
    "height": 128,
    "num_frames": 9,
    "fps": 24.0,
    "seed": 7,
    "generate_sound": False,
    "recipe": "distilled",
}


class Heard(Worker):
    """A worker in this process, and what it said."""

    def __init__(self, model: Path, **settings):
        models = {"tiny": str(model)}
        super().__init__(Settings(models, settings.pop("loras", {}), **settings), -1)
        self.lines: list[dict] = []

    def _say(self, event: str, **fields) -> None:
        self.lines.append(json.loads(json.dumps({"event": event, **fields})))

    def make(self, output: Path, **fields) -> dict:
        """The last line on a clip."""
        request = {**DECIDED, **fields}
        self._make({"id": "v", "request": request, "output": str(output)})
        return self.lines[-1]


def test_a_clip_is_told_from_its_plan_to_its_last_file(model, tmp_path, monkeypatch):
    monkeypatch.setattr(previews, "SHARE", float("inf"))
    heard, picture = Heard(model), tmp_path / "v.preview.jpg"

    def slow(pixels, path):
        assert threading.current_thread() is not threading.main_thread()
        time.sleep(0.05)  # longer than a step: the last picture is waited for
        save_still(pixels, path)

    def say(event, **fields):
        assert event != "preview" or picture.exists()
        Heard._say(heard, event, **fields)

    monkeypatch.setattr(worker, "save_still", slow)
    monkeypatch.setattr(heard, "_say", say)
    assert heard.make(tmp_path / "v.mp4") == {"event": "done", "id": "v"}
    assert sorted(os.listdir(tmp_path)) == ["v.json", "v.mp4", "v.sheet.webp", "v.webp"]
    progress = [line["progress"] for line in heard.lines if line["event"] == "progress"]
    assert progress == sorted(progress) and progress[-1] == 99
    shown = [line["number"] for line in heard.lines if line["event"] == "preview"]
    assert shown == sorted(shown) and len(set(shown)) == 9
    assert heard.lines[-1]["event"] == "done"
    assert Job.from_record(tmp_path / "v.mp4").request.seed == 7


def test_progress_counts_dfr_rounds_by_their_work(model):
    """A round's steps count its tiles, so their number says nothing beside a stage's."""
    work = {"encode prompt": 0, "stage 1": 8, "stage 2": 12, "round 1": 70, "decode video": 10}  # fmt: skip
    phases = tuple(Phase(name, 0, 0, operations) for name, operations in work.items())
    plan = Plan(phases, 1e9, None)
    steps = [
        Step("encode prompt", 1, 2),
        Planned(None, "x.mp4", plan),
        *(Step("stage 1", index, 8, 0.5) for index in range(9)),
        *(Step("stage 2", index, 3, 0.5) for index in range(4)),
        Step("upsample", 1, 1),
        *(Step("round 1", index, 16, 0.5) for index in range(17)),
        *(Step("decode video", index, 9) for index in range(10)),
    ]
    heard = Heard(model)
    list(heard._heard("v", steps))
    told = [(line["phase"], line["progress"]) for line in heard.lines]
    ends = dict(told)
    assert [ends[phase] for phase in ("encode prompt", "stage 1", "stage 2")] == [
        5,
        17,
        27,
    ]
    assert (
        ends["upsample"] == 27 and ends["round 1"] == 90 and ends["decode video"] == 99
    )
    assert [percent for _, percent in told] == sorted(percent for _, percent in told)


def test_no_previews_where_nobody_wants_them(model, tmp_path, monkeypatch):
    monkeypatch.setattr(previews, "SHARE", float("inf"))
    heard = Heard(model, previews=False)
    heard.make(tmp_path / "v.mp4")
    assert not [line for line in heard.lines if line["event"] == "preview"]


@pytest.mark.parametrize(
    "error, ends", [(DiskFullError("No room."), "done"), (OSError("a bug"), "failed")]
)
def test_a_full_disk_costs_pictures_and_a_bug_the_clip(
    model, tmp_path, monkeypatch, capsys, error, ends
):
    def fails(*_):
        raise error

    monkeypatch.setattr(previews, "SHARE", float("inf"))
    monkeypatch.setattr(worker, "save_still", fails)
    heard = Heard(model)
    assert heard.make(tmp_path / "v.mp4")["event"] == ends
    assert not [line for line in heard.lines if line["event"] == "preview"]
    assert ("in fails" in capsys.readouterr().err) == (ends == "failed")


def test_a_request_becomes_a_job(model, tmp_path):
    lora = write_lora(
        tmp_path / "a.safetensors", "diffusion_model.transformer_blocks.0.attn1.to_q"
    )
    settings = Heard(model, loras={"sepia": str(lora)}).settings
    fields = {
        "recipe": "dev",
        "steps": 5,
        "negative_prompt": "blur",
        "loras": {"sepia": 0.5},
    }
    images = [{"path": "/x.png", "frame": 8, "strength": 0.7}]
    job = settings.job(VideoRequest(**DECIDED | fields | {"images": images}))
    (image,) = job.request.inputs
    assert (image.path, image.frame, image.strength) == ("/x.png", 8, 0.7)
    assert job.request.negative_prompt == "blur" and not job.request.audio
    assert len(job.recipe.stages[0].sigmas) == 6
    assert job.files.loras == ((str(lora), 0.5),)


def test_what_the_distilled_model_does_not_use_is_said(model, tmp_path):
    heard = Heard(model)
    heard.make(tmp_path / "v.mp4", steps=5, negative_prompt="blur")
    said = [line["message"] for line in heard.lines if line["event"] == "notice"]
    assert said == [
        "The negative prompt is not used: this recipe samples without guidance.",
        "The number of steps is not used: the distilled model takes 8 and 3.",
    ]


BIG = hub.DownloadPlan("a/b", ("x",), {"x": hub.Missing(10**10, "0")})


def test_the_page_hears_what_is_downloaded_before_there_are_models(model, monkeypatch):
    heard, gone = Heard(model), []
    monkeypatch.setattr(worker, "select", lambda *_: (gone, [], []))
    with hub.Download("a/b", BIG.missing.values(), heard._opening) as download:
        heard._opening(BIG)
        download.add(5 * 10**9)
    first, half, last = (line["message"] for line in heard.lines)
    assert first == "Downloading a/b: 10.00 GB to download (x 10.00 GB)."
    assert half.startswith("Downloading a/b: 5.00 of 10.00 GB, ") and last == ""
    gone.append(0)  # the server, whose end of the pipe is closed
    with pytest.raises(KeyboardInterrupt):
        heard._opening(BIG)


def test_what_a_clip_has_downloaded_is_a_notice(model):
    heard = Heard(model)
    heard._fetching("v", BIG)
    heard._fetching("v", hub.Download("a/b", BIG.missing.values(), heard._opening))
    (line,) = heard.lines
    assert line["event"] == "notice" and "10.00 GB to download" in line["message"]


def test_an_estimate_downloads_nothing(remote):
    remote.repos |= official()
    settings = Settings({"ltx-2": "ltx-2"}, {})
    heard = Heard(Path("ltx-2"))
    heard.settings = settings
    found = heard._estimate({**DECIDED, "model": "ltx-2", "recipe": "dev"})
    assert found.peak_bytes > 10**9 and not remote.asked


def test_models_are_described_by_their_grid(model):
    found = Heard(model).settings.described("tiny")
    assert (found.width_step, found.height_step, found.frame_step) == (64, 64, 8)
    with pytest.raises(UserError):
        Settings({"none": str(model / "nothing")}, {}).described("none")


@pytest.mark.parametrize("recipe", worker.RECIPES)
@pytest.mark.parametrize("side", [32, 65, 96, 100, 160, 200])
def test_sizes_are_decided_as_in_the_terminal(recipe, side, model):
    """What it takes stays as it is, and what it refuses becomes what it names as nearest."""
    settings = Heard(model).settings
    asked = VideoRequest(prompt="a ball", width=side, height=side, num_frames=9, recipe=recipe, generate_sound=False)  # fmt: skip
    decided, _ = settings.described("tiny").snapped(asked)
    variant, two_stage = worker.RECIPES[recipe]
    settings = ClipSettings("a ball", variant, frames=9, width=side, height=side, audio=False, two_stage=two_stage)  # fmt: skip
    job = settings.job(Files(str(model)))
    try:
        job.request.check(job.recipe, Model(Components.open(model).geometry))
        nearest = f"{side}x{side}"
    except UserError as error:
        nearest = re.search(r"Nearest: (?:\d+ frames of )?(\d+x\d+)", str(error))[1]
    assert decided.size == nearest


@pytest.mark.parametrize("seconds", [0.1, 0.3, 1, 1.5, 2, 10])
@pytest.mark.parametrize("fps", [24, 30])
def test_lengths_are_decided_as_in_the_terminal(seconds, fps, model):
    asked = VideoRequest(prompt="a ball", seconds=seconds, fps=fps)
    decided, _ = Heard(model).settings.described("tiny").snapped(asked)
    job = ClipSettings("a ball", duration=seconds, fps=fps).job(Files(str(model)))
    assert decided.num_frames == job.request.shape.frames


@pytest.mark.parametrize("frames", [1, 2, 13, 97, 100, clip_limits.MOST_FRAMES - 1])
def test_frames_are_rounded_as_in_the_terminal_and_that_is_said(frames, model):
    asked, said = VideoRequest(prompt="a ball", num_frames=frames), []
    decided, notices = Heard(model).settings.described("tiny").snapped(asked)
    job = ClipSettings("a ball", frames=frames).job(Files(str(model)), warn=said.append)
    assert decided.num_frames == job.request.shape.frames
    assert notices == said and bool(said) == (decided.num_frames != frames)


@pytest.mark.parametrize(
    "most, more",
    [
        (
            {"num_frames": clip_limits.MOST_FRAMES},
            {"num_frames": clip_limits.MOST_FRAMES + 1},
        ),
        ({"fps": clip_limits.FASTEST}, {"fps": clip_limits.FASTEST + 1}),
        ({"width": clip_limits.LARGEST_SIDE}, {"width": clip_limits.LARGEST_SIDE + 1}),
        ({"size": "16384x16384"}, {"size": "16385x64"}),
        ({"seconds": 600, "fps": 240}, {"seconds": 601}),
        (
            {"recipe": "dev", "steps": clip_limits.MOST_STEPS},
            {"recipe": "dev", "steps": clip_limits.MOST_STEPS + 1},
        ),
    ],
)
def test_the_server_takes_what_the_terminal_does_and_no_more(most, more, model):
    settings = Heard(model).settings
    offered = settings.described("tiny")
    decided, _ = offered.snapped(VideoRequest(prompt="a ball", seed=1, **most))
    job = settings.job(decided)
    job.request.check(job.recipe, Model(Components.open(model).geometry))
    with pytest.raises(ValueError):  # also pydantic's
        offered.snapped(VideoRequest(prompt="a ball", **more))


@pytest.mark.parametrize(
    "error, code, said",
    [
        (UserError("The seed is off."), "bad_input", "The seed is off."),
        (DiskFullError("No room."), "disk_full", "No room."),
        (HealthError("All frames are black."), "bad_output", "All frames are black."),
        (MemoryError("no more"), "out_of_memory", "Memory ran out: no more"),
        (KeyboardInterrupt(), "stopped", "It was stopped."),
        (ZeroDivisionError("x"), "fault", "This is a fault of mlx-video"),
    ],
)
def test_whatever_ends_a_clip_is_said(error, code, said, model, tmp_path, monkeypatch):
    def fails(*_):
        raise error
        yield

    monkeypatch.setattr(worker, "run", fails)
    line = Heard(model).make(tmp_path / "v.mp4")
    assert (line["event"], line["code"]) == ("failed", code)
    assert line["message"].startswith(said)


def test_what_a_run_warns_of_is_said(model, tmp_path, monkeypatch):
    text = "It does not know: dragon."
    monkeypatch.setattr(worker, "run", lambda *_: (Warned(text) for _ in range(1)))
    heard = Heard(model)
    heard.make(tmp_path / "v.mp4")
    assert heard.lines[0] == {"event": "notice", "id": "v", "message": text}


def test_a_full_disk_fails_the_clip_and_not_the_worker(model, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**7)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    heard = Heard(model)
    line = heard.make(tmp_path / "v.mp4")
    assert line["code"] == "disk_full"
    assert line["message"] == (
        f"{short(tmp_path)} has 0.01 GB free, and this run may write 0.02 GB there. Free some space, or choose another folder."
    )
    monkeypatch.undo()
    assert heard.make(tmp_path / "v.mp4")["event"] == "done"


@pytest.mark.parametrize(
    "text, said",
    [
        ("It is 9 s. Name it with --lora. Or wait.", "It is 9 s. Or wait."),
        ("All 9 are black. Try `mlx-video info`.", "All 9 are black."),
        (f"/a/{UPLOAD} is 9x9. Use {UPLOAD}.", "The picture is 9x9. Use the picture."),
        ("Choose another --seed.", "Choose another --seed."),
        ("A well-known ball.", "A well-known ball."),
    ],
)
def test_a_client_is_told_of_no_option_and_no_command(text, said):
    assert worker.for_client(text) == said


def test_the_terminal_says_what_a_client_cannot_do(
    model, tmp_path, monkeypatch, caplog
):
    text = "All 9 are black. Try --tiling aggressive."
    monkeypatch.setattr(
        worker, "run", lambda *_: (_ for _ in ()).throw(HealthError(text))
    )
    line = Heard(model).make(tmp_path / "v.mp4")
    assert line["message"] == f"All 9 are black. {worker.MORE}"
    assert caplog.messages == [text]


@pytest.mark.parametrize("left", ("state", "latents"))
def test_an_interrupted_clip_goes_on_from_what_it_left(left, model, tmp_path):
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    heard = Heard(model)
    heard.make(whole)
    from mlx_video.run import Options

    job = heard.settings.job(VideoRequest(**DECIDED))
    events = run(job, Output(cut), Options(save_every=0))
    stop = Step("stage 1", 4, 8) if left == "state" else Step("decode video", 1, 9)
    next(e for e in events if isinstance(e, Step) and e[:2] == stop[:2])
    events.close()
    assert (tmp_path / f"cut.{left}.safetensors").exists()
    heard.lines.clear()
    assert (
        heard.make(cut, seed=8)["event"] == "done"
    )  # what is left counts, not the row
    assert cut.read_bytes() == whole.read_bytes()
    phases = {line["phase"] for line in heard.lines if line["event"] == "progress"}
    assert ("stage 1" in phases) == (left == "state")


def test_an_estimate_says_what_fits(model):
    heard = Heard(model, memory_limit=3e8)
    refusal = heard._estimate({**DECIDED, "width": 2048, "height": 2048}).refusal
    assert "2048x2048 need" in refusal and "What fits: 9 frames" in refusal
    assert "--" not in refusal
    assert Heard(model)._estimate(DECIDED).refusal == ""


def test_a_rate_that_the_model_did_not_learn_is_a_notice(model, tmp_path):
    heard = Heard(model)
    heard.make(tmp_path / "v.mp4", fps=60.0)
    said = [line["message"] for line in heard.lines if line["event"] == "notice"]
    assert any("60 fps is far from" in text for text in said)


def test_what_is_kept_is_freed_when_nothing_comes(model, tmp_path):
    heard = Heard(model, idle=0.1)
    heard.make(tmp_path / "v.mp4")
    assert {"transformer", "text_encoder"} <= heard.shelf.names
    waiting = threading.Thread(target=heard._next, daemon=True)
    waiting.start()
    end = time.monotonic() + 20
    while heard.shelf.names and time.monotonic() < end:
        time.sleep(0.05)
    assert not heard.shelf.names
    heard._jobs.put(None)
    waiting.join(20)


def test_nothing_is_kept_where_that_is_not_wanted(model, tmp_path):
    heard = Heard(model, keep=False)
    heard.make(tmp_path / "v.mp4")
    assert not heard.shelf.names


def test_a_worker_ends_with_its_server_and_the_next_one_waits_for_it(model, tmp_path):
    settings = {
        "models": {"tiny": str(model)},
        "loras": {},
        "lock": str(tmp_path / "lock"),
    }
    command = [sys.executable, "-m", "mlx_video.serve.worker", json.dumps(settings)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # As nohup and a script's & have it; the worker hears them all the same.
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    first = subprocess.Popen(command, **pipes, start_new_session=True)
    assert json.loads(first.stdout.readline())["event"] == "ready"
    second = subprocess.Popen(command, **pipes, start_new_session=True)
    request = {**DECIDED, "num_frames": 801}
    message = {
        "do": "make",
        "id": "v",
        "request": request,
        "output": str(tmp_path / "v.mp4"),
    }
    first.stdin.write(json.dumps(message) + "\n")
    first.stdin.flush()
    assert json.loads(first.stdout.readline())["event"] == "progress"
    assert second.poll() is None and first.poll() is None
    first.stdin.close()
    *_, last = first.stdout
    assert json.loads(last)["code"] == "stopped"
    assert first.wait(60) == 0
    assert json.loads(second.stdout.readline())["event"] == "ready"
    second.stdin.close()
    assert second.wait(60) == 0
