"""LoRA files fused into a module's Linears. Knows the ways such files name things, not what a network computes."""

from collections import defaultdict
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_video.errors import UserError
from mlx_video.linear import dense_weight
from mlx_video.weights import Weights, some, strip_prefixes

# What may stand before the name of a transformer's layer; a bare name is one of the transformer's too.
TRANSFORMER = "model.diffusion_model."
TRANSFORMER_PREFIXES = (TRANSFORMER, "diffusion_model.", "transformer.")
TEXT_PROJECTION = "text_embedding_projection."

# The two low-rank factors, and the number that divided by the rank scales their product.
SUFFIXES = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
}

# Layers that diffusers calls otherwise: its name -> the official one.
DIFFUSERS_NAMES = {
    "connectors.text_proj_in": "text_embedding_projection.aggregate_embed",
    "transformer.proj_in": "diffusion_model.patchify_proj",
    "transformer.audio_proj_in": "diffusion_model.audio_patchify_proj",
    "transformer.time_embed": "diffusion_model.adaln_single",
    "transformer.audio_time_embed": "diffusion_model.audio_adaln_single",
    "transformer.av_cross_attn_video_scale_shift": "diffusion_model.av_ca_video_scale_shift_adaln_single",
    "transformer.av_cross_attn_video_a2v_gate": "diffusion_model.av_ca_a2v_gate_adaln_single",
    "transformer.av_cross_attn_audio_scale_shift": "diffusion_model.av_ca_audio_scale_shift_adaln_single",
    "transformer.av_cross_attn_audio_v2a_gate": "diffusion_model.av_ca_v2a_gate_adaln_single",
}


class Report(NamedTuple):
    """What a fusion did.

    matched  paths of the layers that changed
    skipped  official names of the layers, and keys, that this module has no place for
    dense    those of ``matched`` that were quantized and are dense now: quantizing them again would swallow the change
    """

    matched: tuple[str, ...]
    skipped: tuple[str, ...]
    dense: tuple[str, ...]


class Delta(NamedTuple):
    """A change of a weight (out, in): ``scale`` times ``up`` (out, r) @ ``down`` (r, in)."""

    up: mx.array
    down: mx.array
    scale: float


def fuse(
    module: nn.Module, weights: Weights, strength: float = 1.0, source: str = "The LoRA"
) -> Report:
    """Add ``strength`` times what a LoRA's ``weights`` describe to the Linears of ``module``, in place.

    Lazy: computed in float32 when evaluated, then rounded once to the weight's dtype. Raises ``ValueError`` where
    nothing in ``source`` is meant for this module, or where factors do not make a change of their layer's shape.
    """
    deltas, others = read_deltas(weights, source)
    paths = _paths(deltas, type(module))
    linears = {
        path: layer
        for path, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, nn.QuantizedLinear))
    }
    matched = {name: path for name, path in paths.items() if path in linears}
    if not matched:
        raise UserError(
            f"{source} changes nothing in {type(module).__name__}: no layer answers to {some(weights)}. Understood are "
            "lora_A and lora_B, or lora_down and lora_up, under official or diffusers names of layers after "
            f"{', '.join(TRANSFORMER_PREFIXES)}, {TEXT_PROJECTION} or nothing."
        )
    fused = {
        path: _fused(linears[path], deltas[name], strength, f"{source}: {name}")
        for name, path in matched.items()
    }
    module.update_modules(tree_unflatten(list(fused.items())))
    return Report(
        matched=tuple(fused),
        skipped=(*(name for name in deltas if name not in matched), *others),
        dense=tuple(path for path in fused if fused[path] is not linears[path]),
    )


def concerns(weights: Weights, part: type[nn.Module]) -> bool:
    """Whether a LoRA's ``weights`` name anything under the official prefixes of ``part``."""
    deltas, _ = read_deltas(weights)
    return bool(_paths(deltas, part))


def read_deltas(
    weights: Weights, source: str = "The LoRA"
) -> tuple[dict[str, Delta], list[str]]:
    """The changes in a LoRA file by official layer name, and the keys that are no part of one.

    Raises ``ValueError`` where a factor lacks its fellow.
    """
    layers, others = defaultdict(dict), []
    for key, value in weights.items():
        suffix = next((suffix for suffix in SUFFIXES if key.endswith(suffix)), None)
        if suffix is None:
            others.append(key)
        else:
            name = _official(key.removesuffix(suffix))
            layers[name][SUFFIXES[suffix]] = value
    if halves := [
        name for name, has in layers.items() if not {"up", "down"} <= has.keys()
    ]:
        raise UserError(
            f"{source} is incomplete: {some(halves)} has only one of its two factors."
        )
    return {name: _delta(**factors) for name, factors in layers.items()}, others


def _delta(up: mx.array, down: mx.array, alpha: mx.array | None = None) -> Delta:
    return Delta(up, down, 1.0 if alpha is None else alpha.item() / down.shape[0])


def _official(name: str) -> str:
    """A layer's name in the official single file."""
    for theirs, official in DIFFUSERS_NAMES.items():
        if f"{name}.".startswith(f"{theirs}."):
            name = official + name.removeprefix(theirs)
    if name.startswith(TEXT_PROJECTION):
        return name
    for prefix in TRANSFORMER_PREFIXES:
        name = name.removeprefix(prefix)
    return TRANSFORMER + name


def _paths(deltas: dict[str, Delta], part: type[nn.Module]) -> dict[str, str]:
    """Official layer name -> path in a module of class ``part``, of those under its prefixes."""
    names = {f"{name}.weight": name for name in deltas}
    ours = strip_prefixes(names, part.OFFICIAL) or {}
    return {
        name: part.rename(key).removesuffix(".weight") for key, name in ours.items()
    }


def _fused(layer: nn.Module, delta: Delta, strength: float, name: str) -> nn.Linear:
    """``layer`` with its weight changed; a dense one in place of a quantized."""
    layer = _dense(layer)
    up, down = delta.up.astype(mx.float32), delta.down.astype(mx.float32)
    shape = (*up.shape[:-1], *down.shape[1:])
    if shape != layer.weight.shape or up.shape[-1] != down.shape[0]:
        raise UserError(
            f"{name} changes a weight of shape {shape} with factors {up.shape} and {down.shape}; the layer's is "
            f"{layer.weight.shape}. The LoRA was made for another model."
        )
    weight = layer.weight.astype(mx.float32)
    weight = mx.addmm(weight, up, down, alpha=strength * delta.scale)
    layer.weight = weight.astype(layer.weight.dtype)
    return layer


def _dense(layer: nn.Module) -> nn.Linear:
    if isinstance(layer, nn.Linear):
        return layer
    dense = nn.Linear(1, 1, bias="bias" in layer)
    dense.weight = dense_weight(layer)
    if "bias" in layer:
        dense.bias = layer.bias
    return dense
