"""The language models of LTX, mlx-lm's Gemma 3 and Gemma 4, and all their hidden states. Knows no prompts."""

import sys
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import ClassVar, Iterator, Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_video.linear import Linear
from mlx_video.models.ltx.checkpoint.foreign_names import TEXT_ENCODER
from mlx_video.models.ltx.gemma_config import Gemma3Config, Gemma4Config, GemmaConfig
from mlx_video.tensor_names import TensorNames
from mlx_video.weights import Weights


def _mlx_lm(module: str) -> ModuleType:
    """A module of mlx-lm, without the package's ``__init__``: that imports transformers, over a second, to write text.

    It is imported as part of a package of another name, so that mlx-lm is whole for those who import it.
    """
    bare = ModuleType("mlx_lm_without_init")
    bare.__path__ = find_spec("mlx_lm").submodule_search_locations
    sys.modules.setdefault(bare.__name__, bare)
    return import_module(f"{bare.__name__}.{module}")


gemma3_text = _mlx_lm("models.gemma3_text")
gemma4_text = _mlx_lm("models.gemma4_text")
create_causal_mask = _mlx_lm("models.base").create_causal_mask


# Other modalities, copies of the embeddings, and other contents of Lightricks' packed file.
UNUSED = (
    *("vision_tower.", "vision_model.", "vision_embedder.", "embed_vision."),
    *("audio_tower.", "audio_projector.", "embed_audio.", "multi_modal_projector."),
    *("model.vision_tower.", "model.vision_embedder.", "model.embed_vision."),
    *("model.audio_tower.", "model.embed_audio.", "model.multi_modal_projector."),
    *("lm_head.", "language_model.lm_head."),
    *("text_embedding_projection.", "tokenizer_json", "spiece_model", "hf_asset__"),
)


def _names(official: str) -> TensorNames:
    """Names that begin with ``official`` in the file of the release; other spellings are read too."""
    spellings = (
        official,
        "language_model.model.",  # hub files of 2025, mlx-lm, mlx-vlm
        "model.language_model.",  # transformers 5
        "model.",
    )
    ours = dict.fromkeys(spellings, "model.")
    return TensorNames(ours | dict.fromkeys(UNUSED) | {"": ""})


class _Language:
    """What both share: tensor names, and linear layers that are fast for long prompts."""

    BLOCKS: ClassVar = "model.layers."
    NAMES: ClassVar[TensorNames]

    def __init__(self, args: gemma3_text.ModelArgs | gemma4_text.ModelArgs):
        super().__init__(args)
        ours = [
            (path, Linear(*reversed(layer.weight.shape), bias=False))
            for path, layer in self.named_modules()
            if isinstance(layer, nn.Linear)
        ]
        self.update_modules(tree_unflatten(ours))

    @classmethod
    def sanitize(cls, tensors: Weights) -> Weights:
        """The language model's tensors under the names of mlx-lm's text-only models."""
        named = {k.removeprefix(TEXT_ENCODER): v for k, v in tensors.items()}
        return cls.NAMES.take(named) or {}


class Gemma3(_Language, gemma3_text.Model):
    """The Gemma 3 of LTX-2 and 2.3, whose head shares the embeddings."""

    CONFIG: ClassVar = Gemma3Config
    NAMES: ClassVar = _names("language_model.model.")

    def __init__(self, config: Gemma3Config):
        given = asdict(config) | {"model_type": "gemma3_text"}
        super().__init__(gemma3_text.ModelArgs.from_dict(given))
        self.pop("lm_head")
        self.tie_word_embeddings = True


class Gemma4(_Language, gemma4_text.Model):
    """The dense Gemma 4 of LTX-2.5: no experts, no per-layer inputs, no shared keys."""

    CONFIG: ClassVar = Gemma4Config
    NAMES: ClassVar = _names("model.")

    def __init__(self, config: Gemma4Config):
        # mlx-lm's defaults are those of the small models.
        given = asdict(config) | {
            "layer_types": list(config.layer_types),
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "use_double_wide_mlp": False,
        }
        super().__init__(gemma4_text.ModelArgs.from_dict(given))


Gemma = Gemma3 | Gemma4


def language_model(config: Mapping[str, object]) -> Gemma:
    """The Gemma that a ``config.json`` describes, with random weights. Raises ``UserError`` if it is of another kind."""
    config = GemmaConfig.from_dict(config)
    return next(m for m in (Gemma3, Gemma4) if isinstance(config, m.CONFIG))(config)


def hidden_states(model: Gemma, ids: mx.array, mask: mx.array) -> Iterator[mx.array]:
    """The scaled embeddings, the outputs of all layers but the last, and the normalised output of the last; lazy.

    ``ids`` and ``mask`` (1 = token, 0 = padding on the left) are (B, T), states (B, T, D); rows of padding are finite numbers.
    """
    gemma = model.model
    sliding = attention_mask(mask, gemma.window_size)
    full = attention_mask(mask)
    # The factor takes the weights' dtype: 61.97 becomes 62 in bfloat16, as in training.
    h = gemma.embed_tokens(ids) * model.args.hidden_size**0.5
    for layer in gemma.layers:
        yield h
        h = layer(h, sliding if layer.self_attn.is_sliding else full)
        if isinstance(h, tuple):  # Gemma 4's layers return their keys and values too
            h = h[0]
    yield gemma.norm(h)


def attention_mask(mask: mx.array, window: int | None = None) -> mx.array:
    """(B, T) -> (B, 1, T, T), True where a query (row) may see a key (column).

    Tokens see the last ``window`` positions, also their own, but no padding; padding sees itself, or softmax would be NaN.
    """
    T = mask.shape[1]
    causal = create_causal_mask(T, window_size=window)
    return (causal & (mask[:, None, None] > 0)) | mx.eye(T, dtype=mx.bool_)
