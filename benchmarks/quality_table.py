# SPDX-License-Identifier: Apache-2.0
"""The tables that ``quality`` prints: every row against FP32, and presets against plans of the same size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tvmq.evaluation import read_hypotheses, read_pairs, score

from .quality_settings import Kind

MB = 1e6
SLACK = 1.002
"""A plan this much larger than a preset still counts as not larger."""


def markdown(rows: Sequence[dict[str, Any]], beam: int) -> str:
    """The rows as a Markdown table with sacrebleu's signature below."""
    lines = [
        "| bits | codes | bits per weight | MB | BLEU | to FP32 (95 %) | p | chrF | to FP32 |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [line(row) for row in rows]
    if rows:
        lines += ["", f"Beam {beam}, {rows[0]['n']} sentences; `{rows[0]['signature']}`"]
    return "\n".join(lines)


def line(row: dict[str, Any]) -> str:
    """One row of ``markdown``."""
    cells = [
        row["setting"],
        row["codes"],
        f"{row['bits_per_weight']:.2f}",
        f"{row['size_bytes'] / MB:.1f}",
        f"{row['value']:.2f}",
        _difference(row),
        _p_value(row),
        f"{row['chrf']:.1f}",
        f"{row['chrf_difference']:+.1f}" if "chrf_difference" in row else "",
    ]
    return f"| {' | '.join(cells)} |"


def _difference(row: dict[str, Any]) -> str:
    if "difference" not in row:
        return ""
    low, high = row["interval"]
    return f"{row['difference']:+.2f} ({low:+.2f} to {high:+.2f})"


def _p_value(row: dict[str, Any]) -> str:
    if "p_value" not in row:
        return ""
    return "< 0.001" if row["p_value"] < 0.001 else f"{row['p_value']:.3f}"


def head_to_head(
    rows: Sequence[dict[str, Any]],
    kinds: Sequence[Kind],
    lines: Sequence[Path],
    data: Path,
    limit: int | None,
) -> str:
    """Every preset beside the largest plan of each kind of codes that is not larger; empty without any.

    Args:
        rows: of the table of ``quality``.
        kinds: what each of them is.
        lines: files of their translations.
        data: source TAB reference.
        limit: only the first sentences.

    Returns: a Markdown table of BLEU differences with 95 % intervals by paired bootstrap.
    """
    found = [
        _pair(rows, preset, plan, _compared(lines[plan], lines[preset], data, limit))
        for preset, plan in opponents(rows, kinds)
    ]
    if not found:
        return ""
    head = ["| preset | MB | BLEU | plan | MB | BLEU | difference (95 %) | p |"]
    return "\n".join([*head, "|---|---:|---:|---|---:|---:|---:|---:|", *found])


def opponents(rows: Sequence[dict[str, Any]], kinds: Sequence[Kind]) -> Iterator[tuple[int, int]]:
    """(preset, plan) by their numbers in ``rows``."""
    plans = [number for number, kind in enumerate(kinds) if kind == "plan"]
    for number, row in enumerate(rows):
        if kinds[number] != "preset":
            continue
        for codes in dict.fromkeys(rows[plan]["codes"] for plan in plans):
            fitting = [
                plan
                for plan in plans
                if rows[plan]["codes"] == codes and rows[plan]["size_bytes"] <= SLACK * row["size_bytes"]
            ]
            if fitting:
                yield number, max(fitting, key=lambda plan: rows[plan]["size_bytes"])


def _compared(plan: Path, preset: Path, data: Path, limit: int | None) -> dict[str, Any]:
    _, references = read_pairs(data, limit=limit)
    ours, theirs = (read_hypotheses(path, len(references)) for path in (plan, preset))
    return score(ours, references, baseline=theirs).to_json()


def _pair(rows: Sequence[dict[str, Any]], preset: int, plan: int, found: dict[str, Any]) -> str:
    cells = []
    for row in (rows[preset], rows[plan]):
        cells += [f"{row['setting']}, {row['codes']}", f"{row['size_bytes'] / MB:.1f}", f"{row['value']:.2f}"]
    return f"| {' | '.join([*cells, _difference(found), _p_value(found)])} |"
