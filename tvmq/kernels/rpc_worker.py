# SPDX-License-Identifier: Apache-2.0
"""The process that talks to one RPC server at a time: ``python -m tvmq.kernels.rpc_worker HOST PORT KEY``.

A process, since TVM's client waits without end: for a free server, and for one that has hung up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .serving import serve

FUNCTION = "tvmq_measure"
REQUEST = "request"
ANSWER = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcRequest:
    """Libraries to time on the next free server.

    Attributes:
        folder: where the files are.
        measure: the library of the measuring program, which is called.
        files: what else it needs.
        words: its command line.
        limit: seconds after which the server ends the session.
    """

    folder: str
    measure: str
    files: list[str]
    words: list[str]
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcAnswer:
    """What the program printed; ``refused`` says why no server could be had, ``lost`` why one was lost."""

    text: str = ""
    refused: str = ""
    lost: str = ""


def talk(session: Any, request: RpcRequest) -> str:
    """Carries the files over, runs the program, fetches its lines."""
    folder = Path(request.folder)
    for name in (request.measure, *request.files):
        session.upload(str(folder / name))
    session.upload(bytearray("\n".join(request.words).encode() + b"\n"), REQUEST)
    session.load_module(request.measure)[FUNCTION]()
    return bytes(session.download(ANSWER)).decode("utf-8", "replace")


def answerer(host: str, port: int, key: str) -> Callable[[RpcRequest], RpcAnswer]:
    """Answers requests with servers of a tracker."""
    from tvm import rpc

    def answer(request: RpcRequest) -> RpcAnswer:
        try:
            tracker = rpc.connect_tracker(host, port)
            session = tracker.request(key, session_timeout=request.limit, max_retry=1)
        except Exception as error:  # of TVM, sockets or the tracker
            return RpcAnswer(refused=_why(error))
        try:
            return RpcAnswer(text=talk(session, request))
        except Exception as error:  # whatever a remote failure becomes
            return RpcAnswer(lost=_why(error))

    return answer


def _why(error: Exception) -> str:
    lines: Sequence[str] = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1][:300]


def main() -> int:
    """Answer requests until there are no more."""
    host, port, key = sys.argv[1:]
    return serve(RpcRequest, answerer(host, int(port), key))


if __name__ == "__main__":
    sys.exit(main())
