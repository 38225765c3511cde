"""Pictures of a clip while it is sampled: what they show, what they cost, and that they change nothing else."""

import math
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_video import backend, cli, media, plan, previews, recipes
from mlx_video.conditioning.latent import LatentState
from mlx_video.errors import UserError
from mlx_video.events import Warned
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.loading import components
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.patchify import patchify_video
from mlx_video.models.ltx.video_vae import VideoDecoder
from mlx_video.output import Output
from mlx_video.pipeline import Pipeline, Request
from mlx_video.postprocess import to_uint8
from mlx_video.previews import Preview, Previews
from mlx_video.record import Job
from mlx_video.run import Options, run
from mlx_video.types import AV, Step, VideoLatentShape, VideoPixelShape
from tests.memory import Memory

SHAPE = VideoPixelShape(9, 128, 128, 24.0)
GRID = VideoLatentShape(1, 128, 3, 2, 4)


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(previews, "SHARE", math.inf)


def events(model: Path, path: Path, shape=SHAPE, **options) -> list:
    job = Job(Request("a red ball", shape), recipes.distilled(), Files(str(model)))
    return list(run(job, Output(path), Options(**options)))


@pytest.mark.slow
def test_a_clip_is_shown_and_stays_the_same_to_the_byte(model, tmp_path, always):
    shown = events(model, tmp_path / "a.mp4", previews=True)
    plain = events(model, tmp_path / "b.mp4")
    made = [event for event in shown if isinstance(event, Preview)]
    # After all steps but the last of a stage.
    assert [(e.stage, e.step) for e in made] == [(1, n) for n in range(1, 8)] + [
        (2, 1),
        (2, 2),
    ]
    sizes = [event.picture.shape for event in made]
    assert sizes == [(64, 64, 3)] * 7 + [(128, 128, 3)] * 2
    assert not any(isinstance(event, Preview) for event in plain)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.slow
def test_a_stage_too_small_for_the_decoder_is_not_shown(model, tmp_path, always):
    made = events(model, tmp_path / "a.mp4", SHAPE._replace(height=64), previews=True)
    assert {event.stage for event in made if isinstance(event, Preview)} == {2}


class Clock:
    """Time that passes where a test says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(previews, "time", clock)
    return clock


def opened(model: Path) -> tuple[Previews, Components]:
    """Previews of a stage."""
    components = Components.open(Files(model, dtype="float32"))
    with components.transformer() as predict:
        found = Previews(components, predict.model)
    found.begin(0, GRID)
    return found, components


def predict(found: Previews, latents: mx.array, step: int = 0) -> None:
    """Have ``latents`` predicted in a ``step`` of 400, counted from 0."""
    tokens = patchify_video(latents)
    ones = mx.ones((*tokens.shape[:2], 1))
    state = LatentState(0 * tokens, tokens, ones, mx.zeros((1, 3, 24, 2)))
    found.watching(lambda *_: AV(tokens), 400)(AV(state), 1.0, step)


@pytest.fixture
def lazy(monkeypatch):
    """A CPU that, like a GPU, computes nothing while a network is built."""
    mx.disable_compile()
    monkeypatch.setattr(components, "suit_cpu", lambda largest: None)
    monkeypatch.setattr(backend, "eager", False)


@pytest.fixture
def told(monkeypatch) -> list:
    """What happens, in order; the decoder tells when a picture is built."""
    told, decode = [], VideoDecoder.__call__

    def noted(decoder: VideoDecoder, latent: mx.array) -> mx.array:
        told.append("built")
        return decode(decoder, latent)

    monkeypatch.setattr(VideoDecoder, "__call__", noted)
    return told


def test_a_picture_is_queued_behind_its_step_before_that_is_waited_for(
    model, always, lazy, told, monkeypatch
):
    def noted(array: mx.array | list[mx.array]) -> None:
        told.append("queued" if isinstance(array, mx.array) else "stepped")
        later(array)

    later = mx.async_eval
    monkeypatch.setattr(mx, "async_eval", noted)
    parts = Components.open(Files(model, dtype="float32"))
    pipeline = Pipeline(parts, recipes.distilled(), previews=True)
    for event in pipeline.events(Request("a red ball", SHAPE)):
        if isinstance(event, Preview):
            told.append("shown")
        elif isinstance(event, Step) and event.sigma is not None:
            told.append(event.index)

    def ahead(*steps: int) -> list:
        return [x for n in steps for x in ("stepped", "built", "queued", n, "shown")]

    # The decoder comes after the first step, and the last step has no picture.
    first = [0, "stepped", 1, "built", "shown", *ahead(*range(2, 8)), "stepped", 8]
    assert told == [*first, 0, *ahead(1, 2), "stepped", 3]


def test_a_picture_is_queued_only_if_it_is_time_already(
    model, clock, lazy, told, monkeypatch
):
    monkeypatch.setattr(previews, "SHARE", 0.1)
    monkeypatch.setattr(Previews, "_cost", lambda *_: 1.0)
    found, _ = opened(model)
    with found:
        for step, (queued, whole) in enumerate([(9, 10), (10, 11), (8, 10), (6, 8)]):
            memory, latents = Memory(), mx.random.normal(GRID)
            mx.eval(latents)
            predict(found, latents, step)
            del latents
            clock.now += queued
            found.queue()
            clock.now += whole - queued
            told.append(step)
            for _ in found.after(step + 1):
                clock.now += 1
                told.append("shown")
        # The first waits for the decoder, the third for the end of its step; the fourth is not due.
        assert told[:6] == [0, "built", "shown", "built", 1, "shown"]
        assert told[6:] == [2, "built", "shown", 3]
        assert memory.held <= 0


def test_the_picture_is_the_middle_of_the_estimate_through_the_real_decoder(
    model, always
):
    latents = mx.random.normal(GRID, key=mx.random.key(3))
    found, components = opened(model)
    predict(found, latents)
    with found:
        (preview,) = found.after(5)
        assert components.resident == ["video_decoder"]
    assert not components.resident
    with components.lend("video_decoder") as decoder:
        (expected,) = to_uint8(decoder(latents[:, :, 1:2])[0])
    assert (preview.stage, preview.step) == (1, 5)
    assert np.array_equal(preview.picture, np.array(expected))


@pytest.mark.slow
def test_pictures_take_no_more_than_their_share_of_sampling(model, clock):
    found, components = opened(model)
    decoder = components.sketch("video_decoder")
    frame = decoder.operations(GRID._replace(frames=1))
    ratio = frame / found.model.operations(AV(GRID.tokens), context=0)
    shown = []
    with found:
        for sampled in range(1, 301):
            predict(found, mx.zeros(GRID))
            clock.now += 1
            for _ in found.after(sampled):
                clock.now += 0.4
                shown.append(sampled)
            if len(shown) > 1:  # what they take is known from here on
                assert 0.4 * len(shown) <= 0.03 * sampled
    # The first is foreseen by the operations of a step, and no less than LEAST; all that time allows are made.
    assert shown[0] == math.ceil(max(ratio, previews.LEAST) / 0.03)
    assert len(shown) == 300 * 0.03 // 0.4


def test_a_short_step_does_not_make_a_picture_cheap(model, clock):
    found, _ = opened(model)
    with found:
        for step in range(1, 200):
            predict(found, mx.zeros(GRID))
            clock.now += 0.005
            if [*found.after(step)]:
                break
    assert step == math.ceil(previews.LEAST / (0.03 * 0.005))


def test_loading_the_decoder_is_no_cost_of_a_picture(model, clock, monkeypatch):
    found, parts = opened(model)
    lend = parts.lend

    def slowly(name: str):
        clock.now += 100
        return lend(name)

    monkeypatch.setattr(parts, "lend", slowly)
    shown = []
    with found:
        for step in range(1, 60):
            predict(found, mx.zeros(GRID))
            clock.now += 1
            shown += [step for _ in found.after(step)]
    assert len(shown) > 1


@pytest.mark.slow
def test_where_memory_is_short_the_clip_is_made_without(
    model, tmp_path, always, monkeypatch
):
    def none(work, residency):
        yield work._replace(previews=False), residency

    monkeypatch.setattr(plan, "_with_extras", none)
    made = events(model, tmp_path / "b.mp4", previews=True)
    assert not any(isinstance(event, Preview) for event in made)
    (warned,) = (event for event in made if isinstance(event, Warned))
    assert "no memory for previews" in warned.text


def seen_in(folder: Path, model: Path) -> int:
    """The exit code of a run at the terminal that writes its pictures to ``folder``."""
    size = ["-W", "128", "-H", "128", "-n", "9", "--no-audio", "--model", str(model)]
    where = ["-o", str(folder.parent / "x.mp4"), "--preview", str(folder)]
    return cli.main(["generate", "-p", "a red ball", *size, *where])


@pytest.mark.slow
def test_the_terminal_writes_them_as_jpeg_and_waits_for_them(
    model, tmp_path, always, monkeypatch
):
    save = media.save_still

    def slow(pixels, path):
        time.sleep(0.3)
        save(pixels, path)

    monkeypatch.setattr(media, "save_still", slow)
    folder = tmp_path / "seen"
    assert seen_in(folder, model) == 0
    names = sorted(file.name for file in folder.iterdir())
    assert names[0] == "x.stage-1-step-01.jpg" and names[-1] == "x.stage-2-step-02.jpg"
    assert len(names) == 9
    with Image.open(folder / names[-1]) as picture:
        assert (picture.format, picture.size) == ("JPEG", (128, 128))


@pytest.mark.slow
@pytest.mark.parametrize("error, code", [(UserError("No room."), 0), (OSError(), 1)])
def test_a_picture_that_cannot_be_written_is_a_warning_and_a_bug_a_fault(
    model, tmp_path, always, monkeypatch, capsys, error, code
):
    def fails(*_):
        raise error

    monkeypatch.setattr(media, "save_still", fails)
    assert seen_in(tmp_path / "seen", model) == code
    said = capsys.readouterr().err
    assert said.count("warning: No room.") == (0 if code else 9)
    assert ("in fails" in said) == bool(code)
    assert (tmp_path / "x.mp4").exists() != bool(code)


def test_a_folder_that_cannot_be_made_is_refused(model, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = [
        "generate",
        "-p",
        "a",
        "--model",
        str(model),
        "--preview",
        str(tmp_path / "file"),
    ]
    assert cli.main(words) == 2
    assert "cannot be made" in capsys.readouterr().err
