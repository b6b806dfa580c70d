# SPDX-License-Identifier: Apache-2.0
"""Runs a compiled module: NumPy arrays in, NumPy arrays out, without torch and without importing ``tvm``.

Made by ``tvmq.load`` from an artifact that ``tvmq.compile(module, example_inputs, ...)`` wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import module_selftest
from .artifact import Artifact, Manifest
from .errors import InputError, UsageError, VerificationError
from .loading import open_checked, require_use
from .signature import Signature, TensorSpec
from .vm import ALIGNMENT, Machine, aligned, as_numpy

ENTRY = "forward"
"""The function that a module's library holds."""
Result = NDArray[Any] | tuple[NDArray[Any], ...] | dict[str, NDArray[Any]]


def load(path: Path | str, *, threads: int = 1, isa: str | None = None) -> CompiledModule:
    """Open a module's artifact; see ``loading.open_checked`` for arguments and errors.

    Raises:
        InputError: the artifact holds no module.
        VerificationError: a manifest that describes no module, or a failed self-test.
    """
    opened = open_checked(path, threads=threads, isa=isa)
    require_use(opened.artifact, "module")
    compiled = CompiledModule(opened.artifact, opened.isa, opened.library)
    module_selftest.check(opened.artifact, compiled)
    return compiled


class CompiledModule:
    """A compiled ``torch.nn.Module``, called like it. One object per thread; the weights are shared.

    Attributes:
        isa: the ISA level that runs.
        signature: names, dtypes and extents of inputs and outputs.
    """

    def __init__(self, artifact: Artifact, isa: str, library: str) -> None:
        self.isa = isa
        self._artifact = artifact
        try:
            self.signature = Signature.from_architecture(artifact.manifest.architecture)
        except ValueError as error:
            raise VerificationError(f"{artifact.path}: no module's inputs and outputs ({error})") from error
        self._machine: Machine | None = Machine(artifact.file(library))
        stored = artifact.weights()
        if ENTRY not in artifact.manifest.weights.parameters:
            raise VerificationError(f"{artifact.path}: no function {ENTRY} (compile the module again)")
        names = artifact.manifest.weights.parameters[ENTRY]
        self._weights = [self._machine.tensor(_in_place(stored[name])) for name in names]

    @property
    def manifest(self) -> Manifest:
        return self._artifact.manifest

    def __call__(self, *inputs: ArrayLike, **named: ArrayLike) -> Result:
        """The module's result on NumPy arrays (or anything ``np.asarray`` takes), in fresh arrays.

        Args:
            inputs: in the order of ``forward``, with the dtypes it was compiled for.
            named: inputs by name.

        Returns:
            What ``forward`` returns: an array, a tuple of arrays, or a dict of arrays.

        Raises:
            InputError: number, dtype or extents do not fit, or an id lies outside its table.
            UsageError: the object was closed.
        """
        if self._machine is None:
            raise UsageError("the module was closed; load the artifact again")
        arrays = self._in_order(inputs, named)
        self.signature.check(arrays)
        tensors = [self._machine.tensor(_in_place(array, array.flags.writeable)) for array in arrays]
        found = self._machine.call(ENTRY, [*tensors, *self._weights])
        single = len(self.signature.outputs) == 1
        outputs = [np.array(as_numpy(tensor)) for tensor in ([found] if single else found)]
        match self.signature.returns:
            case "tensor":
                return outputs[0]
            case "tuple":
                return tuple(outputs)
            case "dict":
                return {spec.name: out for spec, out in zip(self.signature.outputs, outputs, strict=True)}

    def close(self) -> None:
        """Frees the library and its buffers; the object cannot be called any more."""
        self._machine, self._weights = None, []

    def __enter__(self) -> CompiledModule:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _in_order(self, inputs: tuple[ArrayLike, ...], named: dict[str, ArrayLike]) -> list[NDArray[Any]]:
        specs = self.signature.inputs
        missing = [spec.name for spec in specs[len(inputs) :]]
        if unknown := sorted(named.keys() - set(missing)):
            raise InputError(f"no further input is called {unknown[0]!r}; inputs: {_names(specs)}")
        given = [*inputs, *(named[name] for name in missing if name in named)]
        return [np.asarray(value) for value in given]


def _names(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(str(spec) for spec in specs)


def _in_place(array: NDArray[Any], shareable: bool = True) -> NDArray[Any]:
    """The array itself if it may be shared and kernels can read it, else an aligned copy."""
    readable = array.ctypes.data % ALIGNMENT == 0 and array.flags.c_contiguous and array.dtype.isnative
    if shareable and readable:
        return array
    copy = aligned(array.shape, array.dtype)
    copy[...] = array
    return copy
