"""SentencePiece models (``tokenizer.model``, or inside ComfyUI's text encoders) as tokenizers of the tokenizers library.

Covers Gemma's kind: byte-pair encoding with byte fallback, and no normalisation except of spaces.
"""

import struct
from typing import Iterator, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
LENGTH_DELIMITED, FIXED_32 = 2, 5  # wire types of protobuf


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


def tokenizer_of(data: bytes) -> Tokenizer:
    """The tokenizer of a serialized SentencePiece model. Raises ``ValueError`` if it is not one."""
    pieces = list(read_pieces(data))
    ids = {piece.text: i for i, piece in enumerate(pieces)}
    unknown = next((p.text for p in pieces if p.kind == UNKNOWN), None)
    if unknown is None or len(ids) != len(pieces):
        raise ValueError("not a SentencePiece model")
    backend = Tokenizer(
        models.BPE(ids, _merges(pieces, ids), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )  # fmt: skip
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    whole = {CONTROL: {"special": True, "normalized": False}, USER_DEFINED: {"normalized": True}}  # fmt: skip
    backend.add_tokens(
        [AddedToken(p.text, **whole[p.kind]) for p in pieces if p.kind in whole]
    )
    return backend


def read_pieces(data: bytes) -> Iterator[Piece]:
    """The pieces in the order of their ids: field 1 of the message; each has a text, a score and a kind."""
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
            yield Piece(piece[1].decode(), score, piece.get(3, NORMAL))


def _merges(pieces: list[Piece], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a third, ordered by the third's score."""
    found = []
    for text, score, kind in pieces:
        if kind not in (NORMAL, USER_DEFINED):
            continue
        halves = ((text[:at], text[at:]) for at in range(1, len(text)))
        found += [(score, pair) for pair in halves if pair[0] in ids and pair[1] in ids]
    found.sort(key=lambda each: -each[0])  # stable: the shorter first half goes first
    return [pair for _, pair in found]


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a protobuf message. Raises ``ValueError`` if it is cut off."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if wire == LENGTH_DELIMITED else ({FIXED_32: 4, 1: 8}.get(wire, -1), at)  # fmt: skip
            value, at = data[at : at + size], at + size
            if size < 0 or at > len(data):
                raise ValueError("not a SentencePiece model")
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in seven bits per byte, lowest first, and the offset after it."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("not a SentencePiece model")
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
