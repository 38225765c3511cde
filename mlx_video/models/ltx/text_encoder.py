"""Gemma 3 as LTX-2 uses it: a tokenizer, every hidden state of the language model, and text it writes.

The only room that knows mlx-lm and tokenizers. What becomes of the hidden states is the connectors' business.
"""

from pathlib import Path
from typing import Callable, ClassVar, Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm import stream_generate
from mlx_lm.models import gemma3_text
from mlx_lm.models.base import create_causal_mask
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer
from transformers import Gemma3TextConfig

from mlx_video import weights
from mlx_video.errors import MissingFileError, UserError
from mlx_video.linear import Linear
from mlx_video.models.ltx.layouts import (
    MAX_TOKENS,
    max_tokens,
    tokenizer_folder,
)
from mlx_video.types import TextFeatures
from mlx_video.weights import Weights

PAD = 0
START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"


class GemmaTextEncoder:
    """A Gemma 3 language model with its tokenizer; ``max_tokens`` are those of the longest prompt."""

    def __init__(
        self,
        model: "GemmaModel",
        tokenizer: TokenizerWrapper,
        max_tokens: int = MAX_TOKENS,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    @classmethod
    def load(
        cls, path: str | Path, dtype: mx.Dtype | None = None
    ) -> "GemmaTextEncoder":
        """Open a Gemma 3 folder in transformers' or mlx-lm's format, quantized or not.

        Tensors stay on disk until they are first used, so counting tokens costs no memory. A vision tower is never
        read. The tokenizer may lie in the folder or in one called ``tokenizer`` beside it. ``dtype`` casts the
        weights; ``None`` keeps them as stored. Raises ``FileNotFoundError`` where a file is missing and
        ``ValueError`` where the model is not a Gemma 3 that this version implements.
        """
        path = Path(path)
        tensors, _ = weights.read(path)
        config = weights.read_config(path)
        model = GemmaModel(GemmaArgs.from_dict(config))
        mode = config.get("quantization", {}).get("mode", "affine")
        tensors = GemmaModel.sanitize(tensors)
        weights.load(model, tensors, dtype=dtype, mode=mode, source=str(path))
        if (folder := tokenizer_folder(path)) is None:
            raise MissingFileError(
                f"No tokenizer.json or tokenizer.model in {path} or in {path.parent / 'tokenizer'}. "
                "Both come with google/gemma-3-12b-it."
            )
        tokenizer = load_tokenizer(folder)
        tokenizer.add_eos_token(END_OF_TURN)
        return cls(model, tokenizer, max_tokens(path))

    def features(
        self, texts: Sequence[str], max_length: int | None = None
    ) -> TextFeatures:
        """Hidden states of a batch of prompts, evaluated. Columns that are padding in every row are not computed."""
        ids, mask = self.tokenize(texts, max_length)
        longest = mask.sum(axis=1).max().item()
        states = mx.stack(self.hidden_states(ids[:, -longest:], mask[:, -longest:]))
        mx.eval(states)
        return TextFeatures(states, mask)

    def count_tokens(self, text: str) -> int:
        """Tokens of a prompt, BOS included."""
        return len(self._encode(text))

    def tokenize(
        self, texts: Sequence[str], max_length: int | None = None
    ) -> tuple[mx.array, mx.array]:
        """Ids and mask (1 = token, 0 = padding), each (B, max_length) int32, padded on the left.

        ``max_length`` is ``max_tokens`` by default. Outer white space does not count; an empty text is BOS alone.
        Raises ``ValueError`` for a text of more than ``max_length`` tokens.
        """
        max_length = max_length or self.max_tokens
        rows = [self._encode(text) for text in texts]
        for text, row in zip(texts, rows):
            if len(row) > max_length:
                raise UserError(
                    f"The prompt has {len(row)} tokens and may have {max_length} at most; it begins "
                    f"{text.strip()[:40]!r}. Shorten it by {len(row) - max_length}; a word is one or two."
                )
        padding = [max_length - len(row) for row in rows]
        ids = [[PAD] * n + row for n, row in zip(padding, rows)]
        mask = [[0] * n + [1] * len(row) for n, row in zip(padding, rows)]
        return mx.array(ids), mx.array(mask)

    def hidden_states(self, ids: mx.array, mask: mx.array) -> list[mx.array]:
        """The scaled embeddings, the outputs of all layers but the last, and the last one's normalised output.

        ``ids`` and ``mask`` are (B, T), and each state (B, T, D): one more than there are layers, as transformers
        counts them. Rows of padding hold finite numbers without meaning. Evaluates layer by layer, because macOS
        stops a GPU command that runs for seconds.
        """
        states = []
        for state in self._states(ids, mask):
            mx.eval(state)
            states.append(state)
        return states

    def _states(self, ids: mx.array, mask: mx.array) -> Iterator[mx.array]:
        gemma = self.model.model
        sliding = _attention_mask(mask, gemma.window_size)
        full = _attention_mask(mask)
        # The factor takes the weights' dtype: 61.97 becomes 62 in bfloat16, as in training.
        h = gemma.embed_tokens(ids) * gemma.args.hidden_size**0.5
        for layer in gemma.layers:
            yield h
            h = layer(h, sliding if layer.self_attn.is_sliding else full)
        yield gemma.norm(h)

    def generate(
        self,
        instructions: str,
        request: str,
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> Iterator[str]:
        """What the model answers, piece by piece. Temperature 0 takes the likeliest token; the seed fixes the rest.

        Raises ``ValueError`` where the question is longer than any text that the tokenizer was made for.
        """
        turn = self._turn(instructions, request)
        if len(turn) > (longest := self.tokenizer.model_max_length):
            raise UserError(
                f"This text encoder reads {longest} tokens at most and cannot be asked to write; do without "
                "enhancement, or give a Gemma 3 that follows instructions with --text-encoder."
            )
        responses = stream_generate(
            self.model,
            self.tokenizer,
            turn,
            max_tokens=max_tokens,
            sampler=_sampler(temperature, seed, len(self.tokenizer)),
        )
        for response in responses:
            yield response.text

    def _encode(self, text: str) -> list[int]:
        # Whether it is too long is said by ``tokenize``.
        return list(self.tokenizer.encode(text.strip(), verbose=False))

    def _turn(self, instructions: str, request: str) -> list[int]:
        """A user's turn, ready to be answered. Gemma reads instructions at the head of the first turn."""
        if self.tokenizer.has_chat_template:
            messages = [
                {"role": "system", "content": instructions},
                {"role": "user", "content": request},
            ]
            return self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True
            )
        return self.tokenizer.encode(
            f"{START_OF_TURN}user\n{instructions}\n\n{request}{END_OF_TURN}\n{START_OF_TURN}model\n",
            verbose=False,
        )


class GemmaModel(gemma3_text.Model):
    """mlx-lm's Gemma 3 language model, which finds its tensors under every name they are published with."""

    LANGUAGE: ClassVar[dict[str, str]] = {
        "language_model.model.": "model.",  # hub files of 2025, mlx-lm, mlx-vlm
        "model.language_model.": "model.",  # transformers 5
        "model.": "model.",  # text-only models
    }
    UNUSED: ClassVar[tuple[str, ...]] = (
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
        "lm_head.",  # a copy of the embeddings, where a file has one
        "language_model.lm_head.",
    )

    def __init__(self, args: "GemmaArgs"):
        super().__init__(args)
        self.pop("lm_head")
        self.tie_word_embeddings = True
        leaves = tree_map(_ours, self.leaf_modules(), is_leaf=nn.Module.is_module)
        self.update_modules(leaves)

    @classmethod
    def sanitize(cls, tensors: Weights) -> Weights:
        """The language model's tensors, under the names mlx-lm gives them in a text-only model."""
        return {
            cls.rename(key): value
            for key, value in tensors.items()
            if not key.startswith(cls.UNUSED)
        }

    @classmethod
    def rename(cls, key: str) -> str:
        for old, new in cls.LANGUAGE.items():
            if key.startswith(old):
                return new + key.removeprefix(old)
        return key


class GemmaArgs(gemma3_text.ModelArgs):
    """mlx-lm's arguments, read from any Gemma 3 ``config.json``."""

    FIXED: ClassVar[dict[str, object]] = {
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "use_bidirectional_attention": False,
    }

    @classmethod
    def from_dict(cls, config: dict) -> "GemmaArgs":
        """Transformers fills in what the file leaves out; here its terms become mlx-lm's."""
        text = config.get("text_config", config)
        kind = text.get("model_type")
        if kind != "gemma3_text":
            raise UserError(
                f"The text encoder must be a Gemma 3; its config.json tells of {kind or 'no language model'}. "
                "LTX-2 was trained with google/gemma-3-12b-it."
            )
        text = Gemma3TextConfig(**text)
        for key, value in cls.FIXED.items():
            if getattr(text, key) != value:
                raise UserError(
                    f"Gemma 3 with {key} = {getattr(text, key)!r} is not implemented, only {value!r}."
                )
        full = text.rope_parameters["full_attention"]
        sliding = text.rope_parameters["sliding_attention"]
        return super().from_dict(
            text.to_dict()
            | {
                "rope_theta": full["rope_theta"],
                "rope_scaling": full,
                "rope_local_base_freq": sliding["rope_theta"],
                "sliding_window_pattern": text.layer_types.index("full_attention") + 1,
            }
        )


def _ours(layer: nn.Module) -> nn.Module:
    """A Linear that stays fast for long prompts when it is quantized, in place of mlx-lm's, which have no bias."""
    if not isinstance(layer, nn.Linear):
        return layer
    return Linear(*reversed(layer.weight.shape), bias=False)


def _attention_mask(mask: mx.array, window: int | None = None) -> mx.array:
    """(B, T) -> (B, 1, T, T), True where a query (row) may see a key (column).

    Tokens see ``window`` positions back, themselves included, and no padding. Padding sees itself, lest it divide
    zero by zero.
    """
    T = mask.shape[1]
    causal = create_causal_mask(T, window_size=window)
    return (causal & (mask[:, None, None] > 0)) | mx.eye(T, dtype=mx.bool_)


def _sampler(
    temperature: float, seed: int, vocabulary: int
) -> Callable[[mx.array], mx.array]:
    """Draws a token from log-probabilities (B, V); never one of those ids beyond ``vocabulary`` that have no text."""
    key = mx.random.key(seed)

    def sample(logprobs: mx.array) -> mx.array:
        nonlocal key
        logprobs = logprobs[..., :vocabulary].astype(mx.float32)
        if temperature == 0:
            return mx.argmax(logprobs, axis=-1)
        key, draw = mx.random.split(key)
        return mx.random.categorical(logprobs / temperature, key=draw)

    return sample
