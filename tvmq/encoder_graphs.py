# SPDX-License-Identifier: Apache-2.0
"""The Relax functions of an encoder: ``embed``, and ``classify`` or ``tag`` where the model has that head.

All are the same body with another end. ``hidden`` is the body itself, built for tests and analyses only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax

from relay_passes.lower_pooling import NORMALIZE

from .frontend import import_program
from .pooling import Pooling

BODY, EMBED, HIDDEN = "body", "embed", "hidden"
OFFSETS = 2
"""Place of the offsets among the inputs of the body."""
_POOLS = {"mean": "tvmq.mean_tokens", "cls": "tvmq.first_token"}


def encoder_module(programs: Mapping[str, Any], pooling: Pooling) -> tvm.IRModule:
    """One module with ``embed`` and the functions of the heads in ``programs``.

    Args:
        programs: exported "body" and heads by name, as ``families.encoder.export`` gives them.
        pooling: how ``embed`` makes one row of a text's tokens.
    """
    body = import_program(programs[BODY], BODY)[BODY]
    functions = {EMBED: _extended(body, EMBED, _pooled(body, pooling))}
    for name, program in programs.items():
        if name != BODY:
            functions[name] = _extended(body, name, import_program(program, name)[name])
    return tvm.IRModule(functions)


def hidden_module(programs: Mapping[str, Any]) -> tvm.IRModule:
    """``hidden``: the last hidden state of every token, which tests and analyses compare."""
    return import_program(programs[BODY], HIDDEN)


def _pooled(body: Any, pooling: Pooling) -> Any:
    """The end of ``embed`` as a function of hidden states and offsets."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", body.ret_ty)
    offsets = relax.Var("offsets", body.params[OFFSETS].ty)
    with builder.function("pool", [x, offsets], {"num_input": 2}):
        with builder.dataflow():
            out = relax.TensorType([offsets.ty.shape[0] - 1, x.ty.shape[1]], "float32")
            y = builder.emit(relax.op.call_dps_packed(_POOLS[pooling.kind], [x, offsets], out), "pooled")
            if pooling.normalize:
                y = builder.emit(relax.op.call_dps_packed(NORMALIZE, [y], out), "normalized")
            result = builder.emit_output(y)
        builder.emit_func_output(result)
    return builder.get()["pool"]


def _extended(body: Any, name: str, end: Any) -> Any:
    """A copy of ``body`` that goes on with ``end``, a function of hidden states, offsets and its weights."""
    function = relax.utils.copy_with_new_vars(body)
    weights = [relax.Var(str(param.name), param.ty) for param in list(end.params)[2:]]
    arguments = [function.body.body, function.params[OFFSETS], *weights]
    bound = end.bind_params(dict(zip(end.params, arguments, strict=True)))
    sequence = relax.SeqExpr([*function.body.blocks, *bound.body.blocks], bound.body.body)
    extended = relax.Function([*function.params, *weights], sequence, bound.ret_ty, is_pure=True)
    attrs = {"num_input": int(body.attrs["num_input"]), "global_symbol": name}
    module = tvm.IRModule({name: extended.with_attrs(attrs)})
    return relax.transform.Normalize()(module)[name]
