"""The audio encoder and decoder against the official numbers, and the real checkpoint's names."""

import mlx.core as mx
import pytest

from mlx_video.models.ltx.audio_vae import AudioDecoder, AudioEncoder
from mlx_video.models.ltx.vae_config import AudioVAEConfig
from tests.models.ltx.audio_vae.audio import (
    NEWER,
    REAL,
    TINY,
    real_shapes,
    tiny,
    tiny_config,
    tiny_weights,
)
from tests.reference import MODULE_TOLERANCE, checkpoint, error, vectors
from tiny.mel import log_mel

SILENT_TOLERANCE = 1e-3  # log-mel of near-silent bins
PARTS = pytest.mark.parametrize("part", [AudioEncoder, AudioDecoder])


@pytest.fixture(scope="module")
def encoder() -> AudioEncoder:
    return tiny(AudioEncoder)


@pytest.fixture(scope="module")
def decoder() -> AudioDecoder:
    return tiny(AudioDecoder)


# Official numbers


def test_decoder(decoder):
    v = vectors("audio")
    assert error(decoder(v["dec.in"]), v["dec.mel"]) < SILENT_TOLERANCE


def test_decoder_inside(decoder):
    v = vectors("audio")
    latent = decoder.per_channel_statistics.un_normalize(v["dec.in"])
    assert error(latent, v["dec.denorm"]) < MODULE_TOLERANCE
    x = decoder.conv_in(v["dec.denorm"].transpose(0, 2, 3, 1))
    assert error(x.transpose(0, 3, 1, 2), v["dec.conv_in"]) < MODULE_TOLERANCE
    x = decoder.mid(v["dec.conv_in"].transpose(0, 2, 3, 1))
    assert error(x.transpose(0, 3, 1, 2), v["dec.mid"]) < MODULE_TOLERANCE


@pytest.mark.parametrize(
    "log_mel, latent",
    [("enc.in", "enc.out"), ("mel.log_mel", "enc.wave_latent")],
)
def test_encoder(encoder, log_mel, latent):
    v = vectors("audio")
    assert error(encoder(v[log_mel]), v[latent]) < MODULE_TOLERANCE


@pytest.mark.parametrize("release", NEWER)
def test_decoder_of_newer_releases(release):
    v, decoder = vectors("audio", release), tiny(AudioDecoder, release=release)
    latent = decoder.per_channel_statistics.un_normalize(v["dec.in"])
    x = decoder.conv_in(latent.transpose(0, 2, 3, 1))
    assert error(x.transpose(0, 3, 1, 2), v["dec.conv_in"]) < MODULE_TOLERANCE
    x = decoder.mid(x)
    assert error(x.transpose(0, 3, 1, 2), v["dec.mid"]) < MODULE_TOLERANCE
    assert error(decoder(v["dec.in"]), v["dec.mel"]) < MODULE_TOLERANCE


@pytest.mark.parametrize("release", NEWER)
def test_encoder_of_newer_releases(release):
    """From a spectrogram, and from that of sound."""
    v, encoder = vectors("audio", release), tiny(AudioEncoder, release=release)
    assert error(encoder(v["enc.in"]), v["enc.out"]) < MODULE_TOLERANCE
    spectrogram = log_mel(v["mel.wave16k"], tiny_config(AudioEncoder, release))
    assert error(spectrogram, v["mel.log_mel"]) < MODULE_TOLERANCE
    assert error(encoder(spectrogram), v["mel.latent"]) < MODULE_TOLERANCE


# The real checkpoints


@PARTS
@pytest.mark.parametrize("file", REAL)
def test_full_size_consumes_the_real_checkpoint(part, file):
    expected, found = real_shapes(part, file)
    assert found == expected


@PARTS
@pytest.mark.parametrize("release", TINY)
def test_names_read_both_ways(part, release):
    """Of the autoencoder's tensors, those of the other half aside."""
    other = "decoder" if part is AudioEncoder else "encoder"
    official = {k for k in tiny_weights(part, release) if f".{other}." not in k}
    ours = part.sanitize(tiny_weights(part, release))
    assert {part.NAMES.official(key) for key in ours} == official


@PARTS
def test_sanitize_twice_is_once(part):
    once = part.sanitize(checkpoint()[0])
    assert part.sanitize(once) is once


# Shapes, dtypes, equivalences


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_batch_and_dtype(dtype):
    latent = mx.random.normal((2, 8, 5, 16), key=mx.random.key(0))
    decoder, encoder = tiny(AudioDecoder, dtype), tiny(AudioEncoder, dtype)
    log_mel = decoder(latent)
    assert (log_mel.shape, log_mel.dtype) == ((2, 2, 17, 64), dtype)
    again = encoder(log_mel)
    assert (again.shape, again.dtype) == (latent.shape, dtype)
    assert error(log_mel[1:], decoder(latent[1:])) < (
        MODULE_TOLERANCE if dtype == mx.float32 else 0.05
    )


def test_statistics_are_inverse(decoder):
    latent = vectors("audio")["dec.in"]
    statistics = decoder.per_channel_statistics
    again = statistics.normalize(statistics.un_normalize(latent))
    assert error(again, latent) < 1e-5


def test_time_is_causal(decoder, encoder):
    """What comes later changes nothing earlier: T latent frames reach exactly the first 4T - 3 mel frames."""
    v = vectors("audio")
    latent, log_mel = v["dec.in"], v["enc.in"]
    assert error(decoder(latent[:, :, :7]), v["dec.mel"][:, :, :25]) < 1e-4
    assert error(encoder(log_mel[:, :, :25]), v["enc.out"][:, :, :7]) < 1e-4
    longer = mx.concatenate([latent[:, :, :7], -latent[:, :, 7:8]], axis=2)
    assert error(decoder(longer)[:, :, :25], v["dec.mel"][:, :, :25]) < 1e-4
    assert error(decoder(longer), v["dec.mel"][:, :, :29]) > 1e-2


@pytest.mark.parametrize("frames, latents", [(1, 1), (4, 1), (5, 2), (69, 18)])
def test_four_mel_frames_a_latent(encoder, frames, latents):
    assert encoder(mx.zeros((1, 2, frames, 64))).shape == (1, 8, latents, 16)


def test_refuses_what_it_does_not_implement():
    block = checkpoint()[1]["audio_vae"]
    with pytest.raises(ValueError, match="norm_type = 'group' is not implemented"):
        AudioVAEConfig.from_dict(
            {"norm_type": "group", "preprocessing": block["preprocessing"]}
        )
