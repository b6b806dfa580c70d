# SPDX-License-Identifier: Apache-2.0
"""``tvmq retrain``: distil the FP32 model into its quantized form; a coded checkpoint comes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tvmq.errors import UsageError
from tvmq.options import PlanOptions
from tvmq.retraining.options import Method, RetrainOptions

from .compile import Model
from .ui import Force, Json, Quiet, Ui, Verbose, facts_table

if TYPE_CHECKING:
    from tvmq.retraining.loop import Evaluation

_DEFAULT = RetrainOptions()

Output = Annotated[Path, typer.Option("--output", "-o", help="Coded checkpoint to write.")]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="plan.json of the bits to reach.")]
Preset = Annotated[str | None, typer.Option("--preset", help="A shipped plan instead of a file.")]
StartFolder = Annotated[
    Path | None, typer.Option("--start", help="Coded checkpoint to go on from, instead of a plan.")
]
Data = Annotated[Path, typer.Option("--data", help="Training text: source TAB target lines, plain or .xz.")]
Dev = Annotated[Path, typer.Option("--dev", help="Development text, never trained on.")]
DevLimit = Annotated[int | None, typer.Option("--dev-limit", min=1, help="Only its first lines.")]
CalibrationFile = Annotated[
    Path | None, typer.Option("--calibration", help="File of tvmq plan; for plans with hessian codes.")
]
MethodOption = Annotated[
    Method,
    typer.Option(
        "--method", help="scales: codes stay; ste: straight through the codes; pnr: project by period."
    ),
]
Phases = Annotated[
    str | None, typer.Option("--phases", help="Blocks in the order in which they begin, such as Emb,Dec,Enc.")
]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps at most.")]
Seconds = Annotated[float | None, typer.Option("--seconds", min=1, help="Wall time at most.")]
BatchTokens = Annotated[int, typer.Option("--batch-tokens", min=8, help="Padded tokens a side and step.")]
Rate = Annotated[float, typer.Option("--lr", min=0, help="Peak learning rate of weights, norms and biases.")]
ScaleRate = Annotated[float, typer.Option("--scale-lr", min=0, help="Peak learning rate of scales.")]
Warmup = Annotated[float, typer.Option("--warmup", min=0, max=1, help="Share of the run with rising rates.")]
Hard = Annotated[
    float, typer.Option("--hard", min=0, max=1, help="Weight of the reference beside the teacher.")
]
Period = Annotated[int, typer.Option("--period", min=0, help="Steps between projections; 0 is never.")]
EvalEvery = Annotated[
    float, typer.Option("--eval-every", min=1e-4, max=1, help="Share of the run between evaluations.")
]
Patience = Annotated[
    int, typer.Option("--patience", min=1, help="Evaluations without a better one before the end.")
]
MaxLength = Annotated[int, typer.Option("--max-length", min=2, help="Leave out pairs with more tokens.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Where to train.")]
Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option("--dtype", help="Of the matrix products.")]
CpuThreads = Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Threads on a CPU.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the order of the data.")]
State = Annotated[
    Path | None, typer.Option("--state", help="File with the run's state; a killed run goes on from it.")
]
SaveSeconds = Annotated[float, typer.Option("--save-seconds", min=1, help="Time between two writes of it.")]


def retrain(
    model: Model,
    output: Output,
    data: Data,
    dev: Dev,
    plan_file: PlanFile = None,
    preset: Preset = None,
    start: StartFolder = None,
    calibration: CalibrationFile = None,
    dev_limit: DevLimit = None,
    method: MethodOption = _DEFAULT.method,
    phases: Phases = None,
    steps: Steps = _DEFAULT.steps,
    seconds: Seconds = None,
    batch_tokens: BatchTokens = _DEFAULT.batch_tokens,
    lr: Rate = _DEFAULT.lr,
    scale_lr: ScaleRate = _DEFAULT.scale_lr,
    warmup: Warmup = _DEFAULT.warmup,
    hard: Hard = _DEFAULT.hard,
    period: Period = _DEFAULT.period,
    eval_every: EvalEvery = _DEFAULT.eval_every,
    patience: Patience = _DEFAULT.patience,
    max_length: MaxLength = _DEFAULT.max_length,
    device: Device = "auto",
    dtype: Dtype = _DEFAULT.dtype,
    threads: CpuThreads = None,
    seed: Seed = 0,
    state: State = None,
    save_seconds: SaveSeconds = _DEFAULT.save_seconds,
    force: Force = False,
    json_output: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Retrain a model in its quantized form; tvmq compile takes the result."""
    from tvmq import api

    ui = Ui.start(json=json_output, verbose=verbose, quiet=quiet)
    if start is not None and (plan_file is not None or preset is not None):
        raise UsageError("--start brings its own plan; leave out --plan and --preset")
    options = RetrainOptions(
        method=method,
        phases=tuple(phases.split(",")) if phases else (),
        steps=steps,
        seconds=seconds,
        batch_tokens=batch_tokens,
        lr=lr,
        scale_lr=scale_lr,
        warmup=warmup,
        hard=hard,
        period=period,
        eval_every=eval_every,
        patience=patience,
        max_length=max_length,
        device=device,
        dtype=dtype,
        threads=threads,
        seed=seed,
        state=state,
        save_seconds=save_seconds,
    )
    err = ui.err()

    def tell(evaluation: Evaluation) -> None:
        if not quiet:
            err.print(_line(evaluation))

    with ui.progress() as progress:
        report = api.retrain(
            model,
            output,
            data=data,
            dev=dev,
            dev_limit=dev_limit,
            start=start if start is not None else PlanOptions(plan=plan_file, preset=preset),
            calibration=calibration,
            options=options,
            force=force,
            progress=progress,
            on_evaluation=tell,
        )
    value: dict[str, Any] = report.to_json()
    first, best = report.evaluations[0], report.best
    rows = {
        "written": f"{output} after {report.evaluations[-1].step:,} steps",
        "before": _line(first),
        "best": _line(best),
    }
    ui.result(value, facts_table(rows))


def _line(found: Evaluation) -> str:
    return (
        f"step {found.step:>6,}  {found.seconds:6.0f} s  dev KL {found.divergence:.4f}  "
        f"cross-entropy {found.cross_entropy:.4f}  greedy BLEU {found.bleu:.2f}"
    )
