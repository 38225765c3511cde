"""Checkpoints as other projects keep them: the miniature, written out as each does, loads as the official file does."""

import json
import shutil
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_video.cli import main
from mlx_video.convert import convert
from mlx_video.errors import UserError
from mlx_video.linear import dense_weight
from mlx_video.models.ltx.checkpoint import foreign
from mlx_video.models.ltx.checkpoint.describe import describe
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.layouts import identify
from mlx_video.models.ltx.checkpoint.releases import Release
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.parts import PARTS
from tests import layout_writers as write
from tests.media_reading import read_clip
from tests.reference import CHECKPOINT, FIXTURES, UPSCALER, error
from tests.tiny_tokenizer import make_text_encoder_folder

MORE = partial(pytest.param, marks=pytest.mark.thorough)
NEEDS = [name for name, part in PARTS.items() if part.block]


class Official(NamedTuple):
    """A miniature's tensors and its config, and the file that they are from."""

    weights: dict[str, mx.array]
    blocks: dict[str, dict]
    file: Path


FILES = {"2.0": CHECKPOINT, "2.3": FIXTURES / "ltx23_tiny/ltx-2.3-tiny.safetensors"}


@pytest.fixture(scope="module", params=FILES)
def official(request) -> Official:
    file = FILES[request.param]
    weights, metadata = mx.load(str(file), return_metadata=True)
    return Official(weights, json.loads(metadata["config"]), file)


def parameters(components: Components, name: str) -> dict[str, mx.array]:
    return dict(tree_flatten(components.sketch(name).parameters()))


@cache
def official_parts(file: Path) -> Components:
    return Components.open(Files(file, dtype="float32"), needs=NEEDS)


@cache
def official_parameters(file: Path, name: str) -> dict[str, mx.array]:
    return parameters(official_parts(file), name)


def check_same(path, layout: str, file: Path, absent: tuple[str, ...] = ()) -> None:
    """``path`` has the defaults of the official ``file``, and every part the very weights."""
    needs = [name for name in NEEDS if name not in absent]
    found = Components.open(Files(path, dtype="float32"), needs=needs)
    true = official_parts(file)
    assert found.layout.name == layout
    assert found.layout.version.startswith(true.layout.version[:3])
    assert found.layout.defaults == true.layout.defaults
    for name in needs:
        ours, theirs = parameters(found, name), official_parameters(file, name)
        assert ours.keys() == theirs.keys()
        assert all(mx.array_equal(ours[key], theirs[key]) for key in ours), name


@pytest.fixture
def miniature(monkeypatch, official):
    """Packs that state no config of their own are miniatures here."""
    monkeypatch.setattr(Release, "blocks", property(lambda release: official.blocks))


@pytest.mark.slow
@pytest.mark.parametrize("contain", [MORE(False), True])
def test_a_pack_of_mlx_forge_loads_as_it_is(tmp_path, official, contain):
    check_same(
        write.write_forge(tmp_path, *official[:2], contain),
        foreign.FORGE,
        official.file,
    )


@pytest.mark.slow
def test_a_pack_of_mlx_video_loads_as_it_is(tmp_path, official, miniature):
    folder = write.write_prince(tmp_path, *official[:2])
    check_same(folder, foreign.PRINCE, official.file, absent=("audio_encoder",))


@pytest.mark.slow
@pytest.mark.parametrize("file", ["", MORE("model.safetensors")])
def test_a_unified_file_loads_as_it_is(tmp_path, official, miniature, file):
    folder = write.write_unified(tmp_path, official.weights)
    check_same(folder / file, foreign.UNIFIED, official.file, absent=("audio_encoder",))


@pytest.mark.slow
@pytest.mark.parametrize("bare", [MORE(False), True])
def test_files_of_comfyui_load_as_they_are(tmp_path, official, miniature, bare):
    folder = write.write_comfy(tmp_path, *official[:2], bare)
    file = folder / "diffusion_models/ltx-distilled.safetensors"
    for path in (folder, file):
        check_same(path, "official files, one per part", official.file)


def diffusers_configs(blocks: dict) -> dict[str, dict]:
    """What diffusers would state of the miniature."""
    t, v = blocks["transformer"], blocks["vae"]
    d = blocks["audio_vae"]["model"]["params"]["ddconfig"]
    c, pre = blocks["vocoder"], blocks["audio_vae"]["preprocessing"]
    same = foreign_same(t) | {"rope_type": t["rope_type"]}
    max_pos = t["positional_embedding_max_pos"]
    transformer = same | {
        "pos_embed_max_pos": max_pos[0],
        "base_height": max_pos[1],
        "base_width": max_pos[2],
        "audio_pos_embed_max_pos": t["audio_positional_embedding_max_pos"][0],
        "rope_theta": t["positional_embedding_theta"],
        "rope_double_precision": True,
        "cross_attn_timestep_scale_multiplier": 1000,
    }
    newer = t.get("caption_proj_before_connector", False)
    if newer:
        transformer |= {"gated_attn": True, "cross_attn_mod": True}
    connectors = {
        "caption_channels": t["caption_channels"],
        "connector_rope_base_seq_len": t["connector_positional_embedding_max_pos"][0],
        "per_modality_projections": newer,
        "video_gated_attn": newer,
    }
    for side, keys in (("video", t), ("audio", {**t, **audio_connectors(t)})):
        for key in keys:
            if key.startswith(("connector_num_", "connector_attention_head_dim")):
                connectors[f"{side}_{key}"] = keys[key]
    kinds = {"space": "spatial", "time": "temporal", "all": "spatiotemporal"}
    down = [b for b in v["encoder_blocks"] if b[0].startswith("compress")]
    up = [b for b in v["decoder_blocks"] if b[0].startswith("compress")]
    layers = {
        side: [b[1]["num_layers"] for b in v[f"{side}_blocks"] if b[0] == "res_x"]
        for side in ("encoder", "decoder")
    }
    widths, before = [], [v["decoder_base_channels"]]
    width = v["encoder_base_channels"]
    for _, options in down:
        widths.append(width := width * options["multiplier"])
    for _, options in up:
        before.append(before[-1] * options["multiplier"])
    vae = {
        "latent_channels": v["latent_channels"],
        "block_out_channels": widths,
        "decoder_block_out_channels": before[1:],
        "layers_per_block": layers["encoder"],
        "decoder_layers_per_block": layers["decoder"],
        "downsample_type": [kinds[b[0].split("_")[1]] for b in down],
        "upsample_type": [kinds[b[0].split("_")[1]] for b in up][::-1],
        "upsample_residual": [b[1].get("residual", False) for b in up],
        "upsample_factor": [b[1]["multiplier"] for b in up],
        "patch_size": v["patch_size"],
        "decoder_causal": False,
        "encoder_spatial_padding_mode": "zeros",
        "decoder_spatial_padding_mode": v.get("spatial_padding_mode", "reflect"),
    }
    audio = {
        "base_channels": d["ch"],
        "output_channels": d["out_ch"],
        "latent_channels": d["z_channels"],
        "sample_rate": blocks["audio_vae"]["model"]["params"]["sampling_rate"],
        "mel_hop_length": pre["stft"]["hop_length"],
        "mel_bins": d["mel_bins"],
        **{k: d[k] for k in ("ch_mult", "num_res_blocks", "in_channels", "norm_type", "causality_axis")},
    }  # fmt: skip
    vocoder = generator(c.get("vocoder", c), "") | {"output_sampling_rate": 24000}
    if extension := c.get("bwe"):
        vocoder |= generator(extension, "bwe_") | {
            "act_fn": extension["activation"],
            "filter_length": extension["n_fft"],
            "window_length": extension["win_size"],
            "num_mel_channels": extension["num_mels"],
            "hop_length": extension["hop_length"],
            "input_sampling_rate": extension["input_sampling_rate"],
            "output_sampling_rate": extension["output_sampling_rate"],
        }
    return {"transformer": transformer, "connectors": connectors, "vae": vae, "audio_vae": audio, "vocoder": vocoder}  # fmt: skip


def audio_connectors(block: dict) -> dict:
    """The connectors' settings of the audio's under the names of the video's."""
    start = "audio_connector_"
    return {
        f"connector_{key.removeprefix(start)}": value
        for key, value in block.items()
        if key.startswith(start)
    }


def generator(block: dict, prefix: str) -> dict:
    theirs = {
        "hidden_channels": "upsample_initial_channel",
        "upsample_factors": "upsample_rates",
        "upsample_kernel_sizes": "upsample_kernel_sizes",
        "resnet_kernel_sizes": "resblock_kernel_sizes",
        "resnet_dilations": "resblock_dilation_sizes",
    }
    return {f"{prefix}{name}": block[official] for name, official in theirs.items()}


def foreign_same(block: dict) -> dict:
    from mlx_video.models.ltx.checkpoint.foreign_configs import SAME

    return {key: block[key] for key in SAME if key in block}


@pytest.mark.slow
def test_a_folder_of_diffusers_loads_as_it_is(tmp_path, official):
    weights, blocks, file = official
    if blocks["vae"]["encoder_base_channels"] != blocks["vae"]["latent_channels"]:
        # diffusers cannot state this; the miniature's base differs on purpose.
        absent = ("video_encoder",)
    else:
        absent = ()
    configs = diffusers_configs(blocks)
    folder = write.write_diffusers(tmp_path, weights, configs)
    check_same(folder, foreign.DIFFUSERS, file, absent)


def test_a_quantized_pack_keeps_its_own_bits_by_layer(tmp_path, official):
    """Bits and groups differ by layer, as in some packs; shapes tell them."""
    folder = write.write_forge(tmp_path, *official[:2], False)
    file = folder / "transformer-distilled.safetensors"
    weights, dense = dict(mx.load(str(file))), {}
    mx.eval(weights)  # the file is written over
    for index, (bits, group) in enumerate([(4, 32), (8, 64)]):
        key = f"transformer_blocks.{index}.ff.proj_out"
        packed = mx.quantize(weights[f"{key}.weight"], group, bits)
        dense[bits] = mx.dequantize(*packed, group, bits)
        for name, value in zip(("weight", "scales", "biases"), packed):
            weights[f"{key}.{name}"] = value
    write.save(file, weights)
    quantization = {"bits": 8, "group_size": 64}
    write.write_json(folder / "quantize_config.json", {"quantization": quantization})
    components = Components.open(Files(folder, dtype="bfloat16"), needs=["transformer"])
    assert components.sources["transformer"].quantization == quantization
    layers = [m for _, m in components.sketch("transformer").named_modules()]
    found = [m for m in layers if isinstance(m, nn.QuantizedLinear)]
    assert {(m.bits, m.group_size) for m in found} == {(4, 32), (8, 64)}
    assert all(mx.allclose(dense_weight(m), dense[m.bits]) for m in found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q8_0", MORE("Q4_0")])
@pytest.mark.parametrize("official", ["2.0", MORE("2.3")], indirect=True)
def test_a_gguf_transformer_loads_beside_the_other_files(tmp_path, official, kind):
    gguf = pytest.importorskip("gguf")
    weights, blocks, true_file = official
    folder = write.write_comfy(tmp_path, *official[:2], True)
    file = folder / "diffusion_models/ltx-distilled.safetensors"
    bare = mx.load(str(file))
    mx.eval(bare)
    file.unlink()
    writer = gguf.GGUFWriter(str(file.with_suffix(".gguf")), "ltxv")
    writer.add_string("config", json.dumps({"transformer": blocks["transformer"]}))
    number = gguf.GGMLQuantizationType[kind]
    for name, value in bare.items():
        values = np.array(value.astype(mx.float32))
        if value.ndim == 2 and value.shape[1] % 32 == 0 and "_table" not in name:
            packed = gguf.quants.quantize(values, number)
            writer.add_tensor(name, packed, raw_dtype=number)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = Components.open(Files(folder, dtype="float32"), needs=NEEDS)
    sketched = parameters(found, "transformer")  # whose shapes alone were read
    assert mx.isnan(sketched["transformer_blocks.0.video.attn1.to_q.weight"]).all()
    for name in NEEDS:
        with found.lend(name) as lent:
            ours = dict(tree_flatten(lent.parameters()))
        theirs = official_parameters(true_file, name)
        assert ours.keys() == theirs.keys()
        floor = {"Q8_0": 0.02, "Q4_0": 0.2}[kind] if name == "transformer" else 1e-7
        assert max(error(ours[key], theirs[key]) for key in ours) < floor, name


@pytest.mark.slow
@pytest.mark.parametrize("vae", ["conv", "diffusion"])
def test_a_pack_of_2_5_has_two_autoencoders(tmp_path, vae):
    """All but the text encoder's projection, which is in a file of its own."""
    home = FIXTURES / "ltx25_tiny"
    roles = {
        "transformer": "ltx-2.5-tiny-transformer-bf16",
        "conv": "ltx-2.5-tiny-video-vae-conv-bf16",
        "diffusion": "ltx-2.5-tiny-video-vae-bf16",
        "audio": "ltx-2.5-tiny-audio-vae-bf16",
    }
    paths = {role: home / f"{name}.safetensors" for role, name in roles.items()}
    read = {r: mx.load(str(p), return_metadata=True) for r, p in paths.items()}
    blocks = {}
    for role in ("transformer", "audio", vae):
        blocks |= json.loads(read[role][1]["config"])
    files = {role: weights for role, (weights, _) in read.items()}
    pack = write.write_forge_25(tmp_path, files, blocks)
    found = identify(pack)
    assert (found.name, found.version) == (foreign.FORGE, "2.5.0")
    homes = {
        "transformer": "transformer",
        "video_decoder": vae,
        "video_encoder": vae,
        "audio_encoder": "audio",
        "audio_decoder": "audio",
        "vocoder": "audio",
    }
    for name, role in homes.items():
        true = Source(paths[role], blocks[PARTS[name].block])
        networks = [
            PARTS[name].build(s, mx.float32) for s in (found.sources[name], true)
        ]
        ours, theirs = (dict(tree_flatten(n.parameters())) for n in networks)
        assert ours.keys() == theirs.keys()
        assert all(mx.array_equal(ours[key], theirs[key]) for key in ours), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["forge", MORE("comfy")])
@pytest.mark.parametrize("official", ["2.0", MORE("2.3")], indirect=True)
def test_convert_makes_our_folder_of_it(tmp_path, official, kind):
    folder = tmp_path / "theirs"
    if kind == "forge":
        write.write_forge(folder, *official[:2], False)
    else:
        write.write_comfy(folder, *official[:2], True)
    converted = convert(str(folder), str(tmp_path / "ours"))
    check_same(converted, "converted folder", official.file)


# One kind here and the rest in .ci/run: each is shown above to have the very same weights.
KINDS = [
    "forge",
    *(
        pytest.param(kind, marks=pytest.mark.thorough)
        for kind in ("prince", "unified", "comfy", "diffusers")
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_of_each_layout_is_that_of_the_official_file(
    tmp_path, official, miniature, kind, monkeypatch
):
    weights, blocks, file = official
    if file != CHECKPOINT:
        pytest.skip("one miniature is enough for the whole way")
    monkeypatch.chdir(tmp_path)
    true, theirs = tmp_path / "true", tmp_path / "theirs"
    true.mkdir()
    shutil.copy(file, true)
    write_as = {
        "forge": lambda: write.write_forge(theirs, weights, blocks, True),
        "prince": lambda: write.write_prince(theirs, weights, blocks),
        "unified": lambda: write.write_unified(theirs, weights),
        "comfy": lambda: write.write_comfy(theirs, weights, blocks, True),
        "diffusers": lambda: write.write_diffusers(theirs, weights, diffusers_configs(blocks)),
    }  # fmt: skip
    write_as[kind]()
    for name, folder in (("true", true), ("theirs", theirs)):
        make_text_encoder_folder(folder / "text_encoder")
        shutil.copy(UPSCALER, folder / "x-spatial-upscaler-x2.safetensors")
        words = f"generate -p cat -n 9 -W 64 -H 64 --seed 1 --quiet -o {name}.mp4"
        assert main([*words.split(), "--model", str(folder)]) == 0
    clips = [read_clip(tmp_path / f"{name}.mp4") for name in ("true", "theirs")]
    assert np.array_equal(np.stack(clips[0][0]), np.stack(clips[1][0]))


def test_a_gguf_of_another_model_is_named(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(tmp_path / "a.gguf"), "llama")
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    said = describe(tmp_path / "a.gguf")
    assert said.layout.name == "GGUF file of unknown origin"
    assert "it holds a model of kind llama" in said.refusals[0]


@pytest.mark.slow
@pytest.mark.parametrize("official", ["2.0", MORE("2.3")], indirect=True)
def test_info_names_formats_and_reads_no_tensor(tmp_path, official):
    """And refuses a format that is not read before anything is fetched to go with it."""
    weights, blocks, _ = official
    folder = write.write_comfy(tmp_path, weights, blocks, True)
    file = folder / "diffusion_models/ltx-distilled.safetensors"
    tensors = dict(mx.load(str(file)))
    mx.eval(tensors)
    key = "transformer_blocks.0.attn1.to_q"
    tensors[f"{key}.weight"] = mx.to_fp8(tensors[f"{key}.weight"])
    tensors[f"{key}.weight_scale"] = mx.ones(())
    config = json.dumps({"transformer": blocks["transformer"]})
    write.save(file, tensors, config=config)
    said = describe(folder)
    assert said.parts["transformer"].formats == ("float8_e4m3fn",)
    note = list(b'{"format": "mxfp8"}')
    tensors[f"{key}.comfy_quant"] = mx.array(note, mx.uint8)
    write.save(file, tensors, config=config)
    assert "is quantized as mxfp8" in " ".join(describe(folder).refusals)
    with pytest.raises(UserError, match="is quantized as mxfp8"):
        Components.open(folder, needs=["transformer"])


@pytest.mark.slow
@pytest.mark.parametrize("official", ["2.0", MORE("2.3")], indirect=True)
def test_info_names_each_layout(tmp_path, official):
    folder = write.write_forge(tmp_path, *official[:2], False)
    said = describe(folder)
    assert said.layout.name == foreign.FORGE and said.layout.version[:3] in FILES
    assert {"transformer", "connectors", "vocoder"} <= said.parts.keys()
    assert not said.refusals
