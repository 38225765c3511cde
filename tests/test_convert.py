"""Conversion: the same tensors as a direct load, bit for bit, whole or not at all."""

import json
import shutil
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_video import weights
from mlx_video.convert import convert, main
from mlx_video.models.ltx.checkpoint.describe import describe
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.parts import NEEDED, PARTS, quantize_blocks
from mlx_video.models.ltx.loading.residency import Residency
from tests.checkpoints import MODEL, rewrite, tiny_folder, wide_gemma
from tests.memory import Memory
from tests.models.ltx.loading.test_parts import split_checkpoint
from tests.reference import CHECKPOINT, checkpoint

MORE = partial(pytest.param, marks=pytest.mark.thorough)
NETWORKS = [name for name in NEEDED if name != "text_encoder"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("convert") / "model")


@pytest.fixture(scope="module")
def converted(folder, tmp_path_factory) -> Path:
    return convert(folder, tmp_path_factory.mktemp("converted") / "mlx")


def tensors(path: Path, name: str, dtype: str) -> dict[str, mx.array]:
    """A part's parameters, evaluated copies that outlive the loan."""
    with Components.open(Files(path, dtype=dtype)).lend(name) as module:
        return dict(tree_flatten(module.parameters()))


def assert_same(a: dict[str, mx.array], b: dict[str, mx.array]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype and mx.array_equal(a[key], b[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [MORE("float32"), "bfloat16"])
def test_loads_as_the_official_files_do(folder, converted, dtype):
    for name in NETWORKS:
        assert_same(tensors(converted, name, dtype), tensors(folder, name, dtype))


@pytest.mark.slow
def test_each_part_keeps_its_official_config(converted):
    _, config = checkpoint(CHECKPOINT)
    for name in NETWORKS:
        written = json.loads((converted / name / "config.json").read_text())
        if PARTS[name].block:
            assert written == config[PARTS[name].block]
    assert {f.name for f in converted.iterdir()} == {*NEEDED, "config.json"}
    stated = json.loads((converted / "config.json").read_text())
    assert stated == {"model_version": "2.0"}


@pytest.mark.slow
def test_gemma_goes_along_with_its_tokenizer(folder, converted):
    with Components.open(converted).lend("text_encoder") as encoder:
        assert len(encoder.tokenizer.encode("a cat")) == 3
    source, target = folder / "text_encoder", converted / "text_encoder"
    assert {f.name for f in target.iterdir()} == {f.name for f in source.iterdir()}


def test_a_tokenizer_beside_gemma_moves_in(tmp_path):
    model = tiny_folder(tmp_path / "model")
    (model / "tokenizer").mkdir()
    for file in (model / "text_encoder").glob("tokenizer*"):
        file.rename(model / "tokenizer" / file.name)
    convert(model, tmp_path / "mlx")
    assert (tmp_path / "mlx" / "text_encoder" / "tokenizer.json").is_file()


def test_writes_only_what_there_is(tmp_path):
    shutil.copy(CHECKPOINT, tmp_path / MODEL)
    convert(tmp_path / MODEL, tmp_path / "mlx")
    written = {f.name for f in (tmp_path / "mlx").iterdir()}
    single = {name for name, part in PARTS.items() if part.block}
    assert written == single | {"config.json"}


def test_another_dtype_rounds_all_but_the_tables(folder, tmp_path):
    convert(folder, tmp_path / "mlx", dtype=mx.float16)
    stored, _ = weights.read(tmp_path / "mlx" / "transformer")
    for key, value in stored.items():
        table = "scale_shift_table" in key
        assert value.dtype == (mx.float32 if table else mx.float16)


@pytest.mark.slow
@pytest.mark.parametrize("bits, group_size", [(8, 32), MORE(4, 64)])
def test_quantized_is_what_mlx_makes_of_the_loaded_module(
    folder, tmp_path, bits, group_size
):
    convert(
        folder, tmp_path / "mlx", quantize=True, q_bits=bits, q_group_size=group_size
    )
    with Components.open(Files(folder, dtype="bfloat16")).lend("transformer") as model:
        quantize_blocks(model, group_size, bits)
        expected = dict(tree_flatten(model.parameters()))
        mx.eval(expected)
    assert_same(tensors(tmp_path / "mlx", "transformer", "bfloat16"), expected)
    config = json.loads((tmp_path / "mlx" / "transformer" / "config.json").read_text())
    assert config["quantization"] == dict(
        group_size=group_size, bits=bits, mode="affine"
    )
    for name in set(NETWORKS) - {"transformer"}:
        assert_same(
            tensors(tmp_path / "mlx", name, "bfloat16"),
            tensors(folder, name, "bfloat16"),
        )


@pytest.mark.slow
@pytest.mark.parametrize("text_only", [False, True])
def test_gemma_is_quantized_as_on_load_and_as_mlx_lm_reads_it(tmp_path, text_only):
    model = tiny_folder(tmp_path / "model")
    source = wide_gemma(model / "text_encoder", text_only)
    index = {"weight_map": {"model.norm.weight": "model.safetensors"}}
    (source / weights.INDEX).write_text(json.dumps(index))
    convert(model, tmp_path / "q", quantize=True)
    converted = tmp_path / "q" / "text_encoder"
    shards = [file.name for file in converted.glob("*.safetensors")]
    assert shards == ["model-00001-of-00001.safetensors"]
    found = [
        Components({"text_encoder": Source.of(path)}, Residency(mx.float32, asked))
        for path, asked in ((source, 8), (converted, None))
    ]
    held, states = [], []
    for components in found:
        with components.lend("text_encoder") as encoder:
            held.append(dict(tree_flatten(encoder.model.parameters())))
            states.append(encoder.features(["A cat walks."], 16).hidden_states)
    assert_same(*held)
    assert mx.array_equal(*states)
    from mlx_lm.utils import load_model  # takes seconds to import

    theirs, _ = load_model(converted)
    theirs = dict(tree_flatten(theirs.parameters()))
    prefix = "" if text_only else "language_model."
    assert_same({prefix + key: value for key, value in held[0].items()}, theirs)


@pytest.mark.slow
def test_a_quantized_gemma_goes_along_as_it_is(folder, tmp_path):
    model = tiny_folder(tmp_path / "model")
    gemma = tmp_path / "q" / "text_encoder"
    convert(folder, tmp_path / "q", quantize=True, q_group_size=32)
    shutil.copytree(gemma, model / "text_encoder", dirs_exist_ok=True)
    (model / "text_encoder" / "model.safetensors").unlink()
    convert(model, tmp_path / "again", quantize=True, q_bits=4)
    for file in gemma.iterdir():
        same = tmp_path / "again" / "text_encoder" / file.name
        assert same.read_bytes() == file.read_bytes()


def test_only_linears_of_the_blocks_are_quantized(folder):
    with Components.open(folder).lend("transformer") as model:
        quantize_blocks(model, 32, 8)
        kinds = {
            path: isinstance(layer, nn.QuantizedLinear)
            for path, layer in model.named_modules()
            if isinstance(layer, (nn.Linear, nn.QuantizedLinear))
        }
    assert {
        path.startswith("transformer_blocks.") for path, q in kinds.items() if q
    } == {True}
    assert all(q for path, q in kinds.items() if path.startswith("transformer_blocks."))
    assert not kinds["video.patchify_proj"] and not kinds["video.proj_out"]


@pytest.mark.slow
def test_a_quantized_folder_is_not_quantized_again(folder, tmp_path):
    convert(folder, tmp_path / "q", quantize=True, q_group_size=32)
    with pytest.raises(ValueError, match="q is quantized already; convert the"):
        convert(tmp_path / "q", tmp_path / "again", quantize=True, q_bits=4)
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_a_quantized_folder_converts_again(folder, tmp_path):
    convert(folder, tmp_path / "q", quantize=True, q_group_size=32)
    convert(tmp_path / "q", tmp_path / "again")
    assert_same(
        tensors(tmp_path / "again", "transformer", "bfloat16"),
        tensors(tmp_path / "q", "transformer", "bfloat16"),
    )
    assert describe(tmp_path / "again").parts["transformer"].quantization["bits"] == 8


def test_memory_stays_near_one_shard(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 100_000)
    memory = Memory()
    convert(folder, tmp_path / "mlx")
    assert memory.peak < 1_500_000  # of 5.2 million bytes
    assert memory.held < 10_000
    assert len(list((tmp_path / "mlx" / "transformer").glob("*.safetensors"))) > 5


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    model = tiny_folder(tmp_path / "model")
    rewrite(model / MODEL, weights=lambda w: w.pop("vocoder.conv_pre.weight"))
    with pytest.raises(
        ValueError, match=r"does not fit Vocoder: 1 missing \(conv_pre.weight\)"
    ):
        convert(model, tmp_path / "mlx")
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


# The door


@pytest.mark.slow
def test_the_command_converts(folder, tmp_path, capsys):
    target = tmp_path / "mlx"
    flags = f"--hf-path {folder} --mlx-path {target} --dtype bfloat16 -q --q-bits 8 --q-group-size 32"
    assert main(flags.split()) == 0
    out, err = capsys.readouterr()
    assert out == f"{target}\n" and "converting transformer\n" in err
    assert Components.open(target)


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            "--hf-path no/such/thing --mlx-path {tmp}/mlx",
            "There is no file or folder no/such/thing",
        ),
        (
            "--hf-path {tmp}/empty --mlx-path {tmp}/mlx",
            "There is no checkpoint of LTX-2 in {tmp}/empty",
        ),
        (
            "--hf-path {model} --mlx-path {model}",
            "{model} already exists and is not empty",
        ),
        (
            "--hf-path {model} --mlx-path {tmp}/mlx -q --q-bits 7",
            "got 7 bits in groups of 64. The usual choice is 8",
        ),
        (
            "--hf-path {model} --mlx-path {tmp}/mlx -q --q-group-size 48",
            "got 8 bits in groups of 48",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    folder, tmp_path, capsys, flags, message
):
    (tmp_path / "empty").mkdir()
    names = dict(tmp=tmp_path, model=folder)
    assert main(flags.format(**names).split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("error: ") and message.format(**names) in err
    assert [f.name for f in tmp_path.iterdir()] == ["empty"]


@pytest.mark.slow
def test_a_checkpoint_of_one_file_a_part_is_converted_whole(tmp_path):
    """The connectors' projection leaves the text encoder's file, and its tokenizer becomes a file."""
    root = split_checkpoint(tmp_path / "model")
    convert(root, tmp_path / "mlx")
    found = Components.open(tmp_path / "mlx", needs=["connectors", "text_encoder"])
    assert found.layout.version == "2.5.0" and found.layout.defaults["image_crf"] == 18
    assert (tmp_path / "mlx" / "text_encoder" / "tokenizer.json").is_file()
    contexts = []
    for path in (root, tmp_path / "mlx"):
        parts = Components.open(
            Files(path, dtype="float32"), needs=["connectors", "text_encoder"]
        )
        with parts.lend("text_encoder") as encoder:
            features = encoder.features(["a cat"])
        with parts.lend("connectors") as connectors:
            contexts.append(connectors(*features).video)
            mx.eval(contexts)
    assert mx.array_equal(*contexts)
