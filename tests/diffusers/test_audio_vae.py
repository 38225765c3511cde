"""The audio encoder and decoder against diffusers on fresh random weights."""

import mlx.core as mx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import AutoencoderKLLTX2Audio

from mlx_video.models.ltx.audio_vae import AudioDecoder, AudioEncoder
from mlx_video.models.ltx.vae_config import AudioVAEConfig
from tests.reference import MODULE_TOLERANCE, error

STATISTICS = "audio_vae.per_channel_statistics."


def ours_and_theirs(ch, ch_mult, num_res_blocks, z_channels, mel_bins):
    """(encoder, decoder, diffusers' autoencoder); diffusers leaves the statistics to its pipeline."""
    theirs = AutoencoderKLLTX2Audio(
        base_channels=ch,
        ch_mult=ch_mult,
        num_res_blocks=num_res_blocks,
        latent_channels=z_channels,
        mel_bins=mel_bins,
    ).eval()
    config = AudioVAEConfig(
        ch=ch,
        ch_mult=ch_mult,
        num_res_blocks=num_res_blocks,
        z_channels=z_channels,
        in_channels=2,
        out_ch=2,
        mel_bins=mel_bins,
        sampling_rate=16000,
        filter_length=1024,
        hop_length=160,
        win_length=1024,
        mel_fmin=0,
        mel_fmax=8000,
    )
    weights = {
        f"audio_vae.{key}": mx.array(value.numpy())
        for key, value in theirs.state_dict().items()
        if not key.startswith("latents_")
    }
    tokens = z_channels * config.latent_bins
    weights[STATISTICS + "mean-of-means"] = mx.zeros(tokens)
    weights[STATISTICS + "std-of-means"] = mx.ones(tokens)
    encoder, decoder = AudioEncoder(config), AudioDecoder(config)
    for part in (encoder, decoder):
        part.load_weights(list(part.sanitize(weights).items()))
    return encoder, decoder, theirs


@torch.no_grad()
@pytest.mark.parametrize(
    "ch, ch_mult, num_res_blocks, z_channels, mel_bins, frames",
    [
        (16, (1, 2, 4), 2, 8, 64, 21),
        (8, (1, 1, 3), 1, 4, 32, 12),
        (8, (2, 1, 2), 3, 6, 64, 30),
    ],
)
def test_audio_vae(ch, ch_mult, num_res_blocks, z_channels, mel_bins, frames):
    torch.manual_seed(ch)
    encoder, decoder, theirs = ours_and_theirs(
        ch, ch_mult, num_res_blocks, z_channels, mel_bins
    )
    log_mel = torch.randn(2, 2, frames, mel_bins)
    latent = theirs.encode(log_mel).latent_dist.mode()
    expected = mx.array(latent.numpy())
    assert error(encoder(mx.array(log_mel.numpy())), expected) < MODULE_TOLERANCE
    decoded = theirs.decode(latent).sample
    assert error(decoder(expected), mx.array(decoded.numpy())) < MODULE_TOLERANCE
