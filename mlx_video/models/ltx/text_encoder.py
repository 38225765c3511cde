"""The text encoder: a Gemma with its tokenizer, which returns hidden states for the connectors, and writes text."""

import shutil
from pathlib import Path
from typing import Callable, ClassVar, Iterator, Mapping, Self, Sequence

import mlx.core as mx

from mlx_video import hub, weights
from mlx_video.errors import UserError
from mlx_video.models.ltx import enhance, gemma
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.gemma_config import GemmaConfig, read_gemma_config
from mlx_video.models.ltx.loading.parts import Network
from mlx_video.models.ltx.tokenizer import PromptTokenizer
from mlx_video.types import TextFeatures

ASSET = "hf_asset__"  # prefix of files that are stored as tensors of bytes


class GemmaTextEncoder(Network):
    """A Gemma 3 or 4 language model with its tokenizer; the weights are those of the ``model`` inside."""

    CONFIG: ClassVar = GemmaConfig
    BLOCKS: ClassVar = gemma.Gemma3.BLOCKS
    WIDE: ClassVar = True

    def __init__(self, model: gemma.Gemma, tokenizer: PromptTokenizer):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, path: str | Path, dtype: mx.Dtype | None = None) -> Self:
        """Open a Gemma: a folder in transformers' or mlx-lm's format, quantized or not, or Lightricks' or ComfyUI's file.

        Tensors are lazy; those of other modalities are never read. The tokenizer may be in the folder or in one named
        ``tokenizer`` beside it. ``dtype`` casts the weights; ``None`` keeps them as stored. Raises ``MissingFileError``
        for a missing file, ``UserError`` if the model is not a supported Gemma.
        """
        path = Path(path)
        return cls.from_source(Source.of(path, read_gemma_config(path)), dtype)

    @classmethod
    def from_source(cls, source: Source, dtype: mx.Dtype | None = None) -> Self:
        """The language model at ``source``, see ``load``."""
        path, model = source.path, gemma.language_model(source.config)
        tensors = model.sanitize(source.weights(dtype or mx.bfloat16))
        weights.load_into(model, tensors, dtype=dtype, mode=source.mode, source=path)
        tokenizer = PromptTokenizer.load(path)
        if len(tokenizer) > model.model.vocab_size:
            raise UserError(
                f"The tokenizer of {path} has {len(tokenizer)} tokens and its model {model.model.vocab_size}: they "
                "belong to different models. Take all files from one."
            )
        return cls(model, tokenizer)

    sanitize = gemma.Gemma3.sanitize  # which knows every spelling of Gemma 4's too

    @classmethod
    def write(
        cls,
        source: Source,
        folder: Path,
        dtype: mx.Dtype | None = None,
        quantization: Mapping[str, int | str] = {},
    ) -> None:
        """Write a Gemma folder, a copy if nothing changes. Ignores ``dtype``: Gemma keeps the one that it was trained in."""
        packed = source.path.is_file()
        if not packed and (source.quantization or not quantization):
            return _copy_files(source.path, folder)
        super().write(source, folder, None, quantization)
        if packed:
            tokenizer = PromptTokenizer.load(source.path)
            tokenizer.backend.save(str(folder / "tokenizer.json"))
            _unpack_assets(source.path, folder)
        else:
            _copy_files(source.path, folder, but=weights.SAVED)

    @staticmethod
    def stored_prefix(source: Source) -> str:
        """As mlx-lm names the tensors of such a model."""
        return "language_model." if "text_config" in source.config else ""

    def activation_bytes(self, rows: int) -> int:
        """Bytes for prompts of ``rows`` tokens: every layer's states, single and stacked, and one layer's intermediates."""
        args, norm = self.model.args, self.model.model.norm.weight
        states = args.num_hidden_layers + 1
        return rows * (2 * states + 16) * args.hidden_size * norm.dtype.size

    @property
    def network(self) -> gemma.Gemma:
        """The module that holds the weights."""
        return self.model

    def features(
        self, texts: Sequence[str], max_length: int | None = None
    ) -> TextFeatures:
        """Hidden states of prompts and their mask, evaluated. Columns that are padding in every row are left out."""
        ids, mask = self.tokenizer.tokenize(texts, max_length)
        longest = mask.sum(axis=1).max().item()
        shown, states = (ids[:, -longest:], mask[:, -longest:]), []
        for state in gemma.hidden_states(self.model, *shown):
            mx.eval(state)  # a GPU command each: macOS stops one that takes seconds
            states.append(state)
        stacked = mx.stack(states)
        mx.eval(stacked)  # so that the caller can free the model
        return TextFeatures(stacked, mask)

    enhance_t2v = enhance.enhance_t2v  # scripts for earlier MLX ports call it

    def generate(
        self,
        instructions: str,
        request: str,
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> Iterator[str]:
        """The model's answer, piece by piece. Temperature 0 takes the likeliest token; otherwise ``seed`` decides.

        Raises ``UserError`` if the question is longer than the tokenizer allows.
        """
        turn = self._turn(instructions, request)
        if len(turn) > (longest := self.tokenizer.chat.model_max_length):
            raise UserError(
                f"This text encoder reads at most {longest} tokens and cannot enhance prompts; leave out the enhancement, or "
                "give a Gemma that follows instructions with --text-encoder."
            )
        from mlx_lm import stream_generate  # imports transformers: over a second

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
        """Ids of the user's turn, ready for the answer. Gemma expects instructions at the start of the first turn."""
        chat = self.tokenizer.chat
        if chat.has_chat_template:
            messages = [
                {"role": "system", "content": instructions},
                {"role": "user", "content": request},
            ]
            return chat.apply_chat_template(messages, add_generation_prompt=True)
        start, end = self.tokenizer.turns[0]
        said = f"{instructions}\n\n{request}"
        return self.tokenizer.ids(f"{start}user\n{said}{end}\n{start}model\n")


def _sampler(
    temperature: float, seed: int, vocabulary: int
) -> Callable[[mx.array], mx.array]:
    """A function that samples from log-probabilities (B, V); ids beyond ``vocabulary`` have no text and are never drawn."""
    key = mx.random.key(seed)

    def sample(logprobs: mx.array) -> mx.array:
        nonlocal key
        logprobs = logprobs[..., :vocabulary].astype(mx.float32)
        if temperature == 0:
            return mx.argmax(logprobs, axis=-1)
        key, draw = mx.random.split(key)
        return mx.random.categorical(logprobs / temperature, key=draw)

    return sample


def _copy_files(source: Path, target: Path, but: Sequence[str] = ()) -> None:
    """Copy the text encoder's files, and those of a tokenizer beside it, except what matches ``but``."""
    target.mkdir(exist_ok=True)
    for folder in (source.parent / "tokenizer", source):
        for pattern in hub.TEXT_ENCODER_FILES:
            for file in folder.glob(pattern):
                if not any(map(file.match, but)):
                    shutil.copyfile(file, target / file.name)


def _unpack_assets(packed: Path, target: Path) -> None:
    """Write the tokenizer's settings, which ``packed`` holds as tensors of bytes."""
    tensors, _ = weights.read(packed)
    for name, value in tensors.items():
        file = name.removeprefix(ASSET)
        if file != name and Path(file).name == file:  # a plain name only
            (target / file).write_bytes(bytes(memoryview(value.flatten())))
