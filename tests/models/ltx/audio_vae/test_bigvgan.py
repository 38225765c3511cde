"""The vocoder of LTX-2.3 and 2.5 against the official numbers, itself in pieces, and the real checkpoints' names."""

import math

import mlx.core as mx
import pytest

from mlx_video.models.ltx.audio_vae import AudioDecoder, BigVGANVocoder, bigvgan
from mlx_video.models.ltx.audio_vae.bigvgan import reach
from mlx_video.models.ltx.vae_config import BigVGANVocoderConfig
from tests.models.ltx.audio_vae.audio import (
    NEWER,
    TINY,
    real_shapes,
    tiny,
    tiny_weights,
)
from tests.reference import LOOP_TOLERANCE, MODULE_TOLERANCE, checkpoint, error, vectors

RELEASES = pytest.mark.parametrize("release", NEWER)
UNUSED = "vocoder.mel_stft.stft_fn.inverse_basis"


def noise(*shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(sum(shape)))


def channels_first(x: mx.array) -> mx.array:
    return x.transpose(0, 2, 1)


# Official numbers


@pytest.mark.parametrize(
    "release", [pytest.param("ltx23_tiny", marks=pytest.mark.slow), "ltx25_tiny"]
)
def test_vocoder(release):
    v, vocoder = vectors("audio", release), tiny(BigVGANVocoder, release=release)
    assert error(vocoder(v["voc.in"]), v["voc.wave"]) < MODULE_TOLERANCE
    assert (vocoder.sample_rate, vocoder.hop) == (48000, 480)


@pytest.mark.slow
@RELEASES
def test_generator_inside(release):
    v, vocoder = vectors("audio", release), tiny(BigVGANVocoder, release=release)
    generator, log_mel = vocoder.generator, v["voc.in"]
    x = mx.concatenate([log_mel[:, 0], log_mel[:, 1]], axis=-1)
    x = generator.conv_pre(x)
    assert error(channels_first(x), v["voc.conv_pre"]) < MODULE_TOLERANCE
    x = generator.ups[0](x)
    assert error(channels_first(x), v["voc.up0"]) < MODULE_TOLERANCE
    x = channels_first(v["voc.act_in"])
    act = generator.resblocks[0].acts1[0]
    assert error(channels_first(act(x)), v["voc.act_out"]) < MODULE_TOLERANCE
    if "voc.resblock0" in v:
        x = generator.resblocks[0](x)
        assert error(channels_first(x), v["voc.resblock0"]) < MODULE_TOLERANCE
    assert error(generator(log_mel), v["voc.low"]) < MODULE_TOLERANCE


@pytest.mark.slow
@RELEASES
def test_extension_inside(release):
    v, vocoder = vectors("audio", release), tiny(BigVGANVocoder, release=release)
    log_mel = vocoder.mel(v["voc.low"])
    assert error(log_mel.swapaxes(2, 3), v["voc.bwe_mel"]) < MODULE_TOLERANCE
    assert error(vocoder.extension(log_mel), v["voc.residual"]) < MODULE_TOLERANCE


# The checkpoints


@RELEASES
def test_names_read_both_ways(release):
    official = tiny_weights(BigVGANVocoder, release)
    ours = BigVGANVocoder.sanitize(official)
    assert {BigVGANVocoder.NAMES.official(key) for key in ours} == set(official) - {
        UNUSED
    }
    assert BigVGANVocoder.sanitize(ours) is ours


@pytest.mark.parametrize("file", ["ltx-2.3-22b", "ltx-2.5-audio-vae"])
def test_full_size_consumes_the_real_checkpoint(file):
    expected, found = real_shapes(BigVGANVocoder, file)
    assert found == expected
    assert len(found) == 1227 - 1  # all but the inverse basis
    assert sum(math.prod(shape) for shape in found.values()) == 128_821_864


def test_refuses_rates_that_do_not_fit():
    block = checkpoint(TINY["ltx23_tiny"])[1]["vocoder"]
    bwe = block["bwe"] | {"output_sampling_rate": 44100}
    with pytest.raises(ValueError, match="240 samples for every 80 do not make 44100"):
        BigVGANVocoderConfig.from_dict(block | {"bwe": bwe})
    with pytest.raises(ValueError, match="resblock = 'AMP2' is not implemented"):
        changed = block["vocoder"] | {"resblock": "AMP2"}
        BigVGANVocoderConfig.from_dict(block | {"vocoder": changed})


@pytest.mark.parametrize("lacks", ["bwe", "vocoder"])
def test_refuses_half_a_config(lacks):
    block = dict(checkpoint(TINY["ltx23_tiny"])[1]["vocoder"])
    del block[lacks]
    with pytest.raises(ValueError, match=f"BigVGANVocoderConfig.*{lacks}"):
        BigVGANVocoderConfig.from_dict(block)


# Shapes, dtypes, equivalences


@pytest.mark.slow
def test_in_pieces_is_as_a_whole(monkeypatch):
    """A minute of sound takes the memory of five seconds, and is the same sound."""
    vocoder = tiny(BigVGANVocoder, release="ltx25_tiny")
    log_mel = noise(1, 2, 36, 64)
    whole = vocoder(log_mel)
    monkeypatch.setattr(bigvgan, "PIECE", 24)
    assert error(vocoder(log_mel), whole) < 1e-5


@pytest.mark.thorough
def test_reach_is_what_reaches():
    """One mel frame changes samples up to ``reach`` frames away: no further, and not much less."""
    vocoder = tiny(BigVGANVocoder, release="ltx25_tiny")
    log_mel = noise(1, 2, 150, 64)
    changed = mx.array(log_mel)
    changed[:, :, 75] += 3
    differs = mx.abs(vocoder(log_mel) - vocoder(changed)).max(axis=(0, 1)) > 0
    frames = [i // vocoder.hop for i, d in enumerate(differs.tolist()) if d]
    assert 75 - vocoder.reach <= frames[0] and frames[-1] <= 75 + vocoder.reach
    assert frames[-1] - frames[0] > vocoder.reach
    assert reach(vocoder.config.vocoder) < vocoder.reach


@pytest.mark.slow
def test_bfloat16_weights_compute_in_float32():
    """The tiny weights are exact in bfloat16, so that only the arithmetic could differ."""
    v = vectors("audio", "ltx25_tiny")
    half = tiny(BigVGANVocoder, mx.bfloat16, "ltx25_tiny")
    wave = half(v["voc.in"].astype(mx.bfloat16))
    assert wave.dtype == mx.float32
    assert error(half(v["voc.in"]), v["voc.wave"]) < MODULE_TOLERANCE


@pytest.mark.slow
def test_batch_and_range():
    vocoder = tiny(BigVGANVocoder, release="ltx25_tiny")
    log_mel = noise(2, 2, 5, 64) * 3
    waveform = vocoder(log_mel)
    assert waveform.shape == (2, 2, 2400)
    assert mx.abs(waveform).max().item() <= 1
    assert error(vocoder(log_mel[1:]), waveform[1:]) < MODULE_TOLERANCE


@pytest.mark.slow
@RELEASES
def test_latent_to_sound(release):
    """As the pipeline decodes: one mel frame in four but the last, 480 samples each."""
    v = vectors("audio", release)
    log_mel = tiny(AudioDecoder, release=release)(v["dec.in"])
    waveform = tiny(BigVGANVocoder, release=release)(log_mel)
    frames = 4 * v["dec.in"].shape[2] - 3
    assert waveform.shape == (1, 2, 480 * frames)
    assert 0 < mx.abs(waveform).max().item() <= 1


@pytest.mark.slow
def test_the_sound_of_the_official_recipe():
    """From latents to 48 kHz; every 16th sample is kept here."""
    latent = vectors("loops", "ltx25_tiny")["recipe2.final_audio"]
    decoder, vocoder = (tiny(part, release="ltx25_tiny") for part in (AudioDecoder, BigVGANVocoder))  # fmt: skip
    sound = vocoder(decoder(latent))
    official = vectors("recipe_sound", "ltx25_tiny")["recipe.wave_16th"]
    assert error(sound[..., ::16], official) < LOOP_TOLERANCE
