# SPDX-License-Identifier: Apache-2.0
"""``tvmq translate`` around a translator that upper-cases: streams, files, formats, signals. No model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tvmq.cli.lines import deliver
from tvmq.errors import InputError

SCRIPT = textwrap.dedent(
    """
    import sys, time
    from types import SimpleNamespace
    from tvmq import api
    from tvmq.cli import main
    from tvmq.errors import InputError

    class Upper:
        def translate(self, texts, *, n_best, **_):
            if any(len(text.split()) > 100 for text in texts):
                raise InputError("more than this model's 100 words; split the sentence")
            if "sleep" in texts:
                time.sleep(60)
            said = lambda text, i: SimpleNamespace(text=text.upper() + "!" * i, tokens=[1, 0], score=-i / 2)
            return [[said(text, i) for i in range(n_best)] for text in texts]

        def close(self):
            pass

    api.load_translator = lambda artifact, *, threads, isa: Upper()
    sys.exit(main())
    """
)
Process = subprocess.Popen[bytes]


@contextmanager
def started(*words: str) -> Iterator[Process]:
    command = [sys.executable, "-c", SCRIPT, "translate", "any.tvmq", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        yield process


def run(data: bytes, *words: str) -> tuple[int, str, str]:
    with started(*words) as process:
        out, err = process.communicate(data, timeout=60)
    return process.returncode, out.decode(), err.decode()


def test_a_line_for_every_line() -> None:
    assert run("grün\n\nblau".encode()) == (0, "GRÜN\n\nBLAU\n", "")


def test_nothing_gives_nothing() -> None:
    assert run(b"") == (0, "", "")


def test_n_best_lines_carry_number_and_score() -> None:
    expected = "1\t0.0000\tA\n1\t-0.5000\tA!\n2\t\t\n3\t0.0000\tB\n3\t-0.5000\tB!\n"
    assert run(b"a\n\nb\n", "--n-best", "2") == (0, expected, "")


def test_json_is_one_object() -> None:
    code, out, err = run(b"a\n\n", "--json")
    first = {"text": "A", "score": 0.0, "tokens": [1, 0]}
    lines = [
        {"line": 1, "source": "a", "hypotheses": [first]},
        {"line": 2, "source": "", "hypotheses": []},
    ]
    assert (code, json.loads(out), err) == (0, {"lines": lines}, "")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"x\xff", "line 3: byte 2 is not UTF-8; convert the text or use --errors replace"),
        (b"word " * 10_000, "line 3: more than this model's 100 words; split the sentence"),
        (b"w" * (3 << 20), "line 3: longer than 1 MiB; give one sentence per line"),
    ],
)
def test_a_bad_line_is_exit_3_after_the_good_ones(bad: bytes, message: str) -> None:
    code, out, err = run(b"a\nb\n" + bad + b"\nc\n", "--batch-size", "2")
    assert (code, out, err) == (3, "A\nB\n", f"error: {message}\n")


def test_every_line_is_answered_while_the_writer_waits() -> None:
    with started() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for word in (b"one", b"two"):
            process.stdin.write(word + b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == word.upper() + b"\n"
        process.stdin.close()
        assert process.wait(60) == 0


def test_a_reader_that_leaves_is_no_error() -> None:
    with started("--batch-size", "1") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"one\n")
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write(b"two\n")
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == -signal.SIGPIPE


def test_closed_pipes_mean_to_the_caller_what_they_did(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """A caller of ``main`` that writes to a pipe nobody reads must not die of it afterwards."""

    def broken() -> Iterator[str]:
        yield "b\n"
        assert signal.getsignal(signal.SIGPIPE) == signal.SIG_DFL
        raise InputError("line 2")

    before = signal.getsignal(signal.SIGPIPE)
    deliver(["a\n"], None)
    assert signal.getsignal(signal.SIGPIPE) == before != signal.SIG_DFL
    with pytest.raises(InputError):
        deliver(broken(), None)
    assert signal.getsignal(signal.SIGPIPE) == before
    assert capsysbinary.readouterr().out == b"a\nb\n"


def test_ctrl_c_is_exit_130() -> None:
    with started() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"one\n")
        process.stdin.flush()
        process.stdout.readline()
        process.stdin.write(b"sleep\n")
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == b"error: interrupted\n"


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_bytes(b"a\nb\n")
    words = ("--input", str(source), "--output", str(target))
    assert run(b"", *words) == (0, "", "")
    assert target.read_bytes() == b"A\nB\n"
    code, _, err = run(b"", *words)
    assert code == 2
    assert err.startswith(f"error: {target} exists already (use --force to replace it")
    assert err.count("\n") == 1
    source.write_bytes(b"c\n\xff\n")
    assert run(b"", *words, "--force")[0] == 3
    assert target.read_bytes() == b"A\nB\n"
    assert sorted(tmp_path.iterdir()) == [source, target]


def test_missing_input_and_missing_output_folder(tmp_path: Path) -> None:
    code, _, err = run(b"", "--input", str(tmp_path / "none.txt"))
    assert code == 3
    assert err.endswith("none.txt: no such file; expected a text with one sentence per line\n")
    code, _, err = run(b"a\n", "--output", str(tmp_path / "no" / "out.txt"))
    assert code == 3
    assert err.endswith("out.txt: its folder does not exist or cannot be written to\n")


def test_the_same_file_in_and_out_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"a\n")
    assert run(b"", "--input", str(path), "--output", str(path))[0] == 2
    assert path.read_bytes() == b"a\n"


def test_progress_keeps_out_of_pipes() -> None:
    assert run(b"a\n" * 100) == (0, "A\n" * 100, "")
