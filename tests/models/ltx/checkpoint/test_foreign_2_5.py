"""LTX-2.5 as others keep it: mlx-forge's packs, diffusers' folders, ComfyUI's int8 files beside those of other releases.

No real sample could be had; each is written out of the official miniature as its project's published converter does.
"""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_video.cli import main
from mlx_video.convert import convert
from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint import foreign
from mlx_video.models.ltx.checkpoint.describe import describe
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.layouts import SPLIT, identify
from mlx_video.models.ltx.checkpoint.releases import LTX_2_5, Release
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.gemma import language_model
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.parts import PARTS, part_of, quantize_blocks
from mlx_video.models.ltx.video_vae import DiffusionDecoder, VideoDecoder
from tests import layout_writers as write
from tests.models.ltx.checkpoint.test_foreign import diffusers_configs
from tests.reference import FIXTURES, error

HOME = FIXTURES / "ltx25_tiny"
FILES = {
    "transformer": "ltx-2.5-tiny-transformer-bf16",
    "conv": "ltx-2.5-tiny-video-vae-conv-bf16",
    "diffusion": "ltx-2.5-tiny-video-vae-bf16",
    "audio": "ltx-2.5-tiny-audio-vae-bf16",
    "duration": "ltx-2.5-tiny-duration-head-bf16",
    "text": "ltx-2.5-tiny-gemma4-with-proj-bf16",
    "spatial": "ltx-2.5-tiny-latent-spatial-upscaler-x2-bf16",
}
PATHS = {role: HOME / f"{name}.safetensors" for role, name in FILES.items()}
NEEDS = [name for name in PARTS if name != "temporal_upsampler"]


@pytest.fixture(scope="module")
def read() -> dict[str, tuple[dict, dict]]:
    """Role -> tensors and metadata of the official file."""
    return {r: mx.load(str(p), return_metadata=True) for r, p in PATHS.items()}


@pytest.fixture
def blocks(read, monkeypatch) -> dict[str, dict]:
    """The official config of the miniature, as published: packs that state none are miniatures here."""
    found = {}
    for role in ("transformer", "audio", "conv"):
        found |= json.loads(read[role][1]["config"])
    found["vae_diffusion"] = json.loads(read["diffusion"][1]["config"])["vae"]
    found["duration_head"] = json.loads(read["duration"][1]["config"])["duration_head"]
    monkeypatch.setattr(Release, "blocks", property(lambda release: found))
    return found


@pytest.fixture(scope="module")
def official() -> Components:
    return Components.open(Files(HOME, dtype="float32"), needs=NEEDS)


def parameters(components: Components, name: str) -> dict[str, mx.array]:
    return dict(tree_flatten(components.sketch(name).network.parameters()))


def check_same(path, layout, official, but=(), floor=0.0) -> Components:
    """``path`` has the official defaults, and every part the official weights, to within ``floor`` of the largest."""
    needs = [name for name in NEEDS if name not in but]
    found = Components.open(Files(path, dtype="float32"), needs=needs)
    assert found.layout.name == layout and found.layout.version.startswith("2.5")
    assert found.layout.defaults == LTX_2_5.defaults
    for name in needs:
        ours, theirs = parameters(found, name), parameters(official, name)
        assert ours.keys() == theirs.keys(), name
        worst = max(error(ours[key], theirs[key]) for key in ours if theirs[key].any())
        assert worst <= floor, name
    text = "A cat walks."
    ids = [c.sketch("text_encoder").tokenizer.encode(text) for c in (found, official)]
    assert ids[0] == ids[1]
    return found


def forge(folder: Path, read, blocks) -> Path:
    """As it is published: the config embedded is that of the transformer's file alone."""
    stated = {"transformer": blocks["transformer"], "model_version": "2.5.0"}
    write.write_forge_25(folder, {r: t for r, (t, _) in read.items()}, stated)
    (folder / "config.json").unlink()
    text, metadata = read["text"]
    write.forge_text_encoder(folder, text, metadata["gemma_config"])
    write.save(
        folder / "duration_head.safetensors",
        {k.removeprefix("duration_head."): v for k, v in read["duration"][0].items()},
    )
    upscaler, metadata = read["spatial"]
    name = "spatial_upscaler_x2_v1_0"
    moved = {k: write._moved(v) for k, v in upscaler.items()}
    write.save(folder / f"{name}.safetensors", write.in_container(f"{name}.", moved))
    write.write_json(folder / f"{name}_config.json", json.loads(metadata["config"]))
    write.write_json(folder / "split_model.json", {"source": "Lightricks/LTX-2.5"})
    return folder


def diffusers(folder: Path, read, blocks) -> Path:
    text, metadata = read["text"]
    whole = {**read["transformer"][0], **read["audio"][0]}
    whole |= write.in_container("vae.", read["conv"][0])
    whole |= {k: v for k, v in text.items() if k.startswith("text_embedding_projec")}
    configs = diffusers_configs(blocks)
    configs["transformer"]["use_keyframes_abs_pos_embedding"] = True
    write.write_diffusers(folder, whole, configs)
    d = blocks["vae_diffusion"]["decoder"]
    strides, divisors = zip(*d["upsamples"])
    *kernels, last = d["stage_kernels"]
    decoder = {
        "_class_name": "LTX2VideoDiffusionDecoderModel",
        "latent_channels": d["in_channels"],
        "patch_size": d["patch_size"],
        "decoder_head_dim": d["head_dim"],
        "decoder_stage_channels": d["stage_channels"],
        "decoder_stage_depths": d["stage_depths"],
        "decoder_stage_kernels": kernels,
        "decoder_stage5_kernel": d.get("stage5_kernel", last),
        "decoder_upsample_strides": strides,
        "decoder_upsample_channel_reductions": divisors,
        "decoder_t_emb_dim": d.get("t_emb_dim", 384),
        "decoder_timestep_scale_multiplier": d["timestep_scale_multiplier"],
        "decoder_model_output_type": "x0",
        "decoder_num_inference_steps": 1,
    }
    t, h = blocks["transformer"], blocks["duration_head"]
    head = {
        "_class_name": "LTX2DurationHead",
        "video_cross_attention_dim": t["cross_attention_dim"],
        "audio_cross_attention_dim": t["audio_cross_attention_dim"],
        "pooler_hidden_dim": h["pooler_hidden_dim"],
        "num_queries": h.get("num_queries", 1),
        "num_pooler_heads": h.get("num_pooler_heads", 4),
        "mlp_hidden_dim": h["mlp_hidden"],
    }
    homes = {
        "diffusion_decoder": (write.diffusers_diffusion(read["diffusion"][0]), decoder),
        "duration_head": (write.diffusers_duration_head(read["duration"][0]), head),
    }
    for home, (tensors, config) in homes.items():
        write.save(folder / home / "diffusion_pytorch_model.safetensors", tensors)
        write.write_json(folder / home / "config.json", config)
    language = {
        k.replace("model.", "model.language_model.", 1): v
        for k, v in text.items()
        if k.startswith("model.")
    }
    write.save(folder / "text_encoder/model.safetensors", language)
    write.write_json(
        folder / "text_encoder/config.json", json.loads(metadata["gemma_config"])
    )
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/tokenizer.json").write_bytes(
        bytes(memoryview(text["tokenizer_json"]))
    )
    shutil.copy(PATHS["spatial"], folder / "a-spatial-upscaler-x2.safetensors")
    return folder


def comfy(folder: Path, read, blocks) -> Path:
    """Lightricks' int8 files where ComfyUI keeps them, beside those of LTX-2.3 that sort later by name."""
    homes = {
        "transformer": "diffusion_models/ltx-2.5-22b-distilled-transformer-comfy-int8-convrot",
        "text": "text_encoders/gemma4-12b-with-proj-ltx-2.5-comfy-int8-convrot",
        "diffusion": "vae/ltx-2.5-video-vae-bf16",
        "conv": "vae/ltx-2.5-video-vae-conv-bf16",
        "audio": "vae/ltx-2.5-audio-vae-bf16",
        "spatial": "latent_upscale_models/ltx-2.5-latent-spatial-upscaler-x2-bf16-1.0",
        "duration": "model_patches/ltx-2.5-duration-head-bf16",
    }
    for role, home in homes.items():
        tensors, metadata = read[role]
        if "int8" in home:
            tensors = write.int8_convrot(tensors, 4, lambda key: "_proj" in key or ".to_" in key)  # fmt: skip
        write.save(folder / f"{home}.safetensors", tensors, **metadata)
    older, metadata = mx.load(str(FIXTURES / "ltx23_tiny/ltx-2.3-tiny.safetensors"), return_metadata=True)  # fmt: skip
    vae = {k: v for k, v in older.items() if k.startswith("vae.")}
    config = json.dumps({"vae": json.loads(metadata["config"])["vae"]})
    write.save(folder / "vae/mtx-LTX23_video_vae.safetensors", vae, config=config)
    gemma_3 = FIXTURES / "ltx2_tiny/text_encoder/model.safetensors"
    shutil.copy(gemma_3, folder / "text_encoders/gemma_3_12B_it.safetensors")
    return folder


LAYOUTS = {
    "forge": (forge, foreign.FORGE, (), 0.0),
    # The miniature's encoder is wider than its latents, which diffusers cannot state.
    "diffusers": (diffusers, foreign.DIFFUSERS, ("video_encoder",), 0.0),
    "comfy": (comfy, SPLIT, (), 0.02),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", ["forge", "diffusers", pytest.param("comfy", marks=pytest.mark.thorough)]
)
def test_it_is_named_and_loads_as_it_is(tmp_path, read, blocks, official, layout):
    make, name, absent, floor = LAYOUTS[layout]
    folder = make(tmp_path / "theirs", read, blocks)
    found = check_same(folder, name, official, absent, floor)
    assert isinstance(found.sketch("video_decoder"), DiffusionDecoder)
    said = describe(folder)
    assert said.layout.name == name
    wrong = ["the config's widths and multipliers do not agree"] * len(absent)
    assert [why.rpartition(": ")[2].rstrip(".") for why in said.refusals] == wrong
    assert {"transformer", "video_decoder", "text_encoder", "duration_head"} <= said.parts.keys()  # fmt: skip
    if layout == "comfy":
        for part in ("transformer", "text_encoder"):
            assert said.parts[part].formats == ("int8_tensorwise",)


@pytest.mark.thorough
@pytest.mark.parametrize("layout", LAYOUTS)
def test_convert_makes_our_folder_of_it(tmp_path, read, blocks, official, layout):
    make, _, absent, floor = LAYOUTS[layout]
    theirs, ours = make(tmp_path / "theirs", read, blocks), tmp_path / "ours"
    if not absent:
        convert(theirs, ours)
    else:  # convert wants the encoder too: what it does with each of the other parts
        found = identify(theirs)
        for name, source in found.stored.items():
            if name not in absent:
                part_of(name).network(source).write(source, ours / name)
        write.write_json(ours / "config.json", found.stated)
    check_same(ours, "converted folder", official, absent, floor)


@pytest.mark.slow
def test_a_quantized_text_encoder_of_a_pack_stays_quantized(tmp_path, read):
    """In layers wider than the miniature's, which no group of weights fits."""
    tensors, metadata = read["text"]
    config = json.loads(metadata["gemma_config"])
    config["text_config"] |= {"hidden_size": 64, "intermediate_size": 64}
    model = language_model(config)
    quantize_blocks(model, 32, 8)
    weights = dict(tree_flatten(model.parameters()))
    packed = {"tokenizer_json": tensors["tokenizer_json"]}
    theirs = tmp_path / "theirs"
    write.forge_text_encoder(theirs, weights | packed, json.dumps(config))
    quantization = {"bits": 8, "group_size": 32, "components": {"text_encoder": "x"}}
    write.write_json(theirs / "quantize_config.json", {"quantization": quantization})
    write.write_json(theirs / "split_model.json", {})
    source = identify(theirs).sources["text_encoder"]
    assert source.quantization == quantization
    PARTS["text_encoder"].network(source).write(source, tmp_path / "ours")
    ours = Source.of(tmp_path / "ours")
    assert ours.quantization == quantization
    for each in (source, ours):
        built = dict(tree_flatten(PARTS["text_encoder"].build(each).network.parameters()))  # fmt: skip
        assert built.keys() == weights.keys()
        assert all(mx.array_equal(built[key], weights[key]) for key in weights)


def test_an_unknown_file_is_refused_by_what_was_found(tmp_path, capsys):
    write.save(tmp_path / "a.safetensors", {"blocks.7.weird.weight": mx.zeros(4)})
    assert main(["info", str(tmp_path / "a.safetensors")]) == 2
    assert "blocks.7.weird.weight" in capsys.readouterr().out


# Which of two video autoencoders


def opened(folder: Path, **options) -> Components:
    needs = ["transformer", "video_encoder", "video_decoder"]
    return Components.open(Files(folder, dtype="float32", **options), needs=needs)


@pytest.mark.slow
def test_the_convolutional_one_is_chosen_by_a_word_or_by_its_file(
    tmp_path, read, blocks
):
    folder = comfy(tmp_path, read, blocks)
    file = folder / "vae/ltx-2.5-video-vae-conv-bf16.safetensors"
    assert isinstance(opened(folder).sketch("video_decoder"), DiffusionDecoder)
    for given in ("conv", file):
        found = opened(folder, video_vae=given)
        assert isinstance(found.sketch("video_decoder"), VideoDecoder)
        assert found.sources["video_encoder"].path == file
    with pytest.raises(
        UserError, match="not a video autoencoder.*such as Lightricks/LTX-2"
    ):
        opened(folder, video_vae=folder / "vae/ltx-2.5-audio-vae-bf16.safetensors")
    older = FIXTURES / "ltx23_tiny/ltx-2.3-tiny.safetensors"
    assert opened(older, video_vae="conv").sources == opened(older).sources


@pytest.mark.slow
def test_picture_compression_follows_the_autoencoders_file(tmp_path, read, blocks):
    folder = comfy(tmp_path, read, blocks)
    assert identify(folder).defaults["image_crf"] == 18
    for file in (folder / "vae").glob("*video-vae*"):
        tensors, metadata = mx.load(str(file), return_metadata=True)
        mx.eval(tensors)
        write.save(file, tensors, **metadata | {"model_version": "2.3.0"})
    assert "image_crf" not in identify(folder).defaults
