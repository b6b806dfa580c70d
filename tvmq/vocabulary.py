# SPDX-License-Identifier: Apache-2.0
"""vocab.json beside a SentencePiece model: piece ids of the model to token ids and back.

Both number nearly the same pieces, so an array of integers and the few pieces that only vocab.json has
say it all. Artifacts store just these: reading 32,000 names would leave some MB of memory unusable.
Used by ``tokenizer``.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_MISSING = -1
_STORED = np.dtype("<i4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Token ids of a SentencePiece model's pieces; gives the same as looking pieces up in the whole dict.

    Attributes:
        others: token ids of the pieces that the model does not have.
    """

    others: Mapping[str, int]
    _model: SentencePieceProcessor
    _by_piece: array[int]  # piece id -> token id, or _MISSING
    _tokens: array[int]  # sorted token ids of the model's pieces
    _pieces: array[int]  # their piece ids
    _other_pieces: Mapping[int, str]

    @classmethod
    def of(cls, vocabulary: Mapping[str, int], model: SentencePieceProcessor) -> Vocabulary:
        """``vocabulary`` is piece -> token id, as in vocab.json; ids are from 0 to 2^31 - 1.

        Raises:
            ValueError: two pieces share one id.
        """
        numbers = {piece: model.piece_to_id(piece) for piece in vocabulary}
        by_piece = np.full(model.get_piece_size(), _MISSING, np.int32)
        others = {piece: vocabulary[piece] for piece, n in numbers.items() if n == model.unk_id()}
        for piece, number in numbers.items():
            if piece not in others:
                by_piece[number] = vocabulary[piece]
        return cls._build(by_piece, others, model)

    @classmethod
    def restore(cls, ids: bytes, others: Mapping[str, int], model: SentencePieceProcessor) -> Vocabulary:
        """From what ``ids()`` and ``others`` gave.

        Raises:
            ValueError: they do not belong to ``model``, or two pieces share one id.
        """
        if len(ids) != model.get_piece_size() * _STORED.itemsize:
            raise ValueError(
                f"{len(ids)} bytes of ids, expected 4 for each of {model.get_piece_size()} pieces"
            )
        by_piece = np.frombuffer(ids, _STORED).astype(np.int32)
        if by_piece.min(initial=0) < _MISSING:
            raise ValueError("an id is negative")
        return cls._build(by_piece, others, model)

    @classmethod
    def _build(
        cls, by_piece: NDArray[np.int32], others: Mapping[str, int], model: SentencePieceProcessor
    ) -> Vocabulary:
        order = np.argsort(by_piece).astype(np.int32)
        order = order[np.count_nonzero(by_piece == _MISSING) :]
        tokens = by_piece[order]
        other_pieces = {token: piece for piece, token in others.items()}
        twice = (tokens[1:] == tokens[:-1]).any() or np.isin(tokens, list(other_pieces)).any()
        if twice or len(other_pieces) != len(others):
            raise ValueError("two pieces share one id, expected each id once")
        return cls(
            others=others,
            _model=model,
            _by_piece=array("i", by_piece.tobytes()),
            _tokens=array("i", tokens.tobytes()),
            _pieces=array("i", order.tobytes()),
            _other_pieces=other_pieces,
        )

    def ids(self) -> bytes:
        """Token ids by piece id, int32 little-endian, -1 for pieces that are no tokens."""
        return np.asarray(self._by_piece, _STORED).tobytes()

    def __len__(self) -> int:
        return len(self._tokens) + len(self.others)

    def encode(self, text: str, unk_id: int) -> list[int]:
        """The token ids of the model's pieces of ``text``; ``unk_id`` for those that are no tokens."""
        numbers = self._model.encode(text, out_type=int)
        if self._model.unk_id() in numbers:  # an unknown piece may still be a token: its text decides
            found = map(self.token, self._model.encode(text, out_type=str))
            return [unk_id if token is None else token for token in found]
        tokens = (self._by_piece[number] for number in numbers)
        return [unk_id if token == _MISSING else token for token in tokens]

    def token(self, piece: str) -> int | None:
        """The token id of a piece, None for one that the vocabulary does not have."""
        if piece in self.others:
            return self.others[piece]
        number = self._model.piece_to_id(piece)
        known = number != self._model.unk_id() and self._by_piece[number] != _MISSING
        return self._by_piece[number] if known else None

    def piece(self, token: int) -> str | None:
        """The piece of a token id, None for an id that the vocabulary does not have."""
        if token in self._other_pieces:
            return self._other_pieces[token]
        place = bisect_left(self._tokens, token)
        if place == len(self._tokens) or self._tokens[place] != token:
            return None
        return self._model.id_to_piece(self._pieces[place])
