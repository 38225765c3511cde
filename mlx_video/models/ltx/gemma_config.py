"""A Gemma's ``config.json``, read strictly where it concerns the language model. Knows no tensors and no LTX."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import ClassVar, Literal, Mapping

from mlx_video.errors import UserError
from mlx_video.formats.safetensors import json_object
from mlx_video.models.ltx.loading.schema import Config, short_repr
from mlx_video.weights import read_config, read_header, read_json

SLIDING, FULL = "sliding_attention", "full_attention"
LAYER_MARK = ".self_attn.q_norm.weight"  # each layer of a Gemma has one
PACKED_CONFIG = "gemma_config"  # the key of a packed file's metadata
PROPORTIONAL = {"rope_type": "proportional", "partial_rotary_factor": 0.25}


def read_gemma_config(path: Path) -> dict:
    """The config of a Gemma folder, or of a file that holds a Gemma; empty if there is none.

    Lightricks packs the config into the file, and mlx-forge puts it beside the file. ComfyUI's files have none, so it is
    inferred from the tensors' shapes.
    """
    path = Path(path)
    if path.is_dir():
        return read_config(path)
    header = read_header(path)
    if stated := header.metadata.get(PACKED_CONFIG):
        return json_object(stated, f"The config inside {path}")
    if found := read_json(path.with_name(f"{path.stem}_config.json")):
        return found if "model_type" in found else {}
    return inferred({key: tuple(t["shape"]) for key, t in header.tensors.items()})


@dataclass(frozen=True)
class RopeConfig(Config):
    """How one kind of layer rotates its queries and keys."""

    rope_type: Literal["default", "linear", "proportional"] = "default"
    rope_theta: float | None = None
    factor: float = 1.0
    partial_rotary_factor: float = 1.0

    POSITIVE: ClassVar = True

    @classmethod
    def from_dict(cls, data: object) -> "RopeConfig":
        """Read a block on rotary embeddings, ignoring other keys. Raises ``UserError``."""
        if not isinstance(data, Mapping):
            raise UserError(f"RopeConfig: must be an object; got {short_repr(data)}.")
        # Files before transformers 4.43 call it "type".
        stated = {"rope_type": data["type"]} | data if "type" in data else data
        return super().from_dict(_known(cls, stated))

    def of(self, theta: float) -> dict[str, object]:
        """The arguments for mlx-lm; ``theta`` is the default where the file states none."""
        return asdict(self) | {"rope_theta": self.rope_theta or theta}


def _ropes(text: Mapping[str, object], full: Mapping) -> list[RopeConfig]:
    """The configs of sliding and of full attention; ``full`` is the latter's default."""
    stated = text.get("rope_parameters") or {}
    if not isinstance(stated, Mapping):
        raise UserError(f"rope_parameters must be an object; got {short_repr(stated)}.")
    usual = {SLIDING: {}, FULL: full}
    return [RopeConfig.from_dict(stated.get(kind, usual[kind])) for kind in usual]


def _known(config: type[Config], data: Mapping[str, object]) -> dict[str, object]:
    """The keys that a config reads; ``None`` means unset, as in transformers."""
    names = {field.name for field in fields(config)} | config.FIXED.keys()
    return {k: v for k, v in data.items() if k in names and v is not None}


@dataclass(frozen=True)
class GemmaConfig(Config):
    """The language model of any Gemma that this version runs.

    ``version`` is Lightricks' name for a Gemma that it packed; empty for others. Defaults are those of transformers; keys
    for training or other modalities are ignored.
    """

    NAME: ClassVar[str]
    POSITIVE: ClassVar = True

    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 131072
    version: str = ""

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "GemmaConfig":
        """Read a whole ``config.json``, or the language model's block of one. Raises ``UserError``."""
        text = data.get("text_config", data)
        kind = text.get("model_type") if isinstance(text, Mapping) else None
        family = FAMILIES.get(kind) if isinstance(kind, str) else None
        if family is None:
            raise UserError(
                "The text encoder must be a Gemma 3 or a Gemma 4; its config.json describes "
                f"{short_repr(kind) if kind else 'no language model'}. LTX-2 was trained with google/gemma-3-12b-it, "
                "LTX-2.5 with a Gemma 4 of its own."
            )
        return family.from_text(dict(text, version=str(data.get("gemma_version", ""))))

    @classmethod
    def from_text(cls, text: dict[str, object]) -> "GemmaConfig":
        """Read the language model's own block; changes ``text``. Raises ``UserError``."""
        config = super().from_dict(_known(cls, text))
        if config.num_attention_heads % config.num_key_value_heads:
            raise UserError(
                f"{cls.__name__}: num_key_value_heads = {config.num_key_value_heads} must divide num_attention_heads = "
                f"{config.num_attention_heads}. The file may be damaged."
            )
        return config


def _layer_types(count: int, every: int) -> list[str]:
    """``count`` layers: each ``every``-th attends to all earlier tokens, the others to a window."""
    return [FULL if i % every == 0 else SLIDING for i in range(1, count + 1)]


@dataclass(frozen=True)
class Gemma3Config(GemmaConfig):
    """Gemma 3: every ``sliding_window_pattern``-th layer attends to all earlier tokens, the others to a window."""

    NAME: ClassVar = "Gemma 3"

    vocab_size: int = 262208
    num_hidden_layers: int = 26
    query_pre_attn_scalar: float = 256
    sliding_window: int = 4096
    sliding_window_pattern: int = 6
    rope_theta: float = 1e6
    rope_local_base_freq: float = 1e4
    rope_scaling: dict | None = None

    FIXED: ClassVar = {
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "use_bidirectional_attention": False,
    }

    @classmethod
    def from_text(cls, text: dict[str, object]) -> "Gemma3Config":
        """As in ``GemmaConfig``; accepts the older and the newer keys for rotary embeddings."""
        sliding, full = _ropes(text, {})
        if scaling := text.get("rope_scaling"):
            scaled = RopeConfig.from_dict(scaling)
            full = replace(scaled, rope_theta=full.rope_theta)
        text["rope_scaling"] = asdict(full)
        text.setdefault("rope_theta", full.rope_theta)
        text.setdefault("rope_local_base_freq", sliding.rope_theta)
        layers = text.get("layer_types")
        if isinstance(layers, list) and FULL in layers:
            text["sliding_window_pattern"] = layers.index(FULL) + 1
        config = super().from_text(text)
        if isinstance(layers, list) and layers != config.layer_types:
            raise UserError(
                f"Gemma 3 with layer_types other than {FULL} in one of {config.sliding_window_pattern} layers is not "
                "implemented."
            )
        return config

    @property
    def layer_types(self) -> list[str]:
        """The kind of attention of each layer."""
        return _layer_types(self.num_hidden_layers, self.sliding_window_pattern)


@dataclass(frozen=True)
class Gemma4Config(GemmaConfig):
    """Gemma 4, dense: layers with full attention have a head size of their own and may use their keys as values."""

    NAME: ClassVar = "Gemma 4"

    vocab_size: int = 262144
    num_hidden_layers: int = 30
    global_head_dim: int = 512
    num_global_key_value_heads: int | None = None
    attention_k_eq_v: bool = False
    sliding_window: int = 512
    layer_types: tuple[str, ...] = ()
    rope_parameters: dict | None = None
    final_logit_softcapping: float | None = None

    FIXED: ClassVar = {
        "attention_bias": False,
        "enable_moe_block": False,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "use_bidirectional_attention": "vision",
        "use_double_wide_mlp": False,
    }

    @classmethod
    def from_text(cls, text: dict[str, object]) -> "Gemma4Config":
        """As in ``GemmaConfig``; ``layer_types`` may be left out."""
        # "vision" concerns the tokens of pictures only, and a prompt has none.
        if text.get("use_bidirectional_attention") is False:
            del text["use_bidirectional_attention"]
        each = text.get("per_layer_config")  # as transformers writes it since 5.20
        full = next(iter(each.values()), {}) if isinstance(each, Mapping) else {}
        if isinstance(full, Mapping):
            text.setdefault("global_head_dim", full.get("head_dim"))
            text.setdefault("num_global_key_value_heads", full.get("num_key_value_heads"))  # fmt: skip
        sliding, full = _ropes(text, PROPORTIONAL)
        text["rope_parameters"] = {SLIDING: sliding.of(1e4), FULL: full.of(1e6)}
        config = super().from_text(text)
        layers = config.layer_types
        if not layers:  # the last one always attends to all earlier tokens
            layers = (*_layer_types(config.num_hidden_layers - 1, 6), FULL)
        if {*layers} - {SLIDING, FULL} or len(layers) != config.num_hidden_layers:
            raise UserError(
                f"{cls.__name__}: layer_types must name {SLIDING} or {FULL} for each of "
                f"{config.num_hidden_layers} layers. The file may be damaged."
            )
        return replace(config, layer_types=layers)


FAMILIES: dict[str, type[GemmaConfig]] = {
    "gemma3_text": Gemma3Config,
    "gemma4_text": Gemma4Config,
    "gemma4_unified_text": Gemma4Config,
}


def inferred(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """A config from the shapes of a 12B Gemma's tensors; empty if they are not a Gemma's.

    What shapes cannot tell is taken from the Gemma 3 and the Gemma 4 that LTX was trained with.
    """

    def rows(layer: int, name: str) -> int:
        """Rows of a layer's weight (packed weights have fewer columns)."""
        shape = shapes.get(f"model.layers.{layer}.{name}.weight", ())
        return max(shape[:1], default=1) or 1

    count = sum(key.endswith(LAYER_MARK) for key in shapes)
    if not count or "model.norm.weight" not in shapes:
        return {}
    heads = [rows(i, "self_attn.q_norm") for i in range(count)]
    text = {
        "hidden_size": shapes["model.norm.weight"][0],
        "vocab_size": shapes.get("model.embed_tokens.weight", (1,))[0],
        "intermediate_size": rows(0, "mlp.gate_proj"),
        "num_hidden_layers": count,
        "num_attention_heads": rows(0, "self_attn.q_proj") // heads[0],
        "num_key_value_heads": rows(0, "self_attn.k_proj") // heads[0],
        "head_dim": heads[0],
        "sliding_window": 1024,
    }
    if "model.layers.0.layer_scalar" not in shapes:
        text |= {
            "model_type": "gemma3_text",
            "query_pre_attn_scalar": heads[0],
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        }
        return {"model_type": "gemma3", "text_config": text}
    full = next((i for i, size in enumerate(heads) if size != heads[0]), 0)
    full_kv_heads = rows(full, "self_attn.k_proj") // heads[full]
    values = f"model.layers.{full}.self_attn.v_proj.weight"
    text |= {
        "model_type": "gemma4_text",
        "layer_types": [SLIDING if size == heads[0] else FULL for size in heads],
        "global_head_dim": heads[full],
        "num_global_key_value_heads": full_kv_heads,
        "attention_k_eq_v": values not in shapes,
        "final_logit_softcapping": 30.0,
    }
    return {"model_type": "gemma4", "text_config": text}
