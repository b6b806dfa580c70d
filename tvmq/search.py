# SPDX-License-Identifier: Apache-2.0
"""Greedy and beam search over a step function; the output is that of transformers' ``generate``.

The executors give ``Step`` (and ``GreedyStep``); this module holds no model and needs only NumPy. Sentences
do not depend on each other: a row is one hypothesis, and the rows of a finished sentence are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tvmq.errors import UsageError

Step: TypeAlias = Callable[
    [NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], int],
    tuple[NDArray[np.float32], NDArray[np.int32]],
]
"""step(tokens, parents, sentences, k) -> (logp, ids).

``tokens`` int32[m]: last token of each row. ``parents`` int32[m]: row of the previous step that the row
continues (first call: 0..m-1). ``sentences`` int32[m]: its source sentence, ascending.
``logp`` float32[m, k], descending: log softmax over the whole vocabulary of the k best tokens.
``ids`` int32[m, k]: these tokens. Banned tokens are left out.
"""
GreedyStep: TypeAlias = Callable[[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]], NDArray[np.int32]]
"""greedy_step(tokens, parents, sentences) -> best token of each row, int32[m]."""

_Node: TypeAlias = tuple["_Node | None", int]
"""A hypothesis as (all but its last token, its last token), from the start token on; shared between beams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How to search; the names and defaults follow transformers.

    Attributes:
        beams: 1 is greedy.
        length_penalty: a score is the sum of log probabilities / length ** length_penalty.
        early_stopping: stop a sentence as soon as ``beams`` hypotheses ended, instead of when the best open
            one cannot beat the worst of them.
        n_best: hypotheses returned, at most ``beams``.
        max_new_tokens: longest output, end token included.
        eos_id, start_id: end token; token that the decoder starts from.
        forced_eos_id: token forced at step ``max_new_tokens``, or None.
        forced_length: if given, the end token is a token like others and every output has exactly so many.
    """

    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    n_best: int = 1
    max_new_tokens: int
    eos_id: int
    start_id: int
    forced_eos_id: int | None = None
    forced_length: int | None = None

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise UsageError(f"beams is {self.beams}, expected at least 1 (1 is greedy search)")
        if not 1 <= self.n_best <= self.beams:
            raise UsageError(f"n-best is {self.n_best}, expected 1 to {self.beams} (the number of beams)")
        if not math.isfinite(self.length_penalty):
            raise UsageError(f"length penalty is {self.length_penalty}, expected a finite number")
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1")
        if self.forced_length is not None and not 1 <= self.forced_length <= self.max_new_tokens:
            raise UsageError(
                f"forced length is {self.forced_length}, expected 1 to {self.max_new_tokens} (max_new_tokens)"
            )

    @property
    def steps(self) -> int:
        """Longest output in tokens."""
        return self.max_new_tokens if self.forced_length is None else self.forced_length


@dataclass(frozen=True, slots=True)
class Candidate:
    """One output: the tokens after the start token, the end token included when there is one.

    ``score`` is the sum of log probabilities / length ** length_penalty, NaN if a GreedyStep hid them.
    """

    tokens: tuple[int, ...]
    score: float


def greedy_search(
    step: Step | None, batch: int, options: SearchOptions, *, greedy_step: GreedyStep | None = None
) -> list[list[Candidate]]:
    """The best token at each step, for ``batch`` sentences; one candidate each.

    ``greedy_step`` is used instead of ``step`` when given: faster, but without scores.
    """
    eos = options.eos_id if options.forced_length is None else -1
    forced = options.forced_eos_id if options.forced_length is None else None
    outputs: list[list[int]] = [[] for _ in range(batch)]
    sums = np.full(batch, math.nan if greedy_step else 0.0, np.float32)
    tokens = np.full(batch, options.start_id, np.int32)
    sentences = np.arange(batch, dtype=np.int32)
    everyone = parents = sentences
    for left in range(options.steps, 0, -1):
        if left == 1 and forced is not None:
            for s in sentences.tolist():
                outputs[s].append(forced)
            break
        if greedy_step is not None:
            tokens = greedy_step(tokens, parents, sentences)
        else:
            assert step is not None, "greedy_search needs a step function"
            logp, ids = step(tokens, parents, sentences, 1)
            sums[sentences] += logp[:, 0]
            tokens = np.ascontiguousarray(ids[:, 0])
        new = tokens.tolist()
        if len(new) == 1:
            outputs[sentences[0]].append(new[0])
        else:
            for s, token in zip(sentences.tolist(), new, strict=True):
                outputs[s].append(token)
        parents = everyone[: len(new)]
        if eos in new:
            parents = np.flatnonzero(tokens != eos).astype(np.int32)
            if not len(parents):
                break
            tokens, sentences = tokens[parents], sentences[parents]
    return [
        [Candidate(tuple(output), float(total / np.float32(len(output) ** options.length_penalty)))]
        for output, total in zip(outputs, sums, strict=True)
    ]


def beam_search(step: Step, batch: int, options: SearchOptions) -> list[list[Candidate]]:
    """The ``n_best`` outputs of each of ``batch`` sentences, best first.

    One beam is greedy search, as in transformers. ``step`` is asked for 2 * beams tokens, so the vocabulary
    must hold that many that are not banned.
    """
    if options.beams == 1:
        return greedy_search(step, batch, options)
    k = 2 * options.beams
    forced = options.forced_eos_id if options.forced_length is None else None
    beams = [_Beam(s, options) for s in range(batch)]
    active = beams
    tokens = np.full(batch, options.start_id, np.int32)
    sentences = parents = np.arange(batch, dtype=np.int32)
    sums = np.zeros((batch, 1), np.float32)
    for length in range(1, options.steps + 1):
        if length == options.steps and forced is not None:
            for beam in active:
                beam.force(forced, length)
            break
        logp, ids = step(tokens, parents, sentences, k)
        totals, words = (logp + sums).tolist(), ids.tolist()
        rows: list[int] = []
        row = 0
        for beam in active:
            width = len(beam.sums)
            rows += [
                row + r for r in beam.advance(totals[row : row + width], words[row : row + width], length)
            ]
            row += width
        active = [beam for beam in active if beam.open]
        if not active:
            break
        parents = np.array(rows, np.int32)
        tokens = np.array([node[1] for beam in active for node in beam.nodes], np.int32)
        sentences = np.array([beam.sentence for beam in active for _ in beam.nodes], np.int32)
        sums = np.array([total for beam in active for total in beam.sums], np.float32)[:, None]
    return [beam.best(options.n_best) for beam in beams]


class _Beam:
    """The hypotheses of one sentence.

    ``nodes`` and ``sums`` are the open ones, best first: their tokens and float32 sums of log probabilities.
    Sums are Python floats that hold float32 values, so every result equals the float32 arithmetic of
    transformers. ``ended`` holds (score, node) of ended ones, best first, at most ``beams``.
    """

    __slots__ = ("beams", "early", "ended", "eos", "nodes", "open", "penalty", "sentence", "steps", "sums")

    def __init__(self, sentence: int, options: SearchOptions) -> None:
        self.sentence = sentence
        self.beams = options.beams
        self.early = options.early_stopping
        self.penalty = options.length_penalty
        self.eos = options.eos_id if options.forced_length is None else -1
        self.steps = options.steps
        self.nodes: list[_Node] = [(None, options.start_id)]
        self.sums = [0.0]
        self.ended: list[tuple[float, _Node]] = []
        self.open = True

    def advance(self, totals: list[list[float]], words: list[list[int]], length: int) -> list[int]:
        """Choose among each open hypothesis' k best continuations; give the parent of each open one left.

        ``totals`` and ``words`` are [open, k]. ``length`` counts the tokens of the new hypotheses. Nothing is
        left (and ``open`` is False) when the sentence is done.
        """
        k, beams, eos = len(words[0]), self.beams, self.eos
        flat = [total for row in totals for total in row]
        last = length == self.steps
        nodes: list[_Node] = []
        sums: list[float] = []
        parents: list[int] = []
        ended = []
        for rank, at in enumerate(sorted(range(len(flat)), key=flat.__getitem__, reverse=True)[:k]):
            parent, word = divmod(at, k)
            node = (self.nodes[parent], words[parent][word])
            if last or node[1] == eos:
                # beyond the first ``beams`` candidates an ended one is not kept, nor can it go on
                if rank < beams:
                    ended.append((flat[at], node))
            elif len(nodes) < beams:
                nodes.append(node)
                sums.append(flat[at])
                parents.append(parent)
        self.nodes, self.sums = nodes, sums
        self._close(ended, length)
        self.open = not last and self._can_improve(length)
        return parents if self.open else []

    def force(self, token: int, length: int) -> None:
        """End every open hypothesis with ``token`` at log probability 0."""
        self._close(
            [(total, (node, token)) for total, node in zip(self.sums, self.nodes, strict=True)], length
        )
        self.open = False

    def best(self, count: int) -> list[Candidate]:
        """The ``count`` best ended hypotheses."""
        return [Candidate(_tokens(node), score) for score, node in self.ended[:count]]

    def _close(self, ended: list[tuple[float, _Node]], length: int) -> None:
        if ended:
            self.ended += [(self._score(total, length), node) for total, node in ended]
            self.ended.sort(key=lambda pair: -pair[0])
            del self.ended[self.beams :]

    def _can_improve(self, length: int) -> bool:
        if len(self.ended) < self.beams:
            return True
        return not self.early and self._score(self.sums[0], length) > self.ended[-1][0]

    def _score(self, total: float, length: int) -> float:
        return float(np.float32(total) / np.float32(length**self.penalty))


def _tokens(node: _Node) -> tuple[int, ...]:
    tokens = []
    before, token = node
    while before is not None:
        tokens.append(token)
        before, token = before
    return tuple(reversed(tokens))
