"""The packaged model and the official layout hold the same tensors, and both are read by the product's own code."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_video import lora
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.parts import PARTS
from tests.reference import CHECKPOINT, UPSCALER
from tiny import model, pack
from tiny.model import CONFIGS, fresh, store

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CONFIGS)
def test_official_names_are_what_sanitize_undoes(name):
    file = UPSCALER if name == "upsampler" else CHECKPOINT
    theirs = mx.load(str(file))
    ours = PARTS[name].network(Source(file, {})).sanitize(theirs)
    renamed = pack.official(name, ours)
    if name == "upsampler":  # the fixture's has the other resampler, and a blur
        ours = {k: v for k, v in ours.items() if not k.startswith("resample.")}
        renamed = pack.official(name, ours)
    assert renamed.keys() <= theirs.keys()
    for key, value in renamed.items():
        assert mx.array_equal(value, theirs[key]), key


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A work folder with random parts and no text encoder yet."""
    with pytest.MonkeyPatch.context() as patch:
        work = tmp_path_factory.mktemp("work")
        for module in (model, pack):
            patch.setattr(module, "WORK", work)
        (work / "text_encoder").mkdir()
        for name in pack.TEXT_FILES:
            (work / "text_encoder" / name).write_text('{"model_type": "gemma3_text"}')
        language = work / "text_encoder" / "model.safetensors"
        mx.save_safetensors(str(language), {"model.norm.weight": mx.ones(4)})
        for name in pack.FOLDERS:
            store(name, fresh(model.folder_part(name)))
        store(pack.DISTILLED, nudged(model.load(pack.DEV)))
        yield work


@pytest.fixture(scope="module")
def packed(untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "ltx-2-tiny"
    pack.pack(folder)
    return folder


def nudged(transformer):
    """A change of rank 1 in one layer, as a distillation might make."""
    layer = transformer.transformer_blocks[0].video.attn1.to_q
    rows, columns = layer.weight.shape
    layer.weight = layer.weight + 0.1 * mx.ones((rows, 1)) @ mx.ones((1, columns))
    return transformer


def test_both_layouts_are_read_and_agree(untrained, tmp_path):
    needs = tuple(CONFIGS)
    file = pack.write_official(tmp_path / "official", "dev")
    single = Components.open(Files(file, dtype="float32"), needs=needs)
    for name in needs:
        part = pack.DEV if name == "transformer" else name
        stored = dict(tree_flatten(model.load(part).parameters()))
        read = dict(tree_flatten(single.sketch(name).parameters()))
        assert stored.keys() == read.keys()
        assert all(mx.array_equal(stored[key], read[key]) for key in stored), name


def test_package_is_small(untrained, packed):
    files = [f for f in packed.rglob("*") if f.is_file()]
    gemma = 1.4e6  # and its tokenizer, which are not in there
    assert sum(f.stat().st_size for f in files) < 25e6 - gemma


def test_packed_transformer_is_quantized_in_its_blocks_only(packed):
    weights = mx.load(str(next((packed / pack.DEV).glob("*.safetensors"))))
    assert "transformer_blocks.0.video.attn1.to_q.scales" in weights
    assert weights["video.patchify_proj.weight"].dtype == mx.float16
    language = mx.load(str(packed / "text_encoder" / "model.safetensors"))
    assert language["model.norm.weight"].dtype == mx.float16


def test_packed_lora_turns_dev_into_distilled(untrained, packed):
    dev = PARTS["transformer"].build(Source.of(packed / pack.DEV), mx.float32)
    lora.fuse(dev, lora.Adapter.read(packed / pack.LORA_FILE))
    distilled = model.load(pack.DISTILLED)
    for path in (
        "transformer_blocks.0.video.attn1.to_q",
        "transformer_blocks.1.video.ff.proj_in",
    ):
        fused = dict(dev.named_modules())[path].weight
        wanted = dict(distilled.named_modules())[path].weight
        # What is left is the rounding to 6 bits, 1.6 % of uniform weights, less its largest components.
        assert mx.linalg.norm(fused - wanted) < 0.02 * mx.linalg.norm(wanted)


def test_packed_parts_are_trained_further(packed, tmp_path, monkeypatch):
    for module in (model, pack):
        monkeypatch.setattr(module, "WORK", tmp_path)
        monkeypatch.setattr(module, "PACKAGED", packed)
    assert pack.unpack() == tmp_path
    language = mx.load(str(tmp_path / "text_encoder" / "model.safetensors"))
    assert language["model.norm.weight"].dtype == mx.float32
    for name in ("vocoder", pack.DEV):
        part, config = model.folder_part(name), tmp_path / name / "config.json"
        quantized = PARTS[part].build(Source.of(packed / name), mx.float32)
        before, after = map(pack.dense_weights, (quantized, model.load(name)))
        assert (
            before.keys() == after.keys() and "quantization" not in config.read_text()
        )
        assert all(mx.array_equal(before[key], after[key]) for key in before), name
    layers = (net.transformer_blocks[0].video.ff.proj_in for net in (quantized, model.load(pack.DEV)))  # fmt: skip
    x = mx.random.normal((2, quantized.config.streams.video.width))
    assert mx.allclose(*(layer(x) for layer in layers), atol=1e-4)
    assert (tmp_path / "text_encoder" / "config.json").is_file()
    with pytest.raises(FileExistsError, match="already"):
        pack.unpack()


def test_a_missing_part_leaves_the_package_as_it_was(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "WORK", tmp_path)  # where no text encoder is
    before = sorted(packed.rglob("*"))
    with pytest.raises(FileNotFoundError):
        pack.pack(packed)
    assert sorted(packed.rglob("*")) == before
