"""What users import from the doors, as they call it."""

from pathlib import Path

import mlx.core as mx
import pytest

import mlx_video.generate
import mlx_video.generate_av
import mlx_video.generate_dev
from mlx_video import recipes
from mlx_video.clip_settings import ClipSettings
from mlx_video.errors import UserError
from mlx_video.inputs import Image
from mlx_video.models.ltx.checkpoint import find
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.output import Output

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


FUNCTIONS = [
    mlx_video.generate.generate_video,
    mlx_video.generate_dev.generate_video_dev,
    mlx_video.generate_av.generate_video_with_audio,
]


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Calls a function with arguments, and returns the job, output and quietness that it would have run with."""
    calls = []
    monkeypatch.setattr(find, "PACKAGED", tmp_path / "nowhere")

    def make(job, output, quiet):
        calls.append((job, output, quiet))
        return output.path

    monkeypatch.setattr(mlx_video.generate, "make", make)

    def call(function, *args, **kwargs):
        assert isinstance(function(*args, **kwargs), Path)
        return calls.pop()

    return call


@pytest.mark.parametrize("function", FUNCTIONS)
def test_arguments_reach_the_job(made, function):
    image, files = Image("a.png", 8, 0.5), Files("Lightricks/LTX-2")
    job, output, quiet = made(
        function,
        "a fox",
        "fox.mp4",
        negative_prompt="rain",
        enhance_prompt=True,
        height=128,
        width=192,
        num_frames=17,
        fps=30.0,
        seed=3,
        images=[image],
        output_audio="fox.wav",
        tiling="none",
        files=files,
        overwrite=True,
        quiet=False,
    )
    request = job.request
    assert (request.prompt, request.negative_prompt) == ("a fox", "rain")
    assert request.shape == (17, 128, 192, 30.0)
    assert request.enhance and request.inputs == (image,)
    assert (request.seed, request.tiling, job.files) == (3, "none", files)
    assert output == Output(Path("fox.mp4"), Path("fox.wav"), overwrite=True)
    assert quiet is False


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_prompt_is_enough(made, function):
    job, output, quiet = made(function, "a fox")
    assert job.request.negative_prompt == recipes.DEFAULT_NEGATIVE_PROMPT
    assert not job.request.enhance
    assert job.request.audio is (function is FUNCTIONS[2])
    assert output == Output(Path("output.mp4")) and quiet is True


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"hq": True, "cfg": 0.0}, "leave out cfg, hq, or use the dev model"),
        ({"variant": "dev", "dfr": 1}, "--dfr is for the distilled model"),
        ({"duration": 2.0}, "both say how long the clip is"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        FUNCTIONS[0]("a fox", num_frames=9, settings=ClipSettings("", **settings))


@pytest.mark.parametrize("given, cfg", [(None, 3.0), (2.0, 2.0), (1.0, 1.0)])
def test_cfg_scale_replaces_the_default_only_if_given(made, given, cfg):
    job, _, _ = made(FUNCTIONS[1], "a fox", cfg_scale=given)
    guidance = job.recipe.stages[0].guidance
    assert (guidance.video.cfg, guidance.audio.cfg) == (cfg, 7.0)


def test_help_shows_the_defaults_of_this_door(capsys):
    with pytest.raises(SystemExit):
        mlx_video.generate_dev.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "many steps (default: dev)" in shown and "default: distilled" not in shown
