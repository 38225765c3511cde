"""LoRA files: what they hold, and how they change a module's linear layers. Knows names and formulas, not networks."""

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from math import sqrt
from pathlib import Path
from typing import Iterable, Mapping, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_video.errors import UserError, clip
from mlx_video.formats.quantized import read_dense
from mlx_video.formats.safetensors import json_object
from mlx_video.lora import changes
from mlx_video.lora.changes import Tensors
from mlx_video.weights import Weights, read_json, some

# A tensor's role by the end of its name, before ".weight" and PEFT's name of the adapter.
ROLES = {
    **dict.fromkeys((".lora_A", ".lora_down", ".lora.down"), "lora_down"),
    **dict.fromkeys((".lora_B", ".lora_up", ".lora.up"), "lora_up"),
    **dict.fromkeys((".dora_scale", ".lora_magnitude_vector"), "magnitude"),
    **{".alpha": "alpha", ".diff": "diff", ".diff_b": "bias"},
    **{f".{w}": w for w in ("lokr_w1", "lokr_w2")},
    **{f".{w}_a": f"{w}_up" for w in ("lokr_w1", "lokr_w2", "hada_w1", "hada_w2")},
    **{f".{w}_b": f"{w}_down" for w in ("lokr_w1", "lokr_w2", "hada_w1", "hada_w2")},
}
# Kinds of change that are not supported, by a part of their tensors' names.
REFUSED = {
    ".oft_": "OFT",
    ".boft_": "BOFT",
    ".on_input": "IA3",
    ".lora_mid.": "LoCon with a middle factor",
    ".lokr_t2": "LoKr of convolutions",
    ".hada_t": "LoHa of convolutions",
    ".set_weight": "whole weights",
    ".reshape_weight": "weights of another shape",
    ".w_norm": "norms",
    ".b_norm": "norms",
}
# Prefixes of a layer's name; after the flat ones every dot is a _.
PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.")
PREFIXES += ("transformer.", "connectors.", "text_embedding_projection.")
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
FLAT_PREFIXES += ("model_diffusion_model_", "diffusion_model_")
# In the metadata or the name of an IC-LoRA.
REFERENCE = ("reference_downscale_factor", "reference_temporal_scale_factor")
IC_LORA = re.compile(r"(^|[^a-z])ic[-_]lora")
ADAPTER = "lora_adapter_metadata"  # of a LoRA that diffusers saved: PEFT's config
ADAPTER_CONFIG = "adapter_config.json"  # beside a LoRA that PEFT saved: the same
WHOLE = 0.9  # share of layers that a distilled LoRA changes at least; published ones change all
TRIGGERS = ("trigger_word", "trigger_phrase", "modelspec.trigger_phrase")


class About(NamedTuple):
    """What a LoRA file is, for people.

    kind     "LoRA", "DoRA", "LoKr", "LoHa" or "difference", or several joined
    rank     the largest; 0 if there is none
    trigger  words for the prompt
    """

    kind: str
    rank: int
    layers: int
    version: str = ""
    trigger: str = ""
    needs_reference: bool = False

    def __str__(self) -> str:
        told = f"{self.kind} of rank {self.rank}" if self.rank else self.kind
        told += f", {self.layers} layer{'s' * (self.layers != 1)}"
        told += f", made for version {clip(self.version, 20)}" if self.version else ""
        told += f", trigger {clip(self.trigger)!r}" if self.trigger else ""
        return told + (", needs a reference video" if self.needs_reference else "")


class Fusion(NamedTuple):
    """What fusing a LoRA into a part of the model did.

    source   the LoRA's file
    matched  paths of the layers that changed
    skipped  names of layers that the part does not have
    dense    those of ``matched`` that were quantized and are now dense: quantizing them again would lose the change
    """

    source: str
    strength: float
    part: str
    matched: tuple[str, ...]
    skipped: tuple[str, ...]
    dense: tuple[str, ...]

    def __str__(self) -> str:
        matched, skipped, dense = map(len, (self.matched, self.skipped, self.dense))
        told = f"{self.source} at {self.strength:g} changes {matched} layer{'s' * (matched != 1)} of the {self.part}"
        told += f", {dense} of them no longer quantized" if dense else ""
        return told + (f"; {skipped} others are not in it" if skipped else "")


@dataclass(frozen=True)
class Adapter:
    """The contents of a LoRA file: the tensors for each layer that it changes, by the layer's name in the file."""

    source: str
    layers: Mapping[str, Tensors]
    metadata: Mapping[str, str]

    @classmethod
    def read(cls, file: Path) -> "Adapter":
        """The LoRA in ``file``, lazily, in the format of any tool; fp8 is decoded.

        Raises ``UserError`` if it is not a LoRA, incomplete, or of an unsupported kind.
        """
        file = Path(file)
        weights, metadata = read_dense(file, mx.float32)
        config = file.with_name(ADAPTER_CONFIG)
        beside = read_json(config) if file.stem == "adapter_model" else {}
        return cls.of(weights, metadata, str(file), beside)

    @classmethod
    def of(
        cls,
        weights: Weights,
        metadata: Mapping[str, str] = {},
        source: str = "The LoRA",
        peft: Mapping[str, object] = {},
    ) -> "Adapter":
        """The LoRA in these tensors; ``peft`` is the config that PEFT writes to a separate file."""
        layers = _by_layer(weights, source)
        for name, tensors in layers.items():
            changes.check(f"{source}: {clip(name)}", tensors)
        if not peft:  # diffusers writes it to the metadata, for several networks
            text = metadata.get(ADAPTER, "{}")
            found = json_object(text, f"The {ADAPTER} in {source}")
            peft = {k.removeprefix("transformer."): v for k, v in found.items()}
        layers = {name: _with_alpha(name, has, peft) for name, has in layers.items()}
        return cls(source, layers, metadata)

    @property
    def about(self) -> About:
        """What it is, for people."""
        kinds = {changes.name_of(has): None for has in self.layers.values()}
        triggers = (self.metadata.get(key, "") for key in TRIGGERS)
        return About(
            " and ".join(kinds),
            max(chain([0], *map(changes.ranks_of, self.layers.values()))),
            len(self.layers),
            self.metadata.get("model_version", ""),
            next(filter(None, triggers), ""),
            self.needs_reference,
        )

    @property
    def needs_reference(self) -> bool:
        """Whether it is an IC-LoRA, by its metadata or its name."""
        named = IC_LORA.search(Path(self.source).stem.lower()) is not None
        return named or any(key in self.metadata for key in REFERENCE)

    def reference_downscale(self, usual: int) -> int:
        """The downscale factor of its reference per side; ``usual`` if it states none."""
        stated = self.metadata.get(REFERENCE[0], str(usual)).strip()
        if not re.fullmatch(r"[1-9][0-9]{0,3}(\.0*)?", stated):
            raise UserError(
                f"{self.source}: {REFERENCE[0]} must be a whole number such as 2; got {clip(stated, 30)}."
            )
        return int(float(stated))

    def check(self, version: str = "", *, reference: bool = False) -> None:
        """Raise ``UserError`` if this LoRA is for another ``version`` of the model, or lacks its reference.

        reference  whether there is a reference video, which an IC-LoRA needs
        """
        made_for = self.metadata.get("model_version", "")
        if made_for and version and _release(made_for) != _release(version):
            raise UserError(
                f"{self.source} was made for version {clip(made_for, 20)} of the model, and the model is version "
                f"{version}. Use a LoRA made for {version}, or a model of version {clip(made_for, 20)}."
            )
        if self.needs_reference and not reference:
            raise UserError(
                f"{self.source} needs a reference video (it is an IC-LoRA), and there is none; leave it out."
            )

    def check_layers(self, modules: Iterable[nn.Module]) -> None:
        """Raise ``UserError`` unless one of ``modules`` has each layer, with the right shape."""
        homeless = dict.fromkeys(self.layers)
        for module in modules:
            for name in self._homes(module):
                del homeless[name]
        if homeless:
            raise UserError(
                f"{self.source} changes {some(homeless, 2)}, which the model does not have; it was made for another "
                "model, and applying part of it would give wrong results."
            )

    def check_distillation(self, transformer: nn.Module) -> None:
        """Raise ``UserError`` if this cannot distil ``transformer``: such LoRAs change all layers."""
        layers = set(layer_names(transformer).values())
        share = len(self._homes(transformer)) / len(layers)
        if share < WHOLE:
            raise UserError(
                f"{self.source} changes {share:.0%} of the transformer's layers; a distilled LoRA changes nearly all of them. "
                "This is another kind of LoRA; use it with --lora."
            )

    def _homes(self, module: nn.Module) -> dict[str, tuple[str, nn.Module]]:
        """The layers of ``module`` to change: name in the file -> path and layer. Raises ``UserError`` for a wrong shape."""
        known, layers, homes = layer_names(module), dict(module.named_modules()), {}
        for name, tensors in self.layers.items():
            if path := known.get(_flat(name)):
                label = f"{self.source}: {clip(name)}"
                changes.check_shape(label, layers[path], tensors)
                homes[name] = path, layers[path]
        return homes


def fuse(
    module: nn.Module, adapter: Adapter, strength: float = 1.0, part: str = "model"
) -> Fusion:
    """Add ``strength`` times the changes of ``adapter`` to the linear layers of ``module``, in place; ``part`` is its name.

    Lazy: computed in float32 when evaluated, then rounded once to the weight's dtype. Raises ``UserError`` if tensors do
    not fit their layer's shape.
    """
    homes, fused, dense = adapter._homes(module), {}, []
    for name, (path, layer) in homes.items():
        fused[path] = changes.changed(layer, adapter.layers[name], strength)
        if fused[path] is not layer:
            dense.append(path)
    module.update_modules(tree_unflatten(list(fused.items())))
    skipped = tuple(name for name in adapter.layers if name not in homes)
    return Fusion(adapter.source, strength, part, tuple(fused), skipped, tuple(dense))


def holds_changes(names: Iterable[str]) -> bool:
    """Whether tensors of these names belong to a LoRA of any kind; an alpha alone does not show that."""
    ends = tuple(ROLES.keys() - {".alpha"})
    return any(
        ".lora_" in name or _plain(name).endswith(ends) or _refused(name)
        for name in names
    )


def layer_names(module: nn.Module) -> dict[str, str]:
    """Every flattened name of a linear layer of ``module`` -> its path.

    These are the official names and, from ``LORAS`` of the module's class, those of other projects.
    """
    names, network = {}, type(module)
    for path, layer in module.named_modules():
        if isinstance(layer, (nn.Linear, nn.QuantizedLinear)):
            official = network.NAMES.official(f"{path}.weight")
            others = (table.ours(official) for table in network.LORAS)
            for name in (official, *filter(None, others)):
                names[_flat(name.removesuffix(".weight"))] = path
    return names


def _flat(name: str) -> str:
    """A layer's name without prefixes and with each dot as a _, the only form that all tools share."""
    while prefix := next(filter(name.startswith, PREFIXES), ""):
        name = name.removeprefix(prefix)
    name = name.replace(".", "_")
    for prefix in FLAT_PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _plain(key: str) -> str:
    return key.removesuffix(".weight").removesuffix(".default")


def _refused(key: str) -> str:
    """The kind of change that a tensor belongs to, if it is not supported; else empty."""
    return next((kind for part, kind in REFUSED.items() if part in key), "")


def _by_layer(weights: Weights, source: str) -> dict[str, dict[str, mx.array]]:
    """The tensors of every layer by role. Raises ``UserError`` for an unknown role or integers."""
    layers, strange = defaultdict(dict), []
    for key, value in weights.items():
        plain = _plain(key)
        end = next(filter(plain.endswith, ROLES), "")
        layer, role = plain.removesuffix(end), ROLES.get(end)
        if role is None:
            strange.append(key)
        elif not mx.issubdtype(value.dtype, mx.floating) and role != "alpha":
            raise UserError(
                f"{source}: {clip(key)} holds whole numbers ({value.dtype}); a LoRA's factors are floating-point."
            )
        elif role in layers[layer]:
            raise UserError(f"{source} holds {clip(key)} under two names.")
        else:
            layers[layer][role] = value.astype(mx.float32)
    if strange:
        named = f" ({kind})" if (kind := _refused(strange[0])) else ""
        raise UserError(
            f"{source} is not a LoRA that this version can apply: it holds {some(strange, 2)}{named}. Supported are LoRA, "
            "DoRA, LoKr, LoHa and differences (.diff, .diff_b)."
        )
    if not layers:
        raise UserError(f"{source} is not a LoRA: it holds no tensors.")
    return layers


def _with_alpha(name: str, has: Tensors, peft: Mapping[str, object]) -> Tensors:
    """``has`` with the alpha of PEFT's config, if the file holds none."""
    patterns = peft.get("alpha_pattern")
    patterns = patterns.items() if isinstance(patterns, dict) else ()
    own = (value for key, value in patterns if f".{name}".endswith(f".{key}"))
    alpha = next(own, peft.get("lora_alpha"))
    if "alpha" in has or "lora_down" not in has or not isinstance(alpha, (int, float)):
        return has
    if peft.get("use_rslora"):  # there alpha is divided by the root of the rank
        alpha *= sqrt(has["lora_down"].shape[0])
    return {**has, "alpha": mx.array(float(alpha))}


def _release(version: str) -> tuple[str, ...]:
    """The first two numbers of a version; "-" counts as "."."""
    return tuple(version.replace("-", ".").split("."))[:2]
