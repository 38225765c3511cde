"""Parts that stay loaded between runs: the same clips sooner, within the plan, and freed when their time is over."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_video import recipes
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.residency import Shelf
from mlx_video.output import Output
from mlx_video.pipeline import Request
from mlx_video.record import Job
from mlx_video.run import Options, run
from mlx_video.types import AV, VideoPixelShape
from tests.checkpoints import MODEL, completed, tiny_folder, write_lora

LARGE = {"transformer", "text_encoder"}


@pytest.fixture
def model(tmp_path) -> Path:
    return tiny_folder(tmp_path / "tiny")


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """Names of the large parts that were read."""
    names, load = [], Components._load

    def counted(self, name, *others):
        names.extend({name} & LARGE)
        return load(self, name, *others)

    monkeypatch.setattr(Components, "_load", counted)
    return names


def job(model: Path, loras=(), **changes) -> Job:
    request = Request("a red ball", VideoPixelShape(9, 64, 64, 24.0), **changes)
    return Job(request, recipes.distilled(), Files(str(model), loras=loras))


def made(job: Job, folder: Path, shelf: Shelf | None, **options) -> bytes:
    path = folder / "x.mp4"
    for _ in run(job, Output(path, overwrite=True), Options(shelf=shelf, **options)):
        pass
    return path.read_bytes()


def loading(job: Job, folder: Path, shelf: Shelf, loaded: list[str]) -> list[str]:
    """What a run reads of the large parts until it samples, where it is ended."""
    loaded.clear()
    output = Output(folder / "y.mp4")
    with closing(run(job, output, Options(shelf=shelf))) as events:
        next(event for event in events if getattr(event, "phase", "") == "stage 1")
    return list(loaded)


@pytest.mark.slow
def test_the_second_clip_reads_nothing_large_and_is_the_same_even_after_a_failure(
    model, tmp_path, loaded
):
    shelf = Shelf()
    plain = made(job(model), tmp_path, None)
    assert sorted(loaded) == sorted(LARGE)
    assert sorted(loading(job(model), tmp_path, shelf, loaded)) == sorted(LARGE)
    loaded.clear()
    assert made(job(model), tmp_path, shelf) == plain and shelf.names == LARGE
    other = made(job(model, seed=7), tmp_path, shelf)
    assert other != plain and not loaded
    shelf.clear()
    assert not shelf.names


def test_a_part_kept_under_another_residency_is_read_again(model, loaded):
    shelf = Shelf()
    components = Components.open(Files(str(model), dtype="float32"))
    kept = replace(components.residency, keep=frozenset({"transformer"}))
    packed = replace(kept, quantize=8)
    more = replace(packed, keep=frozenset(LARGE))
    for residency, read in ((kept, True), (packed, True), (more, False)):
        loaded.clear()
        own = components.under(residency)
        own.shelf = shelf
        with own.lend("transformer"):
            assert loaded == ["transformer"] * read


@pytest.mark.slow
def test_what_is_made_otherwise_is_read_again(model, tmp_path, loaded):
    shelf = Shelf()
    assert sorted(loading(job(model), tmp_path, shelf, loaded)) == sorted(LARGE)
    with_sound = job(model, audio=True)
    assert loading(with_sound, tmp_path, shelf, loaded) == ["transformer"]
    lora = write_lora(
        tmp_path / "a.safetensors", "diffusion_model.transformer_blocks.0.attn1.to_q"
    )
    with_lora = job(model, loras=((str(lora), 1.0),), audio=True)
    assert made(with_lora, tmp_path, shelf) == made(with_lora, tmp_path, None)
    (model / MODEL).touch()  # written anew, perhaps with other weights
    assert "transformer" in loading(with_lora, tmp_path, shelf, loaded)


@pytest.mark.slow
def test_what_another_model_left_is_freed_before_the_run(model, tmp_path):
    shelf = Shelf()
    made(job(model), tmp_path, shelf)
    (kept,) = (
        part for name, (_, part) in shelf._parts.items() if name == "transformer"
    )
    lora = write_lora(
        tmp_path / "a.safetensors", "diffusion_model.transformer_blocks.0.attn1.to_q"
    )
    events = run(
        job(model, loras=((str(lora), 1.0),)),
        Output(tmp_path / "y.mp4"),
        Options(shelf=shelf),
    )
    next(
        event for event in events if getattr(event, "phase", "") == "load text encoder"
    )
    assert not kept.network.parameters() and "transformer" not in shelf.names
    events.close()


@pytest.mark.slow
def test_two_stages_with_a_lora_never_hold_two_transformers(model, tmp_path):
    file = model / "tiny-distilled-lora.safetensors"
    write_lora(file, "diffusion_model.transformer_blocks.0.attn1.to_q")
    completed(file, Components.open(model).sketch("transformer"))
    shelf = Shelf()
    plain = replace(recipes.VIDEO_GUIDANCE, stg_blocks=(1,))
    two = replace(job(model), recipe=recipes.dev(1, AV(plain, plain), two_stage=True))
    assert (
        made(two, tmp_path, shelf)
        == made(two, tmp_path, None)
        == made(two, tmp_path, shelf)
    )
    assert shelf.names == LARGE
