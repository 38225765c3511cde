"""Prompts as ids: the tokenizer of a Gemma folder or a packed file. Needs only the tokenizers library until Gemma writes."""

import re
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, Sequence

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from mlx_video import weights
from mlx_video.errors import MissingFileError, UserError, check_text
from mlx_video.models.ltx.text_folder import (
    MAX_TOKENS,
    Subjects,
    max_tokens,
    tokenizer_folder,
)

if TYPE_CHECKING:  # importing them takes over a second, and a quarter of one
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

PAD = 0
BOS = "<bos>"
SPACE = "▁"  # in pieces of SentencePiece
TURNS = (("<start_of_turn>", "<end_of_turn>"), ("<|turn>", "<turn|>"))  # Gemma 3, 4
LONGEST_TEXT = 100_000  # characters, more than any prompt's tokens can encode


@dataclass(eq=False)
class PromptTokenizer:
    """The tokenizer of a text encoder.

    backend     the object of the tokenizers library
    max_tokens  of the longest prompt, including BOS
    folder      with its files; ``None`` = packed
    subjects    what a small model can draw; ``None`` for large ones
    """

    backend: Tokenizer
    max_tokens: int = MAX_TOKENS
    folder: Path | None = None
    subjects: Subjects | None = None

    def __post_init__(self):
        self.backend.no_truncation()
        self.backend.no_padding()
        self.bos = self.backend.token_to_id(BOS)

    @classmethod
    def load(cls, path: str | Path) -> "PromptTokenizer":
        """Load it from a Gemma folder, a folder ``tokenizer`` beside that, or from within or beside a packed file.

        Reads no weights. Raises ``MissingFileError`` if there is none, ``UserError`` if it is damaged or not a Gemma's.
        """
        path = Path(path)
        if path.is_file():
            beside = path.with_name("tokenizer.json")  # as mlx-forge has it
            return cls(_read(beside) if beside.is_file() else _packed(path))
        if (folder := tokenizer_folder(path)) is None:
            raise MissingFileError(
                f"No tokenizer.json or tokenizer.model in {path} or in {path.parent / 'tokenizer'}. "
                "Both come with google/gemma-3-12b-it."
            )
        file = next(f for name in PARSERS if (f := folder / name).exists())
        return cls(_read(file), max_tokens(path), folder, Subjects.read(path))

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, BOS first, as in the official code. Leading and trailing white space is ignored."""
        check_prompt(text)
        return self.ids(text.strip())

    def ids(self, text: str) -> list[int]:
        """Ids of any text, BOS first."""
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

        ``max_length`` is ``max_tokens`` by default. An empty text is BOS alone. Raises ``UserError`` for a longer text.
        """
        max_length = max_length or self.max_tokens
        rows = [self.encode(text) for text in texts]
        for text, row in zip(texts, rows):
            if len(row) > max_length:
                raise UserError(
                    f"The prompt has {len(row)} tokens, more than the limit of {max_length}; it begins "
                    f"{text.strip()[:40]!r}. Shorten it by {len(row) - max_length}; a word is one or two."
                )
        padding = [max_length - len(row) for row in rows]
        ids = [[PAD] * n + row for n, row in zip(padding, rows)]
        mask = [[0] * n + [1] * len(row) for n, row in zip(padding, rows)]
        return mx.array(ids), mx.array(mask)

    def unknown_words(self, prompt: str) -> tuple[str, ...]:
        """The distinct words of ``prompt`` that a small model never saw, in order; none for large models.

        Such a model reads them letter by letter, without meaning. The plural of a known word is known.
        """
        if self.subjects is None:
            return ()
        check_prompt(prompt)
        words = dict.fromkeys(re.findall(r"[^\W\d_]{2,}|\d+", prompt.lower()))
        return tuple(word for word in words if not self._knows(word))

    def caution(self, prompt: str) -> str:
        """One line on what a small model cannot draw of ``prompt``: words it does not know, or a thing more than once."""
        if self.subjects is None:
            return ""
        name, draws, things = self.subjects
        unknown = weights.some(self.unknown_words(prompt))
        said = dict.fromkeys(re.findall(r"\w+", prompt.lower()))
        several = [s for w in said if (s := w.removesuffix("s")) != w and s in things]
        if not several and not things & said.keys():
            aside = f" (it does not know: {unknown})" if unknown else ""
            return f"{name} finds nothing in this prompt that it can draw{aside}. It draws {draws}."
        known = f"{name} does not know: {unknown}. It draws {draws}." if unknown else ""
        if not several:
            return known
        count = (
            f"draws {' and '.join(f'one {thing}' for thing in several)}, not several."
        )
        return f"{known} It {count}" if known else f"{name} {count}"

    def _knows(self, word: str) -> bool:
        # With and without a space: tokenizers differ in how they mark the beginning of a word.
        forms = [s + w for w in (word, word.removesuffix("s")) for s in ("", " ")]
        encode = partial(self.backend.encode, add_special_tokens=False)
        return any(len(encode(form)) == 1 for form in forms)

    @cached_property
    def chat(self) -> "TokenizerWrapper":
        """mlx-lm's wrapper, which knows the chat template and where an answer ends."""
        if self.folder is None:
            raise UserError(
                "Lightricks' packed text encoder can read prompts but not write them. Enhance the prompt with "
                "`mlx-video enhance --text-encoder FOLDER` and a Gemma that follows instructions."
            )
        from mlx_lm.tokenizer_utils import load

        chat = load(self.folder)
        for _, end in self.turns:
            chat.add_eos_token(end)
        return chat

    @property
    def turns(self) -> list[tuple[str, str]]:
        """Pairs of tokens that begin and end a turn of a conversation, those that the tokenizer has."""
        return [t for t in TURNS if all(map(self.backend.token_to_id, t))]


def check_prompt(text: str) -> None:
    """Raise ``UserError`` if ``text`` is longer than any prompt, or not valid text."""
    if len(text) > LONGEST_TEXT:
        raise UserError(
            f"The prompt has {len(text):,} characters, more than the limit of {LONGEST_TEXT:,}; it begins "
            f"{text.strip()[:40]!r}. A paragraph of 200 words works well."
        )
    check_text(text, "The prompt")


def caution(text_encoder: Path, prompt: str) -> str:
    """As ``PromptTokenizer.caution``, without loading the tokenizer of a large model."""
    if not text_encoder.is_dir() or Subjects.read(text_encoder) is None:
        return ""
    return PromptTokenizer.load(text_encoder).caution(prompt)


def tokenizer_of(data: bytes) -> Tokenizer:
    """The tokenizer of a serialized SentencePiece model; raises protobuf's ``DecodeError`` or ``ValueError`` otherwise.

    Supports Gemma's kind: byte-pair encoding with byte fallback, and no normalisation except of spaces.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    pieces = ModelProto.FromString(data).pieces
    ids = {piece.piece: i for i, piece in enumerate(pieces)}
    unknown = next((p.piece for p in pieces if p.type == p.UNKNOWN), None)
    if unknown is None or len(ids) != len(pieces):
        raise ValueError("not a SentencePiece model")
    backend = Tokenizer(
        models.BPE(ids, _merges(pieces, ids), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )  # fmt: skip
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    kinds = ModelProto.SentencePiece
    whole = {kinds.CONTROL: {"special": True, "normalized": False}, kinds.USER_DEFINED: {"normalized": True}}  # fmt: skip
    added = (AddedToken(p.piece, **whole[p.type]) for p in pieces if p.type in whole)
    backend.add_tokens(list(added))
    return backend


def _merges(
    pieces: Sequence["ModelProto.SentencePiece"], ids: dict[str, int]
) -> list[tuple[str, str]]:
    """Every pair of pieces whose concatenation is a piece, ordered by that piece's score."""
    found = []
    for piece in pieces:
        if piece.type not in (piece.NORMAL, piece.USER_DEFINED):
            continue
        text, score = piece.piece, piece.score
        halves = ((text[:at], text[at:]) for at in range(1, len(text)))
        found += [(score, pair) for pair in halves if pair[0] in ids and pair[1] in ids]
    found.sort(key=lambda each: -each[0])  # stable: the shorter first half goes first
    return [pair for _, pair in found]


# Parsers of the files in a folder, and of the byte tensors in Lightricks' packed file and in ComfyUI's.
PARSERS = {"tokenizer.json": Tokenizer.from_buffer, "tokenizer.model": tokenizer_of}
PACKED = {"tokenizer_json": Tokenizer.from_buffer, "spiece_model": tokenizer_of}


def _read(file: Path) -> Tokenizer:
    return _made(file, lambda: PARSERS[file.name](file.read_bytes()))


def _packed(file: Path) -> Tokenizer:
    tensors, _ = weights.read(file)
    for name, parse in PACKED.items():
        if name in tensors:
            packed = tensors[name].flatten()
            return _made(file, lambda: parse(bytes(memoryview(packed))))
    raise MissingFileError(
        f"{file} has no tokenizer inside: it lacks the tensor {', or '.join(PACKED)}. Give the text encoder that "
        "Lightricks publishes, or a Gemma folder."
    )


def _made(source: Path, load: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokenizer that ``load`` returns; raises ``UserError`` if ``source`` is damaged or not a Gemma's tokenizer."""
    damaged = UserError(
        f"{source} does not hold a readable tokenizer: it is damaged, or not a tokenizer at all. Fetch it again."
    )
    with _instead_of_any(damaged):
        backend = load()
    if backend.token_to_id(BOS) is None:
        raise UserError(
            f"The tokenizer in {source} is not a Gemma's: it has no token {BOS}. Take all files from one model."
        )
    return backend


@contextmanager
def _instead_of_any(error: UserError) -> Iterator[None]:
    """Raise ``error`` in place of whatever the libraries raise for a bad tokenizer file, even a Rust panic."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:
        raise error from None
