# SPDX-License-Identifier: Apache-2.0
"""``tvmq.h`` in Python: models and sessions of an artifact's own runtime library, by ctypes.

Needs neither TVM nor tvm_ffi; the arrays that come back are copies.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import threading
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmq.errors import InputError, TvmqError, UsageError, VerificationError

ABI_VERSION = 1
_MESSAGE_BYTES = 512
_ERRORS: dict[int, type[TvmqError]] = {2: UsageError, 3: InputError, 5: VerificationError}
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "tvmq_abi_version": (c_uint32, []),
    "tvmq_load": (c_int, [c_char_p, c_char_p, POINTER(c_void_p), c_char_p, c_size_t]),
    "tvmq_unload": (None, [c_void_p]),
    "tvmq_info": (c_char_p, [c_void_p, c_char_p]),
    "tvmq_open": (c_int, [c_void_p, c_int, POINTER(c_void_p)]),
    "tvmq_close": (None, [c_void_p]),
    "tvmq_message": (c_char_p, [c_void_p]),
    "tvmq_set": (c_int, [c_void_p, c_char_p, c_double]),
    "tvmq_translate": (c_int, [c_void_p, c_void_p, c_void_p, c_size_t]),
    "tvmq_result": (c_size_t, [c_void_p, c_size_t, c_size_t, POINTER(POINTER(c_int32)), POINTER(c_float)]),
    "tvmq_cancel": (None, [c_void_p]),
    "tvmq_encode": (c_int, [c_void_p, c_char_p, c_void_p, c_void_p, c_void_p, c_size_t]),
    "tvmq_rows": (POINTER(c_float), [c_void_p, POINTER(c_size_t), POINTER(c_size_t)]),
}


_LOADED: dict[str, Any] = {}
"""sha256 -> the library of those bytes, for the life of the process."""


class NotLoadableError(VerificationError):
    """This system does not load the library, which is as it was compiled."""


def open_library(path: Path, sha256: str) -> Any:
    """The runtime library of the bytes at ``path``, which are hashed as they are loaded.

    Raises:
        VerificationError: the bytes have another hash, or are a library of another version.
        NotLoadableError: the system refuses them (another C library, no code from such files).
    """
    if sha256 not in _LOADED:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise VerificationError(f"{path}: contents differ (sha256) (compile or copy the artifact again)")
        _LOADED[sha256] = _declare(path, _load(path, data))
    return _LOADED[sha256]


def _load(path: Path, data: bytes) -> Any:
    """The hashed bytes from memory, where nobody changes them; where there is none, from the file."""
    try:
        handle = os.memfd_create("libtvmq", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(os.dup(handle), "wb") as memory:
            memory.write(data)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(handle, fcntl.F_ADD_SEALS, seals)
        return ctypes.CDLL(
            f"/proc/self/fd/{handle}"
        )  # the descriptor stays: its number is the library's name
    except (OSError, AttributeError):
        pass
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NotLoadableError(f"{path}: cannot be loaded ({error}; compile the model again)") from error


def _declare(path: Path, library: Any) -> Any:
    try:
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise VerificationError(
            f"{path}: is no runtime of tvmq ({error}; compile the model again)"
        ) from error
    found = library.tvmq_abi_version()
    if found != ABI_VERSION:
        raise VerificationError(
            f"{path}: has interface version {found}, this tvmq uses {ABI_VERSION} (compile the model again)"
        )
    return library


class Session:
    """A loaded artifact with one session. Not for use by two threads at once."""

    def __init__(self, library: Any, artifact: Path, *, isa: str, threads: int) -> None:
        self._library = library
        self._model, self._session = c_void_p(), c_void_p()
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        code = self._library.tvmq_load(
            os.fsencode(artifact), isa.encode(), byref(self._model), message, _MESSAGE_BYTES
        )
        if code:
            raise _error(code, message.value)
        self._check(self._library.tvmq_open(self._model, threads, byref(self._session)))

    def translate(
        self, sources: Sequence[Sequence[int]], options: dict[str, float]
    ) -> list[list[tuple[tuple[int, ...], float]]]:
        """(tokens, score) of the ``n_best`` translations of every source, all of them decoded together.

        ``options`` are those of ``tvmq_set``; all have to be given, since a session remembers them.
        """
        for name, value in options.items():
            self._check(self._library.tvmq_set(self._session, name.encode(), value))
        ids, lengths = _joined(sources)
        self._check(self._translate(ids, lengths))
        ranks = range(int(options["n_best"]))
        results = [[self._result(sentence, rank) for rank in ranks] for sentence in range(len(lengths))]
        return [[result for result in best if result[0]] for best in results]

    def encode(
        self, function: str, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]]
    ) -> NDArray[np.float32]:
        """Rows of ``embed``, ``classify`` or ``tag``, float32[rows, columns]."""
        tokens, lengths = _joined(ids)
        kinds, counts = _joined(types)
        if not np.array_equal(counts, lengths):
            raise ValueError("every text has as many token types as ids")
        arguments = (tokens.ctypes.data, kinds.ctypes.data, lengths.ctypes.data, len(lengths))
        self._check(self._library.tvmq_encode(self._session, function.encode(), *arguments))
        rows, columns = c_size_t(), c_size_t()
        data = self._library.tvmq_rows(self._session, byref(rows), byref(columns))
        return np.ctypeslib.as_array(data, (rows.value, columns.value)).copy()

    def close(self) -> None:
        """Frees session and model."""
        if self._session:
            self._library.tvmq_close(self._session)
        if self._model:
            self._library.tvmq_unload(self._model)
        self._session, self._model = c_void_p(), c_void_p()

    def __del__(self) -> None:
        if hasattr(self, "_session"):
            self.close()

    def _translate(self, ids: NDArray[np.int32], lengths: NDArray[np.uintp]) -> int:
        """The code of ``tvmq_translate``. Ctrl-C, which Python sees in its own code only, cancels it."""
        codes: list[int] = []

        def run() -> None:
            arguments = (self._session, ids.ctypes.data, lengths.ctypes.data, len(lengths))
            codes.append(self._library.tvmq_translate(*arguments))

        if threading.current_thread() is not threading.main_thread():
            run()
            return codes[0]
        thread = threading.Thread(target=run, name="tvmq-translate")
        thread.start()
        try:
            thread.join()
        except BaseException:
            self._library.tvmq_cancel(self._session)
            thread.join()
            raise
        return codes[0]

    def _result(self, sentence: int, rank: int) -> tuple[tuple[int, ...], float]:
        tokens, score = POINTER(c_int32)(), c_float()
        count = self._library.tvmq_result(self._session, sentence, rank, byref(tokens), byref(score))
        return tuple(tokens[:count]) if count else (), float(score.value)

    def _check(self, code: int) -> None:
        if code:
            raise _error(code, self._library.tvmq_message(self._session))


def _error(code: int, message: bytes) -> TvmqError:
    return _ERRORS.get(code, TvmqError)(message.decode("utf-8", "replace"))


def _joined(lists: Sequence[Sequence[int]]) -> tuple[NDArray[np.int32], NDArray[np.uintp]]:
    """All numbers one list after the other, and the lengths of the lists."""
    lengths = np.array([len(numbers) for numbers in lists], np.uintp)
    return np.concatenate([np.asarray(numbers, np.int32) for numbers in lists]), lengths
