"""DFR: what is sampled where, and a clip from what a user types."""

import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from PIL import Image as Picture

from mlx_video import cli, lora, recipes
from mlx_video.dfr_pipeline import DFRPipeline, pipeline_for, tile_key
from mlx_video.errors import UserError
from mlx_video.inputs import Image, Keyframes
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.find import DEMO
from mlx_video.models.ltx.checkpoint.releases import LTX_2, LTX_2_5
from mlx_video.models.ltx.loading.components import Components
from mlx_video.output import Output
from mlx_video.pipeline import Pipeline, Reached, Request
from mlx_video.plan import Footprint, Work
from mlx_video.recipes import Recipe, Stage, dfr_recipe, finished
from mlx_video.record import Job
from mlx_video.run import run
from mlx_video.types import AV, Sample, Step, VideoPixelShape
from tests.checkpoints import tiny_folder
from tests.media_reading import read_clip
from tests.models.ltx.loading.test_parts import TINY_2_3, TINY_2_5, split_checkpoint

SHAPE = VideoPixelShape(33, 64, 64, 24.0)


def test_each_tile_of_each_round_has_noise_of_its_own():
    tiles = [(number, index) for number in range(3) for index in range(4)]
    keys = {tuple(tile_key(2**64 - 1, *tile).tolist()) for tile in tiles}
    assert len(keys) == len(tiles)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """LTX-2.5's miniature with both upsamplers; the temporal one is 2.3's, which is like it."""
    root = split_checkpoint(tmp_path_factory.mktemp("model") / "tiny")
    folder = root / "latent_upscale_models"
    folder.mkdir()
    (spatial,) = TINY_2_5.glob("*spatial-upscaler-x2*")
    temporal = TINY_2_3.with_name("ltx-2.3-tiny-temporal-upscaler-x2.safetensors")
    shutil.copy(spatial, folder)
    shutil.copy(temporal, folder / "ltx-2.5-temporal-upscaler-x2.safetensors")
    return root


@pytest.fixture
def picture(tmp_path) -> str:
    Picture.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def test_a_clip_is_sampled_on_a_canvas_at_the_frame_rate_before_the_rounds():
    asked = VideoPixelShape(41, 64, 64, 24.0)
    assert finished(asked, None) == finished(asked, 0) == asked
    assert finished(asked, 2) == VideoPixelShape(161, 64, 64, 96.0)
    assert dfr_recipe(2).staged(finished(asked, 2)) == asked._replace(frames=49)
    assert recipes.distilled().staged(asked) == asked
    with pytest.raises(
        UserError,
        match=r"2 rounds makes 1 \+ 4k frames, at least 5; got 164. For example: 121",
    ):
        dfr_recipe(2).staged(asked._replace(frames=164))


@pytest.mark.parametrize("rounds", [-1, 3])
def test_other_numbers_of_rounds_are_refused(rounds):
    for refused in (dfr_recipe, lambda rounds: finished(SHAPE, rounds)):
        with pytest.raises(UserError, match=f"from 0 to 2 rounds; got {rounds}"):
            refused(rounds)
    stages = (Stage((1.0, 0.0)),)
    with pytest.raises(UserError, match="from 0 to 2 rounds; got 3"):
        Recipe("distilled", stages, rounds=stages * 3).check()


def test_pictures_count_in_the_plan():
    recipe = dfr_recipe(1)
    work = Work(Request("a cat", finished(SHAPE, 1)), recipe)
    # Five latent frames of 2x2, a picture.
    tokens = [work.tokens(number, LTX_2.geometry).video for number in (0, 1)]
    assert tokens == [5 + 1, 4 * (5 + 1)]
    ((tile, tiles),) = work.round_tokens(
        LTX_2.geometry
    )  # nine latent frames, two pictures
    assert tile == AV(4 * (9 + 2)) and tiles == 1


def test_a_picture_moves_with_its_tile():
    image = Image("x.png", 24, 0.5)
    assert image.moved(2, 48, 144) == replace(image, frame=0)
    assert image.moved(4, 48, 144) == replace(image, frame=48)
    assert image.moved(1, 48, 144) is None


def test_a_picture_stands_in_each_tile_at_the_rate_that_its_round_tells(model, picture):
    components = Components.open(Files(model, dtype="float32"))
    pipeline = pipeline_for(components, dfr_recipe(2), health=False)
    shape = finished(VideoPixelShape(25, 64, 64, 24.0), 2)
    request = Request("a cat", shape, inputs=(Image(picture, 8),))
    encoding = pipeline._encode_inputs(request)
    while True:
        try:
            next(encoding)
        except StopIteration as done:
            (first,), (second, third) = done.value[2:]
            break
    (given,), (later,) = (tile[0].video for tile in (first, second))
    assert len(third) == 1  # which leads in from the first frame
    assert given.positions[0, 0, 0, 0].item() == pytest.approx(16 / 48)
    assert later.positions[0, 0, 0, 0].item() == pytest.approx(32 / 60)  # not 96
    layouts = pipeline.recipe.layouts(shape, LTX_2_5.geometry.video.time)
    assert [tile.start for tile in layouts[1]] == [0, 0]


def test_the_temporal_upsampler_is_fetched_where_it_is_missing(tmp_path, monkeypatch):
    file = tmp_path / "hub" / LTX_2_5.temporal_upsampler
    file.parent.mkdir(parents=True)
    temporal = TINY_2_3.with_name("ltx-2.3-tiny-temporal-upscaler-x2.safetensors")
    shutil.copy(temporal, file)
    asked = []

    def resolve(repository, files, notify):
        asked.append((repository, files))
        return tmp_path / "hub"

    monkeypatch.setattr("mlx_video.hub.resolve", resolve)
    root = split_checkpoint(tmp_path / "tiny")
    components = Components.open(root, needs=("transformer", "temporal_upsampler"))
    assert components.sources["temporal_upsampler"].path == file
    assert asked == [("Lightricks/LTX-2.5", [LTX_2_5.temporal_upsampler])]


def test_a_model_that_cannot_generate_pictures_is_told_at_once(tmp_path):
    components = Components.open(tiny_folder(tmp_path / "tiny"))
    pipeline = pipeline_for(components, dfr_recipe(0))
    with pytest.raises(UserError, match="cannot generate keyframes.*LTX-2.5 can"):
        pipeline.check(Request("a cat", SHAPE))
    assert type(pipeline_for(components, recipes.distilled())) is Pipeline


@pytest.mark.parametrize("name", [DEMO, LTX_2.repository])
@pytest.mark.parametrize(
    "recipe, inputs, sentence",
    [
        (dfr_recipe(1), (), "which DFR needs; LTX-2.5 can. Leave out --dfr"),
        (recipes.distilled(), (Keyframes(2),), "Leave out --keyframes"),
    ],
)
def test_such_a_model_is_refused_before_anything_is_fetched(
    name, recipe, inputs, sentence, monkeypatch
):
    monkeypatch.setattr("mlx_video.hub.plan", None)
    job = Job(Request("a cat", SHAPE, inputs=inputs), recipe, Files(name))
    with pytest.raises(UserError, match=f"cannot generate keyframes.*{sentence}"):
        [*run(job, Output(Path("new.mp4")))]


def test_keyframes_of_the_user_are_refused():
    request = Request("a cat", SHAPE, inputs=(Keyframes(2),))
    with pytest.raises(UserError, match="DFR generates keyframes.*leave out"):
        request.check(dfr_recipe(1))


@pytest.mark.slow
def test_a_run_of_two_tiles_is_as_long_as_asked_for_and_goes_on_to_the_same_bytes(
    model,
):
    recipe, components = dfr_recipe(1), Components.open(Files(model, dtype="float32"))
    pipeline = pipeline_for(components, recipe, health=False)
    assert isinstance(pipeline, DFRPipeline)
    shape = finished(VideoPixelShape(41, 64, 64, 24.0), 1)  # a canvas of 49, 97 frames
    request = Request("a cat on a mat", shape, audio=True)
    *events, whole = pipeline.events(request)
    assert whole.latents.map(lambda x: x.shape) == AV(*pipeline.latent_shapes(request).values)  # fmt: skip
    rounds = [e[1:3] for e in events if isinstance(e, Step) and e.phase == "round 1"]
    assert [n for n in range(9)] == [*dict(rounds)] and {8} == {*dict(rounds).values()}
    work = Work(request, recipe)
    footprint = Footprint(components.streaming(request.model_type))
    planned = [phase.name for phase in footprint.phases(work, 1e9)]
    steps = dict.fromkeys(e.phase for e in events if isinstance(e, Step))
    assert [n for n in steps if "load" not in n] == [
        n for n in dict.fromkeys(planned) if "decode" not in n
    ]
    last = [e for e in events if isinstance(e, Reached)][-1]
    assert (last.stage, last.step) == (1, 2) and last.sound is not None
    *_, again = pipeline.events(request, last)
    assert isinstance(again, Sample)
    assert all(map(mx.array_equal, again.latents.values, whole.latents.values))


@pytest.mark.slow
def test_a_clip_with_a_picture_from_the_command_line(
    model, picture, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["generate", "-p", "a cat on a mat", "--no-health-check", "--quiet"]
    words += ["--model", str(model), "-n", "9", "-W", "64", "-H", "64"]
    words += ["--dfr", "1", "--image", picture, "8", "-o", "x.mp4"]
    assert cli.main(words) == 0
    clip = read_clip(tmp_path / "x.mp4")
    assert len(clip.frames) == 17 and clip.audio.sample_rate == 48000
    assert cli.main([*words, "--variant", "dev"]) == 2


@pytest.fixture
def detailing(tmp_path) -> Path:
    """An IC-LoRA for the miniature, as the one that DFR's second stage is published with."""
    file, layer = tmp_path / "detailing-ic-lora.safetensors", "attn1.to_q"
    mx.random.seed(0)
    factors = {
        f"diffusion_model.transformer_blocks.0.{layer}.lora_{side}.weight": mx.random.normal(shape)
        for side, shape in {"A": (4, 88), "B": (88, 4)}.items()
    }  # fmt: skip
    stated = {"model_version": "2.5.0", "reference_downscale_factor": "2"}
    mx.save_safetensors(str(file), factors, stated)
    return file


def test_what_a_detailing_stage_looks_at_counts_in_the_plan(model):
    geometry = Components.open(model, needs=["video_decoder"]).geometry
    shape = VideoPixelShape(33, 64, 64, 24.0)
    request = Request("a cat", shape)
    plain, detailed = (Work(request, dfr_recipe(0, d)) for d in (0.0, 0.5))
    tokens = [work.tokens(1, geometry).video for work in (plain, detailed)]
    first = plain.recipe.shape(shape, 0)
    assert tokens[1] - tokens[0] == geometry.latents(first).tokens


def test_a_round_is_planned_with_all_of_its_tiles(model):
    parts = Components.open(model)
    request = Request("a cat", finished(VideoPixelShape(241, 64, 64, 24.0), 1))
    work = Work(request, dfr_recipe(1))
    footprint = Footprint(parts.streaming(request.model_type))
    ((tokens, tiles),) = work.round_tokens(parts.geometry)
    (stage,) = work.recipe.rounds
    one = parts.sketch("transformer").operations(tokens, footprint.context)
    *_, found = (p for p in footprint.phases(work, 1e9) if p.name == "round 1")
    assert tiles > 1
    assert found.operations == tiles * (len(stage.sigmas) - 1) * one


@pytest.mark.slow
def test_the_detailing_lora_is_of_the_second_stage_alone(model, detailing):
    request = Request("a cat on a mat", VideoPixelShape(33, 64, 64, 24.0), audio=False)
    sampled, loads, reached = [], [], []
    for recipe, file in ((dfr_recipe(0), None), (dfr_recipe(0, 0.5), detailing)):
        parts = Components.open(Files(model, dtype="float32", detailing_lora=file))
        *events, last = pipeline_for(parts, recipe, health=False).events(request)
        sampled.append(last.latents.video)
        steps = [e for e in events if isinstance(e, Step)]
        loads.append(sum(e.phase == "load transformer" and e.index for e in steps))
        reached.append({e.stage for e in events if isinstance(e, Reached)})
    assert sampled[0].shape == sampled[1].shape and loads == [1, 2]
    assert not mx.array_equal(*sampled)
    assert reached == [{0, 1}, {0}]  # in the second stage the smaller clip is not kept


def test_a_detailing_lora_needs_dfr_and_a_recipe_its_lora(model, detailing, capsys):
    words = ["generate", "-p", "cat", "--model", str(model)]
    assert cli.main([*words, "--detailing-lora", str(detailing)]) == 2
    assert "add --dfr 0" in capsys.readouterr().err
    with pytest.raises(UserError, match="pass --detailing-lora"):
        with Components.open(model, needs=["transformer"]).transformer(detailing=0.5):
            pass


def test_a_reference_is_as_many_times_smaller_as_the_lora_states():
    for stated, factor in {" 2 ": 2, "3.0": 3}.items():
        metadata = {"reference_downscale_factor": stated}
        assert lora.Adapter("a", {}, metadata).reference_downscale(1) == factor
    assert lora.Adapter("a", {}, {}).reference_downscale(2) == 2


@pytest.mark.parametrize("stated", ["0", "1.5", "two", "inf", "nan"])
def test_a_reference_that_makes_no_sense_is_refused(stated):
    adapter = lora.Adapter("a.safetensors", {}, {"reference_downscale_factor": stated})
    with pytest.raises(UserError, match="must be a whole number such as 2"):
        adapter.reference_downscale(2)
