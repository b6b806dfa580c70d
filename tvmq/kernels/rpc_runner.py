# SPDX-License-Identifier: Apache-2.0
"""Candidates on all servers of a key of TVM's RPC tracker at once.

Every server gets ``measure.c`` as a library, which forks for each candidate: a crash or a hang of one does
not reach the server. Where a server is lost all the same, its candidates go to others one by one, and only
one that is lost again counts as a crash.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from queue import SimpleQueue

import msgspec

from schedules.schedule import AnySchedule
from schedules.workload import Workload
from targets.spec import TargetSpec
from tvmq.errors import InputError, MissingToolError, UsageError

from .child import Child, ChildLost
from .rpc_worker import RpcAnswer, RpcRequest
from .runner import Outcome
from .workshop import (
    LIBRARY,
    PROBLEM,
    RULE,
    Workshop,
    libraries,
    measure_words,
    measured,
    read_answers,
    time_limit,
)

SHARE = 4
"""Candidates that a server gets at once: a session carries the problem over anew."""
MOST_SERVERS = 32


def tracker_address(text: str) -> tuple[str, int]:
    """Host and port of ``--tracker``; UsageError for anything else."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UsageError(f"--tracker {text}: expected HOST:PORT, such as 192.168.1.5:9190")
    return host.strip("[]"), int(port)


def count_servers(host: str, port: int, key: str) -> int:
    """Servers of a key that a tracker knows.

    Raises:
        MissingToolError: packages of TVM's RPC are missing.
        InputError: no tracker answers there.
    """
    import socket

    try:
        from tvm import rpc
    except ImportError as error:
        raise MissingToolError(f"TVM's RPC needs {error.name}; pip install 'tvmq[tune]'") from error
    try:  # TVM would try for a minute, with warnings
        socket.create_connection((host, port), timeout=10).close()
        servers = rpc.connect_tracker(host, port).summary()["server_info"]
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"no RPC tracker answers at {host}:{port} ({error})") from error
    return sum(server.get("key") == f"server:{key}" for server in servers)


class RpcRunner:
    """Builds here, measures on servers; as many at a time as the tracker knew at the start."""

    memory = True

    def __init__(self, target: TargetSpec, threads: int, timeout: float, tracker: str, key: str) -> None:
        host, port = tracker_address(tracker)
        count = min(MOST_SERVERS, count_servers(host, port, key))
        if not count:
            raise InputError(
                f"the tracker at {tracker} knows no server of key {key} (python -m tvm.exec.rpc_server "
                f"--tracker {tracker} --key {key})"
            )
        self._threads, self._timeout = threads, timeout
        self._shop = Workshop(target, LIBRARY)
        command = [sys.executable, "-m", "tvmq.kernels.rpc_worker", host, str(port), key]
        self._children = [Child(command, timeout) for _ in range(count)]
        self._idle: SimpleQueue[Child] = SimpleQueue()
        for child in self._children:
            self._idle.put(child)
        self._pool = ThreadPoolExecutor(count, "tvmq-rpc")
        self.batch = SHARE * count

    def run(
        self, workload: Workload, schedules: Sequence[AnySchedule], rounds: int
    ) -> Iterator[tuple[AnySchedule, Outcome]]:
        """Checks and times candidates; shares go out as they are built."""
        failure = self._shop.prepare(workload)
        if failure is not None:
            yield from ((schedule, failure) for schedule in schedules)
            return
        built: dict[str, AnySchedule] = {}
        running: list[Future[dict[str, Outcome]]] = []
        share: list[str] = []
        size = max(1, min(SHARE, len(schedules) // len(self._children)))
        for schedule, name in zip(schedules, libraries(len(schedules)), strict=True):
            failure = self._shop.library(schedule, name)
            if failure is not None:
                yield schedule, failure
                continue
            built[name] = schedule
            share.append(name)
            if len(share) == size:
                running.append(self._pool.submit(self._session, share, rounds))
                share = []
        if share:
            running.append(self._pool.submit(self._session, share, rounds))
        for done in as_completed(running):
            for name, outcome in done.result().items():
                yield built[name], outcome

    def _session(self, names: Sequence[str], rounds: int) -> dict[str, Outcome]:
        """Outcomes of some libraries: all on one server, then what was lost one by one."""
        return dict(measured(names, lambda some: self._ask(some, rounds)))

    def _ask(self, names: Sequence[str], rounds: int) -> tuple[dict[str, Outcome], str]:
        """What one server says of some libraries, and why it did not say more."""
        limit = time_limit(names, self._timeout)
        request = RpcRequest(
            folder=str(self._shop.folder),
            measure=LIBRARY,
            files=[PROBLEM, RULE, *names],
            words=measure_words(names, rounds, self._threads, self._timeout),
            limit=limit,
        )
        child = self._idle.get()
        child.timeout = 2 * limit
        try:
            answer = msgspec.json.decode(child.ask(msgspec.json.encode(request)), type=RpcAnswer)
        except ChildLost as error:
            return {}, str(error)
        finally:
            self._idle.put(child)
        if answer.refused:
            raise InputError(f"no RPC server can be had: {answer.refused}")
        found = read_answers(answer.text.encode(), self._shop.target).outcomes
        return found, answer.lost or "the server gave no answer for it"

    def close(self) -> None:
        """Ends all processes here and removes the folder."""
        for child in self._children:
            child.close()
        self._pool.shutdown(cancel_futures=True)
        self._shop.close()
