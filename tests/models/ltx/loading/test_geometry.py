"""Checkpoints whose rates, hops or cells are not LTX-2's: they run right, or are refused by name before a weight is read."""

import json
import math
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_video import cli, recipes
from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.checkpoint.find import PACKAGED
from mlx_video.models.ltx.checkpoint.releases import LTX_2, LTX_2_3, LTX_2_5
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.parts import PARTS
from mlx_video.pipeline import Pipeline, Request
from mlx_video.recipes import Recipe, Stage
from mlx_video.serve.schema import VideoRequest
from mlx_video.serve.worker import Settings
from mlx_video.types import AV, VideoPixelShape, VideoScale
from mlx_video.weights import save_folder
from tests.checkpoints import MODEL, rewrite, tiny_folder
from tests.media_reading import read_clip
from tests.models.ltx.loading.test_parts import TINY_2_3, TINY_2_5

ONE_STEP = Recipe("distilled", (Stage((1.0, 0.0)),))
TWO_STAGES = Recipe("distilled", (Stage((1.0, 0.0), scale=0.5), Stage((0.5, 0.0))))
SECOND = VideoPixelShape(25, 64, 64, 24.0)


def with_sound(folder: Path, vocoder: dict = {}, **audio: int) -> Path:
    """The tiny checkpoint with other numbers in its audio config and its vocoder's."""

    def change(config: dict) -> None:
        preprocessing = config["audio_vae"]["preprocessing"]
        if "hop_length" in audio:
            preprocessing["stft"]["hop_length"] = audio["hop_length"]
        if "sampling_rate" in audio:
            preprocessing["audio"]["sampling_rate"] = audio["sampling_rate"]
            config["audio_vae"]["model"]["params"]["sampling_rate"] = audio[
                "sampling_rate"
            ]
        config["vocoder"] |= vocoder

    model = tiny_folder(folder)
    rewrite(model / MODEL, config=change)
    return model


def with_cells(folder: Path, decoder: dict) -> Path:
    """The demo model with a random video autoencoder of these blocks."""
    shutil.copytree(PACKAGED, folder)
    for name in ("video_encoder", "video_decoder"):
        config = json.loads((folder / name / "config.json").read_text()) | decoder
        mx.random.seed(0)
        source = Source(folder / name, config)
        network = PARTS[name].network(source)(PARTS[name].config(source))
        shutil.rmtree(folder / name)
        save_folder(folder / name, dict(tree_flatten(network.parameters())), config)
    return folder


CHANGES = {
    "hop": ({}, {"hop_length": 200}, "hop_length 200.* 19200 Hz"),
    "rate": ({}, {"sampling_rate": 22050}, "sampling_rate 22050.* 33075 Hz"),
    "output": ({"output_sample_rate": 48000}, {}, "output_sample_rate is 48000 Hz"),
}


@pytest.mark.parametrize("vocoder, audio, reason", CHANGES.values(), ids=CHANGES)
def test_sound_at_a_wrong_pitch_is_refused(vocoder, audio, reason, tmp_path, capsys):
    model = with_sound(tmp_path / "model", vocoder, **audio)
    with pytest.raises(UserError, match=f"{MODEL}.*{reason}.*wrong speed and pitch"):
        Components.open(model)
    words = "-p cat -n 9 -W 64 -H 64 -o x.mp4 --model".split()
    assert cli.main(["generate", *words, str(model)]) == 2
    assert "wrong speed and pitch" in capsys.readouterr().err


def test_a_vocoder_of_other_mel_bins_is_refused(tmp_path):
    def change(config: dict) -> None:
        config["audio_vae"]["model"]["params"]["ddconfig"]["mel_bins"] = 32

    rewrite(tiny_folder(tmp_path / "model") / MODEL, config=change)
    with pytest.raises(UserError, match="makes 32 mel bins .* vocoder reads 64"):
        Components.open(tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize(
    "rates, output, audio, latents",
    [
        ([10, 5, 2, 2, 2], 32000, {"hop_length": 200}, 21),
        ([8, 5, 2, 2, 2], 44100, {"sampling_rate": 22050}, 36),
        ([6, 5, 4, 2, 2], 48000, {}, 26),
    ],
    ids=CHANGES,
)
def test_other_rates_that_agree_give_sound_as_long_as_the_picture(
    rates, output, audio, latents, tmp_path
):
    changed = {"upsample_rates": rates, "output_sample_rate": output}
    pipeline = pipeline_of(with_sound(tmp_path / "model", changed, **audio), ONE_STEP)
    *_, sample, clip = pipeline.stream(Request("a cat", SECOND, audio=True))
    assert sample.latents.audio.shape[2] == latents
    made = (4 * latents - 3) * math.prod(rates) / output
    # What is cut or mirrored, so that the sound is as long as the picture.
    assert abs(made - SECOND.seconds) < 0.05
    assert clip.audio.sample_rate == output
    assert clip.audio.samples.shape[1] == round(SECOND.seconds * output)


def pipeline_of(model: Path, recipe: Recipe, health: bool = False) -> Pipeline:
    components = Components.open(Files(model, dtype="float32"), needs=recipe.needs)
    return Pipeline(components, recipe, health=health)


SMALL_CELLS = {
    "encoder_base_channels": 8,
    "encoder_blocks": [
        ["compress_all_res", {"multiplier": 2}],
        ["compress_all_res", {"multiplier": 2}],
    ],
    "decoder_base_channels": 8,
    "decoder_blocks": [
        ["compress_all", {"multiplier": 2, "residual": True}],
        ["compress_all", {"multiplier": 2, "residual": True}],
    ],
}


@pytest.fixture(scope="module")
def small_cells(tmp_path_factory) -> Path:
    return with_cells(tmp_path_factory.mktemp("cells") / "model", SMALL_CELLS)


@pytest.mark.slow
def test_a_video_autoencoder_of_smaller_cells_makes_the_size_asked_for(small_cells):
    """Whole and in tiles of both kinds, which blend to about the same, and its frames count as healthy."""
    made, shape = [], VideoPixelShape(41, 64, 320, 24.0)
    for tiling in ("none", "aggressive"):
        pipeline = pipeline_of(small_cells, TWO_STAGES, health=True)
        assert pipeline.components.geometry.video == VideoScale(4, 16, 16)
        *_, sample, clip = pipeline.stream(Request("a ball", shape, tiling=tiling))
        assert sample.latents.video.shape == (1, 128, 11, 4, 20)
        made.append(np.stack(list(clip.frames)).astype(np.float32))
    assert made[0].shape == made[1].shape == (41, 64, 320, 3)
    assert 0 < np.abs(made[0] - made[1]).mean() < 2


@pytest.mark.slow
def test_terminal_and_server_keep_to_the_smaller_cells(
    small_cells, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = f"generate -p ball --model {small_cells} --no-audio -W 96 -H 64 -o a.mp4 -n"
    assert cli.main([*words.split(), "6"]) == 0
    assert "6 frames became 5" in capsys.readouterr().err
    assert np.stack(read_clip(Path("a.mp4"))[0]).shape == (5, 64, 96, 3)
    server = Settings({"small": str(small_cells)}, {})
    wanted = VideoRequest(prompt="ball", width=90, height=16, num_frames=6, seed=1)
    decided, notices = server.described("small").snapped(wanted)
    assert (decided.width, decided.height, decided.num_frames) == (96, 32, 5)
    assert len(notices) == 2
    server.job(decided).check()


def test_an_encoder_and_a_decoder_of_other_cells_are_refused(tmp_path):
    blocks = SMALL_CELLS["decoder_blocks"][:1]
    model = with_cells(tmp_path / "model", SMALL_CELLS | {"decoder_blocks": blocks})
    with pytest.raises(UserError, match="4 frames of 16x16 .* decoder's for 2 frames"):
        Components.open(model)


def test_a_transformer_of_other_latents_is_refused(tmp_path):
    model = with_cells(tmp_path / "model", SMALL_CELLS | {"latent_channels": 64})
    with pytest.raises(UserError, match="in_channels is 128, but .* has 64 numbers"):
        Components.open(model)


def test_the_published_geometry_is_what_files_state(tmp_path):
    """A request is checked against it before 43 GB are fetched; the tiny checkpoints have the real ones'."""
    paths = tiny_folder(tmp_path / "model"), TINY_2_3, TINY_2_5
    needs = [part for part in PARTS if PARTS[part].block]
    for path, release in zip(paths, (LTX_2, LTX_2_3, LTX_2_5)):
        assert Components.open(path, needs=needs).geometry == release.geometry


@pytest.mark.slow
@pytest.mark.parametrize("release, least", [("2.0", 64), ("2.3", 32), ("2.5", 32)])
def test_the_smallest_clip_that_passes_can_be_decoded(release, least, tmp_path):
    paths = {"2.0": tiny_folder(tmp_path / "a"), "2.3": TINY_2_3, "2.5": TINY_2_5}
    needs = [part for part in PARTS if PARTS[part].block]
    components = Components.open(paths[release], needs=needs)
    geometry = components.geometry
    for height, width in ((least - 32, least), (least, least - 32)):
        with pytest.raises(UserError):
            geometry.check(VideoPixelShape(1, height, width, 24.0))
    shape = VideoPixelShape(1, least, least, 24.0)
    geometry.check(shape)
    latents = mx.random.normal(tuple(geometry.latents(shape)), key=mx.random.key(0))
    pipeline = Pipeline(components, recipes.distilled(), health=False)
    (frame,) = pipeline.decode(AV(latents), Request("a cat", shape)).frames
    assert frame.shape == (least, least, 3)


@pytest.mark.parametrize(
    "frames, height, width",
    [(8_000_000_001, 64, 64), (9, 6_400_000, 64), (9, 64, 16416)],
)
def test_a_clip_without_bounds_is_refused_at_once(frames, height, width):
    with pytest.raises(UserError, match="at most 16,384 pixels a side and 144,001 fr"):
        VideoPixelShape(frames, height, width, 24.0).check()
    VideoPixelShape(144_001, 16_384, 64, 24.0).check()
