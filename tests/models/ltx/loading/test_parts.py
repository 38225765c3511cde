"""Which network a part is, by its config; and the files of every release, recognised and read."""

import json
import math
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_map

from mlx_video import backend
from mlx_video.errors import UserError
from mlx_video.models.ltx.audio_vae import bigvgan
from mlx_video.models.ltx.checkpoint.describe import describe
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.layouts import OFFICIAL, SPLIT, identify
from mlx_video.models.ltx.checkpoint.releases import LTX_2_5
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.geometry import read_geometry
from mlx_video.models.ltx.loading.parts import NEEDED, PARTS, Network
from mlx_video.models.ltx.pacing import piece_by_piece
from mlx_video.types import AV
from tests.memory import most_taken
from tests.reference import CHECKPOINT, FIXTURES

TINY_2_3 = FIXTURES / "ltx23_tiny" / "ltx-2.3-tiny.safetensors"
TINY_2_5 = FIXTURES / "ltx25_tiny"
MANIFESTS = FIXTURES / "manifests"
FOLDERS_2_5 = {
    "ltx-2.5-tiny-transformer-bf16": "diffusion_models",
    "ltx-2.5-tiny-gemma4-with-proj-bf16": "text_encoders",
    "ltx-2.5-tiny-video-vae-bf16": "vae",
    "ltx-2.5-tiny-video-vae-conv-bf16": "vae",
    "ltx-2.5-tiny-audio-vae-bf16": "vae",
    "ltx-2.5-tiny-duration-head-bf16": "model_patches",
}
NETWORKS = {
    "LTX-2": (CHECKPOINT, "VideoDecoder", "Vocoder"),
    "LTX-2.3": (TINY_2_3, "VideoDecoder", "BigVGANVocoder"),
    "LTX-2.5": (
        TINY_2_5 / "ltx-2.5-tiny-transformer-bf16.safetensors",
        "DiffusionDecoder",
        "BigVGANVocoder",
    ),
}


def split_checkpoint(root: Path) -> Path:
    """LTX-2.5's files in the folders that Lightricks publishes them in."""
    for name, folder in FOLDERS_2_5.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(TINY_2_5 / f"{name}.safetensors", root / folder)
    return root


@pytest.mark.parametrize("path, decoder, vocoder", NETWORKS.values(), ids=NETWORKS)
def test_a_network_is_chosen_by_its_config(path, decoder, vocoder):
    sources = identify(path).sources
    chosen = {
        name: PARTS[name].network(sources[name]).__name__
        for name in ("video_decoder", "vocoder")
    }
    assert chosen == {"video_decoder": decoder, "vocoder": vocoder}


def test_the_files_of_2_5_are_found_in_their_folders_or_in_one(tmp_path):
    root = split_checkpoint(tmp_path / "model")
    file = root / "diffusion_models" / "ltx-2.5-tiny-transformer-bf16.safetensors"
    for path in (root, file, TINY_2_5):
        layout = identify(path)
        assert (layout.name, layout.version, layout.refusal) == (SPLIT, "2.5.0", "")
        found = layout.sources.keys() - {"upsampler"}  # which lies in one of the three
        assert found == {*NEEDED, "duration_head"} - {"upsampler"}
        assert (
            layout.sources["video_decoder"].path.stem == "ltx-2.5-tiny-video-vae-bf16"
        )
    assert identify(TINY_2_3).name == OFFICIAL


def test_a_split_checkpoint_that_lacks_a_file_says_which(tmp_path):
    root = split_checkpoint(tmp_path / "model")
    (root / "vae" / "ltx-2.5-tiny-audio-vae-bf16.safetensors").unlink()
    with pytest.raises(UserError) as error:
        Components.open(root)
    assert "is the transformer of LTX-2.5.0 alone" in str(error.value)
    assert "holds audio_decoder, audio_encoder, vocoder" in str(error.value)
    with pytest.raises(UserError, match="holds only video_encoder, video_decoder"):
        Components.open(root / "vae" / "ltx-2.5-tiny-video-vae-conv-bf16.safetensors")


@pytest.mark.slow
def test_the_connectors_projection_is_read_from_the_text_encoders_file(tmp_path):
    root = split_checkpoint(tmp_path / "model")
    needs = ["connectors", "text_encoder", "vocoder", "duration_head"]
    components = Components.open(Files(root, dtype="float32"), needs=needs)
    with components.lend("text_encoder") as encoder:
        features = encoder.features(["a cat on a mat"])
    with components.lend("connectors") as connectors:
        context = connectors(*features)
        mx.eval(context.values)
    with components.lend("duration_head") as head:
        assert 0 < head(context).item() < 60


@pytest.mark.slow
def test_the_parts_of_2_3_are_lent():
    needs = ["connectors", "video_encoder", "video_decoder", "audio_decoder", "vocoder"]
    components = Components.open(Files(TINY_2_3, dtype="float32"), needs=needs)
    for name in needs:
        with components.lend(name) as part:
            assert part.parameters()
    sources = {name: components.sources[name] for name in needs}
    assert read_geometry(sources).audio.output_rate == 48000


@pytest.mark.slow
@pytest.mark.parametrize("path, version", [(TINY_2_3, "2.3.0"), (TINY_2_5, "2.5.0")])
def test_what_lies_there_is_described(path, version):
    told = describe(path)
    assert told.layout.version == version
    parts = {"connectors", "video_decoder", "vocoder", "audio_decoder"}
    assert parts <= told.parts.keys()


def test_a_block_that_is_no_object_is_refused():
    source = Source(Path("a.safetensors"), json.loads("[1]"))
    with pytest.raises(UserError, match="a.safetensors: the config of its vocoder is"):
        PARTS["vocoder"].config(source)


@pytest.fixture
def eager(monkeypatch):
    """Nothing is compiled, as the doors have it on a CPU."""
    compiled = not backend.eager
    monkeypatch.setattr(backend, "eager", mx.default_device() == mx.cpu)
    mx.disable_compile()
    yield
    if compiled:
        mx.enable_compile()


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "frames, times", [pytest.param(51, 5, marks=pytest.mark.thorough), (100, 1)]
)
def test_the_newer_vocoder_takes_what_it_says(frames, times, monkeypatch):
    """In pieces, beyond which it takes no more."""
    monkeypatch.setattr(bigvgan, "PIECE", 64)
    components = Components.open(Files(TINY_2_3, dtype="float32"), needs=["vocoder"])
    with components.lend("vocoder") as vocoder:
        log_mel = mx.zeros((1, 2, frames, 64))
        mx.eval(log_mel, vocoder(log_mel[:, :, :20]))
        said = vocoder.activation_bytes(frames)
        measured = most_taken(lambda: mx.eval(vocoder(log_mel)), times, said)
        assert said == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "name, dtype",
    [
        ("audio_encoder", mx.float32),
        pytest.param("audio_encoder", mx.bfloat16, marks=pytest.mark.thorough),
        pytest.param("audio_decoder", mx.bfloat16, marks=pytest.mark.thorough),
        ("duration_head", mx.float32),
    ],
)
def test_parts_take_what_they_say(name, dtype):
    """At full size, on a CPU."""
    block = PARTS[name].block
    source = Source(Path(name), LTX_2_5.blocks[block] if block else LTX_2_5.blocks)
    network = PARTS[name].network(source)(PARTS[name].config(source))
    network.set_dtype(dtype)
    if name == "audio_encoder":
        size, given = 101, mx.random.normal((1, 2, 101, 64))
    elif name == "audio_decoder":
        size, given = 26, mx.random.normal((1, 8, 26, 16))
    else:
        widths = network.video.proj.weight.shape[1], network.audio.proj.weight.shape[1]
        size = 512
        given = AV(*(mx.random.normal((1, size, width)) for width in widths))
    mx.eval(network.parameters(), *getattr(given, "values", [given]))
    said = network.activation_bytes(size)
    measured = most_taken(lambda: mx.eval(network(given)), 3, said)
    assert said == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "dtype", [mx.float32, pytest.param(mx.bfloat16, marks=pytest.mark.thorough)]
)
def test_the_vocoder_takes_what_it_says(dtype):
    """LTX-2's with fewer channels, which computes bfloat16 weights in float32."""
    config = json.loads((MANIFESTS / "ltx-2-19b.config.json").read_text())["config"]
    narrow = config["vocoder"] | {"upsample_initial_channel": 512}
    source = Source(Path("vocoder"), narrow)
    vocoder = PARTS["vocoder"].network(source)(PARTS["vocoder"].config(source))
    vocoder.set_dtype(dtype)
    log_mel = mx.zeros((1, 2, 150, 64))
    mx.eval(vocoder.parameters(), log_mel)
    said = vocoder.activation_bytes(150)
    measured = most_taken(lambda: mx.eval(vocoder(log_mel)), 2, said)
    assert said == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "name, width, size",
    [
        ("video_encoder", 64, (64, 64)),
        pytest.param("video_encoder", 64, (256, 256), marks=pytest.mark.thorough),
        ("upsampler", 512, (2, 4, 6)),
    ],
)
def test_copies_of_weights_are_part_of_what_a_part_takes(name, width, size):
    """In bfloat16 on a CPU, which copies convolutions' weights to float32: here most of what they take."""
    network = narrower(name, width)
    if name == "video_encoder":
        given, foreseen = mx.zeros((1, 3, 1, *size)), network.activation_bytes(*size)
    else:
        cells = 4 * math.prod(size)
        given, foreseen = mx.zeros((1, 128, *size)), network.activation_bytes(cells)
    mx.eval(network.parameters(), given)

    def work() -> None:
        with piece_by_piece():
            mx.eval(network(given))

    assert foreseen == pytest.approx(most_taken(work, 2, foreseen), rel=0.15)


def narrower(name: str, width: int) -> Network:
    """LTX-2's encoder or upsampler with fewer channels, and zeros for weights in bfloat16."""
    file = "ltx-2-19b" if name == "video_encoder" else "ltx-2-upscalers"
    config = json.loads((MANIFESTS / f"{file}.config.json").read_text())
    if name == "video_encoder":
        config = config["config"]["vae"] | {"encoder_base_channels": width}
    else:
        config = config["ltx-2-spatial-upscaler-x2-1.0.safetensors"]["config"]
        config = config | {"mid_channels": width}
    source = Source(Path(name), config)
    network = PARTS[name].network(source)(PARTS[name].config(source))
    zeros = tree_map(lambda v: mx.zeros(v.shape, mx.bfloat16), network.parameters())
    network.update(zeros)
    return network
