"""The work of a run that did not finish: when it is saved, what of it is read again, and what is removed."""

import mlx.core as mx
import pytest

from mlx_video import recipes, resume
from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.find import PACKAGED
from mlx_video.output import Output
from mlx_video.pipeline import Reached, Request
from mlx_video.record import Job
from mlx_video.resume import Keeper, load_state, save_work
from mlx_video.types import AV, Sample, VideoPixelShape

SHAPE = VideoPixelShape(9, 64, 64, 24.0)
LATENTS = AV(mx.zeros((1, 8, 4)))


@pytest.fixture
def job() -> Job:
    return Job(Request("a ball", SHAPE), recipes.distilled(), Files(str(PACKAGED)))


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The seconds that ``resume`` sees, as its only item."""
    now = [100.0]
    monkeypatch.setattr(resume.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("seconds, kept", [(9.0, False), (11.0, True)])
def test_a_run_that_is_stopped_saves_what_took_ten_seconds(
    seconds, kept, job, clock, tmp_path
):
    output = Output(tmp_path / "a.mp4")
    with pytest.raises(KeyboardInterrupt) as stopped:
        with Keeper(job, output, every=60.0, resumed=None) as keeper:
            clock[0] += seconds
            assert not list(keeper.reached(Reached(0, 3, LATENTS)))
            raise KeyboardInterrupt
    assert output.state.exists() == kept
    assert len(getattr(stopped.value, "__notes__", [])) == kept
    if kept:
        found = load_state(output.state, job)
        assert found[:2] == (0, 3) and mx.array_equal(
            found.latents.video, LATENTS.video
        )


def test_states_are_saved_at_intervals_and_removed_with_the_clip(job, clock, tmp_path):
    old = tmp_path / "old.state.safetensors"
    old.touch()
    output, saved = Output(tmp_path / "a.mp4"), []
    with Keeper(job, output, every=60.0, resumed=old) as keeper:
        for step, now in enumerate((150, 161, 200, 220, 222), 1):
            clock[0] = now
            saved += [e.step for e in keeper.reached(Reached(0, step, LATENTS))]
        assert saved == [2, 5] and output.state.exists()
        keeper.done()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage, step", [(0, 0), (0, 8), (-1, 1), (2, 1)])
def test_a_state_is_of_a_step_within_a_stage(stage, step, job, tmp_path):
    steps = [len(stage.sigmas) - 1 for stage in job.recipe.stages]
    assert steps[0] == 8 and len(steps) == 2
    path = save_work(Output(tmp_path / "a.mp4"), Reached(stage, step, LATENTS), job)
    with pytest.raises(UserError, match="is not the saved state of a run"):
        load_state(path, job)


def test_a_state_keeps_the_sound_of_an_earlier_stage(job, tmp_path):
    sound = mx.arange(6.0)
    state = Reached(1, 1, LATENTS, sound)
    path = save_work(Output(tmp_path / "a.mp4"), state, job)
    assert mx.array_equal(load_state(path, job).sound, sound)


def test_latents_are_saved_with_the_prompt_that_they_were_made_from(job, tmp_path):
    output = Output(tmp_path / "a.mp4")
    with Keeper(job, output, every=60.0, resumed=None) as keeper:
        assert [*keeper.sampled(Sample(LATENTS, prompt="a red ball"))]
        assert Job.from_record(output.latents).request.prompt == "a red ball"
