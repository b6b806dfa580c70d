# SPDX-License-Identifier: Apache-2.0
"""Candidates on other machines: a shell command, here and under an emulator; RPC servers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from schedules.schedule import AnySchedule, Schedule, TokenTile
from schedules.tuning_log import read
from schedules.workload import Workload
from targets import detect_host, get_target
from targets.toolchain import find_linker
from tvmq.errors import InputError
from tvmq.kernels.child import Child, ChildLost, ChildTimeout
from tvmq.kernels.command_runner import CommandRunner
from tvmq.kernels.rpc_runner import RpcRunner
from tvmq.kernels.runner import Outcome, Runner
from tvmq.kernels.workshop import PROBLEM, PROGRAM, RULE, Workshop, build_measure, read_answers

here = pytest.mark.isa("x86_64_v2")
FEW = Workload.of("lut", 64, 64, 4, 1)
HERE = "cd {folder} && {run}"
PLANTED = {
    "wrong": "return 0;",
    "crash": "abort();",
    "timeout": "for (;;) pause();",
    "refused": 'say("ValueError", (const char *[]){"no such shape"}, 1); return 1;',
    "gone": "kill(getppid(), SIGKILL); for (;;) pause();",
}
"""What kernels do instead of their work; the last takes the measuring program with it."""
SOURCE = """
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
extern void TVMFFIErrorSetRaisedFromCStrParts(const char *, const char **, int);
#define say TVMFFIErrorSetRaisedFromCStrParts
int __tvm_ffi_lut_table(void) {{ {body} }}
int __tvm_ffi_lut_gemm(void) {{ return 0; }}
"""


def schedule(prefetch: int) -> Schedule:
    return Schedule(tiles=(TokenTile(tokens=1, prefetch=prefetch),))


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Schedules with a prefetch of 1, 2, ... do what ``PLANTED`` says, in order; all others are real."""
    linker = find_linker(get_target(detect_host()[0]))
    assert linker is not None
    bad = []
    for name, body in PLANTED.items():
        (tmp_path / f"{name}.c").write_text(SOURCE.format(body=body))
        command = [*linker.command, "-shared", "-fPIC", f"{name}.c", "-o", f"{name}.so"]
        subprocess.run(command, cwd=tmp_path, check=True)
        bad.append((tmp_path / f"{name}.so").read_bytes())
    real = Workshop.library

    def library(self: Workshop, given: AnySchedule, name: str) -> Outcome | None:
        assert isinstance(given, Schedule)
        which = given.tiles[-1].prefetch
        if 1 <= which <= len(bad):
            (self.folder / name).write_bytes(bad[which - 1])
            return None
        return real(self, given, name)

    monkeypatch.setattr(Workshop, "library", library)


def outcomes(runner: Runner, schedules: list[Schedule]) -> dict[int, Outcome]:
    """By prefetch."""
    found = {}
    for given, outcome in runner.run(FEW, schedules, 1):
        assert isinstance(given, Schedule)
        found[given.tiles[-1].prefetch] = outcome
    return found


@here
def test_a_command_loses_only_bad_candidates(plant: None) -> None:
    """Wrong, crashing, hanging and refusing kernels, one that ends the program, and good ones around them."""
    runner = CommandRunner(get_target(detect_host()[-1]), 2, 2.0, HERE)
    try:
        found = outcomes(runner, [schedule(p) for p in (64, 1, 2, 3, 4, 5, 128)])
    finally:
        runner.close()
    wanted = ["ok", "wrong", "crash", "timeout", "wrong", "crash", "ok"]
    assert [found[p].status for p in (64, 1, 2, 3, 4, 5, 128)] == wanted
    assert found[1].why == "other bits than the reference"
    assert found[2].why == "signal 6"
    assert found[3].why == "no answer within 2 s"
    assert found[4].why == "ValueError: no such shape"
    assert found[5].why == "the command gave no answer for it"
    assert all(found[p].us > 0 and found[p].rule_us > 0 and found[p].basis == "measured" for p in (64, 128))


@here
def test_files_are_carried_once_and_noise_is_skipped(tmp_path: Path) -> None:
    """As over adb or ssh: what is new is copied to another folder, whose program runs there."""
    device = tmp_path / "a device"
    device.mkdir()
    template = f"echo '{{{{\"library\": 7'; echo {{files}} >> '{device}/log'; cp {{files}} '{device}' && "
    template += f"cd '{device}' && {{run}} && echo bye"
    runner = CommandRunner(get_target(detect_host()[-1]), 1, 20.0, template)
    try:
        assert {o.status for o in outcomes(runner, [schedule(64), schedule(128)]).values()} == {"ok"}
        assert {o.status for o in outcomes(runner, [schedule(256)]).values()} == {"ok"}
    finally:
        runner.close()
    lines = (device / "log").read_text().splitlines()
    carried = [[Path(word).name for word in line.split()] for line in lines]
    both = ["candidate0.so", "candidate1.so", PROBLEM, RULE, PROGRAM]
    assert carried == [sorted(both), ["candidate0.so"]]


@pytest.mark.parametrize("level", ["arm64_v8", "arm64_i8mm"])
def test_tunes_arm_under_an_emulator(tvmq: Any, tmp_path: Path, level: str) -> None:
    """Bytes are those of this machine; times say nothing, are marked and never used."""
    from targets.toolchain import find_emulator
    from tests.conftest import missing_for_emulation

    missing = missing_for_emulation(level)
    if missing:
        pytest.skip(f"{level} needs {missing}")
    emulator = find_emulator(get_target(level))
    assert emulator is not None
    work, log = tmp_path / "w.json", tmp_path / "log.jsonl"
    op = "lut" if level == "arm64_v8" else "dequant"
    work.write_text(json.dumps([{"op": op, "n": 64, "k": 128, "m": 4, "bits": 2}]))
    command = f"command:cd {{folder}} && {' '.join(emulator)} {{run}}"
    words = ["--target", level, "--trials", 2, "--runner", command]
    outcome = tvmq("tune", work, "-o", log, *words, "--json")
    assert outcome.code == 0, outcome.err
    assert set(json.loads(outcome.out)["trials"]) == {"ok"}
    records = read(log).records
    assert len(records) >= 3
    assert {(r.status, r.basis, r.key.target) for r in records} == {("ok", "emulated", level)}
    assert read(log).best() == []


@here
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--runner", "command:echo {folder}"], 2, "lacks {run}, the program that measures"),
        (["--runner", "command:{run} {x}"], 2, "only {folder}, {files} and {run} are known"),
        (["--runner", "command:{run!z}"], 2, "only {folder}, {files} and {run} are known"),
        (["--runner", "command:echo no such device >&2; exit 3 # {run}"], 3, "exit code 3, no such device"),
        (["--runner", "command:cd {folder}; echo > problem; {run}"], 3, "the problem file: no problem file"),
        (["--runner", "magic"], 2, "unknown runner 'magic'; known: local, rpc, command:TEMPLATE"),
        (["--runner", "rpc"], 2, "--runner rpc needs --tracker HOST:PORT and --key KEY"),
        (["--runner", "rpc", "--tracker", "nowhere", "--key", "k"], 2, "expected HOST:PORT"),
        (["--tracker", "127.0.0.1:1", "--key", "k"], 2, "--tracker and --key belong to --runner rpc"),
        (["--runner", "rpc", "--tracker", "127.0.0.1:1", "--key", "k"], 3, "no RPC tracker answers at 127"),
        (["--runner", "rpc", "--target", "z80"], 2, "unknown target 'z80'"),
    ],
)
def test_bad_runners_are_one_line(
    tvmq: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, message: str
) -> None:
    monkeypatch.setattr(Workshop, "prepare", lambda self, workload: None)
    monkeypatch.setattr(Workshop, "library", lambda self, schedule, name: None)
    work = tmp_path / "w.json"
    work.write_text(json.dumps([{"op": "lut", "n": 64, "k": 64, "m": 4, "bits": 1}]))
    outcome = tvmq("tune", work, "-o", tmp_path / "log.jsonl", "--trials", 1, *words)
    assert (outcome.code, len(outcome.err.splitlines())) == (code, 1), outcome.err
    assert message in outcome.err


@here
def test_the_measuring_program_refuses_damaged_problems(tmp_path: Path) -> None:
    """Cut off anywhere, or with any byte of its head changed: a sentence, never a crash."""
    target = get_target(detect_host()[-1])
    shop = Workshop(target)
    try:
        assert shop.prepare(FEW) is None
        assert shop.library(schedule(64), "c.so") is None
        whole = (shop.folder / PROBLEM).read_bytes()
        command = [f"./{PROGRAM}", PROBLEM, "1", "1", "5", RULE, "c.so"]

        def run(data: bytes) -> tuple[int, bytes]:
            (shop.folder / PROBLEM).write_bytes(data)
            done = subprocess.run(command, cwd=shop.folder, capture_output=True, check=False)
            return done.returncode, done.stdout

        code, out = run(whole)
        assert (code, read_answers(out, target).outcomes["c.so"].status) == (0, "ok")
        for size in (0, 7, 8, 31, 32, 60, len(whole) // 2, len(whole) - 8):
            code, out = run(whole[:size])
            assert code == 1
            with pytest.raises(InputError, match="the problem file"):
                read_answers(out, target)
        for at in range(8, 72):
            changed = bytearray(whole)
            changed[at] ^= 0xFF
            code, _ = run(bytes(changed))
            assert code in (0, 1), at
    finally:
        shop.close()


def test_answers_are_taken_as_data() -> None:
    """What a device prints is not believed beyond its form."""
    target = get_target("arm64_v8")
    head = b'{"machine": "aarch64", "cpuinfo": "CPU implementer : 0x41\\nCPU part : 0xd0b\\n"}\n'
    lines = [
        b'{"library": "a.so", "status": "ok", "us": 2.0, "rule_us": 3.0}',
        b'{"library": "b.so", "status": "ok", "us": -1, "rule_us": 3.0}',
        b'{"library": "c.so", "status": "ok", "us": 1e999, "rule_us": 3.0}',
        b'{"library": "d.so", "status": "splendid"}',
        b'{"library": "e.so", "status": "ok", "us": "2", "rule_us": 3.0}',
        b'{"library": ' + b"[" * 100000,
        b"[1]",
        b"\xff\xfe",
    ]
    found = read_answers(head + b"\n".join(lines), target)
    assert found.started
    assert {name: o.status for name, o in found.outcomes.items()} == {"a.so": "ok", "b.so": "error"}
    assert (found.outcomes["a.so"].cpu, found.outcomes["a.so"].basis) == ("Cortex-A76", "measured")
    assert not read_answers(b"\n".join(lines), target).started
    host = b'{"machine": "aarch64", "cpuinfo": "model name : AMD EPYC\\n"}\n'
    emulated = read_answers(host + lines[0], target)
    assert emulated.outcomes["a.so"].basis == "emulated"


def test_children_that_do_not_answer_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    echo = "import sys, time; print('ready', flush=True)\nfor l in sys.stdin: exec(l)"
    child = Child([sys.executable, "-c", echo], 30.0)
    try:
        assert child.ask(b"print(6 * 7, flush=True)") == b"42\n"
        with pytest.raises(ChildLost, match="ended with status 5"):
            child.ask(b"sys.exit(5)")
        child.timeout = 0.2
        with pytest.raises(ChildTimeout, match="no answer within 0 s"):
            child.ask(b"time.sleep(60)")
        child.timeout = 30.0
        assert child.ask(b"print(1, flush=True)") == b"1\n"
    finally:
        child.close()
    with pytest.raises(ChildLost, match="did not become ready"):
        Child([sys.executable, "-c", "print('hello')"], 1.0).ask(b"")
    monkeypatch.setattr("tvmq.kernels.child.STARTUP", 0.2)
    with pytest.raises(ChildTimeout):
        Child([sys.executable, "-c", "import time; time.sleep(60)"], 1.0).ask(b"")


@dataclass(frozen=True, slots=True)
class Rack:
    """An RPC tracker and two servers of its key "board"."""

    tracker: str
    servers: list[subprocess.Popen[bytes]]
    logs: list[Path]


def _wait_for(ready: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < end, f"{what} did not start"
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def rack(tmp_path: Path) -> Iterator[Rack]:
    for package in ("tornado", "psutil", "cloudpickle"):
        pytest.importorskip(package, reason=f"TVM's RPC needs {package}")
    try:
        ports = [_free_port() for _ in range(3)]
    except OSError as error:
        pytest.skip(f"no port of the loopback device can be had: {error}")
    started: list[subprocess.Popen[bytes]] = []

    def start(module: str, port: int, *words: str) -> Path:
        log = tmp_path / f"{port}.log"
        address = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
        with log.open("wb") as file:
            command = [sys.executable, "-m", f"tvm.exec.{module}", *address, *words]
            process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        started.append(process)
        return log

    try:
        start("rpc_tracker", ports[0])
        tracker = f"127.0.0.1:{ports[0]}"
        _wait_for(lambda: _connects(ports[0]), "the tracker")
        logs = [start("rpc_server", port, "--tracker", tracker, "--key", "board") for port in ports[1:]]
        _wait_for(lambda: all("bind to" in log.read_text() for log in logs), "the servers")
        yield Rack(tracker, started[1:], logs)
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@here
def test_two_rpc_servers_share_the_candidates(plant: None, rack: Rack) -> None:
    """Both measure; a session that dies, or a server, loses only the candidate that killed it."""
    runner = RpcRunner(get_target(detect_host()[-1]), 1, 2.0, rack.tracker, "board")
    assert runner.batch == 8
    try:
        good = [64, 128, 192, 256, 320, 384, 448]
        found = outcomes(runner, [schedule(p) for p in (*good[:3], 1, 2, *good[3:])])
        assert [found[p].status for p in good] == ["ok"] * len(good)
        assert (found[1].status, found[2].status, found[2].why) == ("wrong", "crash", "signal 6")
        assert all(log.read_text().count("load_module") >= 1 for log in rack.logs)
        # One server dies together with its session: the other goes on with all the rest.
        os.killpg(rack.servers[0].pid, signal.SIGKILL)
        found = outcomes(runner, [schedule(p) for p in (64, 1, 128)])
        assert [found[p].status for p in (64, 1, 128)] == ["ok", "wrong", "ok"]
    finally:
        runner.close()
    with pytest.raises(InputError, match="knows no server of key phone"):
        RpcRunner(get_target(detect_host()[-1]), 1, 2.0, rack.tracker, "phone")


@pytest.mark.parametrize("level", ["x86_64_v2", "arm64_v8"])
def test_the_measuring_program_needs_libc_alone(tmp_path: Path, level: str) -> None:
    target = get_target(level)
    if find_linker(target) is None:
        pytest.skip(f"nothing links for {level}")
    build_measure(target, tmp_path / PROGRAM)
    assert (tmp_path / PROGRAM).read_bytes()[:4] == b"\x7fELF"
    assert (tmp_path / PROGRAM).stat().st_size < 200_000


