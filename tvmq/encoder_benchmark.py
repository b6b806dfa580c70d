# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of an encoder's artifact; ``tvmq.benchmark`` runs it in a process of its own."""

from __future__ import annotations

import random
import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .options import BenchOptions

if TYPE_CHECKING:
    from .encoder import Encoder
    from .text_tokenizer import Tokens

MB = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderBenchResult:
    """Figures of one artifact on one machine; MB are 10^6 bytes, times are medians over the rounds.

    Attributes:
        function: what ran: the head's ``classify`` or ``tag``, else ``embed``.
        tokens_per_s: tokens of the texts, special ones included, per second.
        sentences_per_s: texts per second.
        ms_per_sentence: wall time per text; tokenizing is included where texts were given.
        batch: texts encoded together, at most.
        length: mean number of tokens of a text.
        threads: threads of the kernels.
        peak_rss_mb: largest resident memory of the process while it loads and encodes.
        baseline_rss_mb: resident memory of the bare interpreter: Python with the runtime's modules and
            native libraries loaded (numpy, tokenizers, tvm_ffi, libtvm_runtime), before the artifact is
            opened.
        weights_mb: size of the packed weights on disk.
        isa: ISA level that ran.
        cpu: name of the CPU.
    """

    function: str
    tokens_per_s: float
    sentences_per_s: float
    ms_per_sentence: float
    batch: int
    length: float
    threads: int
    peak_rss_mb: float
    baseline_rss_mb: float
    weights_mb: float
    isa: str
    cpu: str


def measure_encoder(artifact: Path, options: BenchOptions) -> EncoderBenchResult:
    """Measure in this process; call it from a fresh interpreter (see ``benchmark.bench``)."""
    from targets import host_cpu

    from . import machine
    from .encoder import load, load_libraries

    load_libraries()
    baseline = machine.resident_bytes() or 0
    machine.reset_peak()
    search = options.search
    with closing(load(artifact, threads=search.threads, isa=search.isa)) as encoder:
        manifest, function = encoder.manifest, encoder.head or "embed"
        texts = _texts(options)

        def run() -> list[Tokens]:
            tokens = encoder.tokenize(texts) if texts else random_tokens(encoder, options)
            for _ in encoder.run(function, tokens, batch_size=search.batch_size):
                pass
            return tokens

        tokens = run()  # warm-up: page in the weights, fill the allocator's pools
        seconds = []
        for _ in range(options.rounds):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        peak, median = machine.peak_bytes() or 0, statistics.median(seconds)
        total = sum(map(len, tokens))
        return EncoderBenchResult(
            function=function,
            tokens_per_s=round(total / median, 1),
            sentences_per_s=round(len(tokens) / median, 2),
            ms_per_sentence=round(1e3 * median / len(tokens), 3),
            batch=search.batch_size,
            length=round(total / len(tokens), 2),
            threads=search.threads,
            peak_rss_mb=round(peak / MB, 1),
            baseline_rss_mb=round(baseline / MB, 1),
            weights_mb=round(manifest.files[manifest.weights.file].size / MB, 1),
            isa=encoder.isa,
            cpu=host_cpu(),
        )


def random_tokens(encoder: Encoder, options: BenchOptions) -> list[Tokens]:
    """``sentences`` texts of ``source_tokens`` random ids."""
    from .text_tokenizer import Tokens

    vocabulary, longest = (int(encoder.manifest.architecture[name]) for name in ("vocab", "max_tokens"))
    length = min(options.source_tokens, longest)
    draw = random.Random(options.seed)
    drawn = [draw.choices(range(vocabulary), k=length) for _ in range(options.sentences)]
    return [Tokens(ids=ids, types=[0] * length) for ids in drawn]


def _texts(options: BenchOptions) -> list[str]:
    from .benchmark import read_sources

    return [] if options.input is None else read_sources(options.input, options.sentences)
