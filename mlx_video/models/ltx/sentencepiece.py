"""SentencePiece models (``tokenizer.model``, or inside ComfyUI's text encoders) as tokenizers of the tokenizers library.

Covers Gemma's kind: byte-pair encoding with byte fallback, and no normalisation except of spaces.
"""

from typing import TYPE_CHECKING, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

if TYPE_CHECKING:  # it takes a quarter of a second, and few models need it
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

SPACE = "▁"


def tokenizer_of(data: bytes) -> Tokenizer:
    """The tokenizer of a serialized SentencePiece model. Raises protobuf's ``DecodeError`` or ``ValueError`` if it is not one."""
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
    backend.add_tokens(
        [AddedToken(p.piece, **whole[p.type]) for p in pieces if p.type in whole]
    )
    return backend


def _merges(
    pieces: Sequence["ModelProto.SentencePiece"], ids: dict[str, int]
) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a third, ordered by the third's score."""
    found = []
    for piece in pieces:
        if piece.type not in (piece.NORMAL, piece.USER_DEFINED):
            continue
        text, score = piece.piece, piece.score
        halves = ((text[:at], text[at:]) for at in range(1, len(text)))
        found += [(score, pair) for pair in halves if pair[0] in ids and pair[1] in ids]
    found.sort(key=lambda each: -each[0])  # stable: the shorter first half goes first
    return [pair for _, pair in found]
