# SPDX-License-Identifier: Apache-2.0
"""Executes an encoder-decoder artifact under the search protocol: caches, ancestry, bound steps.

Sentences are encoded without padding. Decoder caches are written in place; which slot holds which step
of a hypothesis is kept in an ancestry table, so that reordering beams copies no cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .artifact import Artifact
from .errors import VerificationError
from .generated import PositionTable
from .manifest import Sinusoidal, Workspace
from .search import Candidate, SearchOptions, beam_search, greedy_search
from .vm import ALIGNMENT, Machine, aligned, as_numpy, usable

Ids = NDArray[np.int32]


class TranslationModel:
    """A loaded library with its weights; ``begin`` starts the decoding of a batch."""

    def __init__(self, artifact: Artifact, library: str) -> None:
        manifest = artifact.manifest
        self.machine = Machine(artifact.file(library))
        self._positions = _position_tables(artifact)
        arrays = artifact.weights({name: table.array for name, table in self._positions.items()})
        self._tensors = {name: self.machine.tensor(usable(array)) for name, array in arrays.items()}
        self._parameters = manifest.weights.parameters
        self._workspaces = manifest.weights.workspaces
        self._arguments: dict[str, list[Any]] = {}
        self.width = int(manifest.architecture["d_model"])
        self.layers = int(manifest.architecture["decoder_layers"])
        self.vocabulary = int(manifest.architecture["vocab"])
        self.start_id = int(manifest.generation["decoder_start_token_id"])  # type: ignore[arg-type]
        self._scratch: NDArray[np.uint8] | None = None
        self._caches: list[Any] = []
        self._cache_shape = (0, 0)
        self._batch_shape = (0, 0, 0)

    def has(self, function: str) -> bool:
        """Whether the library has this function."""
        return function in self._parameters

    def arguments(self, function: str) -> list[Any]:
        """The stored arguments of a function and its workspaces, in order."""
        if function not in self._arguments:
            weights = [self._tensors[name] for name in self._parameters[function]]
            spaces = [self.machine.tensor(space) for space in self._spaces(function)]
            self._arguments[function] = weights + spaces
        return self._arguments[function]

    def _spaces(self, function: str) -> list[NDArray[Any]]:
        """The workspaces of a function; all functions share one memory, since only one of them runs."""
        if self._scratch is None:
            needed = [sum(map(_room, spaces)) for spaces in self._workspaces.values()]
            self._scratch = aligned((max(needed, default=0),), np.uint8)
        spaces, start = [], 0
        for space in self._workspaces.get(function, ()):
            whole = self._scratch[start : start + _room(space)].view(space.dtype)
            spaces.append(whole[: math.prod(space.shape)].reshape(space.shape))
            start += _room(space)
        return spaces

    def caches(self, slots: int, steps: int) -> list[Any]:
        """Key and value caches [slots, steps, width] of every layer; kept for the next batch if they fit."""
        if self._cache_shape[0] < slots or self._cache_shape[1] != steps:
            self._cache_shape = (slots, steps)
            shape = (slots, steps, self.width)
            arrays = [aligned(shape, np.float32) for _ in range(2 * self.layers)]
            self._caches = [self.machine.tensor(array) for array in arrays]
        return self._caches

    def encode(self, sources: Sequence[Sequence[int]]) -> tuple[list[Any], Ids]:
        """(keys and values of the memory for every decoder layer, offsets of the sentences)."""
        lengths = [len(source) for source in sources]
        ids, positions = aligned((sum(lengths),), np.int32), aligned((sum(lengths),), np.int32)
        offsets = aligned((len(lengths) + 1,), np.int32)
        offsets[1:] = np.cumsum(lengths)
        ids[:] = np.concatenate([np.asarray(source, np.int32) for source in sources])
        positions[:] = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
        inputs = [self.machine.tensor(a) for a in (ids, positions, offsets)]
        return list(self.machine.call("encode", [*inputs, *self.arguments("encode")])), offsets

    def search(self, sources: Sequence[Sequence[int]], options: SearchOptions) -> list[list[Candidate]]:
        """The ``n_best`` outputs of every source, all of them decoded together."""
        session = self.begin(sources, rows=len(sources) * options.beams, steps=options.steps)
        if options.beams == 1:
            return greedy_search(None, len(sources), options, greedy_step=session.greedy_step)
        return beam_search(session.step, len(sources), options)

    def begin(self, sources: Sequence[Sequence[int]], *, rows: int, steps: int) -> TranslationSession:
        """Encodes ``sources`` and prepares up to ``rows`` hypotheses of up to ``steps`` tokens.

        Ends the session before: both use the same caches.
        """
        self.machine.unbind()
        shape = (sum(map(len, sources)), rows, steps)
        if shape != self._batch_shape:
            self.machine.free_buffers()
            self._batch_shape = shape
        for table in self._positions.values():
            table.fill(max(steps, *map(len, sources)))
        memory, offsets = self.encode(sources)
        return TranslationSession(self, memory, offsets, rows, steps)


class TranslationSession:
    """Decoding of one batch; ``step`` and ``greedy_step`` follow ``tvmq.search``."""

    def __init__(
        self, model: TranslationModel, memory: list[Any], offsets: Ids, rows: int, steps: int
    ) -> None:
        self._model, self._machine = model, model.machine
        self._tokens, self._places, self._sentences = (aligned((rows,), np.int32) for _ in range(3))
        self._ancestry = aligned((rows, steps), np.int32)
        self._slots = np.arange(rows, dtype=np.int32)
        self._shared = [self._machine.tensor(offsets), *model.caches(rows, steps), *memory]
        self._bound: dict[tuple[str, int, int], Any] = {}
        self._position = 0

    def logits(self, tokens: Ids, parents: Ids, sentences: Ids) -> NDArray[np.float32]:
        """One step for each row: float32[m, V] in word order. Only in libraries built for analysis."""
        return as_numpy(self._run("decode", tokens, parents, sentences))

    def greedy_step(self, tokens: Ids, parents: Ids, sentences: Ids) -> Ids:
        """The best next token but padding of each row, int32[m]."""
        if len(tokens) == 1:
            return as_numpy(self._run("greedy", tokens, parents, sentences))
        return self.step(tokens, parents, sentences, 1)[1][:, 0]

    def step(self, tokens: Ids, parents: Ids, sentences: Ids, k: int) -> tuple[NDArray[np.float32], Ids]:
        """The k best next tokens but padding: (log-probabilities, ids), both [m, k], best first."""
        scores, ids = self._run("beam", tokens, parents, sentences, k)
        return as_numpy(scores), as_numpy(ids)

    def _run(self, function: str, tokens: Ids, parents: Ids, sentences: Ids, k: int = 0) -> Any:
        m = len(tokens)
        self._tokens[:m] = tokens
        self._places[:m] = self._position
        if self._position:
            past = self._ancestry[:, : self._position]
            if parents is not sentences and not _same(parents, self._slots[:m]):
                past[:m] = past[parents]
            past[:m, -1] = parents
        self._position += 1
        bound = self._bound.get((function, m, k))
        if bound is None or self._rows_changed(sentences):
            self._sentences[:m] = sentences
            bound = self._bind(function, m, k)
        return bound()

    def _rows_changed(self, sentences: Ids) -> bool:
        return not _same(self._sentences[: len(sentences)], sentences)

    def _bind(self, function: str, m: int, k: int) -> Any:
        """The function over the first m rows of the buffers."""
        key = (function, m, k)
        if key not in self._bound:
            rows = [self._machine.tensor(a[:m]) for a in (self._tokens, self._places, self._sentences)]
            inputs = [*rows, self._machine.tensor(self._ancestry[:m]), *self._shared]
            if function == "beam":
                inputs.append(self._machine.shape(k))
            fixed = f"{function}_{m}"
            entry = fixed if self._model.has(fixed) else function
            arguments = [*inputs, *self._model.arguments(entry)]
            self._bound[key] = self._machine.bind(entry, f"{function}:{m}:{k}", arguments)
        return self._bound[key]


def _same(a: Ids, b: Ids) -> bool:
    """Whether two short lists of equal length hold the same ids, in a tenth of ``np.array_equal``'s time."""
    return a.tobytes() == b.tobytes()


def _room(space: Workspace) -> int:
    """Bytes of a workspace up to the next boundary."""
    size = math.prod(space.shape) * np.dtype(space.dtype).itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT


def _position_tables(artifact: Artifact) -> dict[str, PositionTable]:
    rules = artifact.manifest.weights.generated
    try:
        return {n: PositionTable(r.rows, r.columns) for n, r in rules.items() if isinstance(r, Sinusoidal)}
    except ValueError as exc:
        raise VerificationError(f"{artifact.path}: {exc} (compile the model again)") from exc
