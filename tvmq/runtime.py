# SPDX-License-Identifier: Apache-2.0
"""Loads an artifact and translates: verify, pick the ISA level, self-test, search, tokenizer in and out.

Needs neither torch nor transformers nor the compiler. Results do not depend on the number of threads,
nor on which sentences share a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import selftest, vm
from .artifact import Artifact, Manifest, verify_files
from .errors import InputError, UsageError
from .loading import open_checked, preferred_executor, require_use
from .machine import return_freed_memory
from .native.models import NativeTranslation
from .search import Candidate, SearchOptions
from .tokenizer import MarianTokenizer
from .translation import TranslationModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """One translation: its text, its token ids (end token included) and its score.

    ``score`` is the length-normalised log-probability; NaN after greedy search, which computes none.
    """

    text: str
    tokens: tuple[int, ...]
    score: float


Model = TranslationModel | NativeTranslation


def load_libraries() -> None:
    """Load the native libraries that every translation needs, without any artifact.

    What a process holds after this is the bare interpreter that memory figures are counted from: Python
    with the runtime's modules, numpy and sentencepiece, and tvm_ffi and libtvm_runtime for the VM.

    Raises:
        MissingToolError: one of TVM's libraries is not installed.
    """
    import sentencepiece  # noqa: F401

    if preferred_executor() == "vm":
        vm.ffi()


def load(path: Path | str, *, threads: int = 1, isa: str | None = None) -> Translator:
    """Open an artifact for translation.

    Args:
        path: the artifact folder.
        threads: threads that large kernels use.
        isa: an ISA level instead of the best that this CPU and the artifact share.

    Raises:
        InputError: no artifact, none that translates, or none of its levels runs here.
        VerificationError: damaged or changed files, or a failed self-test.
        UsageError: unknown level, or fewer than one thread.
    """
    opened = open_checked(path, threads=threads, isa=isa)
    artifact = opened.artifact
    require_use(artifact, "translate")
    verify_files(artifact, [name for name in artifact.manifest.files if name.startswith("tokenizer/")])
    tokenizer = MarianTokenizer.open(artifact.path / "tokenizer")
    if opened.executor == "native":
        return_freed_memory()  # reading the tokenizer takes twice what it keeps
        return Translator(artifact, opened.isa, NativeTranslation(artifact, opened.isa, threads), tokenizer)
    model = TranslationModel(artifact, opened.library)
    return_freed_memory()
    selftest.check(artifact, model, opened.isa)
    return Translator(artifact, opened.isa, model, tokenizer)


class Translator:
    """A loaded translation model. One object per thread; weights are shared through the page cache."""

    def __init__(self, artifact: Artifact, isa: str, model: Model, tokenizer: MarianTokenizer) -> None:
        self.isa = isa
        self.tokenizer = tokenizer
        self._artifact = artifact
        self._model: Model | None = model

    @property
    def manifest(self) -> Manifest:
        return self._artifact.manifest

    def translate(
        self,
        texts: Sequence[str],
        *,
        beams: int | None = None,
        length_penalty: float | None = None,
        max_new_tokens: int | None = None,
        n_best: int = 1,
        batch_size: int = 16,
    ) -> list[list[Hypothesis]]:
        """The n best translations of every text, in order; an empty text gives an empty translation.

        Args:
            texts: sentences.
            beams: 1 is greedy search; None takes the model's default, as do the next two.
            length_penalty: exponent of the length that scores are divided by.
            max_new_tokens: longest output.
            n_best: translations per text, at most ``beams``.
            batch_size: sentences decoded together; the result does not depend on it.

        Raises:
            InputError: a text longer than the model's positions.
            UsageError: impossible options.
        """
        sources = [self.tokenizer.encode(text) if text.strip() else [] for text in texts]
        return self.translate_ids(
            sources,
            beams=beams,
            length_penalty=length_penalty,
            max_new_tokens=max_new_tokens,
            n_best=n_best,
            batch_size=batch_size,
        )

    def translate_ids(
        self,
        sources: Sequence[Sequence[int]],
        *,
        beams: int | None = None,
        length_penalty: float | None = None,
        max_new_tokens: int | None = None,
        n_best: int = 1,
        batch_size: int = 16,
        forced_length: int | None = None,
    ) -> list[list[Hypothesis]]:
        """As ``translate``, from token ids (end token included); [] stays empty.

        ``forced_length`` makes every output exactly so long, the end token ignored (for benchmarks).
        """
        if batch_size < 1:
            raise UsageError(f"batch size is {batch_size}, expected at least 1")
        options = self._options(beams, length_penalty, max_new_tokens, n_best, forced_length)
        for index, source in enumerate(sources):
            self._check_source(index, source)
        results: list[list[Hypothesis]] = [[Hypothesis(text="", tokens=(), score=0.0)] for _ in sources]
        waiting = sorted((i for i in range(len(sources)) if len(sources[i])), key=lambda i: -len(sources[i]))
        for start in range(0, len(waiting), batch_size):
            chosen = waiting[start : start + batch_size]
            found = self._search([sources[i] for i in chosen], options)
            for i, candidates in zip(chosen, found, strict=True):
                results[i] = [self._hypothesis(candidate) for candidate in candidates]
        return results

    def close(self) -> None:
        """Frees the library and its buffers; the object cannot translate any more."""
        self._model = None

    def __enter__(self) -> Translator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _options(
        self,
        beams: int | None,
        length_penalty: float | None,
        max_new_tokens: int | None,
        n_best: int,
        forced_length: int | None,
    ) -> SearchOptions:
        defaults = self.manifest.generation
        limit = int(self.manifest.architecture["max_target"]) - 1
        longest = int(defaults["max_new_tokens"]) if max_new_tokens is None else max_new_tokens  # type: ignore[arg-type]
        if longest > limit:
            raise UsageError(f"max_new_tokens is {longest}, the model has positions for {limit}")
        forced = defaults["forced_eos_token_id"]
        width = int(defaults["num_beams"]) if beams is None else beams  # type: ignore[arg-type]
        if 2 * width > int(self.manifest.architecture["vocab"]) - 1:
            raise UsageError(f"{width} beams need {2 * width} words, more than the vocabulary has")
        return SearchOptions(
            beams=width,
            length_penalty=float(defaults["length_penalty"]) if length_penalty is None else length_penalty,  # type: ignore[arg-type]
            n_best=n_best,
            max_new_tokens=longest,
            eos_id=int(defaults["eos_token_id"]),  # type: ignore[arg-type]
            start_id=int(defaults["decoder_start_token_id"]),  # type: ignore[arg-type]
            forced_eos_id=None if forced is None else int(forced),  # type: ignore[arg-type]
            forced_length=forced_length,
        )

    def _check_source(self, index: int, source: Sequence[int]) -> None:
        limit = int(self.manifest.architecture["max_source"])
        words = int(self.manifest.architecture["source_vocab"])
        if len(source) > limit:
            raise InputError(
                f"sentence {index + 1} has {len(source)} tokens, the model takes at most {limit}; split it"
            )
        if len(source) and not (min(source) >= 0 and max(source) < words):
            raise InputError(
                f"sentence {index + 1} holds a token id outside 0..{words - 1}; use the model's tokenizer"
            )

    def _search(self, sources: list[Sequence[int]], options: SearchOptions) -> list[list[Candidate]]:
        if self._model is None:
            raise UsageError("the translator was closed; load the artifact again")
        return self._model.search(sources, options)

    def _hypothesis(self, candidate: Candidate) -> Hypothesis:
        return Hypothesis(
            text=self.tokenizer.decode(candidate.tokens), tokens=candidate.tokens, score=candidate.score
        )
