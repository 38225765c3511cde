"""How many arrays of its widest size each part holds at once while it computes: measured, by device.

``benchmarks/parts.py`` measures it again. They are more on a CPU, where MLX keeps the scores of an attention and unfolds
what it convolves.
"""

from typing import NamedTuple

import mlx.core as mx

FLOAT32 = 4  # bytes


class Live(NamedTuple):
    """How many arrays of a part's widest size are alive at once; ``scores`` are those of an attention.

    tokens         of the transformer; its pieces let ``queued`` more wait, at most ``QUEUED`` bytes
    connected      of the connectors, which nothing paces; ``hidden_states`` of what they normalise
    upsample       of the upsampler, with ``finer`` more that wait, at most ``QUEUED_FINER`` bytes
    spectrogram    of the audio decoder
    sound          of HiFi-GAN, and ``bandwidth`` of BigVGAN with its extension
    """

    tokens: float
    scores: float
    queued: float
    connected: float
    hidden_states: float
    upsample: float
    finer: float
    spectrogram: float
    sound: float
    bandwidth: float


QUEUED, QUEUED_FINER = 115e6, 430e6
# As the doors run it, without compiled pieces.
CPU = Live(12, 1, 0, 12, 4, 110, 0, 90, 96, 31.5)
GPU = Live(9.6, 0, 8, 110, 4, 9.2, 20, 42, 48.6, 24)


def live() -> Live:
    return GPU if mx.default_device() == mx.gpu else CPU
