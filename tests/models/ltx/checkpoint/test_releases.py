"""Releases as data: which one a file is of, what follows from it, and one more that opens by its entry alone."""

import json
import shutil
from pathlib import Path
from typing import Iterator

import mlx.core as mx
import pytest

from mlx_video import cli, hub
from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint import find
from mlx_video.models.ltx.checkpoint.checks import check_distilled_lora
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.find import find_defaults
from mlx_video.models.ltx.checkpoint.layouts import Layout, identify, upsampler_kind
from mlx_video.models.ltx.checkpoint.releases import (
    GEMMA_3,
    LTX_2,
    LTX_2_3,
    LTX_2_5,
    RELEASES,
    Release,
    release_of,
)
from mlx_video.models.ltx.loading.components import Components, notify_log
from mlx_video.models.ltx.loading.parts import PARTS
from mlx_video.recipes import Defaults
from tests.checkpoints import MODEL, rewrite, tiny_folder, wide_gemma, write_lora
from tests.media_reading import read_clip
from tests.models.ltx.loading.test_parts import TINY_2_3, TINY_2_5, split_checkpoint
from tests.reference import CHECKPOINT, FIXTURES


@pytest.mark.parametrize(
    "version, release",
    [
        ("", LTX_2),
        ("2.0", LTX_2),
        ("1.9", LTX_2),
        ("2.3.0", LTX_2_3),
        ("2-3-1", LTX_2_3),
        ("2.5.0", LTX_2_5),
        ("2.10", LTX_2_5),
        ("next", LTX_2),
    ],
)
def test_a_stated_version_tells_the_release(version, release):
    assert release_of(version) is release


@pytest.mark.parametrize(
    "path, steps, block, crf, sampler",
    [
        (FIXTURES / "ltx2_tiny", 40, 29, 33, "euler"),
        (TINY_2_3, 30, 28, 33, "euler"),
        (TINY_2_5, 30, 28, 18, "euler_ancestral"),
    ],
)
def test_the_release_brings_its_defaults(path, steps, block, crf, sampler):
    defaults = Defaults.from_dict(identify(path).defaults)
    assert (defaults.steps, defaults.stg_blocks, defaults.image_crf) == (
        steps,
        (block,),
        crf,
    )
    first, second = defaults.recipe("distilled").stages
    assert (first.sampler.name, second.sampler.name) == (sampler, "euler")


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_states_numbers_that_defaults_take(release):
    assert Defaults.from_dict(release.defaults)
    assert release.files("dev") != release.files("distilled")
    assert all(PARTS[name].unlike for name in release.single.keys() & PARTS.keys())


def test_a_file_of_its_own_must_hold_the_part_that_it_is_for(tmp_path, monkeypatch):
    monkeypatch.setattr(find.Search, "_file", lambda *_: CHECKPOINT)
    for name, words in (("temporal_upsampler", "frames"), ("duration_head", "head")):
        with pytest.raises(UserError, match=f"ltx2.* {words}. Give .* of Lightricks"):
            find.Search(Files(), (), LTX_2_5, notify_log).single(name)


def test_a_converted_folder_keeps_its_release(tmp_path, monkeypatch):
    """The upscaler is not sought: a conversion takes what there is."""
    root = split_checkpoint(tmp_path / "model")
    file = root / "diffusion_models" / "ltx-2.5-tiny-transformer-bf16.safetensors"
    layout = identify(file)
    assert layout.stated["model_version"] == "2.5.0"
    assert "gemma4-12b-ltx-v1" in layout.stated["gemma_source_checkpoint"]
    folder = tmp_path / "mlx"
    (folder / "vocoder").mkdir(parents=True)
    (folder / "vocoder" / "config.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps(layout.stated))
    again = identify(folder)
    assert again.release is LTX_2_5 and again.defaults == layout.defaults


@pytest.fixture
def added(tmp_path, monkeypatch) -> Iterator[Path]:
    """A miniature of a release that one more entry names, as its hub has it; its config is not packed."""
    here = tiny_folder(tmp_path / "hub")
    file = here / "main" / "ltx-9.safetensors"
    file.parent.mkdir()
    shutil.move(here / MODEL, file)
    rewrite(file, metadata=lambda stated: stated.update(model_version="9.1"))
    (upscaler,) = here.glob("*upscaler*")
    shutil.move(upscaler, here / "up.safetensors")
    shutil.move(here / "text_encoder", tmp_path / "gemma")
    entry = Release(
        name="LTX-9",
        version=(9,),
        repository="Lightricks/LTX-9",
        gigabytes=90.0,
        licence="LTX-9 License",
        transformers=dict.fromkeys(("dev", "distilled"), "main/ltx-9.safetensors"),
        text_encoder=GEMMA_3,
        upsampler="up.safetensors",
        distilled_lora="distilled.safetensors",
        defaults={"width": 128, "height": 64, "frames": 9, "steps": 2},
    )

    def plan(repo, patterns):
        return {"Lightricks/LTX-9": here, GEMMA_3.place: tmp_path / "gemma"}[repo]

    monkeypatch.setattr(hub, "plan", plan)
    monkeypatch.setattr(hub, "fetch", lambda plans, notify: plans)
    before = RELEASES[:]
    RELEASES.append(entry)
    yield file
    RELEASES[:] = before


def test_one_more_repository_opens_by_its_entry(added, capsys):
    assert cli.main(["models"]) == 0
    assert "ltx-9" in capsys.readouterr().out
    assert cli.main(["info", str(added)]) == 0
    assert "9.1" in capsys.readouterr().out
    asked = ["--model", "ltx-9", "--prompt", "a ball"]
    assert cli.main(["plan", *asked]) == 0
    assert "decode video" in capsys.readouterr().out
    assert find_defaults("Lightricks/LTX-9", "dev")["steps"] == 2
    components = Components.open("ltx-9", variant="dev", needs=["transformer"])
    assert components.layout.release.name == "LTX-9"
    assert components.sources["transformer"].path == added


def test_a_lora_without_a_version_is_compared_with_the_releases_that_are_known(
    added, tmp_path
):
    """The added one's layers are not."""
    del RELEASES[:-1]
    lora = write_lora(tmp_path / "a.safetensors", "diffusion_model.x")
    assert cli.main(["info", str(lora)]) == 0


@pytest.mark.slow
def test_one_more_repository_makes_a_clip(added, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["--model", "ltx-9", "--prompt", "a ball", "-o", "a.mp4"]
    assert cli.main(["generate", *asked, "--no-health-check"]) == 0
    frames = read_clip(tmp_path / "a.mp4")[0]
    assert len(frames) == 9 and frames[0].shape == (64, 128, 3)


def test_2_5_is_fetched_file_by_file(tmp_path, monkeypatch):
    asked = []

    def plan(repo, patterns):
        asked.append((repo, *patterns))
        raise UserError("enough")

    monkeypatch.setattr(hub, "plan", plan)
    with pytest.raises(UserError, match="enough"):
        Components.open("Lightricks/LTX-2.5", variant="distilled")
    (files,) = asked
    assert files[:2] == (
        "Lightricks/LTX-2.5",
        "diffusion_models/ltx-2.5-22b-distilled-transformer-bf16.safetensors",
    )
    assert len(files) == 6 and not any("conv" in file for file in files)


@pytest.mark.parametrize(
    "named, sentence",
    [
        ({"text_encoder": "typo"}, "There is no file or folder typo"),
        ({"text_encoder": "tests/typo"}, "There is no file or folder tests/typo"),
        ({"upsampler": "/no/such.safetensors"}, "There is no file /no/such"),
        ({"distilled_lora": "a/typo.safetensors"}, "There is no file a/typo"),
        ({"loras": [("typo.safetensors", 1.0)]}, "There is no file typo.safetensors"),
    ],
)
def test_a_file_that_is_not_here_is_told_before_anything_is_fetched(
    named, sentence, monkeypatch
):
    monkeypatch.setattr(hub, "plan", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(UserError, match=sentence):
        Components.open(Files("Lightricks/LTX-2.3", **named), variant="dev")


def test_the_distilled_lora_of_another_release_is_told_by_its_rank(tmp_path):
    """2.3 and 2.5 have layers of the same shapes; a LoRA that somebody resized has a rank of its own."""
    file = tmp_path / "a.safetensors"

    def check(rank: int, version: str) -> None:
        A, B = mx.zeros((rank, 8)), mx.zeros((8, rank))
        mx.save_safetensors(str(file), {"x.lora_A.weight": A, "x.lora_B.weight": B})
        check_distilled_lora(
            file, Layout("", file, metadata={"model_version": version})
        )

    for rank, version in ((384, "2.3.0"), (450, "2.5.0"), (175, "2.5.0")):
        check(rank, version)
    with pytest.raises(
        UserError, match="has rank 384, like the distilled LoRA of LTX-2"
    ):
        check(384, "2.5.0")
    with pytest.raises(UserError, match="rank 450, like .* of LTX-2.5, .* is LTX-2.3"):
        check(450, "2.3.0")


@pytest.mark.slow
def test_a_language_model_of_another_size_is_told_before_anything_is_fetched(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(hub, "plan", lambda *_: pytest.fail("the hub was asked"))
    folder = tiny_folder(tmp_path / "model")
    gemma = folder / "text_encoder"
    with pytest.raises(
        UserError,
        match="text_encoder: this language model has .* LTX-2.3 was trained with 48",
    ):
        Components.open(Files("Lightricks/LTX-2.3", text_encoder=gemma), variant="dev")
    wide = wide_gemma(shutil.copytree(gemma, tmp_path / "wide"))
    with pytest.raises(UserError, match="wide: The text encoder has 64 channels"):
        Components.open(Files(folder, text_encoder=wide))
    (folder / "text_encoder" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="must be a Gemma"):
        Components.open(folder)


def test_a_newer_gemma_is_told_from_an_older(tmp_path):
    packed = TINY_2_5 / "ltx-2.5-tiny-gemma4-with-proj-bf16.safetensors"
    needs = ["connectors", "text_encoder"]
    with pytest.raises(
        UserError,
        match="trained with Gemma 3, but the text encoder is a Gemma 4|has .* channels",
    ):
        Components.open(Files(TINY_2_3, text_encoder=packed), needs=needs)


@pytest.mark.parametrize(
    "space, time, part",
    [
        (True, False, "upsampler"),
        (False, True, "temporal_upsampler"),
        (True, True, ""),
        (False, False, ""),
    ],
)
def test_an_upsampler_doubles_the_sides_or_the_frames(space, time, part):
    config = {"_class_name": "LatentUpsampler"}
    config |= {"spatial_upsample": space, "temporal_upsample": time}
    assert upsampler_kind(config) == part
