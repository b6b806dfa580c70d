# SPDX-License-Identifier: Apache-2.0
"""``make demo``: the embedded English-German model, compiled for this CPU and held against the original.

Everything is measured here and now by the functions that the verbs use; the model comes with the
repository, so nothing is downloaded.
"""

from __future__ import annotations

import sys
import time
from contextlib import closing
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import api
from .cli import as_process
from .cli.ui import Ui
from .errors import InputError
from .evaluation import EvalResult, read_pairs, score, translate_all
from .options import BenchOptions, CompileOptions, PlanOptions, SearchOptions

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from .benchmark import BenchResult

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "nmt-en-de"
RETRAINED = ROOT / "models" / "nmt-en-de-1.95bit"
SAMPLE = MODEL / "sample" / "test.tsv"
OUTPUT = ROOT / ".tvmq" / "demo"
SHOWN = 12
SCORED = 300
TIMED = 10
SHOWN_WORDS = range(6, 22)
PLAIN_WIDTH = 110
MB = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One column of the closing table: a model folder and its plan."""

    label: str
    model: Path
    plan: PlanOptions

    @property
    def artifact(self) -> Path:
        """Where its artifact goes."""
        return OUTPUT / f"{self.label}.tvmq"


ORIGINAL = Setting(label="fp32", model=MODEL, plan=PlanOptions(preset="fp32"))
CHOSEN = Setting(label="retrained-1.95bit", model=RETRAINED, plan=PlanOptions())
PAPER = Setting(label="chung2020-2.5-1.8-3.7", model=MODEL, plan=PlanOptions(preset="chung2020-2.5-1.8-3.7"))
SETTINGS = (ORIGINAL, CHOSEN, PAPER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the demo found out about one setting."""

    setting: Setting
    facts: dict[str, Any]
    outputs: list[str]
    score: EvalResult
    greedy: BenchResult
    beam: BenchResult


def main() -> int:
    """Run the demo and return its exit code."""
    return as_process(_run)


def _run() -> None:
    if not (SAMPLE.is_file() and RETRAINED.is_dir()):
        raise InputError(f"{MODEL}: the demo's model is not here; run it in a clone of the repository")
    ui = Ui.start()
    console = _console()
    start = time.perf_counter()
    console.rule("[bold]tvmq demo: English to German")
    console.print("A Transformer of 52.3 million weights, compiled for this CPU three times:")
    console.print(f"  {ORIGINAL.label:24} nothing quantized, the yardstick")
    console.print(f"  {CHOSEN.label:24} bits where they count, retrained: what this project ships")
    console.print(f"  {PAPER.label:24} the mix of Chung et al. 2020 as published, without their retraining")
    console.print()
    for setting in SETTINGS:
        _compile(ui, console, setting)
    console.print()
    sources, references = (column[:SCORED] for column in read_pairs(SAMPLE))
    results = [_measure(ui, console, setting, sources, references) for setting in SETTINGS]
    console.print()
    console.rule(f"[bold]Side by side, beam 4: {ORIGINAL.label} and {CHOSEN.label}")
    _show_translations(console, sources, results[0], results[1])
    console.rule(f"[bold]Measured here, on {results[0].greedy.cpu}, 1 thread")
    console.print(results_table(results))
    console.print(f"BLEU and chrF with beam 4 on {len(sources)} sentences: {results[0].score.signature}")
    console.print(f"\nDone in {time.perf_counter() - start:.0f} s. Now try your own text:")
    console.print(f"  {_command()} translate {_short(CHOSEN.artifact)}", style="bold", markup=False)


def _console() -> Console:
    """Colours and the window's width on a terminal, plain lines of 110 characters elsewhere."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def _command() -> str:
    return _short(Path(sys.executable).parent / "tvmq")


def _short(path: Path) -> str:
    """Relative to where the user stands, if it is below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _compile(ui: Ui, console: Console, setting: Setting) -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with ui.progress() as progress:
        options = CompileOptions(plan=setting.plan, force=True)
        api.compile(setting.model, setting.artifact, options, progress=progress)
    facts = api.inspect(setting.artifact)
    console.print(
        f"[green]compiled[/]  {setting.label:24} {time.perf_counter() - start:5.1f} s   "
        f"{facts['size_bytes'] / MB:6.1f} MB   {facts['bits_per_weight']:5.2f} bits per weight   "
        f"for {', '.join(facts['isa_levels'])}"
    )


def _measure(
    ui: Ui, console: Console, setting: Setting, sources: list[str], references: list[str]
) -> Measured:
    """Translate the sample for the score, then time a part of it in fresh processes."""
    search = SearchOptions()
    start = time.perf_counter()
    with ui.progress() as progress:
        with closing(api.load_translator(setting.artifact)) as translator:
            outputs = translate_all(translator, sources, search, progress)
        runs = []
        for part, beam in enumerate((1, search.beam)):
            progress("timing", part, 2)
            one_by_one = SearchOptions(beam=beam, batch_size=1)
            options = BenchOptions(search=one_by_one, input=SAMPLE, sentences=TIMED, rounds=3)
            runs.append(api.bench(setting.artifact, options))
    console.print(
        f"[green]measured[/]  {setting.label:24} {time.perf_counter() - start:5.1f} s   "
        f"{runs[0].tokens_per_s:6,.0f} tokens per second greedy, {runs[1].tokens_per_s:,.0f} with beam 4"
    )
    return Measured(
        setting=setting,
        facts=api.inspect(setting.artifact),
        outputs=outputs,
        score=score(outputs, references),
        greedy=runs[0],
        beam=runs[1],
    )


def _show_translations(console: Console, sources: list[str], original: Measured, compiled: Measured) -> None:
    from rich.table import Table
    from rich.text import Text

    fitting = [i for i, text in enumerate(sources) if len(text.split()) in SHOWN_WORDS]
    step = max(1, len(fitting) // SHOWN)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column(overflow="fold")
    for i in fitting[::step][:SHOWN]:
        before, after = original.outputs[i], compiled.outputs[i]
        table.add_row("source", Text(sources[i]))
        table.add_row(original.setting.label, Text(before))
        table.add_row(compiled.setting.label, with_differences(before, after))
        table.add_row()
    console.print(table)
    same = sum(a == b for a, b in zip(original.outputs, compiled.outputs, strict=True))
    console.print(f"{same} of {len(sources)} translations are the same, word for word.\n")


def with_differences(before: str, after: str) -> Text:
    """``after`` with the words that ``before`` does not have at that place marked, also without colours."""
    from rich.text import Text

    if before == after:
        return Text("(the same)", style="green")
    marked = Text()
    old, new = before.split(), after.split()
    for kind, _, _, first, last in SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        if first == last:
            continue
        words = " ".join(new[first:last])
        marked.append(*((words,) if kind == "equal" else (f"[{words}]", "yellow"))).append(" ")
    return marked


def results_table(results: list[Measured]) -> Table:
    """A column per setting, a row per figure; the first setting is the yardstick of all ratios."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for result in results:
        table.add_column(result.setting.label, justify="right")
    size = [result.facts["size_bytes"] / MB for result in results]
    memory = [result.greedy.peak_rss_mb - result.greedy.baseline_rss_mb for result in results]
    table.add_row("size, MB", *_times_smaller(size))
    table.add_row("bits per weight", *(f"{r.facts['bits_per_weight']:.2f}" for r in results))
    table.add_row("memory above the interpreter, MB", *_times_smaller(memory))
    for name, runs in (("greedy", [r.greedy for r in results]), ("beam 4", [r.beam for r in results])):
        speeds = [run.tokens_per_s for run in runs]
        table.add_row(f"tokens per second, {name}", *(f"{s:,.0f} ({s / speeds[0]:.1f}x)" for s in speeds))
    table.add_row("BLEU", *_differences([r.score.value for r in results]))
    table.add_row("chrF", *_differences([r.score.chrf for r in results]))
    return table


def _differences(values: list[float]) -> list[str]:
    return [f"{value:.1f} ({value - values[0]:+.1f})" for value in values]


def _times_smaller(values: list[float]) -> list[str]:
    return [f"{value:.1f} (1/{values[0] / value:.1f})" for value in values]


if __name__ == "__main__":
    sys.exit(main())
