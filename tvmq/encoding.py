# SPDX-License-Identifier: Apache-2.0
"""Executes an encoder artifact: token ids of many texts in, one array out. No padding anywhere.

A text's rows of the result do not depend on the texts that share a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .artifact import Artifact
from .errors import VerificationError
from .vm import Machine, aligned, as_numpy, usable


class Tokenized(Protocol):
    """What the model reads of a text; ``text_tokenizer.Tokens`` is one."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def types(self) -> Sequence[int]: ...


class EncodingModel:
    """A loaded library with its weights.

    Attributes:
        vocabulary, width, max_tokens: sizes of the model.
    """

    def __init__(self, artifact: Artifact, library: str) -> None:
        self._artifact = artifact
        self.vocabulary, self.width = self._figure("vocab"), self._figure("width")
        self.max_tokens, self._first = self._figure("max_tokens"), self._figure("first_position")
        self._types = self._figure("types")
        self.machine = Machine(artifact.file(library))
        tensors = {name: self.machine.tensor(usable(a)) for name, a in artifact.weights().items()}
        parameters = artifact.manifest.weights.parameters
        self._arguments = {name: [tensors[p] for p in taken] for name, taken in parameters.items()}
        self._shape = (0, 0)

    @property
    def functions(self) -> tuple[str, ...]:
        """What the library computes: ``embed``, ``classify``, ``tag``."""
        return tuple(self._arguments)

    def run(self, function: str, texts: Sequence[Tokenized]) -> NDArray[np.float32]:
        """The function's rows for ``texts``, in order: one each, or one for every token of ``tag``."""
        lengths = [len(text.ids) for text in texts]
        shape = (len(lengths), sum(lengths))
        if shape != self._shape:
            self.machine.free_buffers()
            self._shape = shape
        inputs = [self.machine.tensor(array) for array in self._inputs(texts, lengths)]
        return np.array(as_numpy(self.machine.call(function, [*inputs, *self._arguments[function]])))

    def _inputs(self, texts: Sequence[Tokenized], lengths: Sequence[int]) -> list[NDArray[np.int32]]:
        """ids, positions, offsets and, where the model has token types, types: int32 of all tokens."""
        ids, positions, types = (aligned((sum(lengths),), np.int32) for _ in range(3))
        offsets = aligned((len(lengths) + 1,), np.int32)
        offsets[1:] = np.cumsum(lengths)
        ids[:] = np.concatenate([np.asarray(text.ids, np.int32) for text in texts])
        positions[:] = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
        positions += self._first
        if not self._types:
            return [ids, positions, offsets]
        if self._types > 1:
            types[:] = np.concatenate([np.asarray(text.types, np.int32) for text in texts])
        return [ids, positions, offsets, types]

    def _figure(self, name: str) -> int:
        value = self._artifact.manifest.architecture.get(name)
        if type(value) is not int or not 0 <= value < 1 << 31:
            raise VerificationError(
                f"{self._artifact.path}: the manifest's {name} is {value!r}, expected a number "
                "(compile the model again)"
            )
        return value
