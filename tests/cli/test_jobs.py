"""What typed arguments come to, and what is said of those that make no sense."""

from dataclasses import replace

import pytest

from mlx_video import cli, hub, recipes
from mlx_video.cli.jobs import job_from
from mlx_video.cli.options import add_generate
from mlx_video.cli.parser import Parser, group
from mlx_video.inputs import Image
from mlx_video.models.ltx.checkpoint import find
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.sampling.schedules import STAGE_2_SIGMAS

FILES = Files(hub.MODEL_REPO)


@pytest.fixture(autouse=True)
def no_demo_model(monkeypatch, tmp_path):
    monkeypatch.setattr(find, "PACKAGED", tmp_path / "nowhere")


def read(*words: str, **usual):
    parser = Parser()
    add_generate(parser, **usual)
    return parser.read(words)


def job(*words: str, variant: str = "dev", audio: bool = False):
    return job_from(read(*words, variant=variant, audio=audio))


def test_a_prompt_is_enough():
    made = job("-p", "a cat", variant="distilled")
    assert made.recipe == recipes.distilled() and made.files == FILES
    assert made.request.shape == (121, 512, 768, 24.0) and not made.request.audio


@pytest.mark.parametrize(
    "long, short",
    [
        (("--height", "64"), ("-H", "64")),
        (("--width", "64"), ("-W", "64")),
        (("--num-frames", "9"), ("-n", "9")),
        (("--num-frames", "9"), ("--frames", "9")),
        (("--fps", "25"), ("--frame-rate", "25")),
        (("--seed", "3"), ("-s", "3")),
        (("--model", "ltx-2.3"), ("--model-repo", "ltx-2.3")),
    ],
)
def test_aliases_mean_the_same(long, short):
    seed = () if "--seed" in long else ("--seed", "1")
    assert job("-p", "a cat", *long, *seed) == job("--prompt", "a cat", *short, *seed)


def test_images_take_a_frame_and_a_strength(monkeypatch):
    monkeypatch.setattr(Image, "check", lambda *_: None)  # there are none
    words = [
        "--image",
        "a.png",
        "--image",
        "b.png",
        "8",
        "--image",
        "c.png",
        "16",
        ".5",
    ]
    assert job("-p", "a cat", *words).request.inputs == (
        Image("a.png"),
        Image("b.png", 8),
        Image("c.png", 16, 0.5),
    )


def test_dev_strengths_reach_both_modalities_but_cfg():
    strengths = ["--cfg-scale", "4", "--stg-blocks", "1", "2", "--rescale", "0"]
    guidance = job("-p", "a cat", "--steps", "7", *strengths).recipe.stages[0].guidance
    assert (guidance.video.cfg, guidance.audio.cfg) == (4.0, 7.0)
    for strength in guidance.values:
        assert strength.stg_blocks == (1, 2) and strength.rescale == 0.0


def test_hq_has_its_own_schedule_and_strengths():
    first, second = job("-p", "a cat", "--hq", "--cfg-scale", "2").recipe.stages
    assert first.sampler.name == second.sampler.name == "res_2s"
    assert (first.guidance.video.cfg, first.guidance.audio.cfg) == (2.0, 7.0)
    longer, _ = job("-p", "a cat", "--hq", "-n", "241").recipe.stages
    assert longer.sigmas != first.sigmas  # they depend on the clip's size


def test_two_stages_end_in_the_distilled_refinement():
    first, second = job("-p", "a cat", "--two-stage", "--steps", "7").recipe.stages
    assert len(first.sigmas) == 8 and first.scale == 0.5
    assert second.sigmas == STAGE_2_SIGMAS and second.distilled_lora == 1.0


def test_loras_take_a_strength():
    words = "--model ltx-2 --lora a --lora b 0.5".split()
    files = job("-p", "a cat", *words).files
    assert files.loras == (("a", 1.0), ("b", 0.5))


def test_weights_take_less_memory_where_asked():
    assert job("-p", "a cat", "--quantize", "4").files == replace(FILES, quantize=4)
    assert job("-p", "a cat", "--low-memory").files == replace(FILES, low_memory=True)


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([], "Give a prompt: --prompt"),
        (
            ["-p", "x", "--image", "a.png", "late"],
            "--image needs PATH .* got 'a.png late'",
        ),
        (["-p", "x", "--image", "a", "0", "1", "2"], "--image needs PATH"),
        (["-p", "x", "--lora", "a", "b", "c"], "--lora needs PATH .* got 'a b c'"),
        (["-p", "x", "--cfg-scale", "9"], "fixed schedule.*leave out --cfg-scale"),
        (["--from-record", "no.json"], "There is no file or folder no.json"),
        (["-p", "x", "--from-record", "a.json"], "leave out --prompt"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(words, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        job(*words, variant="distilled")


def test_options_count_as_typed_however_their_value_follows():
    parser = Parser()
    for names in ("--width -W", "--fps", "--seed -s", "--height"):
        group(parser)(names, "a number", 7, type=int)
    args = parser.read(["-W128", "--fps=7", "-s", "3"])
    assert args.typed == {"width": "--width", "fps": "--fps", "seed": "--seed"}
    assert (args.width, args.fps, args.seed, args.height) == (128, 7, 3, 7)


def test_help_shows_real_defaults(capsys):
    parser = Parser()
    add_generate(parser)
    told = " ".join(parser.format_help().split())
    for words in (
        "(default: 512)",
        "the same seed makes the same result (default: random, and printed)",
        "(default: auto)",
        "guidance",
        "(default: distilled)",
        "(default: 40)",
        "make sound (default: yes)",
        "(default: named after the prompt and the seed)",
    ):
        assert words in told, words


def test_help_of_enhance_shows_its_seed(capsys):
    with pytest.raises(SystemExit):
        cli.main(["enhance", "--help"])
    assert "the same result (default: 10)" in " ".join(capsys.readouterr().out.split())


def test_seeds_are_random_unless_typed():
    seeds = {job("-p", "a cat").request.seed for _ in range(3)}
    assert len(seeds) == 3 and all(0 <= seed < 2**32 for seed in seeds)
    assert job("-p", "a cat", "-s", str(2**64 - 1)).request.seed == 2**64 - 1


@pytest.mark.parametrize(
    "typed, size",
    [("24", 24e9), ("24GB", 24e9), ("1.5 GiB", 1.5 * 2**30), ("512mb", 512e6)],
)
def test_memory_is_typed_with_or_without_a_unit(typed, size):
    assert read("--memory-limit", typed).memory_limit == size


@pytest.mark.parametrize(
    "words, warning",
    [
        (["--steps", "9"], "steps is not used: the distilled model takes 8 and 3"),
        (["--negative-prompt", "rain"], "negative prompt is not used"),
        (["--fps", "60"], "60 fps is far from the 24"),
        (["--fps", "25"], None),
        (["--variant", "dev", "--distilled-lora", "x"], "not used in one stage"),
        (["--variant", "dev", "--distilled-lora", "x", "--two-stage"], None),
        (["--variant", "dev", "--hq", "--stg-blocks", "2"], "STG blocks are not used"),
        (["--variant", "dev", "--stg-blocks", "2"], None),
    ],
)
def test_what_changes_nothing_is_said(words, warning, capsys):
    job_from(read("-p", "a cat", "--model", "ltx-2", *words))
    heard = capsys.readouterr().err.splitlines()
    assert len(heard) == (warning is not None)
    assert not heard or heard[0].startswith("warning: ") and warning in heard[0]
