# SPDX-License-Identifier: Apache-2.0
"""The command line without a model: help texts, exit codes, one line per error, JSON and nothing else."""

from __future__ import annotations

import dataclasses
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
VERBS = (
    "compile", "plan", "quantize", "retrain", "translate", "embed", "classify", "tag", "eval", "bench",
    "inspect", "report", "verify", "package", "targets", "doctor",
)  # fmt: skip


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
    from tvmq.significance import Comparison

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
    scored = EvalResult(
        metric="BLEU",
        value=33.0,
        value_interval=(30.0, 36.0),
        chrf=61.0,
        chrf_value_interval=(59.0, 63.0),
        signature="s",
        n=2,
        seconds=1.0,
        outputs=("a", "b"),
    )
    monkeypatch.setattr(api, "evaluate", lambda *_, **__: scored)
    value = json.loads(tvmq("eval", "a", "--data", "d.tsv", "--json").out)
    alone = {"metric", "value", "value_interval", "signature", "n", "chrf", "chrf_value_interval"}
    assert set(value) == alone
    assert "2 in 1.0 s" in tvmq("eval", "a", "--data", "d.tsv").out
    found = Comparison(baseline_value=34.0, difference=-1.0, interval=(-1.5, -0.5), p_value=0.0123)
    compared = dataclasses.replace(scored, comparison=found, chrf_comparison=found)
    monkeypatch.setattr(api, "evaluate", lambda *_, **__: compared)
    value = json.loads(tvmq("eval", "a", "--data", "d.tsv", "--baseline", "b", "--json").out)
    added = {"baseline_value": 34.0, "difference": -1.0, "interval": [-1.5, -0.5], "p_value": 0.0123}
    assert {key: value[key] for key in added} == added
    assert (value["value_interval"], value["chrf_value_interval"]) == ([30.0, 36.0], [59.0, 63.0])
    assert set(value) == alone | {prefix + key for key in added for prefix in ("", "chrf_")}
    shown = tvmq("eval", "a", "--data", "d.tsv", "--baseline", "b").out
    assert "-1.00 (95 %: -1.50 to -0.50), p = 0.0123, baseline 34.00" in shown


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


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--data", "none.tsv"], 3, "none.tsv: no such file; expected lines of source TAB reference"),
        (["--baseline", "none.txt"], 3, "none.txt: no such file; expected one output a line"),
        (["--baseline", "short.txt"], 3, "short.txt: 1 lines, expected 2, one for each line of the data"),
        (["--baseline", "folder"], 3, "folder: not an artifact"),
        (["--output", "folder"], 2, "folder is a folder, expected a file name"),
        (["--output", "none/out.txt"], 3, "the folder none does not exist (create it first)"),
        (["--output", "data.tsv"], 2, "the output data.tsv is one of the inputs"),
        (["--baseline", "short.txt", "--output", "short.txt"], 2, "short.txt is one of the inputs"),
    ],
)
def test_bad_files_of_eval(
    tvmq: Run,
    compiled: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    message: str,
) -> None:
    artifact = compiled("3-bit")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "data.tsv").write_text("a b\tc d\ne f\tg h\n")
    (tmp_path / "short.txt").write_text("c d\n")
    outcome = tvmq("eval", artifact, "--data", "data.tsv", *words)
    assert outcome.code == code
    assert message in one_error(outcome.err)
    assert outcome.out == ""
    kept = {"data.tsv": "a b\tc d\ne f\tg h\n", "short.txt": "c d\n"}
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()} == kept


def test_eval_against_a_file_and_an_artifact(
    tvmq: Run, compiled: Callable[..., Path], tmp_path: Path
) -> None:
    data, lines = tmp_path / "data.tsv", tmp_path / "lines.txt"
    data.write_text("w1 w2 w3\tw4 w5 w6\nw7 w8\tw9 w10\n")
    words = ["eval", compiled("3-bit"), "--data", data, "--json"]
    first = json.loads(tvmq(*words, "--output", lines).out)
    assert len(lines.read_text(encoding="utf-8").splitlines()) == 2
    by_file = json.loads(tvmq(*words, "--baseline", lines).out)
    assert by_file == json.loads(tvmq(*words, "--baseline", compiled("3-bit")).out)
    assert {key: by_file[key] for key in first} == first
    assert (by_file["difference"], by_file["interval"], by_file["p_value"]) == (0.0, [0.0, 0.0], 1.0)
