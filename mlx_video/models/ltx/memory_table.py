"""How many arrays of its widest size each part holds at once while it computes, as measured on each device.

``benchmarks/parts.py`` measures it. A CPU needs more: MLX keeps attention scores there, and unfolds convolutions.
"""

from typing import NamedTuple

import mlx.core as mx

FLOAT32 = 4  # bytes


class Live(NamedTuple):
    """How many arrays of a part's widest size are alive at once; ``scores`` are an attention's.

    tokens         of the transformer; ``queued`` more may be queued, at most ``QUEUED`` bytes
    connected      of both connectors, which nothing paces, and ``deeper`` more for each of their layers; ``hidden_states``
                   of what they normalise
    upsample       of the upsampler; ``finer`` more may be queued, at most ``QUEUED_FINER`` bytes
    spectrogram    of the audio decoder
    mel            of the audio encoder
    sound          of HiFi-GAN, and ``bandwidth`` of BigVGAN with its extension
    """

    tokens: float
    scores: float
    queued: float
    connected: float
    deeper: float
    hidden_states: float
    upsample: float
    finer: float
    spectrogram: float
    mel: float
    sound: float
    bandwidth: float


QUEUED, QUEUED_FINER = 400e6, 430e6
# The CPU's without compiled functions, as the commands run it.
CPU = Live(12, 1, 0, 11.5, 0, 4, 41, 0, 38, 20.5, 83, 31.5)
# The audio encoder's, which has fewer layers, was not measured and counts as the decoder's.
GPU = Live(9.6, 0, 11, 52, 3.5, 4, 9.2, 20, 42, 42, 48.6, 29)


def live() -> Live:
    """The numbers of the device that MLX computes on."""
    return GPU if mx.default_device() == mx.gpu else CPU
