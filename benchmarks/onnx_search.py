# SPDX-License-Identifier: Apache-2.0
"""Greedy and beam search of the ONNX Runtime peer, with every buffer bound once per sentence.

The rules are those of transformers' generate (2*beams candidates a step, length penalty 1, stop when
no running beam can beat the worst finished one), written for little overhead per step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

MAX_STEPS = 256
"""Positions of the preallocated self-attention cache."""
NO_BEAM = -1e9
"""Score of a beam that does not exist yet (transformers' constant)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Special ids and sizes the search needs."""

    start: int
    eos: int
    vocabulary: int
    layers: int
    heads: int
    width: int


class Step:
    """One decoder session with its inputs and outputs bound to NumPy buffers for a number of beams."""

    def __init__(self, session: ort.InferenceSession, tokens: Tokens, beams: int) -> None:
        self.session = session
        self.binding = self.session.io_binding()
        self._kept: list[Any] = []
        self.beams = beams
        self.position = self._bind("position", np.zeros(1, np.int32))
        self.ids = self._bind("ids", np.zeros((beams, 1), np.int64))
        cache = (beams, tokens.heads, MAX_STEPS, tokens.width // tokens.heads)
        for layer in range(tokens.layers):
            for part in "kv":
                value = ort.OrtValue.ortvalue_from_numpy(np.zeros(cache, np.float32))
                self._kept.append(value)
                self.binding.bind_ortvalue_input(f"past_{part}_{layer}", value)
                self.binding.bind_ortvalue_output(f"present_{part}_{layer}", value)
        if beams > 1:
            self._bind("beam_width", np.array([beams], np.int32))
            self._bind("count", np.array([2 * beams], np.int64))
            self.parents = self._bind("parents", np.zeros((1, beams, MAX_STEPS), np.int32))
            self.sums = self._bind("sums", np.zeros((beams, 1, 1), np.float32))
            self.scores = self._bind_output("scores", np.zeros((1, 2 * beams), np.float32))
            self.chosen = self._bind_output("chosen", np.zeros((1, 2 * beams), np.int64))
        else:
            self.total = self._bind("total", np.zeros((), np.int32))
            self.logits = self._bind_output("logits", np.zeros((1, 1, tokens.vocabulary), np.float32))

    def _bind(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        value = ort.OrtValue.ortvalue_from_numpy(array)
        self._kept += [value, array]
        self.binding.bind_ortvalue_input(name, value)
        return array

    def _bind_output(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        value = ort.OrtValue.ortvalue_from_numpy(array)
        self._kept += [value, array]
        self.binding.bind_ortvalue_output(name, value)
        return array

    def attend(self, cross: dict[str, ort.OrtValue]) -> None:
        """Use the encoder's keys and values of one sentence from now on."""
        for name, value in cross.items():
            self.binding.bind_ortvalue_input(name, value)

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)


def greedy(step: Step, tokens: Tokens, limit: int, *, forced: bool) -> list[int]:
    """Ids of the best token at every step, with the end token if it was reached."""
    step.ids[0, 0] = tokens.start
    produced: list[int] = []
    logits = step.logits.reshape(-1)
    for position in range(limit):
        step.position[0] = position
        step.total[...] = position + 1
        step.run()
        token = int(logits.argmax())
        produced.append(token)
        if token == tokens.eos and not forced:
            break
        step.ids[0, 0] = token
    return produced


def beam(step: Step, tokens: Tokens, limit: int, *, forced: bool) -> list[int]:
    """Ids of the best hypothesis; with ``forced`` the end token is never chosen."""
    beams = step.beams
    step.ids[:] = tokens.start
    step.sums[:] = NO_BEAM
    step.sums[0] = 0.0
    step.parents[:] = 0
    parents = step.parents[0]
    running: list[list[int]] = [[] for _ in range(beams)]
    finished: list[tuple[float, list[int]]] = []
    for position in range(limit):
        step.position[0] = position
        step.run()
        chosen, scores = step.chosen[0].tolist(), step.scores[0].tolist()
        origin, words, kept = [], [], []
        for rank, (code, score) in enumerate(zip(chosen, scores, strict=True)):
            parent, token = divmod(code, tokens.vocabulary)
            if token == tokens.eos:
                if not forced and rank < beams:
                    finished.append((score / (position + 1), [*running[parent], token]))
                continue
            origin.append(parent)
            words.append(token)
            kept.append(score)
            if len(origin) == beams:
                break
        running = [[*running[parent], word] for parent, word in zip(origin, words, strict=True)]
        finished = sorted(finished, key=lambda entry: -entry[0])[:beams]
        if len(finished) == beams and kept[0] / (position + 1) <= finished[-1][0]:
            break
        step.ids[:, 0] = words
        step.sums[:, 0, 0] = kept
        parents[:, :position] = parents[origin, :position]
        parents[:, position] = origin
    if not finished:
        return running[0]
    return finished[0][1]
