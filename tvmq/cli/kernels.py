# SPDX-License-Identifier: Apache-2.0
"""``tvmq bench kernels``: one product by every kernel family beside the machine's limits."""

from __future__ import annotations

from typing import Annotated

import typer

from relay_passes.bit_plan import ScaleDtype
from tvmq.options import KernelBenchOptions

from .ui import Json, Quiet, Target, Threads, Ui, Verbose, facts_table


def bench_kernels(
    n: Annotated[int, typer.Option("--n", min=1, help="Output rows.")],
    k: Annotated[int, typer.Option("--k", min=1, help="Columns.")],
    bits: Annotated[int, typer.Option("--bits", min=1, max=32, help="Bits of a weight; 32 is FP32.")],
    m: Annotated[int, typer.Option("--m", min=1, help="Tokens.")] = 1,
    kernel: Annotated[
        str | None, typer.Option("--kernel", help="lut, exact (both also with +table), dequant or float.")
    ] = None,
    group_size: Annotated[
        int, typer.Option("--group-size", min=0, help="Columns that share a scale; 0 is a whole row.")
    ] = 0,
    scale_dtype: Annotated[
        ScaleDtype, typer.Option("--scale-dtype", help="Scales of table kernels.")
    ] = "float16",
    threads: Threads = 1,
    target: Target = "host",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timed pieces of each; medians count.")] = 15,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of weights and activations.")] = 0,
    json_output: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Time one product by every kernel, warm and from memory, beside the machine's limits."""
    from rich.table import Table

    from tvmq import api

    ui = Ui.start(json=json_output, verbose=verbose, quiet=quiet)
    options = KernelBenchOptions(
        n=n,
        k=k,
        m=m,
        bits=bits,
        kernel=kernel,
        group=group_size,
        scale_dtype=scale_dtype,
        threads=threads,
        target=target,
        rounds=rounds,
        seed=seed,
    )
    with ui.progress() as progress:
        report = api.bench_kernels(options, progress=progress)
    table = Table(box=None, pad_edge=False)
    columns = ("kernel", "us warm", "us cold", "GB/s warm", "GB/s cold", "of read", "GMAC/s", "of peak")
    for name in columns:
        table.add_column(name, justify="left" if name == "kernel" else "right")
    for result in report.results:
        table.add_row(
            result.kernel,
            f"{result.us_warm:.2f}",
            f"{result.us_cold:.2f}",
            f"{result.gbps_warm:.1f}",
            f"{result.gbps_cold:.1f}",
            f"{result.fraction_of_read:.0%}",
            f"{result.gmacs_warm:.1f}",
            f"{result.fraction_of_peak:.0%}",
        )
    rows = {
        "product": f"{n} x {k}, {m} tokens, {bits} bits, threads {threads}",
        "reading memory": f"{report.read_gbps:.1f} GB/s",
        "int8 peak": f"{report.peak_gmacs:.0f} GMAC/s",
        "ran on": f"{report.target} of {report.cpu}",
    }
    ui.result(report.to_json(), facts_table(rows), "", table)
