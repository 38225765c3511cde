"""What a user types, from the tiny checkpoint to files on disk: every door, every command, every mistake."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import av
import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

import mlx_video
from mlx_video import (
    cli,
    convert,
    generate,
    generate_av,
    generate_dev,
    health,
    media,
)
from mlx_video.cli import commands
from mlx_video.inputs import Image as Picture
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.residency import BlockStream
from mlx_video.pictures import read_picture
from mlx_video.pipeline import Request
from mlx_video.record import Job
from mlx_video.types import VideoPixelShape
from tests.checkpoints import MODEL, completed, rewrite, tiny_folder
from tests.media_reading import read_clip
from tests.reference import UPSCALER, error
from tests.tiny_tokenizer import write_tokenizer

SIZE = ["-W", "128", "-H", "64", "-n", "9", "-s", "10"]
PROMPT = ["--prompt", "a red ball on a blue floor"]


@pytest.fixture
def picture(here) -> Path:
    """Blue above red, larger than the clip."""
    pixels = np.zeros((160, 320, 3), np.uint8)
    pixels[:80, :, 2] = pixels[80:, :, 0] = 200
    Image.fromarray(pixels).save(here / "picture.png")
    return here / "picture.png"


def typed(door, model: Path, *words, prompt=PROMPT, size=SIZE) -> int:
    named = [*prompt, *size, "-o", "output.mp4", "--model", str(model)]
    return door([*named, *map(str, words)])


@pytest.fixture(scope="module")
def made(model, tmp_path_factory) -> Path:
    """The folder of a clip with sound, which others are compared with."""
    folder = tmp_path_factory.mktemp("made")
    with contextlib.chdir(folder):
        assert typed(generate_av.main, model, "--output-audio", "output.wav") == 0
    return folder


@pytest.fixture(scope="module")
def eloquent(model, tmp_path_factory) -> Path:
    """The model with a text encoder that may read as many tokens as enhancing takes."""
    folder = tiny_folder(tmp_path_factory.mktemp("eloquent") / "tiny")
    write_tokenizer(folder / "text_encoder")
    return folder


def mlx_video_generate(words) -> int:
    return cli.main(["generate", *words])


DEV = ["--steps", "2", "--stg-blocks", "1"]
THOROUGH = pytest.mark.thorough  # for what others here show one by one


# Doors


@pytest.mark.slow
@pytest.mark.parametrize(
    "door, words, sound",
    [
        (generate.main, [], False),
        pytest.param(
            generate_av.main,  # as ``made`` is
            ["--output-audio", "output.wav"],
            True,
            marks=THOROUGH,
        ),
        pytest.param(generate_dev.main, DEV, False, marks=THOROUGH),
        pytest.param(
            generate_dev.main,
            [*DEV, "--audio", "--batch-guidance"],
            True,
            marks=THOROUGH,
        ),
        pytest.param(generate.main, ["--quantize", "8"], False, marks=THOROUGH),
        (generate_dev.main, [*DEV, "--audio", "--low-memory", "--quantize", "8"], True),
        (mlx_video_generate, [], True),
        pytest.param(mlx_video_generate, ["--no-audio"], False, marks=THOROUGH),
        pytest.param(
            mlx_video_generate,
            ["--variant", "dev", *DEV, "--cfg-scale", "4.0"],
            True,
            marks=THOROUGH,
        ),
    ],
)
def test_a_door_writes_a_clip_that_plays(door, words, sound, model, here, capsys):
    assert typed(door, model, *words) == 0
    captured = capsys.readouterr()
    assert captured.out == "output.mp4\n"
    for phase in ("encode prompt", "stage 1", "decode", "total"):
        assert phase in captured.err
    frames, fps, audio, metadata = read_clip(here / "output.mp4")
    assert (len(frames), frames[0].shape, fps) == (9, (64, 128, 3), 24.0)
    assert (audio is not None) == sound
    if sound:
        assert audio.sample_rate == 24000 and audio.samples.shape[0] == 2
        assert abs(audio.samples.shape[1] / audio.sample_rate - 9 / 24) < 0.05
    assert json.loads(metadata["mlx_video"]) == json.loads(
        (here / "output.json").read_text()
    )
    assert (here / "output.wav").exists() == ("output.wav" in words)
    assert not list(here.glob("*latents*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "suffix", [*(pytest.param(s, marks=THOROUGH) for s in (".MOV", ".webm")), ".gif"]
)
def test_the_ending_of_the_name_says_what_is_written(suffix, model, here, capsys):
    words = ["-o", f"a{suffix}", "--output-audio", "a.wav"]
    assert typed(generate_av.main, model, *words) == 0
    said = capsys.readouterr().err
    assert ("will be silent" in said) == (suffix == ".gif")
    found = read_clip(here / f"a{suffix}")
    assert len(found.frames) == 9 and (found.audio is None) == (suffix == ".gif")


@pytest.mark.slow
def test_sound_lasts_as_long_as_the_picture_everywhere(made):
    with wave.open(str(made / "output.wav")) as wav:
        assert wav.getnframes() == 24000 * 9 // 24
        samples = np.frombuffer(wav.readframes(9000), np.int16).reshape(-1, 2)
    assert not samples[0].any() and not samples[-1].any()
    with av.open(str(made / "output.mp4")) as mp4:
        video, sound = mp4.streams
        assert video.duration * video.time_base == sound.duration * sound.time_base


@pytest.mark.slow
def test_the_shell_command_runs(model, here):
    command = [sys.executable, "-m", "mlx_video.generate", *PROMPT, *SIZE]
    done = subprocess.run(
        [*command, "--model", str(model), "--quiet", "-o", "output.mp4"],
        capture_output=True,
        text=True,
        cwd=here,
        env={"PYTHONPATH": str(Path(mlx_video.__file__).parent.parent)},
    )
    assert (done.returncode, done.stdout) == (0, "output.mp4\n"), done.stderr
    assert "stage" not in done.stderr


@pytest.mark.slow
def test_another_seed_gives_another_clip(model, made, here):
    """Tests of records, conversion and decoding below show that the same seed gives the same."""
    assert typed(generate_av.main, model, "-s", 2) == 0
    a, b = (np.stack(read_clip(folder / "output.mp4")[0]) for folder in (made, here))
    assert np.abs(a.astype(int) - b).mean() > 1


def test_an_image_is_kept(model, picture):
    """Its latent reaches the decoder untouched, and nothing else of the clip is fixed by it."""
    shape = VideoPixelShape(9, 64, 128, 24.0)
    images = (Picture(str(picture)),)
    pipeline = mlx_video.load(str(model))
    *_, sample, clip = pipeline.stream(Request("a ball", shape, inputs=images))
    components = Components.open(pipeline.files, needs=["video_encoder"])
    with components.lend("video_encoder") as encoder:
        image = encoder(read_picture(picture).fitted(64, 128, 33))
        assert error(sample.latents.video[:, :, :1], image) < 1e-5
        assert error(sample.latents.video[:, :, 1:], image) > 0.1


@THOROUGH
def test_an_image_in_the_middle_changes_the_clip(model, made, here, picture):
    words = ["--image", picture, "8", "0.9"]
    assert typed(generate_av.main, model, *words) == 0
    a, b = (np.stack(read_clip(folder / "output.mp4")[0]) for folder in (made, here))
    assert not np.array_equal(a, b)


def lora_file(path: Path) -> Path:
    """Rank 1, for one layer."""
    layer = "diffusion_model.transformer_blocks.0.attn1.to_q"
    factors = {
        f"{layer}.lora_{factor}.weight": mx.ones(shape) * 0.3
        for factor, shape in (("A", (1, 64)), ("B", (64, 1)))
    }
    mx.save_safetensors(str(path), factors)
    return path


@pytest.mark.slow
def test_a_lora_changes_the_clip_and_says_what_it_matched(model, made, here, capsys):
    words = ["--lora", lora_file(here / "style.safetensors"), "0.5"]
    assert typed(generate_av.main, model, *words) == 0
    assert re.search(
        r"style.safetensors at 0.5 changes 1 layer of the transformer",
        capsys.readouterr().err,
    )
    a, b = (np.stack(read_clip(folder / "output.mp4")[0]) for folder in (made, here))
    assert not np.array_equal(a, b)


@pytest.mark.slow
def test_the_dev_model_is_refined_with_the_distilled_lora(model, here, capsys):
    transformer = Components.open(model, variant="dev").sketch("transformer")
    lora = completed(lora_file(here / "distilled.safetensors"), transformer)
    words = [*DEV, "--two-stage", "--distilled-lora", lora]
    assert typed(generate_dev.main, model, *words) == 0
    told = capsys.readouterr().err
    assert "distilled.safetensors at 1 changes " in told and "stage 2" in told


@pytest.mark.slow
def test_frames_are_saved_too(model, here):
    assert typed(generate.main, model, "--save-frames", "frames") == 0
    assert len(list((here / "frames").glob("*.png"))) == 9


@pytest.mark.slow
@pytest.mark.parametrize(
    "record", [pytest.param("output.json", marks=THOROUGH), "output.mp4"]
)
def test_a_record_makes_the_clip_again(record, made, here):
    words = ["--from-record", str(made / record), "-o", "again.mp4", "--yes"]
    assert cli.main(["generate", *words]) == 0
    a, b = (read_clip(file) for file in (made / "output.mp4", here / "again.mp4"))
    assert np.array_equal(np.stack(a[0]), np.stack(b[0]))
    assert np.allclose(np.array(a[2].samples), np.array(b[2].samples))


@pytest.mark.slow
def test_a_record_finds_its_model_elsewhere_and_refuses_to_make_another_clip(
    model, here, capsys
):
    shutil.copytree(model, here / "old")
    assert typed(generate.main, Path("old"), "--seed", "7") == 0
    shutil.move(here / "old", here / "new")
    again = ["generate", "--from-record", "output.mp4", "-o", "again.mp4", "--yes"]
    assert cli.main(again) == 2
    assert cli.main([*again, "--seed", "8", "-W", "64"]) == 2
    assert "leave out --seed, --width" in capsys.readouterr().err
    assert cli.main([*again, "--model", "new"]) == 0
    a, b = (np.stack(read_clip(here / n)[0]) for n in ("output.mp4", "again.mp4"))
    assert np.array_equal(a, b)


@pytest.mark.slow
def test_an_enhanced_prompt_is_recorded_and_not_enhanced_again(eloquent, here):
    assert typed(generate.main, eloquent, "--enhance-prompt") == 0
    request = Job.from_record(here / "output.json").request
    assert request.prompt != PROMPT[1] and not request.enhance


@THOROUGH
def test_enhance_prints_a_prompt(eloquent, capsys):
    assert cli.main(["enhance", *PROMPT, "--model", str(eloquent)]) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_enhance_needs_the_text_encoder_alone(eloquent, capsys):
    words = ["--text-encoder", str(eloquent / "text_encoder")]
    assert cli.main(["enhance", *PROMPT, *words]) == 0
    assert capsys.readouterr().out.strip()
    assert cli.main(["enhance"]) == 2
    assert "Give a prompt to enhance" in capsys.readouterr().err


TYPING = {
    "generate --sede 3": "There is no option --sede; did you mean --seed?",
    "generate --varaint=dev": "There is no option --varaint; did you mean --variant?",
    "generate --guidance-scale 3": "There is no option --guidance-scale; ours is --cfg-scale.",
    "plan --num-inference-steps=8": "There is no option --num-inference-steps; ours is --steps.",
    "enhance --guidance-scale 3": "There is no option --guidance-scale; see --help.",
    "plan --xyz": "There is no option --xyz; see --help.",
    "--sede": "There is no option --sede; did you mean --seed?",
    "generate a cat": "Unexpected word 'a'. Put a prompt in quotes after --prompt.",
    "generate cat --prompt dog": "Unexpected word 'cat'",
    "generate --seed 7 8": "Unexpected word '8'",
    "generate cat.png": "Unexpected word 'cat.png'",
    "info here there": "Unexpected word 'there'. See --help.",
    "generate --variant fast": "--variant cannot be 'fast'; choose from distilled, dev.",
    "generate --variant destilled": "cannot be 'destilled'; did you mean distilled?",
    "completion tcsh": "shell cannot be 'tcsh'; choose from bash, zsh, fish.",
    "genrate": "There is no command 'genrate'; did you mean generate?",
    "xyz": "There is no command 'xyz'; choose from generate, plan,",
    "gen": "There is no command 'gen'; did you mean generate?",
    "in the night": "Or is it a prompt? `mlx-video generate 'in the night'`.",
    "generate --neg x": "There is no option --neg; did you mean --negative-prompt?",
    "generate --image-strength 1": "--image cat.png 0 0.8",
}


@pytest.mark.parametrize("words", TYPING)
def test_what_cannot_be_read_gets_one_sentence(words, capsys):
    assert cli.main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and TYPING[words] in line


@pytest.mark.parametrize(
    "door, typo, meant",
    [(generate, "--promt", "--prompt"), (convert, "--hf-pth", "--hf-path")],
)
def test_a_door_reads_its_own_options(door, typo, meant, capsys):
    assert door.main([typo, "x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: There is no option {typo}; did you mean {meant}?"


@pytest.mark.parametrize(
    "words",
    [
        ["a red ball"],
        ["a red ball", "--seed", "7"],
        ["--prompt", "a red ball"],
        ["-p", "a red ball"],
        ["--model", "ltx-2", "a red ball"],
        ["--model=ltx-2", "--seed", "7", "a red ball"],
        ["generate", "a red ball"],
        ["generate", "--seed", "7", "a red ball"],
        ["generate", "--image", "cat.png", "-W", "64", "a red ball"],
    ],
)
def test_a_prompt_may_stand_alone(words):
    args = commands.main_parser().read(commands.meant(words))
    assert args.prompt == "a red ball" and args.run is commands.generate
    assert "prompt" in args.typed


@pytest.mark.parametrize("word", ["sunset", "一只红色的球"])
def test_a_prompt_may_be_one_word(word):
    assert commands.main_parser().read(["plan", word]).prompt == word


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([""], "The prompt is empty"),
        (["sunset"], "Or is it a prompt? `mlx-video generate sunset`."),
        (["infoo"], "did you mean info?"),
        (["a red ball", "--hight", "64"], "no option --hight; did you mean --height?"),
        (["a red ball", "--stream"], "no option --stream any more: every clip"),
        (["a red ball", "late"], "word 'late'. The prompt is 'a red ball'; put all"),
        (["a red ball", "a dog"], "in one pair of quotes, or leave one out."),
        (["--seed", "7", "a red ball", "8"], "Unexpected word '8'. The prompt is"),
        (["a red ball", "--audio", "a.wav"], "Unexpected word 'a.wav'. See --help."),
        (["a", "red", "ball", "--seed", "7"], "`mlx-video generate 'a red ball'`."),
    ],
)
def test_words_that_make_no_prompt_are_answered(words, sentence, capsys):
    assert cli.main(words) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("words, told", [("help", "COMMAND"), ("help plan", "--prompt"), ("version", "BLAS")])  # fmt: skip
def test_help_and_version_are_commands_too(words, told, capsys):
    with contextlib.suppress(SystemExit):  # as argparse ends its help
        assert cli.main(words.split()) == 0
    assert told in capsys.readouterr().out


def test_the_bare_command_helps(capsys):
    assert cli.main([]) == 0
    assert "generate" in capsys.readouterr().out


@pytest.mark.slow
def test_info_names_parts_and_what_is_missing(model, tmp_path, capsys):
    assert cli.main(["info", str(model)]) == 0
    told = capsys.readouterr().out
    assert "official single file" in told and "LTX-2.0" in told
    assert "transformer" in told and "missing" not in told
    alone = tmp_path / MODEL
    shutil.copy(model / MODEL, alone)
    assert cli.main(["info", str(alone)]) == 0
    assert "missing     upsampler: put" in capsys.readouterr().out


@pytest.mark.slow
def test_a_converted_folder_makes_the_same_clip(model, made, here):
    assert convert.main(["--hf-path", str(model), "--mlx-path", "folder"]) == 0
    assert typed(generate_av.main, here / "folder") == 0
    a, b = (np.stack(read_clip(folder / "output.mp4")[0]) for folder in (made, here))
    assert np.array_equal(a, b)


@pytest.mark.slow
def test_a_quantized_folder_makes_a_clip(model, here):
    words = ["convert", "--hf-path", str(model), "--mlx-path", "q", "-q"]
    assert cli.main([*words, "--q-group-size", "32"]) == 0
    assert typed(generate.main, here / "q") == 0
    assert len(read_clip(here / "output.mp4")[0]) == 9


@pytest.mark.slow
def test_low_memory_makes_the_same_clip_and_is_recorded(model, here, monkeypatch):
    assert typed(generate_dev.main, model, *DEV, "--batch-guidance") == 0
    readings, read = [], BlockStream.__iter__
    monkeypatch.setattr(
        BlockStream, "__iter__", lambda self: readings.append(1) or read(self)
    )
    assert typed(generate_dev.main, model, *DEV, "--low-memory", "-o", "b.mp4") == 0
    assert len(readings) == 2  # one a step, shared by its passes
    a, b = (np.stack(read_clip(here / n)[0]) for n in ("output.mp4", "b.mp4"))
    assert np.array_equal(a, b)
    files = Job.from_record(here / "b.mp4").files
    assert files == Files(str(model), low_memory=True)


# The Python interface


@pytest.mark.slow
def test_a_pipeline_makes_clips(model, here):
    pipeline = mlx_video.load(str(model))
    request = Request("a red ball", VideoPixelShape(9, 64, 128, 24.0))
    *steps, sample, clip = pipeline.stream(request)
    assert sample.prompt == "a red ball" and sample.latents.video.shape[2] == 2
    assert [s.index for s in steps if s.phase == "stage 1"] == list(range(9))
    mlx_video.save(clip, here / "clip.mp4")
    assert len(read_clip(here / "clip.mp4")[0]) == 9
    assert len(list(pipeline(request).frames)) == 9


@pytest.mark.slow
@pytest.mark.parametrize(
    "function, options",
    [
        (generate.generate_video, {}),
        (generate_dev.generate_video_dev, {"steps": 2, "cfg_scale": 4.0}),
        (generate_av.generate_video_with_audio, {}),
    ],
)
def test_functions_write_clips(function, options, model, here):
    usual = json.dumps({"stg_blocks": [1]})  # the model has no block 29
    model = shutil.copytree(model, here / "model")
    rewrite(model / MODEL, metadata=lambda metadata: metadata.update(defaults=usual))
    path = function(
        "a red ball",
        here / "clip.mp4",
        height=64,
        width=128,
        num_frames=9,
        files=Files(str(model)),
        **options,
    )
    assert path == here / "clip.mp4" and len(read_clip(path)[0]) == 9


# Faults


@pytest.mark.slow
def test_a_killed_decode_is_finished_by_decode_with_the_decoders_alone(
    model, made, here, monkeypatch, capsys
):
    copy, save = shutil.copytree(model, here / "alone" / "all"), media.saving
    with monkeypatch.context() as patch:
        patch.setattr(media, "saving", _interrupted)
        assert typed(generate_av.main, copy) == cli.INTERRUPTED
    assert media.saving is save
    assert [p.name for p in sorted(here.glob("output*"))] == [
        "output.latents.safetensors"
    ]
    assert "Continue with `mlx-video decode output.latents" in capsys.readouterr().err
    assert typed(generate_av.main, copy) == 2  # the latents are not overwritten
    assert "mlx-video decode output.latents" in capsys.readouterr().err
    shutil.rmtree(copy / "text_encoder")
    (copy / UPSCALER.name).unlink()
    other = here / "b.latents.safetensors"
    other.write_bytes(b"another run's")
    words = ["decode", "output.latents.safetensors", "-o", "b.mp4", "--yes"]
    assert cli.main(words) == 0
    a, b = (read_clip(file) for file in (made / "output.mp4", here / "b.mp4"))
    assert np.array_equal(np.stack(a[0]), np.stack(b[0]))
    assert np.allclose(np.array(a[2].samples), np.array(b[2].samples))
    assert list(here.glob("*latents*")) == [other]


def _interrupted(clip, path, **options):
    next(clip.frames)
    raise KeyboardInterrupt
    yield


def test_garbage_stops_the_run_and_keeps_the_latents(model, here, monkeypatch, capsys):
    black = lambda chunks: (np.zeros((64, 128, 3), np.uint8) for _ in range(9))
    monkeypatch.setattr("mlx_video.postprocess.frames", black)
    assert typed(generate.main, model) == cli.BAD_OUTPUT == 3
    said = capsys.readouterr().err
    assert "All 9 frames are black" in said and "add --no-health-check to" in said
    assert [p.name for p in here.iterdir()] == ["output.latents.safetensors"]
    words = ["decode", "output.latents.safetensors", "--no-health-check", "--yes"]
    assert cli.main(words) == 0 and (here / "output.mp4").exists()


@pytest.mark.slow
def test_weights_that_make_nan_are_caught_before_decoding(model, here, capsys):
    broken = shutil.copytree(model, here / "broken")

    def spoil(weights):
        key = "model.diffusion_model.proj_out.weight"
        weights[key] = weights[key] * mx.nan

    rewrite(broken / MODEL, spoil)
    assert typed(generate.main, broken) == 3
    assert "video latent after stage 1" in capsys.readouterr().err
    assert not list(here.glob("output*"))


# Mistakes: one sentence, exit code 2, nothing written

MISTAKES = {
    "size": (["-W", "100"], "grid: width must be a multiple of 64. Nearest.* 128x64"),
    "no frames": (
        ["-n", "-3"],
        "at least 1 frame and 1 pixel a side; got -3 frames of .* For example: 121 frames",
    ),
    "fps": (["--fps", "0"], "fps must be from 1 to 240"),
    "seed": (["--seed", "-1"], "seed must be from 0"),
    "large seed": (
        ["--seed", str(2**64)],
        "seed must be from 0 to 18446744073709551615",
    ),
    "prompt": (["-p", "  "], "The prompt is empty"),
    "long prompt": (["-p", "a cat " * 700], "more than the limit of 384"),
    "no image": (["--image", "no.png"], "no.png"),
    "not an image": (["--image", "text.txt"], "text.txt"),
    "image frame": (["--image", "picture.png", "3"], "Nearest: 0|Nearest: 8"),
    "image strength": (
        ["--image", "picture.png", "0", "2"],
        "strength must be from 0 to 1",
    ),
    "two images": (["--image", "picture.png"] * 2, "same place, frame 0"),
    "model": (["--model", "no/such/model"], "no/such/model"),
    "no model": (["--model", "nowhere.safetensors"], "nowhere.safetensors"),
    "text encoder": (["--text-encoder", "nowhere/at/all"], "nowhere/at/all"),
    "lora": (["--lora", "nowhere.safetensors"], "nowhere.safetensors"),
    "suffix": (
        ["-o", "clip.avi"],
        "does not end in .mp4, .mov, .webm, .gif or .webp; try clip.mp4",
    ),
    "a file": (
        ["-o", "text.txt/clip.mp4"],
        "text.txt is a file, so it cannot contain clip.mp4",
    ),
    "existing": (["-o", "there.mp4"], "there.mp4 exists.*--overwrite"),
    "sound": (["--output-audio", "a.wav", "--no-audio"], "add --audio"),
    "frames folder": (["--save-frames", "text.txt"], "text.txt is a file"),
    "preview folder": (["--preview", "text.txt"], "it is a file; name a folder"),
    "frames there": (["--save-frames", "."], "holds PNG files"),
    "typo": (["--model", "typofolder"], "There is no file or folder typofolder"),
    "unused LoRA": (["--distilled-lora", "x"], "leave out --distilled-lora"),
    "record": (
        ["--from-record", "text.json"],
        "leave out --prompt, --seed, --height, --width, --num-frames",
    ),
    "a folder": (["-o", "folder.mp4", "--overwrite"], "folder.mp4 is a folder"),
    "long name": (["-o", "x" * 210 + ".mp4"], "is too long; use at most"),
    "not text": (["-p", "\udcff"], "not valid text"),
    "speed": (["--fps", "0.0003"], "fps must be from 1 to 240"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_sentence(mistake, model, here, picture, capsys):
    words, sentence = MISTAKES[mistake]
    (here / "text.txt").write_text("not an image")
    (here / "text.json").write_text("{}")
    (here / "there.mp4").write_bytes(b"somebody's")
    (here / "folder.mp4").mkdir()
    before = sorted(here.iterdir())
    assert typed(generate.main, model, *words) == cli.BAD_INPUT == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(sentence, error), error
    assert sorted(here.iterdir()) == before
    assert (here / "there.mp4").read_bytes() == b"somebody's"


@pytest.mark.slow
def test_a_prompt_is_counted_and_tensors_are_compared_before_weights_are_read(
    model, here, monkeypatch, capsys
):
    broken = shutil.copytree(model, here / "broken")
    key = "vae.decoder.conv_out.conv.bias"
    rewrite(broken / MODEL, weights=lambda w: w.pop(key))
    monkeypatch.setattr(
        "mlx_video.models.ltx.loading.components.materialize", pytest.fail
    )
    assert typed(generate.main, broken) == 2
    assert "conv_out.bias" in capsys.readouterr().err
    assert typed(generate.main, model, "-p", "a cat " * 700) == 2
    assert "more than the limit of 384" in capsys.readouterr().err


def test_text_connectors_of_zeros_are_found_as_they_are_read(model, here, capsys):
    broken = shutil.copytree(model, here / "broken")

    def zero(weights):
        kept = {k: v for k, v in weights.items() if "embeddings_connector" not in k}
        weights |= {k: v * 0 for k, v in weights.items() if k not in kept}

    rewrite(broken / MODEL, weights=zero)
    assert typed(generate.main, broken) == 3
    assert "matrices of the connectors are zero everywhere" in capsys.readouterr().err


def test_a_model_named_after_the_other_variant_is_refused(model, here, capsys):
    (here / "m").mkdir()
    file = shutil.copy(model / MODEL, here / "m" / "ltx-2-19b-distilled.safetensors")
    words = ["--model", str(file), "--text-encoder", str(model / "text_encoder")]
    assert generate_dev.main([*PROMPT, *SIZE, *DEV, *words]) == 2
    assert "is the distilled model by its name" in capsys.readouterr().err


DAMAGE = {
    "truncated": "bytes",
    "not safetensors": "safetensors",
    "missing tensor": "proj_out",
    "unknown config": "sparkle",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_gets_one_sentence(damage, model, here, capsys):
    broken = shutil.copytree(model, here / "broken")
    _damage(broken / MODEL, damage)
    assert typed(generate.main, broken) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and DAMAGE[damage] in error
    assert not list(here.glob("output*"))


def _damage(file: Path, damage: str) -> None:
    key = "model.diffusion_model.proj_out.weight"
    match damage:
        case "truncated":
            file.write_bytes(file.read_bytes()[:-1000])
        case "not safetensors":
            file.write_bytes(b"<!DOCTYPE html>" * 100)
        case "missing tensor":
            rewrite(file, weights=lambda w: w.pop(key))
        case "unknown config":
            rewrite(file, config=lambda c: c["transformer"].update(sparkle=True))


def test_a_strength_that_is_no_number_is_refused(model, here, capsys):
    assert typed(generate_dev.main, model, "--cfg-scale", "nan") == 2
    assert "cfg must be from -100 to 100, such as 3; got nan" in capsys.readouterr().err
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--q-bits", "4"], "add -q"),
        (["-q", "--q-bits", "7"], "got 7 bits"),
        (["--mlx-path", "."], "picture.png|not empty|exists"),
    ],
)
def test_a_conversion_that_makes_no_sense_is_refused(
    words, sentence, model, here, picture, capsys
):
    base = ["--hf-path", str(model), "--mlx-path", "folder"]
    assert convert.main([*base, *words]) == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert not (here / "folder").exists()


@pytest.mark.parametrize("words", [[], ["--stg-scale", "0", "--stg-blocks", "99"]])
def test_stg_blocks_that_the_model_lacks_are_refused(words, model, here, capsys):
    assert typed(generate_dev.main, model, "--steps", "2", *words) == 2
    assert "has 3 blocks" in capsys.readouterr().err


def test_health_errors_are_no_bad_input():
    assert not issubclass(health.HealthError, (ValueError, OSError))
