"""Tensors of the diffusion decoder's official file that ours does not have: gates, training heads, and an unknown one."""

import mlx.core as mx

from mlx_video.weights import Weights

# Gate -> the layer whose result it multiplies; we fold it into that layer.
GATES = {"gate_msa": "attn.proj", "gate_mlp": "mlp.w_down", "gate_ctx": "context_proj"}
DROPPED = "coarse_"  # in the names of heads that only training uses
STRANGER = 128  # elements of the one tensor of the published file without a known name
ROOTS = {  # of our names
    "conv_in",
    "conv_in_x_t",
    "conv_out",
    "det_stages",
    "diff_blocks",
    "norm_out",
    "per_channel_statistics",
    "shared_adaln",
    "t_embedder",
    "upsamples",
}


def without_strangers(weights: Weights) -> Weights:
    """``weights`` with every gate folded into its layer, and without what the decoder does not use."""
    named = {k: v for k, v in weights.items() if DROPPED not in k}
    for name in [name for name in named if name.rpartition(".")[2] in GATES]:
        _fold(named, name)
    return _without_the_stranger(named)


def _fold(weights: Weights, name: str) -> None:
    """Fold a gate into its layer's weight and bias."""
    block, _, kind = name.rpartition(".")
    gate = weights.pop(name).astype(mx.float32).flatten()
    for part in ("weight", "bias"):
        layer = f"{block}.{GATES[kind]}.{part}"
        if (value := weights.get(layer)) is not None:
            gated = value * gate.reshape(-1, *[1] * (value.ndim - 1))
            weights[layer] = gated.astype(value.dtype)


def _without_the_stranger(weights: Weights) -> Weights:
    """Without the one unknown tensor of 128 elements; if there are more, all stay and are refused."""
    strangers = [k for k, v in weights.items() if k.split(".")[0] not in ROOTS]
    if [weights[name].size for name in strangers] == [STRANGER]:
        del weights[strangers[0]]
    return weights
