# SPDX-License-Identifier: Apache-2.0
"""The command line: verbs are thin, the work is in ``tvmq.api``. Errors end as one line and an exit code.

Exit codes: 0 ok, 1 a bug of tvmq, 2 usage, 3 bad input, 4 missing tool, 5 verification failed,
130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, NoReturn

import typer
from typer.exceptions import TyperException

from tvmq import __version__
from tvmq.errors import InputError, TvmqError, UsageError

from .compile import compile_model
from .encode import classify, embed, tag
from .evaluate import evaluate
from .kernels import bench_kernels
from .log import log
from .package import package
from .plan import plan
from .quantize import quantize_model
from .report import report
from .reports import bench, doctor, inspect, targets, verify
from .retrain import retrain
from .translate import translate
from .tune import tune
from .ui import INTERRUPTED, Ui

BUG = 1

app = typer.Typer(
    name="tvmq",
    help="Compile a trained Transformer into a small, fast, self-contained folder.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("compile")(compile_model)
app.command("plan")(plan)
app.command("quantize")(quantize_model)
app.command("retrain")(retrain)
app.command("translate")(translate)
app.command("embed")(embed)
app.command("classify")(classify)
app.command("tag")(tag)
app.command("eval")(evaluate)
app.command("bench")(bench)
app.command("bench kernels")(bench_kernels)
app.command("tune")(tune)
app.add_typer(log, name="log")
app.command("inspect")(inspect)
app.command("report")(report)
app.command("verify")(verify)
app.command("package")(package)
app.command("targets")(targets)
app.command("doctor")(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"tvmq {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Compile a trained Transformer into a small, fast, self-contained folder."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        arguments: words after ``tvmq``; those of the process by default. None at all is ``--help``.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:2] == ["bench", "kernels"]:  # a folder of that name is ./kernels
        words[:2] = ["bench kernels"]
    guard = as_process if arguments is None else guarded
    return guard(lambda: app(args=words or ["--help"], prog_name="tvmq", standalone_mode=False))


def as_process(run: Callable[[], object]) -> int:
    """``guarded`` for the whole life of a process: Ctrl-C ends it cleanly and at once."""
    signal.signal(signal.SIGINT, _Interrupts.note)
    code = guarded(run)
    if code == INTERRUPTED:
        sys.stderr.flush()
        os._exit(code)  # graphs that TVM left half-built would complain while they are taken down
    return code


class _Interrupts:
    """Whether Ctrl-C was pressed: an interrupt inside TVM comes back as an error without a name."""

    seen: ClassVar[bool] = False
    kept: ClassVar[BaseException | None] = None

    @classmethod
    def note(cls, *_: object) -> NoReturn:
        cls.seen = True
        raise KeyboardInterrupt


def guarded(run: Callable[[], object]) -> int:
    """Call ``run``; whatever it raises becomes one line on stderr and the exit code."""
    try:
        code = run()
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            return _fail("interrupted", INTERRUPTED)
        return code if isinstance(code, int) else 0
    except TyperException as error:
        return _fail(error.format_message(), UsageError.exit_code)
    except TvmqError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", InputError.exit_code)
    except ValueError as error:
        return _fail(str(error), InputError.exit_code)
    except MemoryError:
        return _fail(
            "not enough memory on this machine for this model and these options", InputError.exit_code
        )
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except Exception as error:
        if _Interrupts.seen:
            _Interrupts.kept = error
            return _fail("interrupted", INTERRUPTED)
        text = f"internal error: {type(error).__name__}: {error} (add -vv, please report it)"
        return _fail(text, BUG)


def _fail(text: str, code: int) -> int:
    """One line on stderr, with the traceback above it under -vv."""
    if Ui.current is not None and Ui.current.verbose > 1:
        traceback.print_exc()
    sys.stderr.write(f"error: {' '.join(text.split())}\n")
    if code == BUG:
        return code
    _drop_stdout()
    return code


def _drop_stdout() -> None:
    """Results that a closed pipe did not take must not fail again when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
