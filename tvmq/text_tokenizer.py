# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of an encoder on the ``tokenizers`` package alone: text, or a pair of texts, to token ids.

Read from tokenizer.json, or built from BERT's vocab.txt. Padding and truncation that tokenizer.json asks for
are switched off: nothing is cut unless the caller says so. An artifact holds tokenizer.json compressed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compressed import MAX_BYTES, SUFFIX, compress, read_compressed
from .errors import InputError
from .store import parse_json, read_bytes, read_json_object, show

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WHOLE, VOCABULARY, CONFIG = "tokenizer.json", "vocab.txt", "tokenizer_config.json"
_SPECIAL = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
            "mask_token": "[MASK]"}  # fmt: skip
LARGEST_LIMIT = 1 << 20
"""A model_max_length beyond means that there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """One text, or one pair of texts, as the model reads it.

    Attributes:
        ids: token ids, special tokens included.
        types: 0, or 1 for tokens of the second text.
        pieces: the tokens' texts.
        spans: characters [start, end) of each token in its own text.
        special: tokens that the tokenizer added.
    """

    ids: list[int]
    types: list[int]
    pieces: list[str] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    special: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTokenizer:
    """A tokenizer of the ``tokenizers`` package.

    Attributes:
        folder: where the files lie.
        limit: the longest text in tokens, as tokenizer_config.json says; None where it says none.
    """

    folder: Path
    limit: int | None
    _tokenizer: Tokenizer

    @classmethod
    def open(cls, folder: Path | str) -> TextTokenizer:
        """Reads a model folder's tokenizer.json or vocab.txt, or the compressed copy in an artifact.

        Raises:
            InputError: a file is missing or damaged, or describes no tokenizer.
            VerificationError: a compressed copy is damaged.
        """
        folder = Path(folder)
        try:
            data = _read(folder)
        except OSError as exc:
            raise InputError(f"{folder}: cannot be read ({exc.strerror})") from exc
        tokenizer = _parse(data, folder / WHOLE)
        return cls(folder=folder, limit=_limit(folder), _tokenizer=tokenizer)

    def encode(self, text: str) -> list[int]:
        """The token ids of one text, special tokens included; nothing is cut off, however long."""
        return self.tokens(text).ids

    def tokens(self, text: str, pair: str | None = None, *, limit: int | None = None) -> Tokens:
        """The tokens of a text, or of a pair; with ``limit`` the longer text is cut until they fit.

        Raises:
            InputError: the text is not valid Unicode, or ``limit`` leaves no room for it.
        """
        encoded = self._encoded(text, pair)
        if limit is not None and len(encoded.ids) > limit:
            encoded = self._cut(text, pair, limit)
        return Tokens(
            ids=encoded.ids,
            types=encoded.type_ids,
            pieces=encoded.tokens,
            spans=encoded.offsets,
            special=[bool(mask) for mask in encoded.special_tokens_mask],
        )

    @property
    def highest(self) -> int:
        """The largest token id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)

    def packed(self) -> dict[str, bytes]:
        """Name -> bytes of the files as an artifact stores them."""
        return {WHOLE + SUFFIX: compress(_read(self.folder))}

    def _encoded(self, text: str, pair: str | None) -> Any:
        for part in (text, pair or ""):
            try:
                part.encode("utf-8")
            except UnicodeEncodeError as exc:
                raise InputError("the text holds half a surrogate pair, expected valid Unicode") from exc
        return self._tokenizer.encode(text, pair)

    def _cut(self, text: str, pair: str | None, limit: int) -> Any:
        added = self._tokenizer.num_special_tokens_to_add(pair is not None)
        if limit <= added:
            raise InputError(f"{limit} tokens leave no room for a text beside {added} special tokens")
        self._tokenizer.enable_truncation(limit)
        try:
            return self._tokenizer.encode(text, pair)
        finally:
            self._tokenizer.no_truncation()


def _read(folder: Path) -> bytes:
    """tokenizer.json of a folder, however it is kept; made from vocab.txt where there is nothing else."""
    if (folder / (WHOLE + SUFFIX)).exists():
        return read_compressed(folder / (WHOLE + SUFFIX))
    if (folder / WHOLE).exists():
        data = read_bytes(folder / WHOLE, MAX_BYTES)
        parse_json(data, str(folder / WHOLE))
        return data
    if (folder / VOCABULARY).exists():
        return _from_vocabulary(folder).to_str().encode("utf-8")
    raise InputError(
        f"{folder}: neither {WHOLE} nor {VOCABULARY} found, expected the model's tokenizer "
        "(with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder))"
    )


def _parse(data: bytes, path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
    except BaseException as exc:  # the package panics on some damaged files, with a type of its own
        if isinstance(exc, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        reason = " ".join(str(exc).split())[:200]
        raise InputError(f"{path}: not a tokenizer ({reason}; download the folder again)") from exc
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _from_vocabulary(folder: Path) -> Tokenizer:
    """BERT's WordPiece tokenizer over vocab.txt, set up as tokenizer_config.json says."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    path = folder / VOCABULARY
    vocabulary = _vocabulary(path)
    config = read_json_object(folder / CONFIG, MAX_BYTES) if (folder / CONFIG).exists() else {}
    special = {key: _token(config, key, text, folder / CONFIG) for key, text in _SPECIAL.items()}
    for key in ("unk_token", "sep_token", "cls_token"):
        if special[key] not in vocabulary:
            found = show(special[key])
            raise InputError(f"{path}: the special token {found} is missing (use the files of one model)")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(  # type: ignore[assignment]
        lowercase=config.get("do_lower_case", True) is True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True) is True,
        strip_accents=config.get("strip_accents") if isinstance(config.get("strip_accents"), bool) else None,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    ends = [(special[key], vocabulary[special[key]]) for key in ("sep_token", "cls_token")]
    tokenizer.post_processor = processors.BertProcessing(*ends)  # type: ignore[assignment]
    tokenizer.add_special_tokens([text for text in special.values() if text in vocabulary])
    return tokenizer


def _vocabulary(path: Path) -> dict[str, int]:
    try:
        lines = read_bytes(path, MAX_BYTES).decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as exc:
        raise InputError(f"{path}: not valid UTF-8 text") from exc
    pieces = [line.removesuffix("\r") for line in lines]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    if len(vocabulary) != len(pieces):
        twice = next(piece for index, piece in enumerate(pieces) if vocabulary[piece] != index)
        raise InputError(f"{path}: the piece {show(twice)} occurs twice")
    return vocabulary


def _token(config: dict[str, Any], key: str, default: str, path: Path) -> str:
    value = config.get(key, default)
    value = value.get("content") if isinstance(value, dict) else value
    if not isinstance(value, str) or not value:
        raise InputError(f"{path}: {key} must be text, found {show(str(value))}")
    return value


def _limit(folder: Path) -> int | None:
    """model_max_length of tokenizer_config.json; None where it is absent or says that there is none."""
    path = folder / CONFIG
    value = read_json_object(path, MAX_BYTES).get("model_max_length") if path.exists() else None
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 1:
        raise InputError(f"{path}: model_max_length is {show(str(value))}, expected a positive whole number")
    return int(value) if value <= LARGEST_LIMIT else None
