# SPDX-License-Identifier: Apache-2.0
"""AnnotateRanges: who reads which norm, how large its channels are, which linears make queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm.script import ir as I
from tvm.script import relax as R

from relay_passes.annotate_ranges import AnnotateRanges


def ranges(*tensors: str) -> dict[str, Any]:
    """Other values for each matrix."""
    return {f"{name}.weight": np.linspace(1, 2, 64) * (i + 1) for i, name in enumerate(tensors)}


def test_before_and_after(plan: Any, annotated: Any, apply: Any, same: Any) -> None:
    """A table, a norm and a linear; the linear of the head is left as it was."""

    @I.ir_module
    class Before:
        @R.function
        def main(
            ids: R.Tensor(("m",), "int32"),
            words: R.Tensor((70, 16), "float32"),
            n: R.Tensor((16,), "float32"),
            nb: R.Tensor((16,), "float32"),
            fc: R.Tensor((16, 16), "float32"),
            head: R.Tensor((2, 16), "float32"),
        ) -> R.Tuple(R.Tensor(("m", 16), "float32"), R.Tensor(("m", 2), "float32")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                rows = R.take(words, ids, axis=0)
                x = R.nn.layer_norm(rows, n, nb, axes=[-1], epsilon=0.5)
                t = R.permute_dims(fc)
                y = R.matmul(x, t)
                u = R.permute_dims(head)
                z = R.matmul(x, u)
                out = (y, z)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function(private=True)
        def words(words: R.Tensor((70, 16), "float32"), ids: R.Tensor(("m",), "int32")) -> R.Tensor(
            ("m", 16), "float32"
        ):
            R.func_attr(
                {
                    "Composite": "tvmq.embedding",
                    "Primitive": True,
                    "tvmq.bits": 32,
                    "tvmq.factor": 1.0,
                    "tvmq.path": "words",
                    "tvmq.tensor": "words",
                }
            )
            with R.dataflow():
                rows = R.take(words, ids, axis=0)
                R.output(rows)
            return rows

        @R.function(private=True)
        def n1(
            lv: R.Tensor(("m", 16), "float32"), n: R.Tensor((16,), "float32"), nb: R.Tensor((16,), "float32")
        ) -> R.Tensor(("m", 16), "float32"):
            R.func_attr(
                {
                    "Composite": "tvmq.norm",
                    "Primitive": True,
                    "tvmq.epsilon": 0.5,
                    "tvmq.path": "n",
                    "tvmq.ranges": [0.5] * 8 + [3.0] * 8,
                    "tvmq.residual": "",
                }
            )
            with R.dataflow():
                x = R.nn.layer_norm(lv, n, nb, axes=[-1], epsilon=0.5)
                R.output(x)
            return x

        @R.function(private=True)
        def fc1(fc: R.Tensor((16, 16), "float32"), x: R.Tensor(("m", 16), "float32")) -> R.Tensor(
            ("m", 16), "float32"
        ):
            R.func_attr(
                {
                    "Composite": "tvmq.linear",
                    "Primitive": True,
                    "tvmq.activation": "",
                    "tvmq.bits": 8,
                    "tvmq.path": "fc",
                    "tvmq.reads": "n",
                    "tvmq.tensor": "fc",
                }
            )
            with R.dataflow():
                t = R.permute_dims(fc)
                y = R.matmul(x, t)
                R.output(y)
            return y

        @R.function(private=True)
        def head(head: R.Tensor((2, 16), "float32"), x: R.Tensor(("m", 16), "float32")) -> R.Tensor(
            ("m", 2), "float32"
        ):
            R.func_attr(
                {
                    "Composite": "tvmq.linear",
                    "Primitive": True,
                    "tvmq.activation": "",
                    "tvmq.bits": 32,
                    "tvmq.path": "head",
                    "tvmq.tensor": "head",
                }
            )
            with R.dataflow():
                u = R.permute_dims(head)
                z = R.matmul(x, u)
                R.output(z)
            return z

        @R.function
        def main(
            ids: R.Tensor(("m",), "int32"),
            words: R.Tensor((70, 16), "float32"),
            n: R.Tensor((16,), "float32"),
            nb: R.Tensor((16,), "float32"),
            fc: R.Tensor((16, 16), "float32"),
            head: R.Tensor((2, 16), "float32"),
        ) -> R.Tuple(R.Tensor(("m", 16), "float32"), R.Tensor(("m", 2), "float32")):
            cls = Expected
            R.func_attr({"num_input": 1, "tvmq.planned": {"fc": 1}, "tvmq.longest": 24})
            with R.dataflow():
                rows = cls.words(words, ids)
                x = cls.n1(rows, n, nb)
                y = cls.fc1(fc, x)
                z = cls.head(head, x)
                out = (y, z)
                R.output(out)
            return out

    bits = plan({"fc": 8})
    measured = {"fc": np.repeat([0.5, 3.0], 8), "head": np.full(16, 99.0)}
    step = AnnotateRanges(plan=bits, longest=24, ranges=measured)
    same(apply(annotated(Before, bits), step), Expected)


def test_a_whole_encoder(encoder: Any, everywhere: Any, annotated: Any, apply: Any, facts: Any) -> None:
    """Norms know their residual, linears the norm that they read, queries their heads."""
    bits = everywhere(8)
    after = apply(annotated(encoder(), bits), AnnotateRanges(plan=bits, longest=24))
    assert int(after["main"].attrs["tvmq.longest"]) == 24
    assert facts(after) == {
        "n0": {"residual": "", "ranges": []},
        "q": {"reads": "n0", "heads": 2},
        "k": {"reads": "n0"},
        "v": {"reads": "n0"},
        "out": {"reads": ""},
        "n1": {"residual": "n0", "ranges": []},
        "up": {"reads": "n1"},
        "down": {"reads": ""},
        "n2": {"residual": "n1", "ranges": []},
    }


def test_ranges_are_the_largest_of_the_readers(
    encoder: Any, everywhere: Any, annotated: Any, apply: Any, facts: Any
) -> None:
    """``down`` reads no norm, ``n2`` is read by no matrix; k was not measured."""
    bits = everywhere(8)
    measured = ranges("v", "q") | {"down.weight": np.ones(128)}
    measured["v.weight"] = measured["v.weight"][::-1] * 1.5
    after = facts(apply(annotated(encoder(), bits), AnnotateRanges(plan=bits, longest=24, ranges=measured)))
    expected = np.maximum(measured["q.weight"], measured["v.weight"])
    assert list(after["n0"]["ranges"]) == pytest.approx(expected.tolist())
    assert len({*measured["q.weight"].tolist()} - {*expected.tolist()}) > 5
    assert (list(after["n1"]["ranges"]), list(after["n2"]["ranges"])) == ([], [])


def test_the_head_counts_for_nothing(
    encoder: Any, everywhere: Any, annotated: Any, apply: Any, facts: Any
) -> None:
    def end(g: Any, x: Any, offsets: Any, w: Any) -> Any:
        return g.linear(x, w)

    bits = everywhere(8, head=("head.weight",))
    module = annotated(encoder(end, {"head.weight": "float32[2, 64]"}), bits)
    after = facts(apply(module, AnnotateRanges(plan=bits, longest=24, ranges=ranges("head"))))
    assert "head" not in after
    assert list(after["n2"]["ranges"]) == []


def test_every_entry_function(encoder: Any, everywhere: Any, annotated: Any, apply: Any, facts: Any) -> None:
    """The same body in two functions gets the same facts."""
    module = encoder(name="embed")
    module.update(encoder(name="main"))
    bits = everywhere(8)
    after = apply(annotated(module, bits), AnnotateRanges(plan=bits, longest=9, ranges=ranges("q")))
    assert facts(after, "embed") == facts(after, "main") != {}
    assert {int(after[name].attrs["tvmq.longest"]) for name in ("embed", "main")} == {9}
