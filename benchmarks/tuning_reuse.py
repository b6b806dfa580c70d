# SPDX-License-Identifier: Apache-2.0
"""How fast a model's products are with another model's tuning log, and with one of their own.

    tvmq tune MODEL_A -o a.jsonl
    tvmq tune MODEL_B -o b.jsonl
    python -m benchmarks.tuning_reuse --own b.jsonl --other a.jsonl

Every product of B is compiled by what the log of A gives without a trial, and by what its own gives. Both are
timed in turn on the same memory, in rounds whose order changes. Equal schedules are the same code.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from schedules.problem import make_problem
from schedules.schedule import AnySchedule
from schedules.tuning_log import Key, TuningLog
from targets import get_target
from targets.spec import TargetSpec

SLICE_SECONDS = 2e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """One product: microseconds, and where the other log's schedule comes from."""

    key: Key
    other_us: float
    own_us: float
    source: str
    same: bool

    @property
    def part(self) -> float:
        """Of the own log's speed, what the other's gives."""
        return self.own_us / self.other_us


def timed(key: Key, schedules: Sequence[AnySchedule], target: TargetSpec, rounds: int) -> list[float]:
    """Microseconds by several schedules in turn: lower quartiles, which other work moves least."""
    from tvmq import vm
    from tvmq.kernels.cold import tuning_copies
    from tvmq.kernels.product import Product, compile_kernels, compile_timer

    vm.set_threads(key.threads)
    products: list[Product] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timer = compile_timer(folder)
        for index, schedule in enumerate(schedules):
            problem = make_problem(key.workload, target.kernel_isa, schedule)
            library = folder / f"{index}.so"
            compile_kernels(problem.kernels, target, library)
            copies, spacing = tuning_copies(key.workload, problem.weight_bytes)
            beside = products[0] if products else None
            products.append(Product(problem, library, timer, problem.stages[-1:], copies, spacing, beside))
        whole = Product(problem, library, timer, beside=products[0])
        problem.check(whole.run())
        number = max(1, int(SLICE_SECONDS / max(1e-8, products[0].seconds(2))))
        found: list[list[float]] = [[] for _ in products]
        for turn in range(rounds):
            for place in range(len(products)):
                index = (place + turn) % len(products)
                found[index].append(products[index].seconds(number, number // 4 + 1 if key.m > 1 else 0))
    return [1e6 * sorted(seconds)[len(seconds) // 4] for seconds in found]


def compare(own: TuningLog, other: TuningLog, rounds: int) -> list[Reuse]:
    """All products of ``own``'s log that another model's log knows nothing of."""
    known = {record.key for record in other.best()}
    found = []
    for record in own.best():
        key = record.key
        if key in known:
            continue
        theirs, ours = (log.choose(key.workload, key.target, key.threads) for log in (other, own))
        same = theirs.schedule == ours.schedule
        schedules = [theirs.schedule] if same else [theirs.schedule, ours.schedule]
        us = timed(key, schedules, get_target(key.target), rounds)
        found.append(Reuse(key=key, other_us=us[0], own_us=us[-1], source=theirs.source, same=same))
    return found


def row(reuse: Reuse) -> list[str]:
    """The cells of a product."""
    key = reuse.key
    shape = f"{key.op} {key.n} x {key.k}, {key.m} tokens, {key.bits} bits"
    cells = [shape, reuse.source, f"{reuse.other_us:.1f}", f"{reuse.own_us:.1f}"]
    return [*cells, "same schedule" if reuse.same else f"{reuse.part:.3f}"]


def main(
    own: Annotated[Path, typer.Option(help="Log of the model itself.")],
    other: Annotated[Path, typer.Option(help="Log of another model.")],
    rounds: Annotated[int, typer.Option(min=1)] = 61,
) -> None:
    """Print the part of the own log's speed that the other's gives."""
    from rich.console import Console
    from rich.table import Table

    from tvmq.kernels.logs import read_log

    found = compare(read_log(own), read_log(other), rounds)
    table = Table("product", "from the other log", "us", "us by its own", "part of the speed")
    for reuse in found:
        table.add_row(*row(reuse))
    total: Any = sum(r.own_us for r in found) / sum(r.other_us for r in found) if found else 1.0
    least = min((r.part for r in found), default=1.0)
    Console().print(table, f"{len(found)} products that the other log does not have; least part {least:.3f}, "
                    f"all products together {total:.3f}")  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
