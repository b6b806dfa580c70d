# SPDX-License-Identifier: Apache-2.0
"""One linear layer by shape, tokens and bits, beside other runtimes; draws the roofline.

    python -m benchmarks.kernels --shape 2048x512 --tokens 1 --json kernels.json --plot roofline.svg

Our times are those of ``tvmq bench kernels`` (tables included where there are several tokens). Peers keep
their weights warm and take turns in short pieces of their own, right after ours.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from .kernel_peers import peers

SHAPES = (
    "512x512", "2048x512", "512x2048", "768x768", "3072x768", "768x3072", "4096x4096", "11008x4096",
    "32000x512", "1000x520", "58101x512",
)  # fmt: skip
SLICE_SECONDS = 2e-3
PACKAGES = ("apache-tvm", "onnxruntime", "openvino", "torch", "numpy")


def ours(n: int, k: int, m: int, bits: int, threads: int, rounds: int) -> tuple[list[dict[str, Any]], Any]:
    """Rows of one product, and the whole report."""
    from tvmq import bench_kernels
    from tvmq.options import KernelBenchOptions

    kernel = "lut" if m == 1 else "lut+table"
    report = bench_kernels(
        KernelBenchOptions(n=n, k=k, m=m, bits=bits, kernel=kernel, threads=threads, rounds=rounds)
    )
    result = report.results[0]
    row = {
        "name": f"tvmq {bits}-bit",
        "us": result.us_warm,
        "us_cold": result.us_cold,
        "gbps": result.gbps_warm,
        "fraction_of_read": result.fraction_of_read,
        "gmacs": result.gmacs_warm,
    }
    return [row], report


def theirs(n: int, k: int, m: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Medians of every peer, in turn."""
    weight = np.random.default_rng(0).standard_normal((n, k), np.float32)
    found = {name: (run, []) for name, run in peers(weight, m, threads)}
    numbers = {name: max(1, int(SLICE_SECONDS / run(2))) for name, (run, _) in found.items()}
    for _ in range(rounds):
        for name, (run, seconds) in found.items():
            run(max(1, numbers[name] // 4))
            seconds.append(run(numbers[name]))
    rows = []
    for name, (_, seconds) in found.items():
        us = statistics.median(seconds) * 1e6
        rows.append({"name": name, "us": round(us, 2), "gmacs": round(n * k * m / us / 1e3, 1)})
    return rows


def facts(threads: int) -> dict[str, Any]:
    """The machine and the versions."""
    from targets import detect_host, host_cpu

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "-"
    return {
        "cpu": host_cpu(),
        "isa": detect_host()[0],
        "threads": threads,
        "python": platform.python_version(),
        **versions,
    }


def draw(
    rows: Sequence[dict[str, Any]], read_gbps: float, peak_gmacs: float, machine: str, path: Path
) -> None:
    """The roofline: multiply-adds per second over multiply-adds per byte of weights."""
    import matplotlib

    matplotlib.use("svg" if path.suffix == ".svg" else "agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2))
    intensity = np.geomspace(2, 4096, 200)
    axes.loglog(intensity, np.minimum(intensity * read_gbps, peak_gmacs), color="black", linewidth=1)
    axes.axhline(peak_gmacs, color="gray", linestyle=":", linewidth=1)
    axes.text(2.2, peak_gmacs * 1.08, f"int8 dot product {peak_gmacs:.0f} GMAC/s", fontsize=8)
    axes.text(2.6, 1.9 * read_gbps, f"memory {read_gbps:.1f} GB/s", fontsize=8, rotation=38)
    for bits in sorted({row["bits"] for row in rows}):
        own = [row for row in rows if row["bits"] == bits]
        places = [row["macs"] / row["weight_bytes"] for row in own]
        axes.scatter(places, [row["macs"] / row["us_cold"] / 1e3 for row in own], s=18, label=f"{bits} bits")
    axes.set_xlabel("multiply-adds per byte of weights")
    axes.set_ylabel("GMAC/s, weights from memory")
    axes.set_title(f"table products, {machine}", fontsize=9)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main(
    shape: Annotated[list[str] | None, typer.Option(help="NxK: rows x columns.")] = None,
    tokens: Annotated[list[int] | None, typer.Option(min=1, help="Tokens of a call.")] = None,
    bits: Annotated[list[int] | None, typer.Option(min=1, max=8)] = None,
    with_peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Also the other runtimes.")] = True,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians are shown.")] = 15,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the roofline here (.svg or .png).")] = None,
) -> None:
    """Time linear layers; print a table for every shape and number of tokens."""
    from rich.console import Console
    from rich.table import Table

    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise typer.BadParameter("drawing needs matplotlib: pip install 'tvmq[plan]'", param_hint="--plot")
    console, results, points, limits = Console(), [], [], []
    for text in shape or SHAPES:
        n, k = (int(part) for part in text.split("x"))
        for m in tokens or (1, 8, 32, 128):
            rows = []
            for width in bits or (1, 2, 3, 4):
                own, report = ours(n, k, m, width, threads, rounds)
                rows += own
                limits.append((report.read_gbps, report.peak_gmacs))
                weight_bytes = own[0]["gbps"] * own[0]["us"] * 1e3
                point = {"bits": width, "macs": n * k * m, "us_cold": own[0]["us_cold"]}
                points.append({**point, "weight_bytes": weight_bytes})
            rows += theirs(n, k, m, threads, rounds) if with_peers else []
            table = Table("", "us warm", "us cold", "of the read", "GMAC/s", title=f"{text}, {m} tokens")
            for row in rows:
                share = f"{row['fraction_of_read']:.0%}" if "fraction_of_read" in row else ""
                cold = f"{row['us_cold']:.1f}" if "us_cold" in row else ""
                table.add_row(row["name"], f"{row['us']:.1f}", cold, share, f"{row['gmacs']:.1f}")
            console.print(table)
            results += [{"shape": text, "tokens": m, **row} for row in rows]
    machine = facts(threads)
    read, peak = (float(statistics.median(column)) for column in zip(*limits, strict=True))
    machine |= {"read_gbps": round(read, 2), "peak_gmacs": round(peak, 1)}
    console.print(", ".join(f"{key}: {value}" for key, value in machine.items()))
    if json_path is not None:
        json_path.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")
    if plot is not None:
        draw(points, read, peak, f"{machine['cpu']} ({machine['isa']}), threads {threads}", plot)


if __name__ == "__main__":
    typer.run(main)
