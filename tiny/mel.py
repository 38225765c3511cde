"""The mel front end: sound as the audio encoder takes it. Knows spectra and mel bands, not files or resampling.

Mel scale and norm are those of Slaney's Auditory Toolbox (1998), as in librosa and torchaudio with ``"slaney"``.
"""

from functools import cache

import mlx.core as mx
import numpy as np

from mlx_video.errors import UserError
from mlx_video.models.ltx.audio_vae.signal import overlapping
from mlx_video.models.ltx.vae_config import AudioVAEConfig

LOG_FLOOR = 1e-5

# Slaney's scale: linear below 1 kHz, 3 mel for 200 Hz; logarithmic above, 27 mel from 1 to 6.4 kHz.
HZ_PER_MEL = 200 / 3
LINEAR_HZ = 1000
LINEAR_MEL = LINEAR_HZ / HZ_PER_MEL
MEL_PER_LOG_HZ = 27 / np.log(6.4)


def log_mel(waveform: mx.array, config: AudioVAEConfig) -> mx.array:
    """Natural logarithm of mel magnitudes: (B, C, n) in [-1, 1] -> (B, C, 1 + n // hop, mel bins), float32.

    ``waveform`` must be at ``config.sampling_rate`` Hz. Frame i is centred on sample i * hop; the sound is reflected at
    both ends. Raises ``UserError`` if it is too short for that.
    """
    half = config.filter_length // 2
    if waveform.shape[-1] <= half:
        raise UserError(
            f"sound must be longer than {half} samples ({half / config.sampling_rate:.3f} s); "
            f"got {waveform.shape[-1]}."
        )
    padded = mx.pad(
        waveform.astype(mx.float32), ((0, 0), (0, 0), (half, half)), mode="reflect"
    )
    bank = filterbank(
        half + 1,
        config.mel_bins,
        config.sampling_rate,
        config.mel_fmin,
        config.mel_fmax,
    )
    mel = _magnitudes(padded, config) @ mx.array(bank, dtype=mx.float32)
    return mx.log(mx.maximum(mel, LOG_FLOOR))


def _magnitudes(padded: mx.array, config: AudioVAEConfig) -> mx.array:
    """Short-time Fourier magnitudes: (B, C, n) -> (B, C, frames, filter_length // 2 + 1)."""
    window = mx.array(_hann(config.win_length, config.filter_length), dtype=mx.float32)
    pieces = overlapping(padded, config.filter_length, config.hop_length)
    return mx.abs(mx.fft.rfft(pieces * window))


@cache
def _hann(length: int, frame: int) -> np.ndarray:
    """A periodic Hann window of ``length`` samples, centred in a frame."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    left = (frame - length) // 2
    return np.pad(window, (left, frame - length - left))


@cache
def filterbank(
    bins: int, mel_bins: int, sample_rate: int, low: float, high: float
) -> np.ndarray:
    """Triangular bands of unit area in Hz, evenly spaced in mel from ``low`` to ``high`` Hz: float64 (bins, mel_bins).

    ``bins`` frequencies run from 0 to ``sample_rate / 2`` Hz, both included.
    """
    frequencies = np.linspace(0, sample_rate / 2, bins)[:, None]
    edges = mel_to_hz(np.linspace(hz_to_mel(low), hz_to_mel(high), mel_bins + 2))
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies - left) / (centre - left)
    falling = (right - frequencies) / (right - centre)
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (right - left)


def hz_to_mel(hz: np.ndarray | float) -> np.ndarray:
    """Slaney's scale; mel 15 is 1 kHz."""
    above = np.log(np.maximum(hz, LINEAR_HZ) / LINEAR_HZ)
    return np.minimum(hz, LINEAR_HZ) / HZ_PER_MEL + above * MEL_PER_LOG_HZ


def mel_to_hz(mel: np.ndarray | float) -> np.ndarray:
    """The inverse of ``hz_to_mel``."""
    above = np.maximum(mel, LINEAR_MEL) - LINEAR_MEL
    linear = np.minimum(mel, LINEAR_MEL) * HZ_PER_MEL
    return linear * np.exp(above / MEL_PER_LOG_HZ)
