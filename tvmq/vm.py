# SPDX-License-Identifier: Apache-2.0
"""Runs an artifact's library on TVM's Relax VM, without importing ``tvm``, torch or transformers.

Only the VM's runtime library and the ``tvm_ffi`` binding are loaded. Functions are bound to their
weights and buffers once (a VM closure), so that a decode step passes no arguments.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets import permitted

from .errors import MissingToolError, UsageError

CPU = 1
POOLED_ALLOCATOR = 2
ALIGNMENT = 64
_OWN_PAGES = 1 << 16


@contextmanager
def _without_torch() -> Iterator[None]:
    """tvm_ffi imports torch if it finds it, which costs a second and 200 MB; the runtime needs none of it."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


@cache
def ffi() -> Any:
    """The ``tvm_ffi`` module with the VM's runtime registered in it."""
    os.environ.setdefault("TVM_BIND_THREADS", "0")  # do not pin the caller's threads
    try:
        with _without_torch():
            import tvm_ffi
    except ImportError as error:
        raise MissingToolError(f"apache-tvm-ffi cannot be imported ({error}); reinstall tvmq") from error
    spec = importlib.util.find_spec("tvm")
    places = list(spec.submodule_search_locations or ()) if spec else []
    library = next((p for d in places if (p := Path(d) / "lib" / "libtvm_runtime.so").is_file()), None)
    if library is None:
        raise MissingToolError("libtvm_runtime.so of apache-tvm was not found; reinstall apache-tvm")
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    return tvm_ffi


def set_threads(count: int) -> None:
    """Number of threads that parallel kernels use, for the whole process.

    Without the variable TVM's pool asks the operating system for the number of cores at every parallel
    loop, which costs 20 microseconds each.
    """
    os.environ["TVM_NUM_THREADS"] = str(count)
    ffi().get_global_func("runtime.config_threadpool")(1, count)


def aligned(shape: Sequence[int], dtype: Any) -> NDArray[Any]:
    """Zeros on a 64-byte boundary; pages of large ones are only touched when written."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size >= _OWN_PAGES:  # calloc may reuse freed memory, and then writes every page
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return np.frombuffer(pages, dtype).reshape(shape)
    raw = np.zeros(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def usable(array: NDArray[Any]) -> NDArray[Any]:
    """The array itself if kernels can read it in place, else an aligned copy."""
    if array.ctypes.data % ALIGNMENT == 0 and array.flags.c_contiguous:
        return array
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


_LOADED: dict[Path, list[tuple[int, int]]] = {}
"""Library -> the files (device, inode) that were loaded under its name, for the life of the process."""


def _loadable(library: Path) -> str:
    """A spelling of ``library`` that the loader has not seen for another file.

    The loader goes by name: an artifact that was replaced while its old library is loaded would run the old
    code on the new weights.
    """
    place, state = library.absolute(), library.stat()
    files = _LOADED.setdefault(place, [])
    identity = (state.st_dev, state.st_ino)
    if identity not in files:
        files.append(identity)
    return "/".join([str(place.parent), *["."] * files.index(identity), place.name])


class Machine:
    """One virtual machine over one library. Not for use by two threads at once.

    Raises:
        UsageError: the operating system refuses the registers of the library's ISA level.
    """

    def __init__(self, library: Path) -> None:
        if not permitted(library.stem):
            level = library.stem
            raise UsageError(f"this system refuses the registers of ISA level {level}; choose another --isa")
        self._ffi = ffi()
        self._vm = self._ffi.load_module(_loadable(library))["vm_load_executable"]()
        self._vm["vm_initialization"](CPU, 0, POOLED_ALLOCATOR, CPU, 0, POOLED_ALLOCATOR)
        self._save = self._vm["save_function"]
        self._clear = self._ffi.get_global_func("vm.builtin.memory_manager.clear")
        self._names: dict[str, str] = {}

    def tensor(self, array: NDArray[Any]) -> Any:
        """``array`` as the VM sees it, sharing memory.

        Raises:
            ValueError: the array is not on a 64-byte boundary (kernels would crash).
        """
        if array.ctypes.data % ALIGNMENT or not array.flags.c_contiguous:
            raise ValueError("a kernel's buffer must be contiguous and 64-byte aligned")
        if not array.flags.writeable:
            array = array.view()
            array.flags.writeable = True
        return self._ffi.from_dlpack(array)

    def shape(self, *extents: int) -> Any:
        return self._ffi.Shape(list(extents))

    def bind(self, function: str, name: str, arguments: Sequence[Any]) -> Any:
        """``function`` with all its arguments fixed, callable without any."""
        self._save(function, name, 1, *arguments)
        self._names[name] = function
        return self._vm[name]

    def unbind(self) -> None:
        """Lets go of the arguments of every bound function; what was bound cannot be called any more."""
        for name, function in self._names.items():
            self._save(function, name, 1)
        self._names.clear()

    def free_buffers(self) -> None:
        """Gives back the buffers that nothing uses.

        TVM's allocator keeps each for the next request of exactly its size: over inputs of many lengths
        that would grow to hundreds of MB.
        """
        self._clear()

    def call(self, function: str, arguments: Sequence[Any]) -> Any:
        return self._vm[function](*arguments)


def as_numpy(tensor: Any) -> NDArray[Any]:
    """A VM tensor as an array over the same memory."""
    return np.from_dlpack(tensor)
