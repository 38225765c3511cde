"""The audio autoencoder over log-mel spectrograms, and the vocoders behind it."""

from mlx_video.models.ltx.audio_vae.autoencoder import AudioDecoder, AudioEncoder
from mlx_video.models.ltx.audio_vae.bigvgan import BigVGANVocoder
from mlx_video.models.ltx.audio_vae.vocoder import Vocoder

__all__ = ["AudioDecoder", "AudioEncoder", "BigVGANVocoder", "Vocoder"]
