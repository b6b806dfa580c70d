# SPDX-License-Identifier: Apache-2.0
"""The command line without a model: help texts, exit codes, one line per error, JSON and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tvmq import api, cli
from tvmq.cli.options import parse_override
from tvmq.errors import MissingToolError, UsageError

Run = Callable[..., Any]
VERBS = ("compile", "quantize", "translate", "eval", "bench", "inspect", "verify", "targets", "doctor")


def one_error(text: str) -> str:
    """The message of the single line on stderr."""
    (line,) = text.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_help_lists_the_verbs(tvmq: Run) -> None:
    outcome = tvmq("--help")
    assert outcome.code == 0
    for verb in VERBS:
        assert f"\n  {verb} " in outcome.out
    assert tvmq().out == outcome.out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(tvmq: Run, golden: Callable[[str, str], None], verb: str) -> None:
    outcome = tvmq(verb, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    golden(f"help-{verb}.txt", outcome.out)


def test_version(tvmq: Run) -> None:
    from tvmq import __version__

    assert tvmq("--version").out == f"tvmq {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["transalte"], "No such command 'transalte'"),
        (["verify"], "Missing argument"),
        (["compile", "m", "--bitz", "2"], "No such option: --bitz"),
        (["compile", "m", "--bits", "two"], "--bits"),
        (["compile", "m", "--tables", "int4"], "--tables"),
        (["translate", "a", "--beam", "0"], "--beam"),
        (["bench", "a", "--threads", "-1"], "--threads"),
        (["compile", "m"], "where to? name the folder to write: -o NAME.tvmq"),
        (["compile", "m", "-o", "x", "--set", "Dec_ffn"], "--set Dec_ffn: expected PATTERN=BITS"),
    ],
)
def test_wrong_usage_is_exit_2(tvmq: Run, words: list[str], message: str) -> None:
    outcome = tvmq(*words)
    assert outcome.code == 2
    assert message in one_error(outcome.err)
    assert outcome.out == ""


@pytest.mark.parametrize("verb", ["inspect", "verify", "bench"])
def test_no_artifact_is_exit_3(tvmq: Run, tmp_path: Path, verb: str) -> None:
    for path in (tmp_path, tmp_path / "none", Path(__file__)):
        outcome = tvmq(verb, path)
        assert outcome.code == 3
        assert one_error(outcome.err).startswith(f"{path}: not an artifact")
        assert outcome.out == ""


def test_overrides() -> None:
    assert parse_override("model.*.fc1=3") == ("model.*.fc1", 3)
    assert parse_override("a=b=2") == ("a=b", 2)
    for text in ("", "=2", "a=", "a=two", "a=-1", "a=²"):
        with pytest.raises(UsageError, match="expected PATTERN=BITS"):
            parse_override(text)


def test_targets_json(tvmq: Run) -> None:
    from targets import detect_host, target_names

    outcome = tvmq("targets", "--json")
    listed = json.loads(outcome.out)["targets"]
    assert [target["name"] for target in listed] == list(target_names())
    assert {target["name"] for target in listed if target["runs_here"]} == set(detect_host())


def test_doctor_json_and_table(tvmq: Run) -> None:
    value = json.loads(tvmq("doctor", "--json").out)
    assert value["ok"] is True
    assert {check["name"] for check in value["checks"]} >= {"Python", "apache-tvm", "C compiler", "CPU"}
    assert "apache-tvm-ffi" in tvmq("doctor").out


def failing(error: BaseException) -> Callable[..., Any]:
    def verb(*_: Any, **__: Any) -> Any:
        raise error

    return verb


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (MissingToolError("no cc; install gcc"), 4, "no cc; install gcc"),
        (ValueError("group size 48 does not divide\n512"), 3, "group size 48 does not divide 512"),
        (PermissionError(13, "Permission denied", "out"), 3, "out: Permission denied"),
        (OSError(28, "No space left on device"), 3, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("oh"), 1, "internal error: ZeroDivisionError: oh (add -vv, please report it)"),
    ],
)
def test_every_error_is_one_line_and_its_code(
    tvmq: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str
) -> None:
    monkeypatch.setattr(api, "targets", failing(error))
    outcome = tvmq("targets")
    assert (outcome.code, one_error(outcome.err)) == (code, text)


def test_vv_shows_the_traceback(tvmq: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "targets", failing(ZeroDivisionError("oh")))
    assert "Traceback" in tvmq("targets", "-vv").err
    assert "Traceback" not in tvmq("targets", "-v").err


def test_failed_verification_is_exit_5(tvmq: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvmq.artifact import FileCheck, VerifyResult

    checks = (
        FileCheck(path="lib/a.so", size=3, ok=False, problem="contents differ"),
        FileCheck(path="plan.json", size=1, ok=True),
    )
    monkeypatch.setattr(api, "verify", lambda _: VerifyResult(ok=False, files=checks))
    outcome = tvmq("verify", "x.tvmq", "--json")
    assert outcome.code == 5
    assert one_error(outcome.err) == "x.tvmq/lib/a.so: contents differ; compile or copy it again"
    assert json.loads(outcome.out)["ok"] is False


def test_bench_and_eval_json_keys(tvmq: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that other programs rely on."""
    from tvmq.benchmark import BenchResult
    from tvmq.evaluation import EvalResult

    measured = BenchResult(
        tokens_per_s=1.0,
        ms_per_sentence=2.0,
        threads=1,
        beam=1,
        batch=1,
        peak_rss_mb=3.0,
        baseline_rss_mb=1.0,
        weights_mb=1.0,
        isa="x",
        cpu="y",
    )
    monkeypatch.setattr(api, "bench", lambda *_, **__: measured)
    assert set(json.loads(tvmq("bench", "a", "--json").out)) == {
        "tokens_per_s", "ms_per_sentence", "threads", "beam", "batch", "peak_rss_mb", "baseline_rss_mb",
        "weights_mb", "isa", "cpu",
    }  # fmt: skip
    scored = EvalResult(metric="BLEU", value=33.0, chrf=61.0, signature="s", n=2, seconds=1.0)
    monkeypatch.setattr(api, "evaluate", lambda *_, **__: scored)
    value = json.loads(tvmq("eval", "a", "--data", "d.tsv", "--json").out)
    assert set(value) == {"metric", "value", "signature", "n", "chrf"}
    assert "2 in 1.0 s" in tvmq("eval", "a", "--data", "d.tsv").out


def test_a_closed_pipe_is_silent() -> None:
    """As in ``tvmq doctor | head -0``: no traceback and no complaint at interpreter shutdown."""
    command = [sys.executable, "-m", "tvmq", "targets", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_verbs_and_options_are_documented() -> None:
    """Every option says what it does."""
    import typer.main

    group = typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        assert command.help, name
        assert all(getattr(option, "help", None) for option in command.params), name
