# SPDX-License-Identifier: Apache-2.0
"""``tvmq.h`` in Python: models and sessions of an artifact's own runtime library, by ctypes.

Needs neither TVM nor tvm_ffi; the arrays that come back are copies.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int, c_int32, c_size_t, c_uint32, c_void_p
from functools import cache
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
    "tvmq_encode": (c_int, [c_void_p, c_char_p, c_void_p, c_void_p, c_void_p, c_size_t]),
    "tvmq_rows": (POINTER(c_float), [c_void_p, POINTER(c_size_t), POINTER(c_size_t)]),
}


@cache
def _open_library(path: Path, _: tuple[int, int, int]) -> Any:
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise VerificationError(f"{path}: cannot be loaded ({error}; compile the model again)") from error
    found = library.tvmq_abi_version()
    if found != ABI_VERSION:
        raise VerificationError(
            f"{path}: has interface version {found}, this tvmq uses {ABI_VERSION} (compile the model again)"
        )
    return library


def open_library(path: Path) -> Any:
    """The runtime library at ``path``, whose hash was checked; VerificationError if it is none of ours."""
    state = path.stat()
    return _open_library(path, (state.st_dev, state.st_ino, state.st_mtime_ns))


class Session:
    """A loaded artifact with one session. Not for use by two threads at once."""

    def __init__(self, library: Path, artifact: Path, *, isa: str, threads: int) -> None:
        self._library = open_library(library)
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
        self._check(
            self._library.tvmq_translate(self._session, ids.ctypes.data, lengths.ctypes.data, len(lengths))
        )
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
