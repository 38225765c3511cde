"""A Gemma's config inferred from the shapes of its tensors, for files that state none. Knows only shapes."""

from typing import Mapping

SLIDING, FULL = "sliding_attention", "full_attention"
LAYER_MARK = ".self_attn.q_norm.weight"  # each layer of a Gemma has one
Shape = tuple[int, ...]


def inferred(shapes: Mapping[str, Shape]) -> dict:
    """A config from the shapes of a 12B Gemma's tensors; empty if they are not a Gemma's.

    What shapes cannot tell is as in the Gemma 3 and the Gemma 4 that LTX was trained with.
    """
    count = sum(key.endswith(LAYER_MARK) for key in shapes)
    if not count or "model.norm.weight" not in shapes:
        return {}
    heads = [_rows(shapes, i, "self_attn.q_norm") for i in range(count)]
    text = {
        "hidden_size": shapes["model.norm.weight"][0],
        "vocab_size": shapes.get("model.embed_tokens.weight", (1,))[0],
        "intermediate_size": _rows(shapes, 0, "mlp.gate_proj"),
        "num_hidden_layers": count,
        "num_attention_heads": _rows(shapes, 0, "self_attn.q_proj") // heads[0],
        "num_key_value_heads": _rows(shapes, 0, "self_attn.k_proj") // heads[0],
        "head_dim": heads[0],
        "sliding_window": 1024,
    }
    newer = "model.layers.0.layer_scalar" in shapes
    more = _gemma_4(shapes, heads) if newer else _gemma_3(heads[0])
    kind = "gemma4" if newer else "gemma3"
    return {"model_type": kind, "text_config": text | more}


def _gemma_3(head_dim: int) -> dict:
    return {
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": head_dim,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }


def _gemma_4(shapes: Mapping[str, Shape], heads: list[int]) -> dict:
    full = next((i for i, size in enumerate(heads) if size != heads[0]), 0)
    values = f"model.layers.{full}.self_attn.v_proj.weight"
    return {
        "model_type": "gemma4_text",
        "layer_types": [SLIDING if size == heads[0] else FULL for size in heads],
        "global_head_dim": heads[full],
        "num_global_key_value_heads": _rows(shapes, full, "self_attn.k_proj")
        // heads[full],
        "attention_k_eq_v": values not in shapes,
        "final_logit_softcapping": 30.0,
    }


def _rows(shapes: Mapping[str, Shape], layer: int, name: str) -> int:
    """Rows of a layer's weight; columns would mislead, since packed weights have fewer."""
    shape = shapes.get(f"model.layers.{layer}.{name}.weight", ())
    return max(shape[:1], default=1) or 1
