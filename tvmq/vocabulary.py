# SPDX-License-Identifier: Apache-2.0
"""vocab.json beside a SentencePiece model: piece ids of the model to token ids and back.

Both number nearly the same pieces, so an array of integers and the few pieces that only vocab.json has
say it all. Artifacts store just these: reading 32,000 names would leave some MB of memory unusable.
Used by ``tokenizer``.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

MAX_TOKENS = 1 << 22
"""Token ids are below this."""
_MISSING = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Token ids of a SentencePiece model's pieces; gives the same as looking pieces up in the whole dict.

    Attributes:
        others: token ids of the pieces that the model does not have.
    """

    others: Mapping[str, int]
    _model: SentencePieceProcessor
    _tokens: array[int]  # by piece id: the token id, or _MISSING
    _pieces: array[int]  # by token id: the piece id, or _MISSING
    _other_pieces: Mapping[int, str]

    @classmethod
    def of(cls, vocabulary: Mapping[str, int], model: SentencePieceProcessor) -> Vocabulary:
        """``vocabulary`` is piece -> token id, as in vocab.json.

        Raises:
            ValueError: an id that is no id, or that two pieces share.
        """
        tokens = _missing(model.get_piece_size())
        others: dict[str, int] = {}
        for piece, token in vocabulary.items():
            number = model.piece_to_id(piece)
            if number == model.unk_id():
                others[piece] = token
            else:
                tokens[number] = token
        return cls._build(tokens, others, model)

    @classmethod
    def restore(cls, ids: bytes, others: Mapping[str, int], model: SentencePieceProcessor) -> Vocabulary:
        """From what ``ids()`` and ``others`` gave.

        Raises:
            ValueError: they do not belong to ``model``, or hold an id that is none or that two pieces share.
        """
        pieces = model.get_piece_size()
        if len(ids) != 4 * pieces:
            raise ValueError(f"{len(ids)} bytes of ids, expected 4 for each of {pieces} pieces")
        return cls._build(_little_endian(array("i", ids)), others, model)

    @classmethod
    def _build(
        cls, tokens: array[int], others: Mapping[str, int], model: SentencePieceProcessor
    ) -> Vocabulary:
        other_pieces = {token: piece for piece, token in others.items()}
        highest = max([*other_pieces, max(tokens, default=_MISSING)])
        if min(tokens, default=0) < _MISSING or highest >= MAX_TOKENS:
            raise ValueError(f"an id is negative or beyond {MAX_TOKENS - 1}")
        pieces = _missing(highest + 1)
        for number, token in enumerate(tokens):
            if token == _MISSING:
                continue
            if pieces[token] != _MISSING or token in other_pieces:
                raise ValueError(f"two pieces share one id ({token}), expected each id once")
            pieces[token] = number
        if len(other_pieces) != len(others):
            raise ValueError("two pieces share one id, expected each id once")
        return cls(others=others, _model=model, _tokens=tokens, _pieces=pieces, _other_pieces=other_pieces)

    def ids(self) -> bytes:
        """Token ids by piece id, int32 little-endian, -1 for pieces that are no tokens."""
        return _little_endian(self._tokens).tobytes()

    def __len__(self) -> int:
        return len(self._tokens) - self._tokens.count(_MISSING) + len(self.others)

    @property
    def highest(self) -> int:
        """The largest token id."""
        return len(self._pieces) - 1

    def encode(self, text: str, unk_id: int) -> list[int]:
        """The token ids of the model's pieces of ``text``; ``unk_id`` for those that are no tokens."""
        numbers = self._model.encode(text, out_type=int)
        if self._model.unk_id() in numbers:  # an unknown piece may still be a token: its text decides
            found = map(self.token, self._model.encode(text, out_type=str))
            return [unk_id if token is None else token for token in found]
        tokens = (self._tokens[number] for number in numbers)
        return [unk_id if token == _MISSING else token for token in tokens]

    def token(self, piece: str) -> int | None:
        """The token id of a piece, None for one that the vocabulary does not have."""
        if piece in self.others:
            return self.others[piece]
        number = self._model.piece_to_id(piece)
        known = number != self._model.unk_id() and self._tokens[number] != _MISSING
        return self._tokens[number] if known else None

    def piece(self, token: int) -> str | None:
        """The piece of a token id, None for an id that the vocabulary does not have."""
        if token in self._other_pieces:
            return self._other_pieces[token]
        number = self._pieces[token] if 0 <= token < len(self._pieces) else _MISSING
        return None if number == _MISSING else self._model.id_to_piece(number)


def _missing(count: int) -> array[int]:
    return array("i", [_MISSING]) * count


def _little_endian(numbers: array[int]) -> array[int]:
    """A copy of ``numbers`` in the other byte order where the machine is big-endian."""
    if sys.byteorder == "big":
        numbers = array("i", numbers)
        numbers.byteswap()
    return numbers
