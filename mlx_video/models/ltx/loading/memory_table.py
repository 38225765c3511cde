"""How many arrays of its largest size each part holds at once on each device; measured by ``benchmarks/parts.py``."""

from typing import Iterable, NamedTuple

import mlx.core as mx

FLOAT32 = 4  # bytes


class Live(NamedTuple):
    """How many arrays of a part's largest size are alive at once."""

    tokens: float  # transformer
    scores: float  # any attention, in arrays of scores
    queued: float  # transformer: as many more may be queued, at most ``QUEUED`` bytes
    connected: float  # both connectors, which are not paced
    deeper: float  # connectors: as many more for each of their layers
    hidden_states: float  # connectors: arrays of all hidden states, to normalise them
    upsample: float  # upsampler of a large grid
    finer: float  # upsampler of a small grid, which queues them all, at most ``QUEUED_FINER`` bytes
    spectrogram: float  # audio decoder
    mel: float  # audio encoder
    sound: float  # HiFi-GAN
    bandwidth: float  # BigVGAN with its extension


QUEUED, QUEUED_FINER = 400e6, 760e6
# On a CPU, without compiled functions, as the commands run it. MLX stores attention scores there and unfolds convolutions.
CPU = Live(12, 1, 0, 11.5, 0, 4, 41, 0, 38, 20.5, 83, 31.5)
# Of other types, which it copies to float32 and back around each product.
CPU_COPIES = CPU._replace(
    connected=19, upsample=150, spectrogram=168, mel=123, sound=70
)
# ``mel`` was not measured here: it is the decoder's, which has more layers.
GPU = Live(10.9, 0, 11, 40.2, 7.1, 4, 12.1, 34, 42, 42, 53, 33)


def live(dtype: mx.Dtype = mx.float32) -> Live:
    """The numbers for MLX's default device, for a part whose weights are of ``dtype``."""
    if mx.default_device() == mx.gpu:
        return GPU
    return CPU if dtype == mx.float32 else CPU_COPIES


def on_gpu() -> bool:
    """Whether memory is estimated as for a GPU."""
    return live() is GPU


def copied_bytes(weights: Iterable[mx.array], most: int) -> int:
    """Bytes of the ``most`` largest float32 copies that a CPU makes of convolutions' ``weights`` of other types."""
    if on_gpu():
        return 0
    copied = sorted(weight.size for weight in weights if weight.dtype != mx.float32)
    return FLOAT32 * sum(copied[-most:])
