"""Tensors of the diffusion decoder's official file that have no place in ours: gates, heads of the training, a stranger."""

import mlx.core as mx

from mlx_video.weights import Weights

# Rows of the checkpoint that may be gated, by the name of the gate: folded into the layer, as no gate is used here.
GATES = {"gate_msa": "attn.proj", "gate_mlp": "mlp.w_down", "gate_ctx": "context_proj"}
DROPPED = "coarse_"  # in names of heads that only training uses
STRANGER = (
    128  # elements of the one tensor of the published file that nobody has a name for
)
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
    """Take a gate out of ``weights``: it multiplies what its layer returns."""
    block, _, kind = name.rpartition(".")
    gate = weights.pop(name).astype(mx.float32).flatten()
    for part in ("weight", "bias"):
        layer = f"{block}.{GATES[kind]}.{part}"
        if (value := weights.get(layer)) is not None:
            gated = value * gate.reshape(-1, *[1] * (value.ndim - 1))
            weights[layer] = gated.astype(value.dtype)


def _without_the_stranger(weights: Weights) -> Weights:
    """Without the one tensor of 128 elements that bears none of our names; of several, none is passed over."""
    strangers = [k for k, v in weights.items() if k.split(".")[0] not in ROOTS]
    if [weights[name].size for name in strangers] == [STRANGER]:
        del weights[strangers[0]]
    return weights
