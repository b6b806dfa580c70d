# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of an artifact. ``python -m tvmq.benchmark`` is the measured process.

``bench`` starts a fresh interpreter that imports nothing but the runtime, so that neither the command
line's own modules nor freed memory of the caller hide in the figures.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .artifact import open_artifact
from .encoder_benchmark import EncoderBenchResult, measure_encoder
from .errors import InputError, MissingToolError, TvmqError, UsageError, VerificationError
from .loading import use_of
from .options import BenchOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from .runtime import Hypothesis, Translator

MB = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """Figures of one artifact on one machine; MB are 10^6 bytes, times are medians over the rounds.

    Attributes:
        tokens_per_s: generated target tokens (the best hypothesis, end token included) per second.
        ms_per_sentence: wall time per sentence, tokenizing included.
        threads: threads of the kernels.
        beam: hypotheses per sentence.
        batch: sentences translated together.
        peak_rss_mb: largest resident memory of the process while it loads and translates.
        baseline_rss_mb: resident memory of the bare interpreter: Python with the runtime's modules and
            native libraries loaded (numpy, sentencepiece, tvm_ffi, libtvm_runtime), before the artifact
            is opened.
        weights_mb: size of the packed weights on disk.
        isa: ISA level that ran.
        cpu: name of the CPU.
    """

    tokens_per_s: float
    ms_per_sentence: float
    threads: int
    beam: int
    batch: int
    peak_rss_mb: float
    baseline_rss_mb: float
    weights_mb: float
    isa: str
    cpu: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What the parent hands to the measured process."""

    artifact: str
    options: BenchOptions


def bench(artifact: Path, options: BenchOptions) -> BenchResult | EncoderBenchResult:
    """Measure an artifact in a process of its own: a translation model or an encoder.

    Raises:
        UsageError: options that contradict each other.
        TvmqError: whatever the measured process refused, with the same text and exit code.
    """
    import msgspec

    _check(options)
    encodes = use_of(open_artifact(artifact)) == "encode"
    job = msgspec.json.encode(_Job(artifact=str(artifact), options=options), enc_hook=str)
    command = [sys.executable, "-m", "tvmq.benchmark"]
    child = subprocess.run(command, input=job, capture_output=True, check=False)
    if child.returncode:
        raise _child_error(child.returncode, child.stderr.decode("utf-8", "replace"))
    return msgspec.json.decode(child.stdout, type=EncoderBenchResult if encodes else BenchResult)


def _check(options: BenchOptions) -> None:
    counts = (options.rounds, options.sentences, options.source_tokens, options.forced_length)
    if min(counts) < 1:
        raise UsageError("rounds, sentences, source tokens and forced length must be at least 1")


def _child_error(code: int, stderr: str) -> Exception:
    """The child's last line as the error type of its exit code; any other code is a bug."""
    lines = stderr.strip().splitlines() or [f"no message, status {code}"]
    kinds = {2: UsageError, 3: InputError, 4: MissingToolError, 5: VerificationError}
    if code not in kinds:
        return RuntimeError(f"the measured process failed: {lines[-1]}")
    return kinds[code](lines[-1].removeprefix("error: "))


def measure(artifact: Path, options: BenchOptions) -> BenchResult:
    """Measure in this process; call it from a fresh interpreter (see ``bench``)."""
    from targets import host_cpu

    from . import machine
    from .runtime import load, load_libraries

    load_libraries()
    baseline = machine.resident_bytes() or 0
    machine.reset_peak()
    search = options.search
    with closing(load(artifact, threads=search.threads, isa=search.isa)) as translator:
        manifest = translator.manifest
        run, sentences = _workload(translator, options)
        run()  # warm-up: page in the weights, fill the allocator's pools
        seconds, tokens = [], 0
        for _ in range(options.rounds):
            start = time.perf_counter()
            tokens = sum(len(hypotheses[0].tokens) for hypotheses in run())
            seconds.append(time.perf_counter() - start)
        peak = machine.peak_bytes() or 0
        median = statistics.median(seconds)
        return BenchResult(
            tokens_per_s=round(tokens / median, 1),
            ms_per_sentence=round(1e3 * median / sentences, 3),
            threads=search.threads,
            beam=search.beam,
            batch=search.batch_size,
            peak_rss_mb=round(peak / MB, 1),
            baseline_rss_mb=round(baseline / MB, 1),
            weights_mb=round(manifest.files[manifest.weights.file].size / MB, 1),
            isa=translator.isa,
            cpu=host_cpu(),
        )


def _workload(
    translator: Translator, options: BenchOptions
) -> tuple[Callable[[], list[list[Hypothesis]]], int]:
    """(one timed pass, its number of sentences): texts where there are texts, else random token ids."""
    arguments = options.search.generation()
    if options.input is not None:
        texts = read_sources(options.input, options.sentences)
        return lambda: translator.translate(texts, **arguments), len(texts)
    ids = random_sources(translator, options)
    length = options.forced_length
    return lambda: translator.translate_ids(ids, forced_length=length, **arguments), len(ids)


def read_sources(path: Path, limit: int) -> list[str]:
    """The first sentences of a text file, or of the first column of a TSV."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason}); convert the file") from None
    texts = [line.partition("\t")[0] for line in lines if line.strip()][:limit]
    if not texts:
        raise InputError(f"{path}: no sentences; expected one per line")
    return texts


def random_sources(translator: Translator, options: BenchOptions) -> list[list[int]]:
    """``sentences`` lists of ``source_tokens`` ids: ordinary ones and the end token."""
    manifest = translator.manifest
    vocabulary = int(manifest.architecture["vocab"])
    special = {
        cast(int | None, manifest.generation.get(f"{name}_token_id"))
        for name in ("eos", "pad", "decoder_start", "bos", "unk")
    }
    ordinary = [token for token in range(vocabulary) if token not in special]
    end = cast(int, manifest.generation["eos_token_id"])
    draw = random.Random(options.seed)
    return [[*draw.choices(ordinary, k=options.source_tokens - 1), end] for _ in range(options.sentences)]


def main() -> int:
    """Read a job from stdin, print the result as JSON."""
    import msgspec

    job = msgspec.json.decode(sys.stdin.buffer.read(), type=_Job, dec_hook=lambda kind, value: kind(value))
    try:
        path = Path(job.artifact)
        encodes = use_of(open_artifact(path)) == "encode"
        result = measure_encoder(path, job.options) if encodes else measure(path, job.options)
    except TvmqError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return InputError.exit_code
    sys.stdout.buffer.write(msgspec.json.encode(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
