"""How the tensors of one layer change its weight: kinds of change, their formulas and shapes. Knows no files or names."""

from itertools import chain, product
from typing import AbstractSet, Callable, Mapping, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_video.errors import UserError
from mlx_video.linear import dense_weight

Tensors = Mapping[str, mx.array]  # of one layer, by role


class ChangeKind(NamedTuple):
    """A kind of change to a weight, which ``join`` makes from ``factors``, each a matrix or the product of two.

    The two have the factor's name with ``UP`` and ``DOWN``; the rows of the second are the rank.
    """

    name: str
    factors: tuple[str, ...]
    join: Callable[..., mx.array]

    def fits(self, roles: AbstractSet[str]) -> bool:
        """Whether ``roles`` are exactly those of this kind."""
        ways = product(*(((n,), (n + UP, n + DOWN)) for n in self.factors))
        return any(roles == {*chain(*way)} for way in ways)

    def change(self, has: Tensors) -> mx.array:
        """The change of the weight, (out, in) float32, scaled by alpha / rank if there is an alpha."""
        factors = (
            has[n] if n in has else has[n + UP] @ has[n + DOWN] for n in self.factors
        )
        ranks = ranks_of(has)
        scale = has["alpha"].reshape(()) / ranks[-1] if ranks and "alpha" in has else 1
        return self.join(*factors) * scale


UP, DOWN = "_up", "_down"
BESIDE = frozenset({"alpha", "magnitude", "bias"})
KINDS = (
    ChangeKind("LoRA", ("lora",), lambda factor: factor),
    ChangeKind("LoHa", ("hada_w1", "hada_w2"), mx.multiply),
    ChangeKind("LoKr", ("lokr_w1", "lokr_w2"), mx.kron),
    ChangeKind("difference", ("diff",), lambda factor: factor),
    ChangeKind("difference", (), lambda: mx.array(0.0)),  # of a bias alone
)


def kind_of(has: Tensors) -> ChangeKind | None:
    """The kind of these tensors; ``None`` if they do not belong to a single kind."""
    factors = has.keys() - BESIDE
    if not factors and has.keys() != {"bias"}:
        return None
    return next((kind for kind in KINDS if kind.fits(factors)), None)


def name_of(has: Tensors) -> str:
    """The kind's name, for messages; "DoRA" for a LoRA with magnitudes."""
    return "DoRA" if "magnitude" in has else kind_of(has).name


def ranks_of(has: Tensors) -> list[int]:
    """The rank of each factor that is a product."""
    return [has[role].shape[0] for role in sorted(has) if role.endswith(DOWN)]


def check(label: str, has: Tensors) -> None:
    """Raise ``UserError`` if the tensors of a layer do not belong to a single kind, or are not matrices."""
    kind = kind_of(has)
    if kind is None:
        raise UserError(
            f"{label} is incomplete or mixed: it has {', '.join(sorted(has))} without the tensors that belong to it. "
            "The file may be damaged."
        )
    if wrong := [r for r in sorted(has.keys() - BESIDE) if has[r].ndim != 2]:
        raise UserError(
            f"{label} has a factor ({wrong[0]}) of shape {has[wrong[0]].shape}; only linear layers can be changed, by matrices."
        )
    if "alpha" in has and has["alpha"].size != 1:
        raise UserError(f"{label} has an alpha of shape {has['alpha'].shape}, which is not a number.")  # fmt: skip


def check_shape(label: str, layer: nn.Module, has: Tensors) -> None:
    """Raise ``UserError`` if the tensors do not fit the layer's shape."""
    outputs, inputs = layer.weight.shape
    if isinstance(layer, nn.QuantizedLinear):
        inputs = inputs * 32 // layer.bits
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


def changed(layer: nn.Module, has: Tensors, strength: float) -> nn.Linear:
    """``layer`` with its weight and bias changed; a quantized layer is replaced by a dense one."""
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
    """DoRA (arXiv:2402.09353): ``weight`` with rows (columns if ``magnitude`` is (1, in)) of the given lengths."""
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
