"""The audio autoencoder over log-mel spectrograms, its mel front end and the vocoders behind it."""

from mlx_video.models.ltx.audio_vae.autoencoder import AudioDecoder, AudioEncoder
from mlx_video.models.ltx.audio_vae.bigvgan import BigVGANVocoder
from mlx_video.models.ltx.audio_vae.mel import log_mel
from mlx_video.models.ltx.audio_vae.signal import resample
from mlx_video.models.ltx.audio_vae.vocoder import Vocoder

__all__ = [
    "AudioDecoder",
    "AudioEncoder",
    "BigVGANVocoder",
    "Vocoder",
    "log_mel",
    "resample",
]
