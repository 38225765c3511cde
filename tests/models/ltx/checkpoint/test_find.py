"""Which model is used where none is named, and which files of a converted repository a run fetches."""

import mlx.core as mx
import pytest
from huggingface_hub import constants

from mlx_video import cli, hub
from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint import find
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.layouts import (
    CONVERTED,
    DEV,
    DISTILLED_LORA_FILES,
    Layout,
)
from mlx_video.models.ltx.checkpoint.releases import LTX_2, LTX_2_5
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.loading.components import Components


@pytest.mark.parametrize(
    "given",
    [
        {"text_encoder": "gemma"},
        {"upsampler": "x2.safetensors"},
        {"loras": [("owner/name/a.safetensors", 1.0)]},
        {"distilled_lora": "a.safetensors"},
    ],
)
def test_files_for_a_model_that_is_not_named_are_for_ltx_2(given, monkeypatch):
    monkeypatch.setattr(find, "default_model", lambda _: find.DEMO)
    assert find.model_of(Files(**given)) == LTX_2.repository
    assert find.model_of(Files("ltx-2.5", **given)) == LTX_2_5.repository
    assert find.model_of(Files()) == find.DEMO


def test_a_lora_says_which_model_it_is_for(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "plan", lambda *_: pytest.fail("the hub was asked"))
    told, file = [], tmp_path / "style.safetensors"
    pair = {f"x.lora_{half}.weight": mx.zeros((2, 2)) for half in "AB"}
    mx.save_safetensors(str(file), pair, {"model_version": "2.3.0"})
    loras = [("owner/name/a.safetensors", 1.0), (file, 1.0)]
    model = find.model_of(Files(loras=loras), told.append)
    assert model == "Lightricks/LTX-2.3" and "Using LTX-2.3 for owner/" in told[0]
    with pytest.raises(UserError, match="or a model of version 2.3.0"):
        Components.open(Files("ltx-2", loras=[(file, 1.0)]))


def test_a_lora_that_chose_the_release_is_named_before_the_release_is_missed(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    file = tmp_path / "style.safetensors"
    pair = {f"x.lora_{half}.weight": mx.zeros((2, 2)) for half in "AB"}
    mx.save_safetensors(str(file), pair, {"model_version": "2.3.0"})
    assert cli.main(["generate", "a ball", "--lora", str(file)]) == 2
    chosen, missed = capsys.readouterr().err.splitlines()
    assert chosen.startswith("Using LTX-2.3 for ")
    assert chosen.endswith("style.safetensors; --model names another.")
    assert missed.startswith("error: Lightricks/LTX-2.3 is not here")


def test_a_release_in_the_cache_goes_before_the_demo_model(monkeypatch):
    told, cached = [], {LTX_2_5.repository}
    monkeypatch.setattr(hub, "cached_bytes", lambda repository, _: repository in cached)
    assert find.default_model(told.append) == LTX_2_5.repository and not told
    cached.clear()
    assert find.default_model(told.append) == find.DEMO and find.DEMO in told[0]


def test_the_distilled_lora_is_fetched_where_only_the_dev_model_is(tmp_path):
    def wanted(*names: str) -> list[str]:
        held = {name: Source(tmp_path / name, {}) for name in names}
        for source in held.values():
            source.path.mkdir(exist_ok=True)
        own = {name: held[name] for name in names if name != DEV}
        layout = Layout(CONVERTED, tmp_path, own, folders=held)
        return find._wanted(layout, ("transformer",))

    assert DISTILLED_LORA_FILES in wanted(DEV)
    assert f"{DEV}/config.json" in wanted(DEV)
    assert DISTILLED_LORA_FILES not in wanted(DEV, "transformer")
    assert not any(DEV in name for name in wanted(DEV, "transformer"))
