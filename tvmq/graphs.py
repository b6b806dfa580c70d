# SPDX-License-Identifier: Apache-2.0
"""The Relax functions of a translation model: encode, and decode fused with the search's choice.

``greedy`` and ``beam`` end in ``tvmq.argmax`` and ``tvmq.topk``, so that only a few numbers leave the
library per step. ``decode`` gives the logits themselves; it is built for tests and analyses only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax

from relay_passes.lower_search import ARGMAX, TOPK

from .frontend import import_program

BANNED = "banned"
"""Stored name of the word ids that a search must not produce."""


def translation_module(programs: Mapping[str, Any], banned: int, beams: int) -> tvm.IRModule:
    """One module with ``encode``, ``beam``, and ``greedy_1`` and ``beam_<beams>``, its fixed forms.

    Args:
        programs: exported "encode" and "decode".
        banned: how many word ids the search leaves out.
        beams: the usual width of the beam; the fixed forms serve one sentence without computing any
            size at run time.
    """
    module = tvm.IRModule()
    module.update(import_program(programs["encode"], "encode"))
    decode = import_program(programs["decode"], "decode")["decode"]
    beam, greedy = (_with_search(decode, *kind, banned) for kind in (("beam", TOPK), ("greedy", ARGMAX)))
    fixed = {
        fixed_name("greedy", 1): _with_rows(greedy, 1),
        fixed_name("beam", beams): _with_rows(beam, beams),
    }
    for name, function in {"beam": beam, **fixed}.items():
        module.update(tvm.IRModule({name: function.with_attr("global_symbol", name)}))
    return module


def logits_module(programs: Mapping[str, Any]) -> tvm.IRModule:
    """``encode`` and ``decode``, which gives logits: what tests and analyses compare."""
    module = tvm.IRModule()
    for name, program in programs.items():
        module.update(import_program(program, name))
    return module


def fixed_name(function: str, rows: int) -> str:
    """Name of ``function`` for exactly ``rows`` rows."""
    return f"{function}_{rows}"


def _with_rows(function: Any, rows: int) -> Any:
    """A copy for a fixed number of rows: all its memory is planned at compile time."""
    symbol = function.params[0].ty.shape[0]
    return relax.utils.copy_with_new_vars(function.bind_symbolic_vars({symbol: rows}))


def _with_search(decode: Any, name: str, symbol: str, banned: int) -> Any:
    """A copy of ``decode`` that ends in a search operator.

    ``beam`` takes one more input, a shape (k,), and returns (log-probabilities, ids), both [m, k].
    """
    function = relax.utils.copy_with_new_vars(decode)
    inputs = int(decode.attrs["num_input"])
    params = list(function.params)
    logits = function.body.body
    rows = logits.ty.shape[0]
    forbidden = relax.Var(BANNED, relax.TensorType([banned], "int32"))
    if symbol == TOPK:
        k = tvm.tirx.Var("k", "int64")
        params.insert(inputs, relax.Var("count", relax.ShapeType([k])))
        inputs += 1
        out: Any = [relax.TensorType([rows, k], "float32"), relax.TensorType([rows, k], "int32")]
    else:
        out = relax.TensorType([rows], "int32")
    call = relax.op.call_dps_packed(symbol, [logits, forbidden], out)
    result = relax.Var("found", relax.TupleType(out) if isinstance(out, list) else out)
    last = relax.BindingBlock([relax.VarBinding(result, call)])
    body = relax.SeqExpr([*function.body.blocks, last], result)
    searched = relax.Function([*params, forbidden], body, result.ty, is_pure=True)
    attrs = {"num_input": inputs, "global_symbol": name}
    return relax.transform.ConvertToDataflow(min_size=1)(tvm.IRModule({name: searched.with_attrs(attrs)}))[
        name
    ]
