"""Checkpoint files: what is read, what is refused, what is loaded and what is saved."""

import json
import shutil
import struct

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_video import weights
from mlx_video.errors import UserError
from mlx_video.weights import (
    load_into,
    materialize,
    read,
    read_config,
    read_header,
    save_folder,
)
from tests.checkpoints import write_raw
from tests.memory import Memory
from tests.reference import CHECKPOINT


class Net(nn.Module):
    """Two Linears, one of them in a list, and a table."""

    def __init__(self):
        super().__init__()
        self.blocks = [nn.Linear(64, 96)]
        self.head = nn.Linear(96, 8)
        self.scale_shift_table = mx.zeros((2, 8))


def parameters(module: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(module.parameters()))


def filled(**changes) -> dict[str, mx.array]:
    mx.random.seed(0)
    values = {k: mx.random.normal(v.shape) for k, v in parameters(Net()).items()}
    return values | changes


def same(a: dict[str, mx.array], b: dict[str, mx.array]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and mx.array_equal(a[k], b[k]) for k in a
    )


# Reading


def test_reads_a_file_with_its_metadata():
    tensors, metadata = read(CHECKPOINT)
    assert len(tensors) == 668
    assert json.loads(metadata["config"]) == read_config(CHECKPOINT)
    assert tensors["vae.decoder.conv_in.conv.bias"].shape == (32,)


def test_reads_nothing_before_it_is_evaluated():
    memory = Memory()
    tensors, _ = read(CHECKPOINT)
    assert memory.held < 1000
    mx.eval(tensors["vae.decoder.conv_in.conv.bias"])
    assert memory.held < 1000


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty: the download did not finish"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not a safetensors file"),
        (b"<!doctype html>", "is not a safetensors file"),
        (b"abc", "is not a safetensors file"),
        (
            struct.pack("<Q", 10**6) + b'{"a"',
            "is cut off or damaged: .* its 12 bytes",
        ),
    ],
)
def test_refuses_what_is_no_whole_safetensors_file(tmp_path, content, message):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} {message}"):
        read(file)


def test_refuses_a_file_that_is_too_short_or_too_long(tmp_path):
    file = tmp_path / "model.safetensors"
    whole = CHECKPOINT.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="is cut off or damaged: .* Fetch it again"):
        read(file)
    file.write_bytes(whole + b"!")
    with pytest.raises(ValueError, match="is cut off or damaged: .* Fetch it again"):
        read(file)


def test_refuses_a_dtype_that_mlx_lacks(tmp_path):
    file = write_raw(tmp_path / "a.safetensors", {"x": ("F8_E5M2", [1], b"\0")})
    with pytest.raises(ValueError, match=f"{file} holds numbers of type F8_E5M2"):
        read(file)


def test_names_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file or folder .*nope"):
        read(tmp_path / "nope")
    with pytest.raises(FileNotFoundError, match="There is no safetensors file in"):
        read(tmp_path)
    (tmp_path / weights.INDEX).write_text('{"weight_map": {"a": "1.safetensors"}}')
    with pytest.raises(FileNotFoundError, match="lacks 1.safetensors, named in its"):
        read(tmp_path)
    (tmp_path / weights.INDEX).write_text("{")
    with pytest.raises(ValueError, match="index.json is not valid JSON"):
        read(tmp_path)


def test_refuses_a_config_that_is_not_json(tmp_path):
    file = tmp_path / "a.safetensors"
    mx.save_safetensors(str(file), {"x": mx.zeros(1)}, {"config": "{"})
    with pytest.raises(ValueError, match=f"The config inside {file} is not valid JSON"):
        read_config(file)
    (tmp_path / "config.json").write_text("no")
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"must be a JSON object; got \[1\]"):
        read_config(tmp_path)


# Loading


def test_loads_every_tensor():
    net, given = Net(), filled()
    load_into(net, given)
    assert same(parameters(net), given)


def test_casts_floats_but_not_the_tables():
    net = Net()
    load_into(net, filled(), dtype=mx.bfloat16)
    assert net.head.weight.dtype == mx.bfloat16
    assert net.scale_shift_table.dtype == mx.float32


def test_names_every_misfit():
    given = filled(extra=mx.zeros(1), **{"head.bias": mx.zeros(9)})
    del given["head.weight"]
    given["scale_shift_table"] = mx.zeros((2, 8), mx.uint8)
    with pytest.raises(ValueError) as error:
        load_into(Net(), given, source="file.safetensors")
    assert str(error.value) == (
        "file.safetensors does not fit Net: 1 missing (head.weight); 1 unexpected (extra); "
        "1 of the wrong shape (head.bias (9,) instead of (8,)); 1 of the wrong type (scale_shift_table mlx.core.uint8)."
    )


def test_names_only_the_first_few_misfits():
    given = filled(**{f"extra{i}": mx.zeros(1) for i in range(7)})
    with pytest.raises(
        ValueError, match=r"7 unexpected \(extra0, extra1, extra2, extra3 and 3 more\)"
    ):
        load_into(Net(), given)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64])
def test_quantizes_where_the_tensors_are(bits, group_size):
    trained = Net()
    nn.quantize(
        trained, group_size, bits, class_predicate=lambda path, _: "blocks" in path
    )
    net = Net()
    load_into(net, parameters(trained), dtype=mx.bfloat16)
    layer = net.blocks[0]
    assert (layer.bits, layer.group_size) == (bits, group_size)
    assert layer.weight.dtype == mx.uint32 and layer.scales.dtype == mx.bfloat16
    assert isinstance(net.head, nn.Linear)
    assert mx.array_equal(layer.weight, trained.blocks[0].weight)


def test_reads_the_mode_of_quantization():
    trained = Net()
    nn.quantize(
        trained, 32, 4, mode="mxfp4", class_predicate=lambda path, _: "blocks" in path
    )
    net = Net()
    load_into(net, parameters(trained), mode="mxfp4")
    assert net.blocks[0].mode == "mxfp4"
    x = mx.ones((1, 64))
    assert mx.array_equal(net.blocks[0](x), trained.blocks[0](x))


def test_refuses_impossible_quantization():
    given = filled(**{"head.scales": mx.zeros((8, 7))})
    with pytest.raises(ValueError, match="quantized in a way MLX cannot read"):
        load_into(Net(), given)


def test_materializes_all_of_a_module(tmp_path):
    file = tmp_path / "net.safetensors"
    mx.save_safetensors(str(file), filled())
    net = Net()
    load_into(net, read(file)[0])
    memory = Memory()
    materialize(net, batch_bytes=1)
    assert memory.held >= sum(v.nbytes for v in filled().values())


def test_a_module_is_evaluated_a_part_at_a_time(monkeypatch):
    seen, evaluate = [], mx.eval
    monkeypatch.setattr(mx, "eval", lambda batch: seen.append(batch) or evaluate(batch))
    net = Net()
    materialize(net, batch_bytes=1)
    assert max(map(len, seen)) == 1
    assert sum(map(len, seen)) == len(parameters(net))


def test_a_file_that_mlx_refuses_is_named(tmp_path, monkeypatch):
    def refuse(name):
        raise RuntimeError("[load_safetensors] no")

    file = tmp_path / "a.safetensors"
    mx.save_safetensors(str(file), {"a": mx.zeros(2)})
    monkeypatch.setattr(mx, "load", refuse)
    with pytest.raises(UserError, match="a.safetensors cannot be read by MLX. Fetch"):
        read(file)


# Saving


def test_saves_shards_that_read_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 5000)
    given = filled(table=mx.arange(3, dtype=mx.uint32))
    folder = tmp_path / "net"
    save_folder(folder, dict(given), {"width": 64})
    tensors, metadata = read(folder)
    assert same(tensors, given) and metadata == {"format": "mlx"}
    assert read_config(folder) == {"width": 64}
    index = json.loads((folder / weights.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in given.values())
    names = sorted(f.name for f in folder.glob("*.safetensors"))
    assert names == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in names:
        header = read_header(folder / name).tensors
        assert {k for k, v in index["weight_map"].items() if v == name} == header.keys()


def test_saving_empties_what_it_was_given(tmp_path):
    given = filled()
    save_folder(tmp_path / "net", given, {})
    assert given == {}


def test_saves_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(mx, "save_safetensors", fail)
    with pytest.raises(UserError, match="disk full"):
        save_folder(tmp_path / "net", filled(), {})
    assert list(tmp_path.iterdir()) == []


def test_never_writes_over_anything(tmp_path):
    (tmp_path / "net").mkdir()
    save_folder(tmp_path / "net", filled(), {})
    with pytest.raises(ValueError, match="net already exists and is not empty"):
        save_folder(tmp_path / "net", filled(), {})
    shutil.rmtree(tmp_path / "net")
    (tmp_path / "net").write_text("a file")
    with pytest.raises(ValueError, match="already exists"):
        save_folder(tmp_path / "net", filled(), {})
