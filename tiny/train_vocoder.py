"""Trains the vocoder of ``ltx-2-tiny``: from log-mel spectrograms, true and decoded ones, to the world's sounds.

Knows what a good waveform is; the audio autoencoder must have been trained before. ``python -m tiny.train_vocoder``.
"""

import argparse
from typing import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_video.models.ltx.audio_vae.vocoder import SLOPE, Vocoder
from tiny.linear_vocoder import begin_linear
from tiny.model import fresh, load, store
from tiny.train_audio_vae import draw_scenes, noisy, spectrograms, unseen_scenes
from tiny.training import Plan, slope_of, train
from tiny.world import sound

BEGIN = 192  # clips from which the weights to begin with are computed
CENTRE = -10.0  # about the mean of all log-mels
PIECE = 240  # samples whose error is one, 10 ms
QUIET = 0.01  # deviation of a clip from which errors count by their share of it

Decode = Callable[[mx.array, mx.array], mx.array]


class Front(nn.Module):
    """What is trained of a vocoder: its layers at 100 and 600 Hz. Those behind put samples side by side, for good.

    Takes log-mels (B, 2, T, 64) less their ``CENTRE``, which the first layer's bias contains: offsets that large would
    let a step of Adam's move everything at once.
    """

    def __init__(self, vocoder: Vocoder, basis: mx.array):
        super().__init__()
        self.conv_pre, self.up = vocoder.conv_pre, vocoder.ups[0]
        self.blocks = vocoder.resblocks[: len(vocoder.resblocks) // len(vocoder.ups)]
        self._vocoder, self._basis = [
            vocoder
        ], basis  # in a list, so as not to train it
        self._shift_bias(CENTRE)

    def __call__(self, log_mel: mx.array) -> mx.array:
        """The vocoder's own waveform (B, 2, T * hop), without its dear last layers."""
        B, C, T, M = log_mel.shape
        x = log_mel.transpose(0, 2, 1, 3).reshape(B, T, C * M)
        K = self.conv_pre.weight.shape[1]
        x = mx.pad(x, ((0, 0), (K // 2, K // 2), (0, 0))) - CENTRE
        x = mx.conv1d(x, self.conv_pre.weight) + self.conv_pre.bias
        x = self.up(nn.leaky_relu(x, SLOPE))
        x = sum(block(x) for block in self.blocks) / len(self.blocks)
        x = nn.leaky_relu(x, SLOPE).reshape(B, x.shape[1], C, -1, 2)
        x = (x[..., 0] - x[..., 1]) / (1 + SLOPE)
        return mx.tanh(x @ self._basis).transpose(0, 2, 1, 3).reshape(B, C, -1)

    def finish(self) -> Vocoder:
        """Store the whole vocoder."""
        self._shift_bias(-CENTRE)
        store("vocoder", self._vocoder[0])
        self._shift_bias(CENTRE)

    def _shift_bias(self, offset: float) -> None:
        """Let the first layer expect an input less ``offset``."""
        conv = self.conv_pre
        conv.bias = conv.bias + offset * mx.sum(conv.weight, axis=(1, 2))


def begin(decode: Decode) -> Front:
    """A vocoder with the best weights that need no training."""
    vocoder = fresh("vocoder")
    log_mel, waveform = pairs(0, BEGIN, vocoder.hop, decode)
    return Front(vocoder, begin_linear(vocoder, log_mel, waveform))


def as_it_is(log_mel: mx.array, key: mx.array) -> mx.array:
    return log_mel


def through_autoencoder() -> Decode:
    """What the trained autoencoder makes of log-mels (B, 2, T, 64), its latents a little off by a key."""
    encoder, decoder = load("audio_encoder"), load("audio_decoder")
    return lambda log_mel, key: decoder(noisy(encoder(log_mel), key))


def pairs(step: int, batch: int, hop: int, decode: Decode) -> tuple[mx.array, mx.array]:
    """Log-mels (B, 2, T, 64), every other one decoded, and their waveforms (B, 2, T * hop)."""
    scenes, frames = draw_scenes(step, batch)
    log_mel = spectrograms(scenes, frames)
    waveform = sound(scenes, frames)[..., : log_mel.shape[2] * hop]
    log_mel[::2] = mx.stop_gradient(decode(log_mel[::2], mx.random.key(step)))
    return log_mel, waveform


def distance(x: mx.array, target: mx.array) -> mx.array:
    """Mean over pieces of the error of a waveform (B, 2, n), as a share of its clip's deviation.

    The samples may be compared because nothing in this world has a phase of its own: see ``tiny.world.sound``. Each
    piece counts by the root of its error, so that nothing is left to hiss between the knocks.
    """
    loudness = mx.sqrt(mx.mean(target**2, axis=(1, 2)) + QUIET**2)
    error = ((x - target) ** 2).reshape(len(x), 2, -1, PIECE)
    return mx.mean(mx.sqrt(mx.mean(error, axis=(1, 3)) + 1e-10) / loudness[:, None])


def train_front(front: Front, decode: Decode, plan: Plan, batch: int) -> Front:
    """Descend on the waveforms, and store the vocoder whenever the training pauses."""
    hop = front._vocoder[0].hop

    def loss(step: int) -> mx.array:
        log_mel, waveform = pairs(step, batch, hop, decode)
        return distance(front(log_mel), waveform)

    return train(front, slope_of(front, loss), plan, on_pause=front.finish)


def measure(vocoder: Vocoder, decode: Decode, count: int = 64) -> dict[str, float]:
    """On unseen clips: median signal to error and level error of sounding ones in dB, the peak of silent ones."""
    scenes, frames = unseen_scenes(count)
    log_mel = decode(spectrograms(scenes, frames), mx.random.key(0))
    made = np.array(vocoder(log_mel))
    true = np.array(sound(scenes, frames))[..., : made.shape[-1]]
    power, made_power, error = (
        np.mean(x**2, axis=(1, 2)) for x in (true, made, made - true)
    )
    heard = power > 0
    level = np.abs(10 * np.log10(made_power[heard] / power[heard]))
    clear = 10 * np.log10(power[heard] / error[heard])
    return {
        "signal to error (dB)": float(np.median(clear)),
        "level error (dB)": float(np.median(level)),
        "peak of silence": float(np.abs(made[~heard]).max(initial=0)),
    }


def main() -> None:
    on_gpu = mx.default_device() == mx.gpu
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--batch", type=int, default=64 if on_gpu else 4)
    parser.add_argument("--learning-rate", type=float, default=2e-4 if on_gpu else 5e-5)
    options = parser.parse_args()
    plan = Plan(
        "vocoder",
        options.steps,
        options.minutes,
        options.learning_rate,
        average=0.998 if on_gpu else 0.99,
    )
    decode = through_autoencoder()
    train_front(begin(decode), decode, plan, options.batch)
    vocoder = load("vocoder")
    print("from true spectrograms:", measure(vocoder, as_it_is))
    print("through the autoencoder:", measure(vocoder, decode))


if __name__ == "__main__":
    main()
