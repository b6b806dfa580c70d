# SPDX-License-Identifier: Apache-2.0
"""vocab.json beside a SentencePiece model: piece ids of the model to token ids and back.

Both number nearly the same pieces, so two arrays of integers say it all; a dict of 32,000 Python strings
would take 5 MB. Used by ``tokenizer``.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_MISSING = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Token ids of a SentencePiece model's pieces; gives the same as looking pieces up in the whole dict."""

    unk_id: int
    _model: SentencePieceProcessor
    _to_token: array[int]  # by piece id
    _tokens: array[int]  # sorted
    _to_piece: array[int]  # piece ids, by place in _tokens
    _others: dict[str, int]  # pieces that the model does not have
    _other_tokens: dict[int, str]

    @classmethod
    def of(cls, ids: Mapping[str, int], model: SentencePieceProcessor, unk_id: int) -> Vocabulary:
        """``ids`` is piece -> token id, each id once and from 0 to 2^31 - 1."""
        unknown = model.unk_id()
        to_token = array("i", [_MISSING]) * model.get_piece_size()
        others: dict[str, int] = {}
        for piece, token in ids.items():
            number = model.piece_to_id(piece)
            if number == unknown:
                others[piece] = token
            else:
                to_token[number] = token
        both = sorted((token, number) for number, token in enumerate(to_token) if token != _MISSING)
        return cls(
            unk_id=unk_id,
            _model=model,
            _to_token=to_token,
            _tokens=array("i", [token for token, _ in both]),
            _to_piece=array("i", [number for _, number in both]),
            _others=others,
            _other_tokens={token: piece for piece, token in others.items()},
        )

    def encode(self, text: str) -> list[int]:
        """The token ids of the model's pieces of ``text``."""
        numbers = self._model.encode(text, out_type=int)
        unknown = self._model.unk_id()
        if unknown in numbers:  # an unknown piece may still be a token; only its text tells
            return [self.token(piece) for piece in self._model.encode(text, out_type=str)]
        return [self._known(number) for number in numbers]

    def token(self, piece: str) -> int:
        """The id of a piece, or that of the unknown token."""
        if piece in self._others:
            return self._others[piece]
        number = self._model.piece_to_id(piece)
        return self.unk_id if number == self._model.unk_id() else self._known(number)

    def piece(self, token: int) -> str | None:
        """The piece of a token id, None for an id that the vocabulary does not have."""
        if token in self._other_tokens:
            return self._other_tokens[token]
        place = bisect_left(self._tokens, token)
        if place == len(self._tokens) or self._tokens[place] != token:
            return None
        return self._model.id_to_piece(self._to_piece[place])

    def _known(self, number: int) -> int:
        token = self._to_token[number]
        return self.unk_id if token == _MISSING else token
