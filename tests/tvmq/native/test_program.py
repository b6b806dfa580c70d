# SPDX-License-Identifier: Apache-2.0
"""The program file: what is written is read back, anything else is refused in a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmq.native.program import (
    ALIGNMENT,
    ITEM_BYTES,
    MAX_BYTES,
    OPERATIONS,
    Call,
    Computed,
    Free,
    FromInput,
    Function,
    Named,
    Output,
    Pool,
    Program,
    Tensor,
    decode,
    encode,
)

NAMES = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1, max_size=12)
WORDS = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
DTYPES = st.sampled_from(sorted(ITEM_BYTES))
NUMBERS = st.integers(0, 1 << 31)


@st.composite
def functions(draw: st.DrawFn, kernels: int, weights: int) -> Function:
    count = draw(st.integers(0, 4))
    sizes = st.one_of(NUMBERS, st.integers(0, count - 1).map(Free)) if count else NUMBERS
    shapes = st.lists(sizes, max_size=4).map(tuple)
    inputs = draw(
        st.lists(st.builds(Named, DTYPES | st.just("shape"), shapes, NAMES), min_size=1, max_size=3)
    )
    inputs.append(Named("int32", (1,), "last"))
    extents: list[FromInput | Computed] = []
    for index in range(count):
        known = st.one_of(NUMBERS, st.integers(0, index - 1).map(Free)) if index else NUMBERS
        if draw(st.booleans()):
            extents.append(FromInput(len(inputs) - 1, 0))
        else:
            extents.append(Computed(draw(st.sampled_from(OPERATIONS)), draw(known), draw(known)))
    outputs = draw(st.lists(st.builds(Output, DTYPES, shapes), max_size=3))
    pools = draw(st.lists(st.builds(Pool, NUMBERS, shapes), max_size=3))
    counts = {"input": len(inputs), "weight": weights, "output": len(outputs), "pool": len(pools)}
    tensors = []
    for place in draw(st.lists(st.sampled_from([p for p, n in counts.items() if n]), max_size=5)):
        offset = draw(st.integers(0, 99)) * ALIGNMENT if place == "pool" else 0
        number = draw(st.integers(0, counts[place] - 1))
        tensors.append(Tensor(place, number, offset, draw(DTYPES), draw(shapes)))
    taken = st.lists(st.integers(0, len(tensors) - 1), max_size=4).map(tuple) if tensors else st.just(())
    calls = draw(st.lists(st.builds(Call, st.integers(0, kernels - 1), taken), max_size=4)) if kernels else []
    return Function(
        name=draw(WORDS), extents=tuple(extents), inputs=tuple(inputs), outputs=tuple(outputs),
        pools=tuple(pools), tensors=tuple(tensors), calls=tuple(calls),
    )  # fmt: skip


@st.composite
def programs(draw: st.DrawFn) -> Program:
    kernels = tuple(draw(st.lists(WORDS, max_size=3)))
    fixed = st.lists(NUMBERS, max_size=4).map(tuple)
    weights = tuple(draw(st.lists(st.builds(Named, DTYPES, fixed, NAMES), max_size=3)))
    entries = draw(st.lists(functions(len(kernels), len(weights)), max_size=2))
    return Program(kernels=kernels, weights=weights, functions=tuple(entries))


@settings(max_examples=60, deadline=None)
@given(programs())
def test_round_trip(program: Program) -> None:
    assert decode(encode(program)) == program


@settings(max_examples=60, deadline=None)
@given(programs(), st.integers(0, 1 << 20), st.integers(0, 255))
def test_a_changed_byte_is_another_program_or_refused(program: Program, place: int, byte: int) -> None:
    data = bytearray(encode(program))
    data[place % len(data)] = byte
    try:
        changed = decode(bytes(data))
    except ValueError:
        return
    assert encode(changed) == bytes(data)


@settings(max_examples=30, deadline=None)
@given(programs(), st.integers(0, 1 << 20))
def test_a_cut_file_is_refused(program: Program, place: int) -> None:
    data = encode(program)
    with pytest.raises(ValueError, match=r"line|early|UTF-8"):
        decode(data[: place % len(data)])


BASE = b"""tvmq-program 1
kernel add
weight float32 4 w
function f
extent dim 0 0
extent sub e0 1
input int32 e0 ids
input shape e0 count
output float32 e1x4
pool 64 e0
tensor pool 0 0 float32 e0x4
call 0 0
end
"""


def test_the_example_is_read() -> None:
    (function,) = decode(BASE).functions
    assert function.extents == (FromInput(0, 0), Computed("sub", Free(0), 1))
    assert function.outputs == (Output("float32", (Free(1), 4)),)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"tvmq-program 1", b"tvmq-program 2", "its first line is not tvmq-program 1"),
        (b"kernel add", b"kernel a/d", "line 2: no plain name"),
        (b"weight float32 4", b"weight float33 4", "line 3: an unknown dtype"),
        (b"weight float32 4 w", b"weight float32 e0 w", "line 3: an extent that is not known yet"),
        (b"weight float32 4 w", b"weight float32 4 ", "line 3: an empty name"),
        (b"extent sub e0 1", b"extent sub e1 1", "line 6: an extent that is not known yet"),
        (b"extent sub e0 1", b"extent pow e0 1", "line 6: an unknown operation"),
        (b"dim 0 0", b"dim 2 0", "an extent of no input"),
        (b"dim 0 0", b"dim 0 1", "an extent of no input"),
        (b"output float32 e1x4", b"output float32 e1x04", "line 9: no number up to 2\\^31"),
        (b"pool 64 e0", b"pool 2147483649 e0", "line 10: no number up to 2\\^31"),
        (b"tensor pool 0 0", b"tensor pool 1 0", "line 11: no such place"),
        (b"tensor pool 0 0", b"tensor output 0 64", "line 11: no such place"),
        (b"tensor pool 0 0", b"tensor pool 0 8", "line 11: an offset that is no multiple of 64"),
        (b"e0x4\ncall", b"1x1x1x1x1x1x1x1x1\ncall", "line 11: too many dimensions"),
        (b"call 0 0", b"call 1 0", "line 12: a number beyond the kernels or tensors"),
        (b"call 0 0", b"call 0 1", "line 12: a number beyond the kernels or tensors"),
        (b"call 0 0", b"call", "line 12: no call"),
        (b"end\n", b"end\n\n", "line 13: an unexpected line"),
        (b"end\n", b"", "line 13: an unexpected line"),
        (b"kernel add", b"kernel \xff", "not valid UTF-8 text"),
    ],
)
def test_bad_programs_are_refused(old: bytes, new: bytes, message: str) -> None:
    assert old in BASE
    with pytest.raises(ValueError, match=message):
        decode(BASE.replace(old, new))


def test_a_huge_program_is_not_read() -> None:
    with pytest.raises(ValueError, match="expected at most"):
        decode(b"x" * (MAX_BYTES + 1))


def test_a_name_with_a_line_break_is_not_written() -> None:
    program = Program(kernels=(), weights=(Named("int8", (), "a\nend"),), functions=())
    with pytest.raises(ValueError, match="line"):
        encode(program)
