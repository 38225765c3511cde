"""The vocoder of LTX-2.3 and 2.5: BigVGAN (Lee et al. 2023, arXiv:2206.04658) at 16 kHz, and a second one that adds the
band above 8 kHz. Works in pieces of bounded size.
"""

import math
from typing import ClassVar, Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_video.models.ltx.audio_vae.signal import overlapping, resample
from mlx_video.models.ltx.audio_vae.vocoder import EDGE_KERNEL, Generator, VocoderBlock
from mlx_video.models.ltx.loading import memory_table
from mlx_video.models.ltx.loading.parts import Network
from mlx_video.models.ltx.pacing import end_piece
from mlx_video.models.ltx.vae_config import (
    MEL_BINS,
    BandwidthExtensionConfig,
    BigVGANConfig,
    BigVGANVocoderConfig,
)
from mlx_video.tensor_names import TensorNames

TAPS = 12  # of the filters around an activation
FILTER_REACH = TAPS // 2  # samples to either side that an activation sees
LOG_FLOOR = 1e-5
PIECE = 512  # mel frames computed at a time: 5 s


class BigVGANVocoder(Network):
    """Log-mel spectrogram (B, 2, T_mel, 64) -> waveform (B, 2, T_mel * hop) in [-1, 1] at ``sample_rate`` Hz.

    Computes in float32 whatever the weights' dtype, as in the official code: given a float32 input, MLX promotes each
    weight as it is used. Long clips are computed in pieces that overlap by the receptive field, with the same result.
    """

    CONFIG: ClassVar = BigVGANVocoderConfig
    NAMES: ClassVar = TensorNames(
        {
            "vocoder.vocoder.": "generator.",
            "vocoder.bwe_generator.": "extension.",
            "vocoder.mel_stft.": "mel.",
            "vocoder.mel_stft.stft_fn.inverse_basis": None,  # not used here
        },
        {
            "stft_fn.forward_basis": "basis",
            "mel_basis": "bank",
            "*.act.alpha": "*.alpha",
            "*.act.beta": "*.beta",
            "*.upsample.filter": "*.up",
            "*.downsample.lowpass.filter": "*.down",
        },
    )

    def __init__(self, config: BigVGANVocoderConfig):
        super().__init__()
        self.config = config
        self.sample_rate, self.hop = config.output_sample_rate, config.hop
        self.generator = BigVGAN(config.vocoder, MEL_BINS)
        self.extension = BigVGAN(config.bwe, config.bwe.num_mels)
        self.mel = CausalLogMel(config.bwe)

    @property
    def reach(self) -> int:
        """The most mel frames to either side that affect a sample."""
        inner, bwe = self.config.vocoder, self.config.bwe
        extension = reach(bwe) + math.ceil(bwe.n_fft / bwe.hop_length)
        return reach(inner) + math.ceil(extension * bwe.hop_length / inner.hop)

    def activation_bytes(self, mel_frames: int) -> float:
        """The most bytes for ``mel_frames``, in float32: arrays as wide as the widest of a piece in either generator."""
        bwe = self.config.bwe
        frames = min(mel_frames, PIECE + 2 * self.reach)
        per_frame = self.config.vocoder.hop / bwe.hop_length
        widest = max(widths(self.config.vocoder), per_frame * widths(bwe))
        return memory_table.live().bandwidth * frames * widest * memory_table.FLOAT32

    def __call__(self, log_mel: mx.array) -> mx.array:
        """(B, 2, T_mel, 64) of any dtype -> (B, 2, T_mel * hop) float32. Evaluates a long clip piece by piece."""
        x = log_mel.astype(mx.float32)
        total = x.shape[2]
        if total <= PIECE:
            return self._whole(x)
        pieces = []
        for start in range(0, total, PIECE):
            end = min(start + PIECE, total)
            left, right = max(0, start - self.reach), min(total, end + self.reach)
            wave = self._whole(x[:, :, left:right])
            wave = wave[:, :, (start - left) * self.hop : (end - left) * self.hop]
            mx.eval(wave)  # or all pieces would be in memory at once
            pieces.append(wave)
        return mx.concatenate(pieces, axis=2)

    def _whole(self, log_mel: mx.array) -> mx.array:
        narrow = self.generator(log_mel)
        bwe = self.config.bwe
        # The extension needs whole frames of its own.
        wave = mx.pad(narrow, ((0, 0), (0, 0), (0, -narrow.shape[2] % bwe.hop_length)))
        wide = resample(wave, bwe.input_sampling_rate, self.sample_rate, "edge")
        wave = mx.clip(self.extension(self.mel(wave)) + wide, -1, 1)
        return wave[..., : log_mel.shape[2] * self.hop]

    @staticmethod
    def to_mlx(key: str, value: mx.array) -> mx.array:
        """As in ``Network``; filters and the Fourier basis lose their axes of length 1."""
        if key.endswith((".up", ".down")):
            return value.flatten()
        if key == "mel.basis":
            return value.squeeze(1)
        return Generator.to_mlx(key, value)


def widths(config: BigVGANConfig) -> int:
    """Elements per frame of a generator's widest array; activations run at twice the sample rate."""
    width, samples, most = config.upsample_initial_channel, 1, 0
    for rate in config.upsample_rates:
        width, samples = width // 2, samples * rate
        most = max(most, 2 * width * samples)
    return most


class BigVGAN(Generator):
    """Log-mel spectrogram (B, C, T, bins) -> samples (B, C, T * hop), all channels together."""

    def __init__(self, config: BigVGANConfig, bins: int):
        super().__init__(config, bins, AMPBlock)
        if not config.use_bias_at_final:
            self.conv_post.pop("bias")
        self.config = config
        self.act_post = AntiAliasedSnake(config.last_width)

    def __call__(self, log_mel: mx.array) -> mx.array:
        x = self.act_post(self.lengthened(log_mel, nn.Identity()))
        x = self.conv_post(x).transpose(0, 2, 1)
        if not self.config.apply_final_activation:
            return x
        return mx.tanh(x) if self.config.use_tanh_at_final else mx.clip(x, -1, 1)


class AMPBlock(VocoderBlock):
    """HiFi-GAN's block with an anti-aliased activation before each convolution: (B, L, C) -> (B, L, C)."""

    def __init__(self, channels: int, kernel_size: int, dilations: Sequence[int]):
        super().__init__(channels, kernel_size, dilations)
        self.acts1 = [AntiAliasedSnake(channels) for _ in dilations]
        self.acts2 = [AntiAliasedSnake(channels) for _ in dilations]

    def __call__(self, x: mx.array) -> mx.array:
        layers = zip(self.convs1, self.convs2, self.acts1, self.acts2)
        for conv1, conv2, act1, act2 in layers:
            # One pair at a time: activations hold twice the samples.
            x = end_piece(x + conv2(act2(conv1(act1(x)))))
        return x


class AntiAliasedSnake(nn.Module):
    """SnakeBeta at twice the sample rate, between the checkpoint's two low-pass filters: (B, L, C) -> (B, L, C)."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = mx.zeros(channels)  # log frequency
        self.beta = mx.zeros(channels)  # log inverse magnitude
        self.up = mx.zeros(TAPS)
        self.down = mx.zeros(TAPS)

    def __call__(self, x: mx.array) -> mx.array:
        return _snake(x, self.alpha, self.beta, self.up, self.down)


@mx.compile
def _snake(
    x: mx.array, alpha: mx.array, beta: mx.array, up: mx.array, down: mx.array
) -> mx.array:
    """As sums of shifted views, which every backend fuses; even and odd samples of the doubled rate are kept apart."""
    alpha, beta = alpha.astype(mx.float32), beta.astype(mx.float32)
    frequency, magnitude = mx.exp(alpha), 1 / (mx.exp(beta) + 1e-9)

    def snake(y: mx.array) -> mx.array:
        return y + magnitude * mx.square(mx.sin(frequency * y))

    L, first, last = x.shape[1], x[:, :1], x[:, -1:]
    near = mx.concatenate([first] * 3 + [x] + [last] * 3, axis=1)
    # Times 2, since every other tap meets a zero between samples.
    even = snake(2 * _filtered(near, up[::-2], L))
    odd = snake(2 * _filtered(near[:, 1:], up[-2::-2], L))
    first, last = even[:, :1], odd[:, -1:]
    even = mx.concatenate([first] * 2 + [even] + [last] * 3, axis=1)
    odd = mx.concatenate([first] * 3 + [odd] + [last] * 2, axis=1)
    return _filtered(even, down[1::2], L) + _filtered(odd, down[::2], L)


def _filtered(x: mx.array, taps: mx.array, length: int) -> mx.array:
    """FIR filter: ``length`` sums of consecutive samples of ``x``, weighted by ``taps``."""
    return sum(tap * x[:, i : i + length] for i, tap in enumerate(taps))


class CausalLogMel(nn.Module):
    """The extension's input from the 16 kHz sound: (B, C, n) -> log-mel, natural, (B, C, n // hop_length, num_mels).

    Frames are causal: the first ends with the first ``hop_length`` samples.
    """

    def __init__(self, config: BandwidthExtensionConfig):
        super().__init__()
        self.hop, self.length = config.hop_length, config.n_fft
        bins = config.n_fft // 2 + 1
        self.basis = mx.zeros((2 * bins, config.n_fft))  # real rows, then imaginary
        self.bank = mx.zeros((config.num_mels, bins))

    def __call__(self, wave: mx.array) -> mx.array:
        padded = mx.pad(wave, ((0, 0), (0, 0), (self.length - self.hop, 0)))
        spectrum = overlapping(padded, self.length, self.hop) @ self.basis.T
        real, imaginary = mx.split(spectrum, 2, axis=-1)
        magnitude = mx.sqrt(mx.square(real) + mx.square(imaginary))
        return mx.log(mx.maximum(magnitude @ self.bank.T, LOG_FLOOR))


def reach(config: BigVGANConfig) -> int:
    """The most mel frames to either side that affect a generator's sample."""
    frames, rate = EDGE_KERNEL // 2, 1
    block = max(
        sum((d + 1) * (kernel // 2) + 2 * FILTER_REACH for d in dilations)
        for kernel, dilations in zip(
            config.resblock_kernel_sizes, config.resblock_dilation_sizes
        )
    )
    for stride, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes):
        frames += kernel / stride / rate
        rate *= stride
        frames += block / rate
    return math.ceil(frames + (FILTER_REACH + EDGE_KERNEL // 2) / rate)
