"""Parts found in every layout, refused in words where they cannot be used, and lent one at a time."""

import json
import shutil
from functools import partial
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_video import hub
from mlx_video.cli import main
from mlx_video.convert import convert
from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint.describe import describe
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.layouts import choose_checkpoint, identify
from mlx_video.models.ltx.checkpoint.releases import LTX_2
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.config import LTXModelType
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.parts import NEEDED, PARTS
from mlx_video.models.ltx.loading.residency import Residency
from mlx_video.weights import materialize
from tests.checkpoints import MODEL, rewrite, tiny_folder, wide_gemma, write_lora
from tests.memory import Memory
from tests.reference import CHECKPOINT, FIXTURES, TINY, UPSCALER, checkpoint

IN_SINGLE_FILE = [name for name, part in PARTS.items() if part.block]


@pytest.fixture
def folder(tmp_path) -> Path:
    return tiny_folder(tmp_path / "model")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """Whoever asks the hub finds it out of reach and its cache empty."""

    def plan(repo, patterns):
        raise FileNotFoundError(f"{repo} is not here: the cache lacks {patterns[0]}")

    monkeypatch.setattr(hub, "plan", plan)


def parameters(module) -> dict[str, mx.array]:
    return dict(tree_flatten(module.parameters()))


def single(folder: Path, **changes) -> Path:
    return rewrite(folder / MODEL, **changes)


# Finding


def test_opens_a_file_or_its_folder(folder):
    for path in (folder, folder / MODEL, str(folder)):
        components = Components.open(path)
        assert components.sources.keys() == set(NEEDED)
        assert components.sources["vocoder"].path == folder / MODEL
        assert components.sources["text_encoder"].path == folder / "text_encoder"


def test_given_files_go_before_those_beside(folder, tmp_path):
    other = shutil.copytree(folder / "text_encoder", tmp_path / "gemma")
    upscaler = shutil.copy(UPSCALER, tmp_path / "x2.safetensors")
    components = Components.open(Files(folder, text_encoder=other, upsampler=upscaler))
    assert components.sources["text_encoder"].path == other
    assert components.sources["upsampler"].path == upscaler


@pytest.mark.parametrize(
    "other",
    [
        {"spatial_scale": 1.5},
        {"spatial_upsample": False, "temporal_upsample": True},
    ],
)
def test_an_upscaler_that_does_not_double_the_sides_is_refused(folder, tmp_path, other):
    file = shutil.copy(UPSCALER, tmp_path / "other.safetensors")
    rewrite(Path(file), config=lambda config: config.update(other))
    with pytest.raises(ValueError, match="other.safetensors does not double rows"):
        Components.open(Files(folder, upsampler=file))


def test_the_newest_upscaler_beside_is_taken(folder):
    (old,) = folder.glob("*upscaler*")
    for name in (
        "spatial-upscaler-x2-1.0",
        "spatial-upscaler-x2-1.1",
        "temporal-upscaler-x2-1.2",
    ):
        shutil.copy(UPSCALER, folder / f"ltx-2-{name}.safetensors")
    old.unlink()
    path = Components.open(folder).sources["upsampler"].path
    assert path.name == "ltx-2-spatial-upscaler-x2-1.1.safetensors"


def test_other_files_in_the_folder_do_not_disturb():
    assert (
        Components.open(TINY, needs=["vocoder"]).sources["vocoder"].path == CHECKPOINT
    )


@pytest.mark.slow
def test_a_converted_folder_prefers_its_own_parts(folder, tmp_path):
    convert(folder, tmp_path / "mlx")
    shutil.copy(UPSCALER, tmp_path / "mlx")
    sources = Components.open(tmp_path / "mlx").sources
    assert sources["upsampler"].path == tmp_path / "mlx" / "upsampler"
    shutil.rmtree(tmp_path / "mlx" / "upsampler")
    sources = Components.open(tmp_path / "mlx").sources
    assert sources["upsampler"].path == tmp_path / "mlx" / UPSCALER.name
    shutil.rmtree(tmp_path / "mlx" / "vocoder")
    with pytest.raises(ValueError, match=r"\(converted folder\) has no vocoder"):
        Components.open(tmp_path / "mlx")


def test_what_is_not_beside_is_sought_on_the_hub(folder):
    for file in folder.glob("*upscaler*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {LTX_2.upsampler}"):
        Components.open(folder)
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(FileNotFoundError, match="gemma-3-12b-it-bf16 is not here"):
        Components.open(folder)
    assert Components.open(folder, needs=["vocoder"])


def test_a_repository_gives_only_what_is_needed(folder, monkeypatch):
    asked = []

    def plan(repo, patterns):
        asked.append((repo, *patterns))
        shutil.copy(folder / MODEL, folder / "ltx-2-19b-dev.safetensors")
        return folder

    monkeypatch.setattr(hub, "plan", plan)
    monkeypatch.setattr(hub, "fetch", lambda plans, notify: plans)
    Components.open(variant="dev", needs=["vocoder"])
    assert asked == [("Lightricks/LTX-2", "ltx-2-19b-dev.safetensors")]
    Components.open("me/my-ltx", needs=["vocoder"], variant="dev")
    assert asked[1] == ("me/my-ltx", "*config.json")
    files = ("config.json", "model.safetensors.index.json", "*.safetensors")
    assert asked[2] == ("me/my-ltx", *(f"vocoder/{file}" for file in files))


def test_nothing_there():
    with pytest.raises(FileNotFoundError, match="nope/at-all is not here"):
        Components.open("nope/at-all")


def test_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no checkpoint of LTX-2 in"):
        Components.open(tmp_path)


def test_an_index_of_foreign_shards_is_named(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(UserError, match="index.json names ../../etc/passwd as a shard"):
        Components.open(tmp_path)


def test_several_checkpoints_are_told_apart_by_variant(folder):
    for name in ("dev", "dev-fp8", "distilled"):
        shutil.copy(CHECKPOINT, folder / f"ltx-2-19b-{name}.safetensors")
    (folder / MODEL).unlink()
    (folder / "ltx-2-19b-distilled-lora-384.safetensors").write_bytes(b"")
    for variant in ("dev", "distilled"):
        file = choose_checkpoint(folder, variant)
        assert file.name == f"ltx-2-19b-{variant}.safetensors"
    with pytest.raises(ValueError) as error:
        Components.open(folder)
    assert str(error.value) == (
        f"{folder} holds several checkpoints: ltx-2-19b-dev-fp8.safetensors, ltx-2-19b-dev.safetensors, "
        "ltx-2-19b-distilled.safetensors. Give the path of one of them."
    )
    (folder / "ltx-2-19b-distilled.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no distilled checkpoint of LTX-2 in"):
        Components.open(folder, variant="distilled")


@pytest.mark.parametrize(
    "make, layout",
    [
        (lambda f: (f / "model_index.json").write_text("{}"), "diffusers folder"),
        (lambda f: (f / "text_projections").mkdir(), "MLX pack of mlx-video"),
    ],
)
def test_layouts_of_others_are_named_where_they_lack_parts(tmp_path, make, layout):
    make(tmp_path)
    with pytest.raises(ValueError, match=rf"\({layout}\) has no .*transformer"):
        Components.open(tmp_path, needs=["transformer"])
    assert describe(tmp_path).missing


def test_files_that_are_no_checkpoint_are_named(tmp_path, folder):
    unified = tmp_path / "unified.safetensors"
    mx.save_safetensors(str(unified), {"transformer.patchify_proj.weight": mx.zeros(1)})
    with pytest.raises(
        ValueError,
        match=r"of unknown origin\) cannot be used: its tensors have unknown names",
    ):
        Components.open(unified)
    with pytest.raises(
        ValueError, match=r"\(upscaler file\) has no transformer, connectors"
    ):
        Components.open(next(folder.glob("*upscaler*")), needs=NEEDED)
    with pytest.raises(
        ValueError, match=f"{MODEL} does not double rows and columns. Give ltx-2-"
    ):
        Components.open(Files(folder, upsampler=folder / MODEL))
    with pytest.raises(ValueError, match="vocoder is not a Gemma folder"):
        (tmp_path / "vocoder").mkdir()
        Components.open(Files(folder, text_encoder=tmp_path / "vocoder"))
    bare = single(
        folder, metadata=lambda metadata: metadata.update(config='{"vae": {}}')
    )
    with pytest.raises(
        ValueError,
        match="no config of audio_vae, transformer, vocoder: it was repacked",
    ):
        Components.open(bare)


# Refusing


def test_unknown_and_unimplemented_keys_are_refused_before_anything_is_read(folder):
    single(folder, config=lambda config: config["transformer"].update(new_trick=1))
    with pytest.raises(
        ValueError, match=f"{MODEL}: LTXModelConfig: unknown keys new_trick"
    ):
        Components.open(folder)
    single(
        folder,
        config=lambda config: config["transformer"].pop("new_trick"),
    )
    single(folder, config=lambda config: config["vae"].update(dims=2))
    with pytest.raises(
        ValueError, match="VideoEncoderConfig: dims = 2 is not implemented"
    ):
        Components.open(folder)


@pytest.mark.slow
def test_newer_generations_are_refused_by_their_own_words(folder):
    newer = dict(share_ff=True)
    file = single(
        folder,
        config=lambda config: config["transformer"].update(newer),
        metadata=lambda metadata: metadata.update(model_version="9.0.0"),
    )
    with pytest.raises(ValueError, match="share_ff = True is not implemented"):
        Components.open(file)
    description = describe(file)
    assert description.layout.version == "9.0.0"
    assert any("share_ff" in words for words in description.refusals)
    assert "vocoder" in description.parts and "transformer" not in description.parts


def test_a_model_of_no_use_is_refused_before_its_company_is_fetched(folder):
    shutil.rmtree(folder / "text_encoder")
    single(folder, config=lambda config: config["vocoder"].update(resblock="AMP1"))
    with pytest.raises(ValueError, match="VocoderConfig: resblock = 'AMP1'"):
        Components.open(folder)


def test_a_damaged_text_encoder_is_refused_when_opened(folder):
    file = folder / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="model.safetensors is cut off"):
        Components.open(folder)
    file.unlink()
    with pytest.raises(
        FileNotFoundError, match="no safetensors file in .*text_encoder"
    ):
        Components.open(folder)


def test_damaged_files_are_refused_when_opened(folder):
    file = folder / MODEL
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{MODEL} is cut off"):
        Components.open(file)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{MODEL} is empty"):
        Components.open(folder)


NORM = "vae.decoder.conv_in.conv.bias"


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda w: w.pop(NORM),
            r"does not fit VideoDecoder: 1 missing \(conv_in.bias\)",
        ),
        (
            lambda w: w.update({"vae.decoder.extra": mx.zeros(2)}),
            r"1 unexpected \(extra\)",
        ),
        (
            lambda w: w.update({NORM: mx.zeros(2)}),
            r"conv_in.bias \(2,\) instead of \(32,\)",
        ),
    ],
)
def test_tensors_must_fit(folder, change, message):
    components = Components.open(single(folder, weights=change))
    with pytest.raises(ValueError, match=f"{MODEL} {message}|{message}"):
        with components.lend("video_decoder"):
            pass
    assert components.resident == []
    with components.lend("video_encoder"):
        pass


# Lending


def test_lends_the_official_tensors(folder):
    components = Components.open(Files(folder, dtype="float32"))
    for name in set(NEEDED) - {"text_encoder"}:
        source = UPSCALER if name == "upsampler" else CHECKPOINT
        network = PARTS[name].network(Source(source, {}))
        expected = network.sanitize(checkpoint(source)[0])
        with components.lend(name) as module:
            held = parameters(module)
            assert held.keys() == expected.keys()
            assert all(mx.array_equal(held[key], expected[key]) for key in held)


def test_reads_no_tensor_but_the_parts_own(folder):
    components = Components.open(Files(folder, dtype="bfloat16"))
    for name in ("video_decoder", "audio_decoder", "upsampler"):
        memory = Memory()
        with components.lend(name) as module:
            own = sum(value.nbytes for value in parameters(module).values())
            assert memory.held <= own + 10_000
        assert memory.peak < 1.2 * own + 10_000
        assert own < 0.4 * (folder / MODEL).stat().st_size


def test_a_video_only_transformer_reads_no_sound(folder):
    components = Components.open(Files(folder, dtype="float32"))
    with components.streaming(LTXModelType.VideoOnly).transformer() as denoise:
        names = parameters(denoise.model).keys()
        assert not any("audio" in name for name in names) and len(names) > 50
    with components.transformer() as denoise:
        assert any("audio" in name for name in parameters(denoise.model))


def test_lends_the_text_encoder(folder):
    components = Components.open(Files(folder, dtype="float32"))
    with components.lend("text_encoder") as encoder:
        states, _ = encoder.features(["a cat"], max_length=8)
        assert states.dtype == mx.float32 and len(states) == 8
    assert not encoder.model.parameters()


def test_frees_what_comes_back_though_a_name_outlives_the_block(folder):
    components = Components.open(folder)
    memory = Memory()
    with components.lend("video_decoder") as decoder:
        assert components.resident == ["video_decoder"]
        assert memory.held > 500_000
    assert components.resident == []
    assert memory.held < 10_000
    assert mx.get_cache_memory() < 10_000  # the system has it back
    assert decoder.parameters() == {}


def test_frees_a_part_whose_user_failed(folder):
    components = Components.open(folder)
    with pytest.raises(RuntimeError), components.lend("vocoder"):
        raise RuntimeError
    assert components.resident == []


def test_two_large_parts_are_never_resident(folder):
    components = Components.open(folder)
    with components.lend("transformer"):
        with components.lend("upsampler"):
            assert components.resident == ["transformer", "upsampler"]
        with pytest.raises(
            RuntimeError,
            match="text_encoder cannot be loaded while the transformer is in use",
        ):
            with components.lend("text_encoder"):
                pass


def test_statistics_come_without_their_decoder(folder):
    memory = Memory()
    statistics = Components.open(Files(folder, dtype="float32")).video_statistics()
    weights, _ = checkpoint()
    mean = weights["vae.per_channel_statistics.mean-of-means"]
    assert mx.array_equal(statistics.mean, mean)
    assert memory.held < 10_000


def test_the_dtype_is_float32_on_a_cpu_and_spares_the_tables(folder):
    with Components.open(folder).lend("transformer") as model:
        assert all(value.dtype == mx.float32 for value in parameters(model).values())
    with Components.open(Files(folder, dtype="bfloat16")).lend("transformer") as model:
        for key, value in parameters(model).items():
            assert value.dtype == (
                mx.float32 if "scale_shift_table" in key else mx.bfloat16
            )


@pytest.mark.parametrize("part", ["text_encoder", "connectors"])
def test_what_float16_cannot_hold_is_bfloat16(folder, part):
    """Gemma 3's states reach several hundred thousand."""
    components = Components.open(Files(folder, dtype="float16"))
    assert mx.bfloat16 in dtypes(components.sketch(part))
    assert mx.float16 not in dtypes(components.sketch(part))
    assert mx.float16 in dtypes(components.sketch("transformer"))
    assert mx.float16 in dtypes(components.sketch("video_decoder"))


def dtypes(part) -> set[mx.Dtype]:
    return {value.dtype for value in parameters(part.network).values()}


# LoRA


LAYER = "transformer_blocks.1.attn1.to_q"  # officially


def test_loras_are_fused_and_reported(folder, tmp_path):
    file = write_lora(tmp_path / "style.safetensors", f"diffusion_model.{LAYER}")
    components = Components.open(Files(folder, loras=[(file, 0.25)]))
    before = checkpoint()[0][f"model.diffusion_model.{LAYER}.weight"]
    with components.transformer() as denoise:
        weight = denoise.model.transformer_blocks[1].video.attn1.to_q.weight
        assert mx.allclose(weight, before + 0.5)
    (fusion,) = components.fusions
    assert (fusion.source, fusion.part) == (str(file), "transformer")
    assert fusion.matched == ("transformer_blocks.1.video.attn1.to_q",)
    with components.lend("connectors"):
        assert len(components.fusions) == 1


def test_the_distilled_lora_serves_one_loan(folder):
    write_lora(folder / "tiny-distilled-lora.safetensors", f"diffusion_model.{LAYER}")
    components = Components.open(folder, needs=(*NEEDED, "distilled_lora"))
    before = checkpoint()[0][f"model.diffusion_model.{LAYER}.weight"]
    for strength in (1.0, 0.0):
        with components.transformer(distilled_lora=strength) as denoise:
            weight = denoise.model.transformer_blocks[1].video.attn1.to_q.weight
            assert mx.allclose(weight, before + 2 * strength)
    with pytest.raises(ValueError, match="needs the distilled LoRA"):
        with Components.open(folder).transformer(distilled_lora=1.0):
            pass


def test_a_lora_of_few_layers_is_not_taken_for_the_distilled_one(folder):
    write_lora(folder / "tiny-distilled-lora.safetensors", f"diffusion_model.{LAYER}")
    needs = (*NEEDED, "distilled_lora")
    with pytest.raises(UserError, match="of the transformer's layers; .*use it with --lora"):  # fmt: skip
        Components.open(folder, needs=needs).check(needs)


def test_a_file_that_is_no_lora_for_ltx_is_refused_when_opened(folder, tmp_path):
    other = write_lora(tmp_path / "other.safetensors", "vae.x")
    mx.save_safetensors(str(other), {"unet.weight": mx.zeros(1)})
    with pytest.raises(
        ValueError,
        match="is not a LoRA that this version can apply: it holds unet.weight",
    ):
        Components.open(Files(folder, loras=[(other, 1.0)]))
    with pytest.raises(FileNotFoundError):
        Components.open(Files(folder, loras=[(tmp_path / "none.safetensors", 1.0)]))
    with pytest.raises(ValueError, match="must be from -100 to 100, such as 0.8"):
        Components.open(
            Files(folder, loras=[(tmp_path / "none.safetensors", float("nan"))])
        )
    needs = (*NEEDED, "distilled_lora")
    with pytest.raises(ValueError, match="is not a LoRA that this version can apply"):
        Components.open(Files(folder, distilled_lora=other), needs=needs)


@pytest.mark.parametrize("asked", [{"loras": [("", 1.0)]}, {"distilled_lora": ""}])
def test_a_lora_for_other_layers_is_refused_before_weights_are_read(
    folder, tmp_path, asked
):
    other = write_lora(tmp_path / "other.safetensors", "vae.x")
    named = {name: [(other, 1.0)] if given else other for name, given in asked.items()}
    needs = (*NEEDED, "distilled_lora")
    write_lora(folder / "tiny-distilled-lora.safetensors", f"diffusion_model.{LAYER}")
    components = Components.open(Files(folder, **named), needs=needs)
    with pytest.raises(ValueError, match="changes vae.x, which the model does not"):
        components.check(needs)


# fp8


@pytest.mark.slow
def test_official_fp8_files_are_read_dense(folder, tmp_path):
    names = [
        f"model.diffusion_model.transformer_blocks.1.attn1.{x}"
        for x in ("to_q", "to_k")
    ]
    dense = {}

    def quantize(weights):
        for name in names:
            weight = weights[f"{name}.weight"]
            scale = mx.abs(weight).max().astype(mx.float32) / 448
            packed = mx.to_fp8((weight / scale).astype(mx.float32))
            dense[name] = mx.from_fp8(packed, mx.float32) * scale
            weights[f"{name}.weight"] = packed
            weights[f"{name}.weight_scale"] = scale
            weights[f"{name}.input_scale"] = mx.array(1.0)

    file = single(folder, weights=quantize)
    assert "float8" in describe(file).parts["transformer"].dtypes
    source = identify(file).sources["transformer"]
    attention = (
        PARTS["transformer"].build(source, mx.float32).transformer_blocks[1].video.attn1
    )
    assert mx.array_equal(attention.to_q.weight, dense[names[0]])
    assert mx.array_equal(attention.to_k.weight, dense[names[1]])
    assert (
        PARTS["transformer"]
        .build(source)
        .transformer_blocks[1]
        .video.attn1.to_q.weight.dtype
        == mx.bfloat16
    )


# Describing


@pytest.mark.slow
def test_describes_a_complete_folder(folder):
    said = describe(folder)
    assert (said.layout.name, said.layout.version) == ("official single file", "2.0")
    assert said.parts.keys() == set(NEEDED)
    assert said.missing == {} and said.refusals == ()
    assert said.parts["transformer"].dtypes == ("bfloat16", "float32")
    assert (
        sum(said.parts[name].tensors for name in IN_SINGLE_FILE)
        == 668 - 3 + 4  # without 3 unused, and with 4 statistics that serve two parts
    )


@pytest.mark.slow
def test_says_what_is_missing_and_where_it_is(folder):
    for name in ("text_encoder",):
        shutil.rmtree(folder / name)
    missing = describe(folder).missing
    assert missing.keys() == {"text_encoder"}
    assert "mlx-community/gemma-3-12b-it-bf16 (24 GB)" in missing["text_encoder"]
    said = describe(next(folder.glob("*upscaler*")))
    assert said.layout.name == "upscaler file" and said.layout.version == ""
    assert said.parts.keys() == {"upsampler"} and len(said.missing) == 8


@pytest.mark.slow
def test_describes_converted_folders_gemma_and_loras(folder, tmp_path):
    convert(folder, tmp_path / "mlx", quantize=True, q_group_size=32)
    said = describe(tmp_path / "mlx")
    assert said.layout.name == "converted folder" and said.parts.keys() == set(NEEDED)
    assert said.parts["transformer"].quantization == dict(
        group_size=32, bits=8, mode="affine"
    )
    assert describe(folder / "text_encoder").layout.name == "Gemma folder"
    file = write_lora(tmp_path / "style.safetensors", LAYER)
    assert describe(file).layout.name == "LoRA file"
    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        describe(tmp_path / "none")


def test_every_block_of_the_real_config_is_accepted(folder):
    real = json.loads((FIXTURES / "manifests/ltx-2-19b.config.json").read_text())[
        "config"
    ]

    def replace(config):
        config.clear()
        config.update(real)

    assert Components.open(single(folder, config=replace), needs=IN_SINGLE_FILE)


# Quantizing on load


@pytest.mark.slow
@pytest.mark.parametrize("bits", [pytest.param(8, marks=pytest.mark.thorough), 4])
def test_quantized_on_load_is_converted_then_loaded(folder, tmp_path, bits):
    convert(folder, tmp_path / "q", quantize=True, q_bits=bits)
    held = {}
    for path, asked in ((folder, bits), (tmp_path / "q", None)):
        components = Components.open(Files(path, dtype="bfloat16", quantize=asked))
        with components.lend("transformer") as model:
            held[path] = parameters(model)
    ours, converted = held.values()
    assert ours.keys() == converted.keys()
    assert all(mx.array_equal(ours[key], converted[key]) for key in ours)
    # Groups of 64 do not divide the sound's 32 channels.
    assert "transformer_blocks.0.video.attn1.to_q.scales" in ours
    assert "transformer_blocks.0.audio.attn1.to_q.scales" not in ours


def test_loras_are_fused_before_quantizing(folder, tmp_path):
    file = write_lora(tmp_path / "style.safetensors", f"diffusion_model.{LAYER}")
    before = checkpoint()[0][f"model.diffusion_model.{LAYER}.weight"]
    components = Components.open(Files(folder, loras=[(file, 0.25)], quantize=8))
    with components.lend("transformer") as model:
        layer = model.transformer_blocks[1].video.attn1.to_q
        expected = mx.quantize(before + 0.5, 64, 8)
        for name, value in zip(("weight", "scales", "biases"), expected):
            assert mx.allclose(layer[name], value)
    assert components.fusions[0].dense == ()


def test_quantizing_leaves_the_small_parts(folder):
    with Components.open(Files(folder, quantize=8)).lend("connectors") as connectors:
        assert not any("scales" in name for name in parameters(connectors))


def gemma(folder: Path, **options) -> Components:
    options = {"dtype": "float32", "text_encoder": folder} | options
    return Components.open(Files(**options), needs=["text_encoder"])


def test_gemmas_layers_are_quantized_on_load(folder):
    wide = wide_gemma(folder / "text_encoder")
    with gemma(wide, quantize=8).lend("text_encoder") as encoder:
        held = parameters(encoder.model)
    packed = [name for name in held if name.endswith(".scales")]
    assert len(packed) == 7 * 7 and all("model.layers." in name for name in packed)
    assert held["model.layers.3.mlp.down_proj.weight"].shape == (64, 128 * 8 // 32)
    assert held["model.embed_tokens.weight"].dtype == mx.float32


@pytest.mark.parametrize("bits, least, most", [(8, 0.001, 0.02), (4, 0.02, 0.3)])
def test_features_of_a_quantized_gemma(folder, bits, least, most):
    wide, found = wide_gemma(folder / "text_encoder"), {}
    for asked in (None, bits):
        with gemma(wide, quantize=asked).lend("text_encoder") as encoder:
            found[asked] = encoder.features(["A cat walks."], 16).hidden_states
    dense, quantized = found.values()
    assert mx.array_equal(dense[0], quantized[0])  # the embeddings
    assert least < mx.linalg.norm(quantized - dense) / mx.linalg.norm(dense) < most


@pytest.mark.slow
def test_a_gemma_that_is_quantized_stays(folder, tmp_path):
    wide_gemma(folder / "text_encoder")
    convert(folder, tmp_path / "q", quantize=True, q_group_size=32)
    held = []
    for asked in (None, 4):
        packed = gemma(tmp_path / "q" / "text_encoder", quantize=asked)
        with packed.lend("text_encoder") as encoder:
            held.append(parameters(encoder.model))
    assert held[0].keys() == held[1].keys()
    assert all(mx.array_equal(held[0][name], held[1][name]) for name in held[0])


def bits(components: Components, name: str) -> int | None:
    """To which a part is quantized on load."""
    source = components.sources[name]
    return components.residency.bits(PARTS[name].network(source), source)


@pytest.mark.slow
def test_each_large_part_is_quantized_if_it_is_not_yet(folder, tmp_path):
    dense = shutil.copytree(folder / "text_encoder", tmp_path / "gemma")
    convert(folder, tmp_path / "q", quantize=True, q_bits=4)
    found = Components.open(Files(tmp_path / "q", text_encoder=dense, quantize=8))
    assert (bits(found, "transformer"), bits(found, "text_encoder")) == (None, 8)
    packed = tmp_path / "q" / "text_encoder"
    found = Components.open(Files(folder, text_encoder=packed, quantize=8))
    assert (bits(found, "transformer"), bits(found, "text_encoder")) == (8, None)


@pytest.mark.slow
def test_dense_weights_are_never_whole_in_memory(large, monkeypatch):
    by_block = partial(materialize, batch_bytes=1_000_000)
    monkeypatch.setattr("mlx_video.models.ltx.loading.components.materialize", by_block)
    quantized, dense = (
        peak_of_a_loan(Components({"transformer": large}, Residency(mx.float32, bits)))
        for bits in (4, None)
    )
    assert quantized < 0.5 * dense


def peak_of_a_loan(components: Components) -> int:
    memory = Memory()
    with components.transformer():
        return memory.peak


@pytest.mark.slow
def test_quantizing_twice_is_refused(folder, tmp_path):
    convert(folder, tmp_path / "q", quantize=True, q_bits=4)
    with pytest.raises(
        ValueError,
        match="transformer is already quantized to 4 bits; drop --quantize",
    ):
        Components.open(Files(tmp_path / "q", quantize=8))
    assert Components.open(Files(tmp_path / "q", quantize=8), needs=["vocoder"])


def test_statistics_have_values_where_a_sketch_has_none(folder, monkeypatch):
    components = Components.open(Files(folder, dtype="float32"))
    monkeypatch.setattr(Source, "is_gguf", True)
    assert components.sketch("video_decoder")
    statistics = components.video_statistics()
    mean = checkpoint()[0]["vae.per_channel_statistics.mean-of-means"]
    assert mx.array_equal(statistics.mean, mean)


@pytest.mark.slow
def test_a_model_that_cannot_be_used_is_said_by_info(folder, capsys):
    """Rates that contradict each other, and tensors that another tool quantized in a way that cannot be."""
    file = folder / MODEL

    def faster(config: dict) -> None:
        config["vocoder"]["output_sample_rate"] = 48000

    rewrite(file, config=faster)
    assert "output_sample_rate is 48000 Hz" in " ".join(describe(folder).refusals)
    assert main(["info", str(folder)]) == 2
    said = capsys.readouterr()
    assert "not usable" in said.out and "cannot be used; see above" in said.err

    def misquantized(weights: dict) -> None:
        name = "model.diffusion_model.transformer_blocks.0.attn1.to_q"
        note = (
            b'{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 256}'
        )
        weights[f"{name}.weight"] = mx.zeros((64, 64), mx.int8)
        weights[f"{name}.weight_scale"] = mx.ones((64, 1))
        weights[f"{name}.comfy_quant"] = mx.array(list(note), mx.uint8)

    def slower(config: dict) -> None:
        config["vocoder"]["output_sample_rate"] = 24000

    rewrite(file, weights=misquantized, config=slower)
    (refusal,) = set(describe(folder).refusals)
    assert "is not made of groups of 256 columns" in refusal
