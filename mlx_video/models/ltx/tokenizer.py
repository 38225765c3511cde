"""Prompts as ids: the tokenizer of a Gemma folder or of Lightricks' packed file, and the words that it knows.

Knows text and ids; not the language model that reads them. Only tokenizers is imported, unless Gemma is to write.
"""

import re
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, Sequence

import mlx.core as mx
from tokenizers import Tokenizer

from mlx_video import weights
from mlx_video.errors import MissingFileError, UserError, check_text
from mlx_video.models.ltx.knowledge import Knowledge
from mlx_video.models.ltx.layouts import MAX_TOKENS, max_tokens, tokenizer_folder
from mlx_video.models.ltx.sentencepiece import tokenizer_of

if TYPE_CHECKING:  # it imports transformers, which takes more than a second
    from mlx_lm.tokenizer_utils import TokenizerWrapper

PAD = 0
BOS = "<bos>"
TURNS = (("<start_of_turn>", "<end_of_turn>"), ("<|turn>", "<turn|>"))  # Gemma 3, 4
PACKED = "tokenizer_json"  # the tensor of bytes in Lightricks' packed file
PACKED_SENTENCEPIECE = "spiece_model"  # and in ComfyUI's
LONGEST_TEXT = 100_000  # characters, more than the tokens of any prompt stand for


class PromptTokenizer:
    """The tokenizer that a text encoder was trained with.

    backend     tokenizers' own object
    max_tokens  of the longest prompt, BOS included
    folder      that has its files; ``None`` where they are packed
    knowledge   what the model knows, where that is little
    """

    def __init__(
        self,
        backend: Tokenizer,
        max_tokens: int = MAX_TOKENS,
        folder: Path | None = None,
        knowledge: Knowledge | None = None,
    ):
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.max_tokens = max_tokens
        self.folder = folder
        self.bos = backend.token_to_id(BOS)
        self.knowledge = knowledge

    @classmethod
    def load(cls, path: str | Path) -> "PromptTokenizer":
        """Of a Gemma folder, of one called ``tokenizer`` beside it, or packed in a file or beside that; no weights are read.

        Raises ``FileNotFoundError`` where there is none and ``ValueError`` where it is damaged or another model's.
        """
        path = Path(path)
        if path.is_file():
            beside = path.with_name("tokenizer.json")  # as mlx-forge has it
            backend = _read(beside) if beside.is_file() else _packed(path)
            return cls(_checked(backend, path))
        if (folder := tokenizer_folder(path)) is None:
            raise MissingFileError(
                f"No tokenizer.json or tokenizer.model in {path} or in {path.parent / 'tokenizer'}. "
                "Both come with google/gemma-3-12b-it."
            )
        file = folder / "tokenizer.json"
        backend = _read(file) if file.is_file() else _converted(folder)
        known = Knowledge.read(path)
        return cls(_checked(backend, folder), max_tokens(path), folder, known)

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, BOS first, as the official code has them. Outer white space does not count."""
        check_prompt(text)
        return self.ids(text.strip())

    def ids(self, text: str) -> list[int]:
        """Of any text, BOS first."""
        damaged = UserError(
            f"The tokenizer cannot read the prompt that begins {text[:40]!r}: its file is damaged. Fetch it again."
        )
        with _instead_of_any(damaged):
            ids = self.backend.encode(text).ids
        return ids if ids[:1] == [self.bos] else [self.bos, *ids]

    def tokenize(
        self, texts: Sequence[str], max_length: int | None = None
    ) -> tuple[mx.array, mx.array]:
        """Ids and mask (1 = token, 0 = padding), each (B, max_length) int32, padded on the left.

        ``max_length`` is ``max_tokens`` by default. An empty text is BOS alone. Raises ``UserError`` for a text of
        more than ``max_length`` tokens.
        """
        max_length = max_length or self.max_tokens
        rows = [self.encode(text) for text in texts]
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

    # Words

    def unknown_words(self, prompt: str) -> tuple[str, ...]:
        """The words of ``prompt`` that a model of a small world never saw, in order, each once; of others none.

        Such a model spells them letter by letter, and makes nothing of them. A plural of a known word is known.
        """
        if self.knowledge is None:
            return ()
        check_prompt(prompt)
        words = dict.fromkeys(re.findall(r"[^\W\d_]{2,}|\d+", prompt.lower()))
        return tuple(word for word in words if not self._knows(word))

    def caution(self, prompt: str) -> str:
        """One line for whoever asks such a model for what it does not know; empty where it knows every word."""
        if self.knowledge is None:
            return ""
        name, draws, things = self.knowledge
        unknown = weights.some(self.unknown_words(prompt))
        said = set(re.findall(r"\w+", prompt.lower()))
        if not (said | {word.removesuffix("s") for word in said}) & things:
            aside = f" (it does not know: {unknown})" if unknown else ""
            return f"{name} finds nothing in this prompt that it can draw{aside}. It draws {draws}."
        return f"{name} does not know: {unknown}. It draws {draws}." if unknown else ""

    def _knows(self, word: str) -> bool:
        return any(
            len(self.backend.encode(written, add_special_tokens=False)) == 1
            for form in (word, word.removesuffix("s"))
            for written in (
                form,
                f" {form}",
            )  # whichever way the tokenizer marks where words begin
        )

    # Writing

    @cached_property
    def chat(self) -> "TokenizerWrapper":
        """mlx-lm's wrapper, which writes: it knows the chat template and where an answer ends."""
        if self.folder is None:
            raise UserError(
                "The text encoder that Lightricks packs into one file encodes prompts and cannot write them. Write the "
                "fuller prompt with `mlx-video enhance --text-encoder FOLDER` and a Gemma that follows instructions."
            )
        from mlx_lm.tokenizer_utils import load

        chat = load(self.folder)
        for _, end in self.turns:
            chat.add_eos_token(end)
        return chat

    @property
    def turns(self) -> list[tuple[str, str]]:
        """What begins and ends a turn of a conversation, where the tokenizer has tokens for it."""
        return [t for t in TURNS if all(map(self.backend.token_to_id, t))]


def check_prompt(text: str) -> None:
    """Raise ``UserError`` where ``text`` is longer than any prompt, or no valid text."""
    if len(text) > LONGEST_TEXT:
        raise UserError(
            f"The prompt has {len(text):,} characters, and no prompt may have more than {LONGEST_TEXT:,}; it begins "
            f"{text.strip()[:40]!r}. A paragraph of 200 words is right."
        )
    check_text(text, "The prompt")


def caution(text_encoder: Path, prompt: str) -> str:
    """See ``PromptTokenizer.caution``; what large models know is not looked into."""
    if not text_encoder.is_dir() or Knowledge.read(text_encoder) is None:
        return ""
    return PromptTokenizer.load(text_encoder).caution(prompt)


def _checked(backend: Tokenizer, source: Path) -> Tokenizer:
    if backend.token_to_id(BOS) is None:
        raise UserError(
            f"The tokenizer in {source} is not a Gemma's: it has no token {BOS}. Take all files from one model."
        )
    return backend


def _read(file: Path) -> Tokenizer:
    with _instead_of_any(_damaged(file)):
        return Tokenizer.from_buffer(file.read_bytes())


def _packed(file: Path) -> Tokenizer:
    tensors, _ = weights.read(file)
    for name, read in (
        (PACKED, Tokenizer.from_buffer),
        (PACKED_SENTENCEPIECE, tokenizer_of),
    ):
        if name in tensors:
            with _instead_of_any(_damaged(file)):
                return read(bytes(memoryview(tensors[name].flatten())))
    raise MissingFileError(
        f"{file} has no tokenizer inside: it lacks the tensor {PACKED}, or {PACKED_SENTENCEPIECE}. Give the text encoder "
        "that Lightricks publishes, or a Gemma folder."
    )


def _converted(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.model"
    with _instead_of_any(_damaged(file)):
        return tokenizer_of(file.read_bytes())


@contextmanager
def _instead_of_any(error: UserError) -> Iterator[None]:
    """Raise ``error`` for whatever a tokenizer's file makes the libraries raise: a bare Exception, or a panic of Rust."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:
        raise error from None


def _damaged(file: Path) -> UserError:
    return UserError(
        f"{file} does not hold a tokenizer that can be read: it is damaged, or no tokenizer at all. Fetch it again."
    )
