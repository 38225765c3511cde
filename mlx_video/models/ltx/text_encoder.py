"""The text encoder: a Gemma with its tokenizer, every hidden state of it for a prompt, and text that it writes.

Which Gemma is its config's affair (``gemma``). What becomes of the hidden states is the connectors'.
"""

from pathlib import Path
from typing import Callable, ClassVar, Iterator, Mapping, Sequence

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_video import weights
from mlx_video.errors import UserError
from mlx_video.formats.quantized import read_dense
from mlx_video.models.ltx import enhance, gemma
from mlx_video.models.ltx.config import LTXModelType
from mlx_video.models.ltx.gemma_config import GemmaConfig, read_gemma_config
from mlx_video.models.ltx.gemma_files import WRITTEN, copy_files, unpack_assets
from mlx_video.models.ltx.network import Network, quantize_blocks
from mlx_video.models.ltx.source import QUANTIZATION, Source
from mlx_video.models.ltx.tokenizer import PromptTokenizer
from mlx_video.types import TextFeatures


class GemmaTextEncoder(Network):
    """A Gemma 3 or 4 language model with its tokenizer; the weights are those of the ``model`` inside."""

    CONFIG: ClassVar = GemmaConfig
    LARGE: ClassVar = True
    BLOCKS: ClassVar = gemma.Gemma3.BLOCKS

    def __init__(self, model: gemma.Gemma, tokenizer: PromptTokenizer):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer

    @classmethod
    def load(
        cls, path: str | Path, dtype: mx.Dtype | None = None
    ) -> "GemmaTextEncoder":
        """Open a Gemma folder in transformers' or mlx-lm's format, quantized or not, or the one file of Lightricks or ComfyUI.

        Tensors stay on disk until they are first used, so counting tokens costs no memory. Other modalities are never
        read. The tokenizer may lie in the folder or in one called ``tokenizer`` beside it. ``dtype`` casts the
        weights; ``None`` keeps them as stored. Raises ``FileNotFoundError`` where a file is missing and
        ``ValueError`` where the model is not a Gemma that this version implements.
        """
        path = Path(path)
        tensors, _ = read_dense(path, dtype or mx.bfloat16)
        source = Source.described(path, read_gemma_config(path))
        model = gemma.language_model(source.config)
        tensors = model.sanitize(tensors)
        weights.load(model, tensors, dtype=dtype, mode=source.mode, source=str(path))
        tokenizer = PromptTokenizer.load(path)
        if len(tokenizer) > model.model.vocab_size:
            raise UserError(
                f"The tokenizer of {path} has {len(tokenizer)} tokens and its model {model.model.vocab_size}: they "
                "belong to different models. Take all files from one."
            )
        return cls(model, tokenizer)

    @classmethod
    def from_source(
        cls,
        source: Source,
        dtype: mx.Dtype | None = None,
        model_type: LTXModelType = LTXModelType.AudioVideo,
    ) -> "GemmaTextEncoder":
        """The language model that lies at ``source``, see ``load``."""
        return cls.load(source.path, dtype)

    @classmethod
    def sanitize(cls, tensors: weights.Weights) -> weights.Weights:
        """The language model's tensors under our names."""
        return gemma.Gemma3.sanitize(tensors)

    @classmethod
    def write(
        cls,
        source: Source,
        folder: Path,
        dtype: mx.Dtype | None = None,
        quantization: Mapping[str, int | str] = {},
    ) -> None:
        """Write a Gemma folder; ``dtype`` is left as it is, since Gemma's own is what it was trained in.

        Files are copied as they are, unless tensors are to be quantized or come out of a packed file.
        """
        packed = source.path.is_file()
        if not packed and (source.quantization or not quantization):
            return copy_files(source.path, folder)
        quantization = {} if source.quantization else quantization
        kept = dict(source.quantization or quantization)
        stated = {QUANTIZATION: kept} if kept else {}
        tensors = cls._tensors(source, quantization)
        weights.save(folder, tensors, dict(source.config) | stated)
        if packed:
            tokenizer = PromptTokenizer.load(source.path)
            tokenizer.backend.save(str(folder / "tokenizer.json"))
            unpack_assets(source.path, folder)
        else:
            copy_files(source.path, folder, but=WRITTEN)

    @classmethod
    def _tensors(
        cls, source: Source, quantization: Mapping[str, int | str]
    ) -> weights.Weights:
        """Under the names that mlx-lm gives them in such a model."""
        model = cls.load(source.path).model
        if quantization:
            quantize_blocks(model, **quantization)
        prefix = "language_model." if "text_config" in source.config else ""
        return {prefix + k: v for k, v in tree_flatten(model.parameters())}

    def activation_bytes(self, rows: int) -> int:
        """For prompts of so many tokens: every layer's states, alone and stacked, and what one layer makes."""
        args, norm = self.model.args, self.model.model.norm.weight
        states = args.num_hidden_layers + 1
        return rows * (2 * states + 16) * args.hidden_size * norm.dtype.size

    @property
    def network(self) -> gemma.Gemma:
        return self.model

    @property
    def max_tokens(self) -> int:
        """Of the longest prompt."""
        return self.tokenizer.max_tokens

    def features(
        self, texts: Sequence[str], max_length: int | None = None
    ) -> TextFeatures:
        """Hidden states of a batch of prompts, evaluated. Columns that are padding in every row are not computed."""
        ids, mask = self.tokenize(texts, max_length)
        longest = mask.sum(axis=1).max().item()
        states = mx.stack(self.hidden_states(ids[:, -longest:], mask[:, -longest:]))
        mx.eval(states)
        return TextFeatures(states, mask)

    def tokenize(
        self, texts: Sequence[str], max_length: int | None = None
    ) -> tuple[mx.array, mx.array]:
        """Ids and mask, see ``PromptTokenizer.tokenize``."""
        return self.tokenizer.tokenize(texts, max_length)

    def hidden_states(self, ids: mx.array, mask: mx.array) -> list[mx.array]:
        """The scaled embeddings, the outputs of all layers but the last, and the last one's normalised output.

        ``ids`` and ``mask`` are (B, T), and each state (B, T, D): one more than there are layers, as transformers
        counts them. Rows of padding hold finite numbers without meaning. Evaluates layer by layer, because macOS
        stops a GPU command that runs for seconds.
        """
        states = []
        for state in gemma.hidden_states(self.model, ids, mask):
            mx.eval(state)
            states.append(state)
        return states

    # Writing

    enhance_t2v = enhance.enhance_t2v
    enhance_i2v = enhance.enhance_i2v

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
        if len(turn) > (longest := self.tokenizer.chat.model_max_length):
            raise UserError(
                f"This text encoder reads {longest} tokens at most and cannot be asked to write; do without "
                "enhancement, or give a Gemma that follows instructions with --text-encoder."
            )
        from mlx_lm import stream_generate  # with transformers, more than a second

        responses = stream_generate(
            self.model,
            self.tokenizer.chat,
            turn,
            max_tokens=max_tokens,
            sampler=_sampler(temperature, seed, len(self.tokenizer)),
        )
        for response in responses:
            yield response.text

    def _turn(self, instructions: str, request: str) -> list[int]:
        """A user's turn, ready to be answered. Gemma reads instructions at the head of the first turn."""
        chat = self.tokenizer.chat
        if chat.has_chat_template:
            messages = [
                {"role": "system", "content": instructions},
                {"role": "user", "content": request},
            ]
            return chat.apply_chat_template(messages, add_generation_prompt=True)
        start, end = self.tokenizer.turns[0]
        return self.tokenizer.ids(
            f"{start}user\n{instructions}\n\n{request}{end}\n{start}model\n"
        )


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
