# SPDX-License-Identifier: Apache-2.0
"""selftest.json of a compiled module: a small input and some values of its outputs, compared at load.

Only the first values of every example input are kept; repeated, they fill any extent.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .artifact import Artifact
from .errors import InputError, VerificationError
from .loading import SELF_TEST
from .signature import Signature
from .store import read_json_object

if TYPE_CHECKING:
    from .module_runtime import CompiledModule

KEPT, WATCHED = 256, 16
"""Values kept of each input and of each output."""
SMALL = 3
"""Free extents are cut to this, where the module allows it."""
TOLERANCE = 0.02
"""Of an output's range: ISA levels may round float sums differently, never by this much."""
_MAX_BYTES = 1 << 22


def small_inputs(signature: Signature, examples: Sequence[NDArray[Any]]) -> dict[str, Any]:
    """The recorded part of ``examples``: free extents and the first values of every input."""
    full = signature.check(examples)
    extents = {name: min(extent, max(SMALL, signature.ranges[name][0])) for name, extent in full.items()}
    return {"extents": extents, "inputs": [_encode(example.ravel()[:KEPT]) for example in examples]}


def arrays(signature: Signature, document: Mapping[str, Any]) -> list[NDArray[Any]]:
    """The inputs that a recorded part stands for."""
    found = []
    for spec, values in zip(signature.inputs, document["inputs"], strict=True):
        shape = [document["extents"][e] if isinstance(e, str) else e for e in spec.shape]
        found.append(np.resize(_decode(values, spec.dtype), shape))
    return found


def record(staging: Path, recorded: Mapping[str, Any], outputs: Sequence[NDArray[Any]]) -> None:
    """Writes the file; without ``outputs`` (cross-compiled) nothing is compared at load."""
    watched = [_encode(_watched(out)) for out in outputs]
    spans = [_span(out) for out in outputs]
    document = {**recorded, "outputs": watched, "spans": spans}
    (staging / SELF_TEST).write_text(json.dumps(document) + "\n", encoding="utf-8")


def check(artifact: Artifact, compiled: CompiledModule) -> None:
    """Compares a loaded module with the recorded values.

    Raises:
        VerificationError: the values differ, or the file is not a self-test of this module.
    """
    document = read_json_object(artifact.file(SELF_TEST), _MAX_BYTES, error=VerificationError)
    if not document.get("outputs"):
        return
    try:
        outputs = as_list(compiled(*arrays(compiled.signature, document)))
        same = all(
            _close(out, _decode(values, "float64"), float(span))
            for out, values, span in zip(outputs, document["outputs"], document["spans"], strict=True)
        )
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise VerificationError(f"{artifact.path / SELF_TEST}: not a self-test of this module") from error
    if not same:
        raise VerificationError(
            f"{artifact.path}: the self-test failed at ISA level {compiled.isa}: the library computes other "
            "values than when it was compiled (compile the module again, or try another ISA level)"
        )


def as_list(result: Any) -> list[NDArray[Any]]:
    """The outputs of a call as a list, whatever the module returns."""
    match result:
        case np.ndarray():
            return [result]
        case dict():
            return list(result.values())
    return list(result)


def _encode(values: NDArray[Any]) -> str:
    """The bytes of an array: JSON has no word for infinities, which masks are made of."""
    return base64.b64encode(values.tobytes()).decode("ascii")


def _decode(text: str, dtype: str) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype)


def _watched(out: NDArray[Any]) -> NDArray[np.float64]:
    """Values spread evenly over an output."""
    places = np.linspace(0, max(out.size - 1, 0), min(out.size, WATCHED)).astype(np.int64)
    return out.ravel()[places].astype(np.float64)


def _span(out: NDArray[Any]) -> float:
    """The range of the finite values."""
    values = out[np.isfinite(out)].astype(np.float64)
    return float(np.ptp(values)) if values.size else 0.0


def _close(out: NDArray[Any], values: NDArray[np.float64], span: float) -> bool:
    found = _watched(out)
    return found.shape == values.shape and bool(
        np.allclose(found, values, rtol=1e-4, atol=TOLERANCE * span + 1e-4, equal_nan=True)
    )
