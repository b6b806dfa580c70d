# SPDX-License-Identifier: Apache-2.0
"""The Marian tokenizer on the sentencepiece package alone: text to token ids and back.

Ids and text are those of transformers' MarianTokenizer (5.23) on its default path: special tokens are
cut out first, a ``>>code<<`` prefix stays one token, each rest goes through SentencePiece, and pieces
are looked up in vocab.json. Its punctuation normaliser exists but is not on that path, so it is not here.

A folder is either a model's (plain files) or an artifact's (``packed``: large files compressed).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compressed import MAX_BYTES, SUFFIX, compress, read_compressed
from .errors import InputError
from .store import parse_json, read_bytes, read_json_object, show
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

SOURCE, TARGET, VOCABULARY = "source.spm", "target.spm", "vocab.json"
IDS, OTHERS = "vocab_ids.bin", "vocab_others.json"
"""What an artifact has in place of vocab.json: see ``Vocabulary.restore``."""
CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
_DEFAULT_SPECIAL = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
_UNDERLINE = "▁"
# transformers' clean_up_tokenization, in its order
_CLEAN_UP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MarianTokenizer:
    """SentencePiece with Marian's own vocabulary.

    Attributes:
        folder: where the files lie.
        vocabulary: pieces and their ids.
        unk_id, eos_id, pad_id: ids of the special tokens.
        clean_up: whether decoded text loses the spaces before punctuation (a setting of the model).
    """

    folder: Path
    vocabulary: Vocabulary
    unk_id: int
    eos_id: int
    pad_id: int
    clean_up: bool
    _special: dict[str, int]
    _split: re.Pattern[str]
    _source: SentencePieceProcessor

    @classmethod
    def open(cls, folder: Path | str, *, target: bool = False) -> MarianTokenizer:
        """Reads source.spm, target.spm, vocab.json and tokenizer_config.json of a model folder, or their
        compressed copies in an artifact.

        Args:
            folder: model folder or an artifact's tokenizer folder.
            target: encode with the target language's pieces (training text), not with the source's.

        Raises:
            InputError: a file is missing or damaged, or asks for something that is not supported.
            VerificationError: a compressed copy is damaged.
        """
        folder = Path(folder)
        try:
            return cls._read(folder, TARGET if target else SOURCE)
        except OSError as exc:
            raise InputError(f"{folder}: cannot be read ({exc.strerror})") from exc

    @classmethod
    def _read(cls, folder: Path, side: str) -> MarianTokenizer:
        config = _read_config(folder)
        model = _load(_read_file(folder, side), folder / side)
        if not _is_packed(folder):  # part of the model's files: a damaged one must not ship
            for other in {SOURCE, TARGET} - {side}:
                _load(_read_file(folder, other), folder / other)
        vocabulary = _read_vocabulary(folder, model)
        tokens = {key: _token_text(folder / CONFIG, key, config.get(key)) for key in _DEFAULT_SPECIAL}
        if vocabulary.token(tokens["unk_token"]) is None:
            missing = show(tokens["unk_token"])
            raise InputError(f"{folder / VOCABULARY}: the unknown token {missing} is missing")
        special: dict[str, int] = {}
        added = 0  # special tokens that are not in the vocabulary are numbered after it
        for token in (tokens[key] for key in ("eos_token", "unk_token", "pad_token")):
            index = vocabulary.token(token)
            if index is None and token not in special:
                index, added = len(vocabulary) + added, added + 1
            special[token] = special[token] if index is None else index
        _check_added(folder / CONFIG, config.get("added_tokens_decoder", {}), special)
        return cls(
            folder=folder,
            vocabulary=vocabulary,
            unk_id=special[tokens["unk_token"]],
            eos_id=special[tokens["eos_token"]],
            pad_id=special[tokens["pad_token"]],
            clean_up=config.get("clean_up_tokenization_spaces") is True,
            _special=special,
            _split=re.compile("(" + "|".join(map(re.escape, sorted(special, key=len, reverse=True))) + ")"),
            _source=model,
        )

    def encode(self, text: str) -> list[int]:
        """The token ids of one line and the end token; nothing is cut off, however long."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise InputError("the text holds half a surrogate pair, expected valid Unicode") from exc
        ids: list[int] = []
        for part in self._split.split(text):
            if part in self._special:
                ids.append(self._special[part])
            elif part:
                ids.extend(self._encode_part(part))
        return [*ids, self.eos_id]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; special tokens (end, padding, unknown) are left out."""
        skip = set(self._special.values())
        pieces = [self._piece(int(index)) for index in ids if int(index) not in skip]
        # the source model also for target text: transformers does so where both share one vocabulary
        text = self._source.decode_pieces(pieces).replace(_UNDERLINE, " ").strip()
        if self.clean_up:
            for before, after in _CLEAN_UP:
                text = text.replace(before, after)
        return text

    def packed(self) -> dict[str, bytes]:
        """Name -> bytes of the files as an artifact stores them, from a plain model folder.

        SentencePiece models are compressed, a target model equal to the source's is left out, and the
        vocabulary becomes numbers beside the source model's pieces; settings stay as they are.
        """
        models = {name: _read_file(self.folder, name) for name in (SOURCE, TARGET)}
        if models[TARGET] == models[SOURCE]:
            del models[TARGET]
        others = json.dumps(dict(self.vocabulary.others), ensure_ascii=False, separators=(",", ":"))
        large = {**models, IDS: self.vocabulary.ids(), OTHERS: others.encode("utf-8")}
        small = [name for name in (CONFIG, SPECIAL) if (self.folder / name).exists()]
        return {
            **{name + SUFFIX: compress(data) for name, data in large.items()},
            **{name: _read_file(self.folder, name) for name in small},
        }

    def _encode_part(self, text: str) -> list[int]:
        code: list[int] = []
        if text.startswith(">>") and (end := text.find("<<")) != -1:
            code_id = self.vocabulary.token(text[: end + 2])
            code, text = [self.unk_id if code_id is None else code_id], text[end + 2 :]
        return code + self.vocabulary.encode(text, self.unk_id)

    def _piece(self, index: int) -> str:
        piece = self.vocabulary.piece(index)
        if piece is None:
            raise InputError(f"token id {index} is not in {self.folder / VOCABULARY}")
        return piece


def _read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with the older special_tokens_map.json merged in as transformers does."""
    path = folder / CONFIG
    config = read_json_object(path, MAX_BYTES) if path.exists() else {}
    if "added_tokens_decoder" not in config and (folder / SPECIAL).exists():
        config |= read_json_object(folder / SPECIAL, MAX_BYTES)
    unsupported = [
        key
        for key, value in config.items()
        if value
        and (
            key in {"sp_model_kwargs", "split_special_tokens", "separate_vocabs"}
            or key in {"additional_special_tokens", "extra_special_tokens"}
            or (key.endswith("_token") and key not in _DEFAULT_SPECIAL and isinstance(value, str | dict))
        )
    ]
    if unsupported:
        raise InputError(f"{path}: {show(unsupported[0])} is set, which is not supported (remove it)")
    if (folder / "added_tokens.json").exists():
        raise InputError(f"{folder / 'added_tokens.json'}: added tokens are not supported (remove the file)")
    return config


def _token_text(path: Path, key: str, value: object) -> str:
    """A special token is text, or an object with ``content`` and flags that must be off."""
    if isinstance(value, dict):
        if value.get("lstrip") or value.get("rstrip") or value.get("single_word"):
            raise InputError(f"{path}: {key} strips its neighbours, which is not supported")
        value = value.get("content")
    value = _DEFAULT_SPECIAL[key] if value is None else value
    if not isinstance(value, str) or not value:
        raise InputError(f"{path}: {key} must be text, found {show(str(value))}")
    return value


def _check_added(path: Path, added: object, special: dict[str, int]) -> None:
    """The list that transformers 4 saved may only repeat the special tokens."""
    if not isinstance(added, dict):
        raise InputError(f"{path}: added_tokens_decoder must be an object of id -> token")
    for index, token in added.items():
        text = _token_text(path, "pad_token", token)
        if str(special.get(text)) != index:
            raise InputError(f"{path}: the added token {show(text)} (id {show(index)}) is not supported")


def _is_packed(folder: Path) -> bool:
    """Whether a folder is an artifact's: the source model exists in compressed form only."""
    return (folder / (SOURCE + SUFFIX)).exists() and not (folder / SOURCE).exists()


def _read_file(folder: Path, name: str) -> bytes:
    """A file of a model folder, or what its compressed copy in an artifact holds."""
    if _is_packed(folder):
        return read_compressed(folder / (name + SUFFIX))
    return read_bytes(folder / name, MAX_BYTES)


def _read_vocabulary(folder: Path, model: SentencePieceProcessor) -> Vocabulary:
    packed = _is_packed(folder)
    path = folder / (OTHERS if packed else VOCABULARY)
    pieces = parse_json(_read_file(folder, path.name), str(path))
    if not isinstance(pieces, dict):
        raise InputError(f"{path}: holds a {type(pieces).__name__}, expected a JSON object")
    for piece, index in pieces.items():
        if type(index) is not int or index < 0:
            raise InputError(f"{path}: the id of {show(piece)} is {show(str(index))}, expected a number")
    try:
        if packed:
            return Vocabulary.restore(_read_file(folder, IDS), pieces, model)
        return Vocabulary.of(pieces, model)
    except ValueError as exc:
        raise InputError(f"{path}: {exc}") from exc


def _load(model: bytes, path: Path) -> SentencePieceProcessor:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except (RuntimeError, ValueError, OSError) as exc:
        raise InputError(f"{path}: not a SentencePiece model (download the folder again)") from exc
    return processor
