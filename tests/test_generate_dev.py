"""What users import from the doors, as they call it."""

import mlx.core as mx
import pytest

import mlx_video.generate
import mlx_video.generate_av
import mlx_video.generate_dev
from mlx_video import cli

DOORS = [mlx_video.generate, mlx_video.generate_dev, mlx_video.generate_av]


class TestLTX2Scheduler:
    @pytest.mark.parametrize("steps", [1, 5, 20, 40])
    def test_scheduler_output_shape(self, steps):
        sigmas = mlx_video.generate_dev.ltx2_scheduler(steps=steps)
        assert sigmas.shape == (steps + 1,) and sigmas.dtype == mx.float32

    def test_scheduler_descends_from_one_to_zero(self):
        sigmas = mlx_video.generate_dev.ltx2_scheduler(steps=20).tolist()
        assert sigmas == sorted(sigmas, reverse=True)
        assert sigmas[0] == pytest.approx(1.0) and sigmas[-1] == 0.0


@pytest.mark.parametrize("door", DOORS)
def test_every_door_offers_the_names_that_users_know(door):
    assert door.AUDIO_SAMPLE_RATE == 24000
    assert door.AUDIO_LATENT_SAMPLE_RATE == 16000
    assert door.AUDIO_HOP_LENGTH == 160
    assert door.AUDIO_LATENT_CHANNELS == 8
    assert door.AUDIO_MEL_BINS == 16
    assert door.AUDIO_LATENTS_PER_SECOND == 25
    assert len(door.STAGE_1_SIGMAS) == 9 and len(door.STAGE_2_SIGMAS) == 4
    assert door.create_position_grid(2, 3, 4, 5).shape == (2, 3, 60, 2)
    assert door.create_audio_position_grid(2, 7).shape == (2, 1, 7, 2)
    assert door.compute_audio_frames(121, 24.0) == 126
    assert door.cfg_delta(mx.array(3.0), mx.array(1.0), 4.0).item() == 6.0
    assert "blurry" in door.DEFAULT_NEGATIVE_PROMPT


def test_each_door_has_its_function():
    assert callable(mlx_video.generate.generate_video)
    assert callable(mlx_video.generate_dev.generate_video_dev)
    assert callable(mlx_video.generate_av.generate_video_with_audio)


def test_a_function_asks_for_what_it_was_given(monkeypatch):
    jobs = []
    monkeypatch.setattr(cli, "make", lambda job, output: jobs.append(job))
    mlx_video.generate_dev.generate_video_dev("a cat", negative_prompt="dogs", seed=7)
    (job,) = jobs
    request = job.request
    assert (request.prompt, request.negative_prompt, request.seed) == (
        "a cat",
        "dogs",
        7,
    )
