"""How the tensors of one layer change its weight: kinds of change, their formulas and shapes. Knows no files and no names."""

from typing import Callable, Mapping, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_video.errors import UserError
from mlx_video.linear import dense_weight

Tensors = Mapping[str, mx.array]  # of one layer, by role


class Kind(NamedTuple):
    """A way to write a change of a weight: the tensors it takes beside those of ``BESIDE``, and the change they make."""

    name: str
    needs: frozenset[str]
    change: Callable[[Tensors], mx.array]


def _scale(has: Tensors, down: mx.array) -> mx.array | float:
    """Alpha over the rank, which is how many rows ``down`` has."""
    return has["alpha"].reshape(()) / down.shape[0] if "alpha" in has else 1.0


def _low_rank(has: Tensors) -> mx.array:
    return (has["up"] @ has["down"]) * _scale(has, has["down"])


def _hadamard(has: Tensors) -> mx.array:
    one = has["hada_w1_a"] @ has["hada_w1_b"]
    other = has["hada_w2_a"] @ has["hada_w2_b"]
    return one * other * _scale(has, has["hada_w1_b"])


def _kronecker(has: Tensors) -> mx.array:
    """The Kronecker product of two matrices, each whole or in two factors; whole ones have no rank to divide by."""

    def whole(name: str) -> mx.array:
        return has[name] if name in has else has[f"{name}_a"] @ has[f"{name}_b"]

    ranked = has.get("lokr_w2_b", has.get("lokr_w1_b"))
    scale = 1.0 if ranked is None else _scale(has, ranked)
    return mx.kron(whole("lokr_w1"), whole("lokr_w2")) * scale


BESIDE = frozenset({"alpha", "magnitude", "bias"})
KINDS = (
    Kind("LoRA", frozenset({"up", "down"}), _low_rank),
    Kind("difference", frozenset({"diff"}), lambda has: has["diff"]),
    Kind(
        "LoHa",
        frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
        _hadamard,
    ),
    *(
        Kind("LoKr", frozenset((*one, *other)), _kronecker)
        for one in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for other in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
    ),
    Kind("difference", frozenset(), lambda has: mx.array(0.0)),  # of a bias alone
)


def kind_of(has: Tensors) -> Kind | None:
    """The kind whose tensors these are; ``None`` where they are not all of one kind's."""
    factors = has.keys() - BESIDE
    if not factors and has.keys() != {"bias"}:
        return None
    return next((kind for kind in KINDS if kind.needs == factors), None)


def name_of(has: Tensors) -> str:
    return "DoRA" if "magnitude" in has else kind_of(has).name


def rank_of(has: Tensors) -> int:
    downs = (
        has[r] for r in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if r in has
    )
    return max((down.shape[0] for down in downs), default=0)


def check(label: str, has: Tensors) -> None:
    """Raise ``UserError`` where the tensors of a layer are not all of one kind's, or are no matrices."""
    kind = kind_of(has)
    if kind is None:
        raise UserError(
            f"{label} is incomplete or mixed: it has {', '.join(sorted(has))} and lacks what goes with it; half of a "
            "change is not applied."
        )
    if wrong := [role for role in sorted(kind.needs) if has[role].ndim != 2]:
        raise UserError(
            f"{label} has a factor ({wrong[0]}) of shape {has[wrong[0]].shape}; only Linears can be changed, by matrices."
        )
    if "alpha" in has and has["alpha"].size != 1:
        raise UserError(
            f"{label} has an alpha of shape {has['alpha'].shape}, no number."
        )


def check_shape(label: str, layer: nn.Module, has: Tensors) -> None:
    """Raise ``UserError`` where the tensors do not make a change of the layer's shape."""
    outputs, inputs = _shape(layer)
    shapes = {role: value.shape for role, value in has.items() if role != "alpha"}
    told = ", ".join(f"{role} {shape}" for role, shape in shapes.items())
    misfit = (
        f"{label} does not fit: its tensors are {told}, and the layer's weight is {(outputs, inputs)}. The LoRA was made "
        "for another model."
    )
    try:
        made = kind_of(has).change(has).shape
    except ValueError:  # factors that cannot be multiplied
        raise UserError(misfit) from None
    magnitudes = ((outputs,), (outputs, 1), (1, inputs))
    biased = "bias" not in has or ("bias" in layer and has["bias"].shape == (outputs,))
    scaled = "magnitude" not in has or has["magnitude"].shape in magnitudes
    if made not in ((outputs, inputs), ()) or not biased or not scaled:
        raise UserError(misfit)


def _shape(layer: nn.Module) -> tuple[int, int]:
    outputs, inputs = layer.weight.shape
    if isinstance(layer, nn.QuantizedLinear):
        inputs = inputs * 32 // layer.bits
    return outputs, inputs


def changed(layer: nn.Module, has: Tensors, strength: float) -> nn.Linear:
    """``layer`` with its weight and bias changed; a dense one in place of a quantized."""
    layer = _dense(layer)
    weight = layer.weight.astype(mx.float32)
    change = kind_of(has).change(has)
    if "magnitude" in has:
        change = _remagnified(weight + change, has["magnitude"]) - weight
    layer.weight = (weight + strength * change).astype(layer.weight.dtype)
    if "bias" in has:
        bias = layer.bias.astype(mx.float32) + strength * has["bias"]
        layer.bias = bias.astype(layer.bias.dtype)
    return layer


def _remagnified(weight: mx.array, magnitude: mx.array) -> mx.array:
    """DoRA (arXiv:2402.09353): ``weight`` with rows, or columns where ``magnitude`` is (1, in), of the given lengths."""
    axis = 0 if magnitude.ndim == 2 and magnitude.shape[0] == 1 else 1
    lengths = mx.linalg.norm(weight, axis=axis, keepdims=True)
    return weight * (magnitude.reshape(lengths.shape) / lengths)


def _dense(layer: nn.Module) -> nn.Linear:
    if isinstance(layer, nn.Linear):
        return layer
    dense = nn.Linear(1, 1, bias="bias" in layer)
    dense.weight = dense_weight(layer)
    if "bias" in layer:
        dense.bias = layer.bias
    return dense
