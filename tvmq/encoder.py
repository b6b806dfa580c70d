# SPDX-License-Identifier: Apache-2.0
"""Loads an encoder's artifact: embeddings of texts, and labels of texts or tokens where it has that head.

Needs neither torch nor transformers nor the compiler. Results do not depend on the number of threads, nor on
which texts share a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import encoder_selftest, vm
from .artifact import Artifact, Manifest, verify_files
from .encoding import EncodingModel
from .errors import InputError, UsageError, VerificationError
from .loading import open_checked, preferred_executor, require_use
from .machine import return_freed_memory
from .native.models import NativeEncoding
from .text_tokenizer import TextTokenizer, Tokens

Model = EncodingModel | NativeEncoding
Text = str | tuple[str, str]
"""A text, or two that belong together (a question and its answer, a premise and a conclusion)."""
_HEADS = {"classify": "labels texts; classify with it", "tag": "labels tokens; tag with it"}
BATCH_TOKENS = 256
"""Tokens of one call of the library, unless a text alone has more: what they need then stays in the cache."""


class Classification(NamedTuple):
    """The best label of a text, its score, and the scores of all labels."""

    label: str
    score: float
    scores: dict[str, float]


class Tag(NamedTuple):
    """The best label of one token, which is characters [start, end) of its text."""

    token: str
    start: int
    end: int
    label: str
    score: float


def load_libraries() -> None:
    """Load the native libraries that every encoder needs, without any artifact.

    What a process holds after this is the bare interpreter that memory figures are counted from: Python
    with the runtime's modules, numpy and tokenizers, and tvm_ffi and libtvm_runtime for the VM.

    Raises:
        MissingToolError: one of TVM's libraries is not installed.
    """
    import tokenizers  # noqa: F401

    if preferred_executor() == "vm":
        vm.ffi()


def load(path: Path | str, *, threads: int = 1, isa: str | None = None) -> Encoder:
    """Open an artifact for encoding.

    Args:
        path: the artifact folder.
        threads: threads that large kernels use.
        isa: an ISA level instead of the best that this CPU and the artifact share.

    Raises:
        InputError: no artifact, none that encodes, or none of its levels runs here.
        VerificationError: damaged or changed files, or a failed self-test.
        UsageError: unknown level, or fewer than one thread.
    """
    opened = open_checked(path, threads=threads, isa=isa)
    artifact = opened.artifact
    require_use(artifact, "encode")
    _check_manifest(artifact)
    verify_files(artifact, [name for name in artifact.manifest.files if name.startswith("tokenizer/")])
    tokenizer = TextTokenizer.open(artifact.path / "tokenizer")
    if opened.executor == "native":
        return_freed_memory()  # reading the tokenizer takes more than it keeps
        return Encoder(artifact, opened.isa, NativeEncoding(artifact, opened.isa, threads), tokenizer)
    model = EncodingModel(artifact, opened.library)
    return_freed_memory()
    encoder_selftest.check(artifact, model, opened.isa)
    return Encoder(artifact, opened.isa, model, tokenizer)


def _check_manifest(artifact: Artifact) -> None:
    """VerificationError for figures, labels and functions that do not go together."""
    manifest = artifact.manifest
    figures, functions = manifest.architecture, manifest.weights.parameters
    wanted = {"head": ("", *_HEADS), "scores": ("", "softmax", "sigmoid", "none")}
    problems = [name for name, known in wanted.items() if figures.get(name) not in known]
    limit = figures.get("text_limit")
    problems += ["text_limit"] if type(limit) is not int or limit < 1 else []
    head = figures.get("head")
    problems += ["labels"] if bool(manifest.labels) != bool(head) else []
    problems += [f"function {name}" for name in ("embed", head) if name and name not in functions]
    if problems:
        raise VerificationError(
            f"{artifact.path}: the manifest describes no encoder ({problems[0]}; compile the model again)"
        )


class Encoder:
    """A loaded encoder. One object per thread; weights are shared through the page cache.

    A text without anything but white space is refused: it has no tokens of its own to encode.

    Attributes:
        isa: the ISA level that runs.
        tokenizer: text to token ids.
    """

    def __init__(self, artifact: Artifact, isa: str, model: Model, tokenizer: TextTokenizer) -> None:
        self.isa = isa
        self.tokenizer = tokenizer
        self._artifact = artifact
        self._model: Model | None = model

    @property
    def manifest(self) -> Manifest:
        return self._artifact.manifest

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes by their numbers; empty for the encoder alone."""
        return self.manifest.labels

    @property
    def head(self) -> str:
        """``classify``, ``tag``, or "" for the encoder alone."""
        return str(self.manifest.architecture.get("head", ""))

    def embed(
        self, texts: Sequence[Text], *, batch_size: int = 32, truncate: bool = False
    ) -> NDArray[np.float32]:
        """The embedding of every text, in order: float32[texts, width].

        Args:
            texts: texts or pairs.
            batch_size: texts encoded together, at most; the result does not depend on it.
            truncate: cut longer texts to the model's own limit instead of refusing them.

        Raises:
            InputError: an empty text, or one longer than the model's positions.
            UsageError: a batch size below 1, or the encoder was closed.
        """
        tokens = self.tokenize(texts, truncate=truncate)
        return self._rows("embed", tokens, batch_size, int(self.manifest.architecture["width"]))

    def classify(
        self, texts: Sequence[Text], *, batch_size: int = 32, truncate: bool = False
    ) -> list[Classification]:
        """Label and scores of every text, in order; arguments and errors as for ``embed``.

        Raises:
            InputError: the model labels no texts.
        """
        self.require_head("classify")
        tokens = self.tokenize(texts, truncate=truncate)
        logits = self._rows("classify", tokens, batch_size, len(self.labels))
        return [
            Classification(*self._best(row), dict(zip(self.labels, row.tolist(), strict=True)))
            for row in scores(logits, self._scores)
        ]

    def tag(self, texts: Sequence[Text], *, batch_size: int = 32, truncate: bool = False) -> list[list[Tag]]:
        """Label of every token of every text, in order, without the tokens that the tokenizer adds.

        Raises:
            InputError: the model labels no tokens.
        """
        self.require_head("tag")
        tokens = self.tokenize(texts, truncate=truncate)
        logits = self._rows("tag", tokens, batch_size, len(self.labels))
        ends = np.cumsum([len(text) for text in tokens])
        parts = [logits[end - len(text) : end] for text, end in zip(tokens, ends, strict=True)]
        return [self._tags(*pair) for pair in zip(tokens, parts, strict=True)]

    def tokenize(self, texts: Sequence[Text], *, truncate: bool = False) -> list[Tokens]:
        """Token ids of every text, checked to be what the model takes; errors as for ``embed``."""
        limit = int(self.manifest.architecture["text_limit"]) if truncate else None
        found = []
        for number, text in enumerate(texts, 1):
            first, second = (text, None) if isinstance(text, str) else text
            if not all(part.strip() for part in (first, second) if part is not None):
                raise InputError(f"text {number} is empty; leave it out")
            found.append(self.tokenizer.tokens(first, second, limit=limit))
        self.check(found)
        return found

    def check(self, texts: Sequence[Tokens]) -> None:
        """InputError for a text longer than the model's positions, or with ids that are not the model's."""
        longest, words = (int(self.manifest.architecture[name]) for name in ("max_tokens", "vocab"))
        for number, text in enumerate(texts, 1):
            if len(text) > longest:
                raise InputError(
                    f"text {number} has {len(text)} tokens, the model takes at most {longest}; split it, or "
                    "have it cut with --truncate"
                )
            if not text.ids or not 0 <= min(text.ids) <= max(text.ids) < words:
                raise InputError(f"text {number} gives no tokens of this model; use the model's tokenizer")

    def run(
        self, function: str, texts: Sequence[Tokens], *, batch_size: int = 32
    ) -> Iterator[NDArray[np.float32]]:
        """What ``embed``, ``classify`` or ``tag`` of the library gives, one array for each batch.

        Args:
            function: one of the library's functions.
            texts: made by ``tokenize``, or passed by ``check``.
            batch_size: texts of a batch, at most.
        """
        if batch_size < 1:
            raise UsageError(f"batch size is {batch_size}, expected at least 1")
        if self._model is None:
            raise UsageError("the encoder was closed; load the artifact again")
        for batch in _batches(texts, batch_size):
            yield self._model.run(function, batch)

    def require_head(self, head: str) -> None:
        """InputError where the model has no ``classify`` or ``tag`` head, naming what it has."""
        if self.head != head:
            what = _HEADS.get(self.head, "has no labels; embed with it")
            raise InputError(f"{self._artifact.path}: this model {what}")

    def close(self) -> None:
        """Frees the library and its buffers; the object cannot encode any more."""
        self._model = None

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _scores(self) -> str:
        return str(self.manifest.architecture["scores"])

    def _rows(
        self, function: str, tokens: Sequence[Tokens], batch_size: int, width: int
    ) -> NDArray[np.float32]:
        """All rows of ``run``, float32[rows, width]."""
        rows = self.run(function, tokens, batch_size=batch_size)
        return np.concatenate([np.zeros((0, width), np.float32), *rows])

    def _best(self, row: NDArray[np.float32]) -> tuple[str, float]:
        best = int(row.argmax())
        return self.labels[best], float(row[best])

    def _tags(self, text: Tokens, logits: NDArray[np.float32]) -> list[Tag]:
        rows = scores(logits, self._scores)
        return [
            Tag(piece, *span, *self._best(row))
            for piece, span, row, special in zip(text.pieces, text.spans, rows, text.special, strict=True)
            if not special
        ]


def scores(logits: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    """Scores of logits [..., labels]: ``softmax`` shares, ``sigmoid`` of each, or the logits (``none``)."""
    wide = logits.astype(np.float64)
    match kind:
        case "softmax":
            powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
            wide = powers / powers.sum(axis=-1, keepdims=True)
        case "sigmoid":
            wide = 0.5 + 0.5 * np.tanh(0.5 * wide)
    return wide.astype(np.float32)


def _batches(texts: Sequence[Tokens], size: int) -> Iterator[list[Tokens]]:
    """Neighbours that share a call: at most ``size`` texts, and no more than fit into ``BATCH_TOKENS``."""
    batch: list[Tokens] = []
    for text in texts:
        if batch and (len(batch) == size or sum(map(len, batch)) + len(text) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch
