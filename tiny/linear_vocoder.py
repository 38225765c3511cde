"""The weights from which the vocoder's training begins: the best synthesiser that is linear behind its first layer.

Knows the vocoder's layers and least squares; not the world. From random weights a vocoder must find the phase of every
sine that it will ever make, through five layers at once, and stays silent for thousands of steps.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_video.models.ltx.audio_vae.vocoder import LAST_SLOPE, SLOPE

THRESHOLD = -3.0  # log-mel from which a unit of the first layer hears its band
RIDGE = 1e-4  # of the features' mean power
HIGHEST = 0.999  # sample that tanh has to make


def begin_linear(vocoder: nn.Module, log_mel: mx.array, waveform: mx.array) -> mx.array:
    """Set the weights so that (B, 2, T, M) gives (B, 2, T * hop) as well as it can be, in the least squares.

    Layers behind the second pass their signals on as u and -u, which a leaky ReLU keeps apart; residual blocks do
    nothing yet. Returns what each of the first upsampling's components sounds like, (components, samples). Raises ``ValueError`` where the first layer has not one channel for every band.
    """
    _hear_bands(vocoder.conv_pre, log_mel.shape[1] * log_mel.shape[3])
    for block in vocoder.resblocks:
        for conv in block.convs2:
            conv.weight, conv.bias = mx.zeros_like(conv.weight), mx.zeros_like(
                conv.bias
            )
    first, *others = vocoder.ups
    basis = _interleave(
        others, vocoder.conv_post, waveform, vocoder.hop // first.stride
    )
    B, C, T, M = log_mel.shape
    x = log_mel.transpose(0, 2, 1, 3).reshape(B, T, C * M)
    features = np.array(nn.leaky_relu(vocoder.conv_pre(x), SLOPE), np.float64)
    _fit(first, features, _coefficients(waveform, basis))
    return mx.array(basis, dtype=mx.float32)


def _hear_bands(conv: nn.Module, bands: int) -> None:
    """One channel for each band, without its neighbours in time."""
    if len(conv.weight) != bands:
        raise ValueError(
            f"upsample_initial_channel must be the number of bands, {bands}; got {len(conv.weight)}."
        )
    weight = np.zeros(conv.weight.shape, np.float32)
    weight[:, weight.shape[1] // 2] = np.eye(bands)
    conv.weight, conv.bias = mx.array(weight), mx.full((bands,), -THRESHOLD)


def _interleave(ups: list, last: nn.Module, waveform: mx.array, length: int):
    """Let ``ups`` and ``last`` put samples side by side; returns the segments they make of one input each.

    The first of ``ups`` has too few channels for a whole segment of ``length`` samples (of one ear), and gets the
    principal components of the ``waveform``'s: (components, length).
    """
    ears = waveform.shape[1]
    segments = np.array(waveform, np.float64).reshape(-1, length)
    _, vectors = np.linalg.eigh(segments.T @ segments)
    count = ups[0].weight.shape[2] // (2 * ears)
    basis = vectors[:, -count:].T.copy()
    maps = basis.reshape(len(basis), ups[0].stride, -1)  # (inputs, phases, outputs)
    for i, up in enumerate(ups):
        if i:
            outputs = maps.shape[2] // up.stride
            maps = np.eye(maps.shape[2]).reshape(-1, up.stride, outputs)
        _set_taps(up, {0: _both_signs(maps, ears, SLOPE)})
    centre = np.zeros(last.weight.shape, np.float32)
    centre[:, centre.shape[1] // 2] = _both_signs(np.eye(1)[:, None], ears, LAST_SLOPE)[
        :, 0, : 2 * ears : 2
    ].T
    last.weight, last.bias = mx.array(centre), mx.zeros_like(last.bias)
    return basis


def _both_signs(maps: np.ndarray, ears: int, slope: float) -> np.ndarray:
    """A linear map per phase (I, S, O) as one for every ear, over signals and their negatives: (2*E*I, S, 2*E*O)."""
    signs = np.outer([1, -1], [1, -1]) / (1 + slope)
    return np.stack(
        [np.kron(np.kron(np.eye(ears), m), signs) for m in np.moveaxis(maps, 1, 0)], 1
    )


def _set_taps(up: nn.Module, taps: dict[int, np.ndarray]) -> None:
    """Weights by how many inputs ahead (of the output's own) they look: arrays (I, phases, O)."""
    weight = np.zeros(up.weight.shape, np.float32)  # (O, K, I)
    start = (weight.shape[1] - up.stride) // 2
    for ahead, maps in taps.items():
        for phase in range(up.stride):
            k = start + phase - ahead * up.stride
            if 0 <= k < weight.shape[1]:
                weight[:, k] = maps[:, phase].T
    up.weight, up.bias = mx.array(weight), mx.zeros_like(up.bias)


def _coefficients(waveform: mx.array, basis: np.ndarray) -> np.ndarray:
    """What the second layer has to put out, every ear's components with both signs: (B, segments, channels)."""
    B, ears, _ = waveform.shape
    sample = np.arctanh(np.clip(np.array(waveform, np.float64), -HIGHEST, HIGHEST))
    parts = sample.reshape(B, ears, -1, basis.shape[1]) @ basis.T
    parts = parts.transpose(0, 2, 1, 3).reshape(B, parts.shape[2], -1)
    return np.stack([parts, -parts], -1).reshape(*parts.shape[:2], -1)


def _fit(up: nn.Module, features: np.ndarray, wanted: np.ndarray) -> None:
    """Ridge regression of the output's phases on the inputs that each of them sees."""
    B, T, I = features.shape
    O, K, _ = up.weight.shape
    wanted = wanted.reshape(B, T, up.stride, O)
    padded = np.pad(features, ((0, 0), (1, 1), (0, 0)))
    weight = np.zeros((O, K, I))
    start = (K - up.stride) // 2
    np.zeros((up.stride, O))
    for phase in range(up.stride):
        ahead = [a for a in (-1, 0, 1) if 0 <= start + phase - a * up.stride < K]
        x = np.concatenate([padded[:, 1 + a : T + 1 + a] for a in ahead], -1)
        x = x.reshape(B * T, -1)
        y = wanted[:, :, phase].reshape(B * T, O)
        gram = x.T @ x
        gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
        found = np.linalg.solve(gram, x.T @ y).reshape(len(ahead), I, O)
        for a, part in zip(ahead, found):
            weight[:, start + phase - a * up.stride] = part.T
    up.weight, up.bias = mx.array(weight, dtype=mx.float32), mx.zeros_like(up.bias)
