# SPDX-License-Identifier: Apache-2.0
"""Options of every verb as frozen dataclasses: what the command line fills in and the API takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from relay_passes.bit_plan import Mode, ScaleDtype

Tables = Literal["int8", "exact"]


class Progress(Protocol):
    """Called at the start of every phase and whenever a part of it is done."""

    def __call__(self, phase: str, done: int, total: int) -> None:
        """``phase`` is a verb in the user's words; ``done`` of ``total`` parts are finished."""


def no_progress(phase: str, done: int, total: int) -> None:
    """A ``Progress`` that reports to nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """How many bits every tensor gets. At most one of ``preset``, ``bits`` and ``plan`` is given.

    Attributes:
        preset: name of a shipped plan.
        bits: mean bits per weight; a sensible mix is picked.
        plan: a plan.json to use as it is.
        overrides: (pattern, bits) pairs applied last, in order.
        quantizer: registry name of the quantizer; None keeps the preset's.
        group_size: columns that share a scale; None keeps the preset's, 0 is one scale per row.
        offset: one offset per group besides the scales; None keeps the preset's.
        scale_dtype: dtype of scales and offsets; None keeps the preset's.
        outliers: percent of the weights of each matrix that are stored beside the planes; None means none.
        frequencies: a token_freq.tsv for word bits; None takes the one in the model folder.
        text: source and target text to count token frequencies in, instead of ``frequencies``.
        mode: what is between the matrices: ``float`` values, or blocks of small integers (``block-int``,
            encoders only).
        activation_block: columns of activations that share an exponent in mode block-int; None keeps the
            usual ones, 0 is the whole row.
    """

    preset: str | None = None
    bits: float | None = None
    plan: Path | None = None
    overrides: tuple[tuple[str, int], ...] = ()
    quantizer: str | None = None
    group_size: int | None = None
    offset: bool | None = None
    scale_dtype: ScaleDtype | None = None
    outliers: float | None = None
    frequencies: Path | None = None
    text: Path | None = None
    mode: Mode = "float"
    activation_block: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingOptions:
    """How embeddings are made, where the model folder is not to decide.

    Attributes:
        kind: ``mean`` over a text's tokens, or its first token (``cls``); None takes the folder's.
        normalize: rows of unit length or as they are; None takes the folder's.
    """

    kind: Literal["mean", "cls"] | None = None
    normalize: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """How a model becomes an artifact.

    Attributes:
        plan: bits per tensor.
        calibration: measurements of the model on sample text, for quantizers that go by them.
        target: ``host``, ``linux-x86-64``, ``linux-arm64`` or ``android-arm64`` (sets of ISA levels), or
            an ISA level.
        isa_levels: exactly these levels instead of the target's own.
        tables: ``int8`` lookup tables, or ``exact`` FP32 tables.
        dump_ir: folder for the IR after each phase.
        pooling: of an encoder's embeddings.
        tuning_log: measured schedules besides the shipped ones.
        force: replace an existing artifact.
    """

    plan: PlanOptions = field(default_factory=PlanOptions)
    calibration: Path | None = None
    target: str = "host"
    isa_levels: tuple[str, ...] | None = None
    tables: Tables = "int8"
    dump_ir: Path | None = None
    pooling: PoolingOptions = field(default_factory=PoolingOptions)
    tuning_log: Path | None = None
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """How a model becomes a coded checkpoint.

    Attributes:
        plan: bits per tensor.
        calibration: measurements of the model on sample text, for quantizers that go by them.
        force: replace an existing coded checkpoint.
    """

    plan: PlanOptions = field(default_factory=PlanOptions)
    calibration: Path | None = None
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationOptions:
    """How bits are found from measured sensitivities. At most one of ``bits`` and ``size_mb`` is given.

    Attributes:
        bits: mean bits per weight, counting scales, offsets and word orders.
        size_mb: all parameters in megabytes (10^6 bytes), FP32 biases and norms included.
        ms: milliseconds per output token that reading the matrices may take.
        times: measured times by block and width, or a tuning log (.jsonl); None goes by memory bandwidth.
        by: ``kl`` measures with every unit quantized, ``fisher`` estimates by gradients of ``calibration``.
        text: sentence pairs to measure on.
        sentences: how many of them, and of ``bleu``.
        bleu: sentence pairs to score every block at every width on, by BLEU.
        rounds: measurements; every further one starts from the plan of the one before instead of FP32, as
            errors add up to more than their sum.
        calibration: text to calibrate on, or the calibration.safetensors of an earlier run.
        sensitivities: a file of an earlier run instead of a measurement.
        save_calibration: where to keep the calibration.
        save_sensitivities: where to keep the measurement.
        save_bleu: where to keep the scores.
        widths: bits to choose from.
        words: cuts of an embedding: the optimum, or those of Algorithm 1.
        overrides: (pattern, bits) pairs that are decided beforehand, in order.
        quantizer: registry name; None is what was measured: hessian with a calibration, else alternating.
        group_size: columns that share a scale; 0 is one scale per row; None is what was measured, else 0.
        offset: one offset per group besides the scales; None is what was measured, else none.
        scale_dtype: dtype of scales and offsets; None is what was measured, else float16.
        outliers: percent of the weights beside the planes; None is what was measured, else 0. A plan from
            ``sensitivities`` may store its tensors in another way than they were measured in.
        frequencies: a token_freq.tsv for word bits; None takes the one in the model folder.
        jobs: processes of the measurement; None is what ``joblib.parallel_config`` says, else one per core.
    """

    bits: float | None = None
    size_mb: float | None = None
    ms: float | None = None
    times: Path | None = None
    by: Literal["kl", "fisher"] = "kl"
    text: Path | None = None
    sentences: int = 100
    bleu: Path | None = None
    rounds: int = 1
    calibration: Path | None = None
    sensitivities: Path | None = None
    save_calibration: Path | None = None
    save_sensitivities: Path | None = None
    save_bleu: Path | None = None
    widths: tuple[int, ...] = (1, 2, 3, 4)
    words: Literal["optimum", "algorithm1"] = "optimum"
    overrides: tuple[tuple[str, int], ...] = ()
    quantizer: str | None = None
    group_size: int | None = None
    offset: bool | None = None
    scale_dtype: ScaleDtype | None = None
    outliers: float | None = None
    frequencies: Path | None = None
    jobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """What a report is made from besides the model.

    Attributes:
        plan: the plan.json of a float model folder; other targets have their own.
        sensitivities: a measurement of ``tvmq plan``; adds expected losses and the Pareto curve.
        calibration: a calibration.safetensors, for its word counts.
        frequencies: a token_freq.tsv instead of the one in the model folder.
        times: measured times by block and width, or a tuning log (.jsonl), for a curve over milliseconds.
        measured: rows of measured losses or scores, as JSON.
        bleu: scores by block of ``tvmq plan --save-bleu``.
        figures: folder for the figures as SVG and PNG files.
        force: replace existing files.
    """

    plan: Path | None = None
    sensitivities: Path | None = None
    calibration: Path | None = None
    frequencies: Path | None = None
    times: Path | None = None
    measured: Path | None = None
    bleu: Path | None = None
    figures: Path | None = None
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How sentences are generated.

    Attributes:
        beam: hypotheses kept per sentence; 1 is greedy search.
        length_penalty: exponent of the length that scores are divided by.
        max_length: longest output in tokens; None takes the model's own limit.
        batch_size: sentences translated together.
        threads: threads of the kernels; the result does not depend on it.
        isa: ISA level to run instead of the best one this CPU has.
    """

    beam: int = 4
    length_penalty: float = 1.0
    max_length: int | None = None
    batch_size: int = 16
    threads: int = 1
    isa: str | None = None

    def generation(self) -> dict[str, Any]:
        """Keyword arguments for ``Translator.translate`` and ``translate_ids``."""
        return {
            "beams": self.beam,
            "length_penalty": self.length_penalty,
            "max_new_tokens": self.max_length,
            "batch_size": self.batch_size,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What ``bench`` runs.

    Attributes:
        search: generation options; the defaults of ``bench`` are greedy, one sentence, one thread.
        input: text file with one source sentence a line, or a TSV whose first column is taken.
        sentences: number of sentences (the first of the file, or random ones).
        source_tokens: length of random sources in token ids.
        forced_length: tokens to generate per random source, whatever the model says.
        rounds: timed passes over all sentences; the median counts.
        seed: seed of the random ids.
    """

    search: SearchOptions = field(default_factory=lambda: SearchOptions(beam=1, batch_size=1))
    input: Path | None = None
    sentences: int = 32
    source_tokens: int = 20
    forced_length: int = 24
    rounds: int = 3
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelBenchOptions:
    """One product for ``bench_kernels``.

    Attributes:
        n: output rows.
        k: columns.
        m: tokens.
        bits: planes of a weight, 1 to 8; 32 is FP32.
        kernel: one kernel instead of all that compute the product.
        group: columns that share a scale; 0 is a whole row.
        scale_dtype: dtype of the scales of table kernels.
        threads: threads of kernels and limits.
        target: ISA level; ``host`` is the best that runs here.
        rounds: timed pieces of each kernel; medians count.
        seed: of weights and activations.
    """

    n: int
    k: int
    m: int = 1
    bits: int
    kernel: str | None = None
    group: int = 0
    scale_dtype: ScaleDtype = "float16"
    threads: int = 1
    target: str = "host"
    rounds: int = 15
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """How schedules are searched.

    Attributes:
        plan: bits of a model folder's tensors.
        tables: table kernels to tune, as ``CompileOptions.tables``.
        tokens: numbers of tokens to tune a model's products for; each stands for its bucket.
        widths: bits to tune every matrix of a model for, instead of its plan's; empty is the plan's.
        target: ISA level; ``host`` is the best that runs here.
        trials: candidates of each workload; 0 only times the rule's schedule.
        time_budget: seconds in all; 0 is no limit.
        timeout: seconds that one candidate may take.
        threads: threads of the kernels.
        resume: go on with an existing log instead of refusing it.
        runner: where candidates run: ``local``, ``rpc``, ``command:TEMPLATE`` or ``model``, ``model:CPU``.
        tracker: HOST:PORT of the RPC tracker.
        key: key of the RPC servers.
    """

    plan: PlanOptions = field(default_factory=PlanOptions)
    tables: Tables = "int8"
    tokens: tuple[int, ...] = (1, 64)
    widths: tuple[int, ...] = ()
    target: str = "host"
    trials: int = 24
    time_budget: float = 0.0
    timeout: float = 30.0
    threads: int = 1
    resume: bool = False
    runner: str = "local"
    tracker: str | None = None
    key: str | None = None
