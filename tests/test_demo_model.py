"""The model inside the package: when it is used, what its own defaults decide, and its transformers of two kinds.

A folder with random weights stands in its place.
"""

import fnmatch
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Iterator

import huggingface_hub as hf
import mlx.core as mx
import numpy as np
import pytest
from huggingface_hub import constants

import mlx_video
from mlx_video import cli, generate, generate_av, generate_dev, hub, recipes
from mlx_video.cli import commands
from mlx_video.convert import convert
from mlx_video.errors import MissingFileError
from mlx_video.events import Event, Planned, Written
from mlx_video.models.ltx.checkpoint import find
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.find import DEMO
from mlx_video.models.ltx.checkpoint.layouts import identify
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.text_folder import MAX_TOKENS
from mlx_video.plan import Footprint, Phase, Plan
from mlx_video.record import Job
from mlx_video.types import AV
from tests.checkpoints import MODEL, completed, rewrite, tiny_folder, write_lora
from tests.media_reading import read_clip

PROMPT = ["-p", "a red ball"]
NAMED = ["-o", "output.mp4", "-s", "10"]
AGAIN = ["generate", "--from-record", "output.mp4", "-o", "again.mp4"]
DEFAULTS = {
    "width": 128,
    "height": 64,
    "frames": 9,
    "fps": 12,
    "audio": True,
    "negative_prompt": "rain",
    "steps": 2,
    "cfg": 2.0,
    "audio_cfg": 1.5,
    "stg_blocks": [1],
}
SHAPE = (9, 64, 128, 12.0)
TOKENS = 64
LAYER = "transformer_blocks.0.attn1.to_q"  # officially
OURS = "transformer_blocks.0.video.attn1.to_q"


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A folder as ``convert`` writes it, a dev transformer of other weights beside the distilled one."""
    tmp = tmp_path_factory.mktemp("demo")
    folder = convert(tiny_folder(tmp / "official"), tmp / "template")
    shutil.copytree(folder / "transformer", folder / "transformer-dev")
    (file,) = (folder / "transformer-dev").glob("*.safetensors")
    weights = mx.load(str(file))
    weights[f"{OURS}.weight"] = weights[f"{OURS}.weight"] + 1
    mx.save_safetensors(str(file), weights)
    state(folder / "config.json", name=DEMO, defaults=DEFAULTS)
    state(folder / "text_encoder/tokenizer_config.json", model_max_length=TOKENS)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hf, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    return tmp_path / "cache"


@pytest.fixture
def demo(template, tmp_path, monkeypatch, cache) -> Path:
    """A copy in the package's place, to change and to break."""
    folder = shutil.copytree(template, tmp_path / "package" / DEMO)
    monkeypatch.setattr(find, "PACKAGED", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def state(file: Path, **values) -> None:
    """Change what a JSON file says."""
    stated = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(stated | values))


def restate(folder: Path, **defaults) -> None:
    state(folder / "config.json", defaults=DEFAULTS | defaults)


def unified(words) -> int:
    return cli.main(["generate", *NAMED, *words])


def weight(folder: Path, variant: str) -> mx.array:
    """Of a layer in which the variants differ."""
    components = Components.open(Files(folder, dtype="float32"), variant=variant)
    with components.lend("transformer") as model:
        return dict(model.named_modules())[OURS].weight * 1


# When it is used


@pytest.mark.slow
@pytest.mark.parametrize(
    "door, words, sound",
    [
        (unified, [], True),
        (unified, ["--variant", "dev"], True),
        pytest.param(generate.main, [], False, marks=pytest.mark.thorough),
        pytest.param(generate_dev.main, [], False, marks=pytest.mark.thorough),
        pytest.param(generate_av.main, [], True, marks=pytest.mark.thorough),
    ],
)
def test_a_prompt_is_enough_for_a_clip(door, words, sound, demo, capsys):
    assert door([*PROMPT, *NAMED, *words]) == 0
    told = [x for x in capsys.readouterr().err.splitlines() if "ltx-2-tiny" in x]
    assert told == [
        "Using the demo model ltx-2-tiny; `mlx-video models` lists LTX-2 and the others."
    ]
    frames, fps, audio, _ = read_clip(Path("output.mp4"))
    assert (len(frames), *frames[0].shape[:2], fps) == SHAPE
    assert (audio is not None) is sound
    job = Job.from_record(Path("output.json"))
    assert job.files.model == DEMO and job.request.shape == SHAPE
    assert job.request.negative_prompt == "rain"


@pytest.mark.slow
def test_its_clip_is_made_again_elsewhere_and_nothing_is_said(demo, capsys):
    assert unified([*PROMPT, "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    moved = demo.rename(demo.parent / "moved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find, "PACKAGED", moved)
        assert cli.main(AGAIN) == 0
    assert "Using" not in capsys.readouterr().err
    a, b = (np.stack(read_clip(Path(n))[0]) for n in ("output.mp4", "again.mp4"))
    assert np.array_equal(a, b)


@pytest.mark.slow
def test_a_record_names_the_model_where_the_job_did_not(demo):
    request = mlx_video.load().request("a red ball")
    unnamed = Job(request, recipes.distilled())
    planned = unnamed.planned(unnamed.plan())
    assert planned.files == Files(DEMO)


def job(*words: str) -> Job:
    """What ``mlx-video plan`` would plan."""
    jobs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "run_job", lambda job, *_: _nothing(jobs, job))
        assert unified([*PROMPT, *words]) == 0
    return jobs[0]


def _nothing(jobs: list[Job], job: Job) -> Iterator[Event]:
    jobs.append(job)
    phases = Phase("libraries", 0, 0.0), Phase("none", 0, 0.0)
    yield Planned(job, "output.mp4", Plan(phases, 1.0, None))
    yield Written("output.mp4", "output.json", 0.0, 0)


@pytest.mark.parametrize("newest", ["0123", "4567"])
def test_the_official_model_goes_before_it_once_it_is_cached(
    newest, demo, cache, capsys
):
    assert job().files.model == DEMO
    repository = cache / "models--Lightricks--LTX-2"
    file = repository / "snapshots/0123/ltx-2-19b-distilled.safetensors"
    for path, text in ((file, "weights"), (repository / "refs/main", newest)):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    capsys.readouterr()
    made = job()
    assert made.files.model == hub.MODEL_REPO and "Using" not in capsys.readouterr().err
    assert made.request.shape == recipes.Defaults().shape
    assert job("--variant", "dev").files.model == hub.MODEL_REPO


@pytest.mark.parametrize(
    "flag, more",
    [("--text-encoder", ""), ("--upsampler", ""), ("--lora", "/a.safetensors")],
)
def test_what_goes_with_the_official_model_asks_for_it(flag, more, demo, cache, capsys):
    assert job(flag, f"some/thing{more}").files.model == hub.MODEL_REPO
    assert f"Using LTX-2 for some/thing{more};" in capsys.readouterr().err


def test_without_it_the_official_model_is_used(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(find, "PACKAGED", tmp_path / "nowhere")
    assert job().files == Files(hub.MODEL_REPO)


@pytest.mark.slow
def test_it_goes_by_its_name(demo, capsys):
    assert job("--model", DEMO).files.model == DEMO
    assert job("--model", str(demo)).files.model == str(demo)
    assert "Using" not in capsys.readouterr().err
    assert cli.main(["info"]) == cli.main(["info", DEMO]) == 0
    assert str(demo) in capsys.readouterr().out


def test_a_folder_of_its_name_goes_before_it_where_it_is_typed(demo):
    here = shutil.copytree(demo, DEMO)
    assert job("--model", DEMO).files.model == str(Path(here).resolve())
    assert job().files.model == DEMO


@pytest.mark.parametrize("command", ["generate", "plan"])
@pytest.mark.parametrize(
    "words", [["--width", "7"], ["--fps", "0"], ["--image", "no.png"]]
)
def test_nothing_is_said_of_it_before_an_error(command, words, demo, capsys):
    assert cli.main([command, *PROMPT, "--num-frames", "10", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


def test_nor_before_one_about_its_output(demo, capsys):
    assert cli.main(["generate", *PROMPT, "--num-frames", "10", "-o", "x.avi"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


def test_plans_are_made_for_it(demo, capsys):
    assert cli.main(["plan", *PROMPT]) == 0
    out, err = capsys.readouterr()
    assert "stage 2" in out and err.startswith("Using the demo model ltx-2-tiny")


@pytest.mark.slow
def test_python_uses_it_too(demo):
    pipeline = mlx_video.load()
    request = pipeline.request("a red ball")
    assert request.shape == SHAPE and request.audio
    assert request.negative_prompt == "rain"
    assert pipeline.recipe == recipes.distilled()
    assert len(list(pipeline(request).frames)) == 9
    assert mlx_video.load(variant="dev").recipe == job("--variant", "dev").recipe
    assert generate.generate_video("a red ball") == Path("output.mp4")
    assert Job.from_record(Path("output.mp4")).request.shape == SHAPE


def test_no_time_goes_to_compiling_for_a_cpu(demo, monkeypatch):
    """In Python as in the commands: all borrow their parts."""
    disabled = []
    monkeypatch.setattr(mx, "disable_compile", lambda: disabled.append(1))
    for device in (mx.gpu, mx.cpu):
        monkeypatch.setattr(mx, "default_device", lambda: device)
        with Components.open(demo, needs=["vocoder"]).lend("vocoder"):
            assert bool(disabled) == (device == mx.cpu)


# It is no language model


@pytest.mark.slow
def test_it_cannot_enhance_prompts(demo, capsys):
    assert unified([*PROMPT, "--enhance-prompt"]) == cli.BAD_INPUT
    assert "reads at most 64 tokens and cannot enhance" in capsys.readouterr().err
    assert not Path("output.mp4").exists()


def test_enhance_goes_on_asking_gemma(demo, monkeypatch):
    asked = []

    def stop(search):
        asked.append(search.files.text_encoder)
        raise MissingFileError("stop")

    monkeypatch.setattr(find.Search, "text_encoder", stop)
    assert cli.main(["enhance", *PROMPT]) == cli.BAD_INPUT and asked == [None]


# Prompts as long as its tokenizer states


def test_a_prompt_has_the_length_that_the_tokenizer_states(demo, capsys):
    fits = "A" + " red" * (TOKENS - 2)
    assert unified(["-p", f"{fits} red"]) == cli.BAD_INPUT
    told = capsys.readouterr().err
    assert "has 65 tokens, more than the limit of 64" in told and "by 1;" in told
    assert "[transformers]" not in told
    with Components.open(demo, needs=["text_encoder"]).lend("text_encoder") as encoder:
        assert encoder.features([fits]).mask.sum().item() == TOKENS
        assert encoder.features(["A"]).mask.shape == (1, TOKENS)


@pytest.mark.parametrize("stated", [None, 1e30, math.inf, 131072])
def test_no_prompt_is_longer_than_in_training(demo, stated):
    state(demo / "text_encoder/tokenizer_config.json", model_max_length=stated)
    with Components.open(demo, needs=["text_encoder"]).lend("text_encoder") as encoder:
        assert encoder.tokenizer.max_tokens == MAX_TOKENS == 1024


@pytest.mark.parametrize("stated", ["long", -1, math.nan])
def test_a_length_that_is_none_is_refused(demo, stated, capsys):
    state(demo / "text_encoder/tokenizer_config.json", model_max_length=stated)
    assert unified(PROMPT) == cli.BAD_INPUT
    assert f"such as 1024; got {stated!r}" in capsys.readouterr().err


def test_memory_is_reckoned_for_that_length(demo):
    tokens, held = AV(32, 9), []
    for stated in (TOKENS, 2 * TOKENS):
        state(demo / "text_encoder/tokenizer_config.json", model_max_length=stated)
        components = Components.open(demo)
        context = Footprint(components).context
        model = components.sketch("transformer")
        held.append(model.held_bytes(tokens, 1, context))
    widths = 64 + 32  # of the two streams
    assert held[1] - held[0] == 5 * TOKENS * widths * 4


# Defaults


def test_what_is_typed_goes_before_its_defaults(demo):
    made = job("-W", "192", "-n", "17", "--negative-prompt", "snow", "--no-audio")
    assert made.request.shape == (17, 64, 192, 12.0)
    assert made.request.negative_prompt == "snow" and not made.request.audio


def test_guidance_follows_its_defaults(demo):
    (stage,) = job("--variant", "dev").recipe.stages
    assert len(stage.sigmas) == 3
    usual = recipes.VIDEO_GUIDANCE
    video = recipes.replace(usual, cfg=2.0, stg_blocks=(1,))
    assert stage.guidance == AV(video, recipes.replace(video, cfg=1.5))
    words = ["--variant", "dev", "--steps", "5", "--cfg-scale", "4"]
    (stage,) = job(*words).recipe.stages
    assert len(stage.sigmas) == 6
    assert (stage.guidance.video.cfg, stage.guidance.audio.cfg) == (4.0, 1.5)


def test_sound_is_off_where_its_default_says_so_and_the_door_does_not(demo):
    restate(demo, audio=False)
    assert not job().request.audio and job("--audio").request.audio


@pytest.mark.parametrize(
    "stated, sentence",
    [
        ({"sparkle": 1}, "ltx-2-tiny: Defaults: unknown keys sparkle"),
        (
            {"width": "256"},
            "ltx-2-tiny: Defaults: width must be a whole number; got '256'",
        ),
        ({"steps": True}, "steps must be a whole number; got True"),
        (
            {"stg_blocks": ["1"]},
            r"stg_blocks must be a list of values, each a whole number; got \['1'\]",
        ),
        ([1], r"must be a JSON object.*got \[1\]"),
    ],
)
def test_defaults_that_mean_nothing_are_refused(stated, sentence, demo):
    state(demo / "config.json", defaults=stated)
    with pytest.raises(ValueError, match=sentence):
        mlx_video.load()


def test_there_are_two_variants(demo):
    with pytest.raises(ValueError, match="must be distilled or dev; got 'distiled'"):
        mlx_video.load(variant="distiled")


@pytest.mark.slow
def test_a_single_file_states_its_defaults_in_its_metadata(tmp_path):
    file = tiny_folder(tmp_path / "official") / MODEL
    text = json.dumps(DEFAULTS)
    rewrite(file, metadata=lambda metadata: metadata.update(defaults=text))
    assert mlx_video.load(str(file)).request("a ball").shape == SHAPE
    assert job("--model", str(file)).request.shape == SHAPE
    convert(file, tmp_path / "mlx")
    assert identify(tmp_path / "mlx").defaults == DEFAULTS
    rewrite(file, metadata=lambda metadata: metadata.update(defaults="{"))
    with pytest.raises(ValueError, match=f"{MODEL}: its defaults is not valid JSON"):
        identify(file)


def test_a_repository_states_its_defaults_before_its_weights_are_fetched(
    demo, monkeypatch
):
    asked = []

    def resolve(repo, patterns, notify):
        asked.append((repo, *patterns))
        return demo

    monkeypatch.setattr(hub, "resolve", resolve)
    assert job("--model", "me/tiny").request.shape == SHAPE
    assert asked == [("me/tiny", "*config.json")]
    needs = ("text_encoder", "transformer", "upsampler", "vocoder")
    Components.open("me/tiny", variant="dev", needs=needs)
    fetched = set(asked[-1])
    assert {"transformer-dev/*.safetensors", "text_encoder/tokenizer*"} < fetched
    assert {"upsampler/*.safetensors", "vocoder/*.safetensors"} < fetched
    assert "transformer/*.safetensors" not in fetched


@pytest.fixture
def published(demo, tmp_path, monkeypatch) -> Path:
    """The folder as the repository me/tiny, of which the cache gets what is asked for."""
    cached = tmp_path / "snapshot"

    def resolve(model, patterns, notify):
        assert str(model) == "me/tiny"
        there = [f.relative_to(demo).as_posix() for f in demo.rglob("*") if f.is_file()]
        for pattern in patterns:
            assert (names := fnmatch.filter(there, pattern)), pattern
            for name in names:
                (cached / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(demo / name, cached / name)
        return cached

    monkeypatch.setattr(hub, "resolve", resolve)
    return demo


def test_a_repository_may_keep_the_distilled_transformer_as_a_lora(
    published, with_lora
):
    opened = Components.open("me/tiny", variant="distilled", needs=["transformer"])
    assert opened.layout.distillation.name == "tiny-distilled-lora-2.safetensors"
    with opened.lend("transformer"):
        assert not opened.fusions


@pytest.mark.slow
def test_a_repository_is_converted_as_a_whole(published, tmp_path):
    convert("me/tiny", tmp_path / "here")
    there = {f.relative_to(published) for f in published.rglob("*")}
    assert there == {
        f.relative_to(tmp_path / "here") for f in (tmp_path / "here").rglob("*")
    }


# What its clips may be


def still_and_silent(monkeypatch):
    picture = np.random.default_rng(0).integers(0, 255, (64, 128, 3), np.uint8)
    frames = lambda chunks: (picture for _ in range(9))
    monkeypatch.setattr("mlx_video.postprocess.frames", frames)
    vocoder = "mlx_video.models.ltx.audio_vae.vocoder.Vocoder.__call__"
    monkeypatch.setattr(vocoder, lambda self, mel: mx.zeros((1, 2, 18000)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "stated, complaint",
    [
        ({"may_be_still": True, "may_be_silent": True}, None),
        ({"may_be_still": True}, "Decoding made silence"),
        ({"may_be_silent": True}, "All 9 frames are the same picture"),
    ],
)
def test_still_and_silent_clips_pass_where_the_model_was_taught_them(
    stated, complaint, demo, monkeypatch, capsys
):
    still_and_silent(monkeypatch)
    restate(demo, **stated)
    assert unified(PROMPT) == (cli.BAD_OUTPUT if complaint else 0)
    assert (complaint or "output.mp4") in "".join(capsys.readouterr())


# Its two transformers


@pytest.mark.slow
def test_the_variant_decides_which_transformer_is_taken(demo):
    distilled, dev = weight(demo, "distilled"), weight(demo, "dev")
    assert mx.allclose(dev, distilled + 1, atol=1e-2)  # bfloat16
    (demo / "transformer").rename(demo / "transformer-distilled")
    assert mx.array_equal(weight(demo, "distilled"), distilled)
    (demo / "transformer-dev").rename(demo / "transformer")
    assert mx.array_equal(weight(demo, "distilled"), distilled)
    assert mx.array_equal(weight(demo, "dev"), dev)


def test_the_dev_transformer_alone_is_no_distilled_one(demo):
    shutil.rmtree(demo / "transformer")
    assert Components.open(demo, variant="dev")
    with pytest.raises(ValueError, match="has no transformer"):
        Components.open(demo, variant="distilled")


@pytest.fixture
def with_lora(demo) -> Path:
    """The distilled transformer kept as a LoRA."""
    shutil.rmtree(demo / "transformer")
    write_lora(demo / "tiny-distilled-lora-2.safetensors", f"diffusion_model.{LAYER}")
    return demo


@pytest.mark.slow
def test_the_distilled_transformer_may_be_a_lora_of_the_dev_one(with_lora, capsys):
    change = weight(with_lora, "distilled") - weight(with_lora, "dev")
    assert mx.allclose(change, mx.full((64, 64), 2.0), atol=1e-5)
    assert unified(PROMPT) == 0
    assert "tiny-distilled-lora" not in capsys.readouterr().err
    dev = Components.open(with_lora, variant="dev").sketch("transformer")
    completed(with_lora / "tiny-distilled-lora-2.safetensors", dev)
    words = ["--variant", "dev", "--two-stage", "-H", "128", "-o", "two.mp4"]
    assert unified([*PROMPT, *words]) == 0
    assert "tiny-distilled-lora-2.safetensors at 1" in capsys.readouterr().err


def test_info_shows_every_folder_and_the_defaults(with_lora, capsys):
    assert cli.main(["info"]) == 0
    told = capsys.readouterr().out
    assert "transformer-dev " in told
    assert re.search(r"tiny-distilled-lora-2 +2 tensors +0.00 MB  float32\n", told)
    assert 'defaults    {"width": 128, ' in told
    assert "missing" not in told and "LTX-2.0" in told


def test_conversion_keeps_a_lora_too(demo, with_lora, tmp_path):
    convert(demo, tmp_path / "q", quantize=True, q_group_size=32)
    before, after = (set(os.listdir(folder)) for folder in (demo, tmp_path / "q"))
    assert before == after
    found = identify(tmp_path / "q", "dev")
    assert found.sources["transformer"].quantization["bits"] == 8
    assert found.defaults == DEFAULTS
    with pytest.raises(ValueError, match="is quantized already"):
        convert(tmp_path / "q", tmp_path / "again", quantize=True)


@pytest.mark.slow
def test_conversion_loses_no_transformer_to_the_chosen_one(demo, tmp_path):
    convert(demo, tmp_path / "mlx", variant="dev")
    for variant in ("distilled", "dev"):
        kept = weight(tmp_path / "mlx", variant)
        assert mx.array_equal(kept, weight(demo, variant))
