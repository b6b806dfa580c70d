# SPDX-License-Identifier: Apache-2.0
"""Sensitivities of a tiny model against a direct computation, their file, and what they are bound to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from relay_passes.bit_plan import SCHEMA, BitPlan, BlockBits, WordBits, plan_hash
from tvmq.checkpoint import Checkpoint
from tvmq.errors import InputError, UsageError
from tvmq.families import get_family
from tvmq.quantization import quantize_matrix
from tvmq.samples import Sample, Samples
from tvmq.sensitivity import measure_sensitivities
from tvmq.sensitivity_table import Coding, Sensitivities, decode_sensitivities, encode_sensitivities
from tvmq.word_bits import frequency_order

WORDS = 320
FFN = "model.decoder.layers.1.fc1.weight"
TABLE = "model.shared.weight"


@pytest.fixture(scope="module")
def samples() -> Samples:
    generator = np.random.default_rng(1)
    lengths = generator.integers(2, 12, (9, 2)).tolist()
    sides = [[(*generator.integers(1, 300, n - 1).tolist(), 0) for n in pair] for pair in lengths]
    return Samples([Sample(source=source, target=target) for source, target in sides])


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    return np.random.default_rng(2).permutation(1000 // (np.arange(WORDS) + 1))


@pytest.fixture(scope="module")
def table(tiny_model: Path, samples: Samples, counts: np.ndarray) -> Sensitivities:
    return measure_sensitivities(tiny_model, samples, widths=(1, 3), frequencies=counts)


def module_of(model: Path) -> torch.nn.Module:
    checkpoint = Checkpoint.open(model)
    family = get_family(checkpoint.config)
    return family.whole(family.load(checkpoint)).eval()


def direct_kl(model: Path, samples: Samples, changed: dict[str, np.ndarray]) -> float:
    """Sentence by sentence, without padding, in float64."""
    whole = module_of(model).double()
    values = {name: torch.from_numpy(value).double() for name, value in changed.items()}
    terms = []
    for sample in samples:
        source, target = torch.tensor([sample.source]), torch.tensor([sample.target])
        arguments = (source, torch.tensor([len(sample.source)]), target)
        with torch.inference_mode():
            p = torch.log_softmax(whole(*arguments), -1)[0]
            q = torch.log_softmax(torch.func.functional_call(whole, values, arguments), -1)[0]
        terms.append((p.exp() * (p - q)).sum(-1))
    return float(torch.cat(terms).mean())


def coded(weight: np.ndarray, bits: int) -> np.ndarray:
    entry = BlockBits(tensor="t", block="b", bits=bits)
    return quantize_matrix(weight, entry).dequantize()


def test_a_matrix_alone(tiny_model: Path, samples: Samples, table: Sensitivities) -> None:
    (unit,) = table.by_tensor()[FFN]
    weight = Checkpoint.open(tiny_model).tensor(FFN)
    for place, bits in enumerate((1, 3)):
        wanted = coded(weight, bits)
        assert unit.kl[place] == pytest.approx(direct_kl(tiny_model, samples, {FFN: wanted}), rel=1e-3)
        error = ((weight - wanted) ** 2).sum() / (weight**2).sum()
        assert unit.error[place] == pytest.approx(error, rel=1e-4)
    assert unit.bits == (1, 3)
    assert unit.bytes == (128 * 8 + 2 * 128, 3 * (128 * 8 + 2 * 128))


def test_words_by_rank(
    tiny_model: Path, samples: Samples, counts: np.ndarray, table: Sensitivities
) -> None:
    units = table.by_tensor()[TABLE]
    assert sum(unit.rows for unit in units) == WORDS
    assert [unit.first for unit in units] == np.cumsum([0, *(unit.rows for unit in units)])[:-1].tolist()
    weight = Checkpoint.open(tiny_model).tensor(TABLE)
    unit = units[1]
    words = frequency_order(counts)[unit.first : unit.first + unit.rows]
    weight[words] = coded(weight[words], 1)
    assert unit.kl[0] == pytest.approx(direct_kl(tiny_model, samples, {TABLE: weight}), rel=1e-3)


def test_around_a_plan(tiny_model: Path, samples: Samples, counts: np.ndarray, table: Sensitivities) -> None:
    """What one matrix adds where all others are quantized already."""
    entries = [
        BlockBits(tensor=unit.tensor, block=unit.block, bits=3)
        for unit in table.units
        if unit.tensor != TABLE
    ]
    words = WordBits(tensor=TABLE, block="Emb", clusters=((64, 3), (WORDS - 64, 2)))
    plan = BitPlan(schema=SCHEMA, blocks=tuple(entries), words=(words,), source="test")
    found = measure_sensitivities(tiny_model, samples, widths=(1,), frequencies=counts, around=plan)
    assert found.around == plan_hash(plan) != table.around
    checkpoint = Checkpoint.open(tiny_model)
    others = {entry.tensor: coded(checkpoint.tensor(entry.tensor), 3) for entry in entries}
    order, shared = frequency_order(counts), checkpoint.tensor(TABLE)
    shared[order[:64]], shared[order[64:]] = coded(shared[order[:64]], 3), coded(shared[order[64:]], 2)
    others[TABLE] = shared
    weight = checkpoint.tensor(FFN)
    added = direct_kl(tiny_model, samples, others | {FFN: coded(weight, 1)}) - direct_kl(
        tiny_model, samples, others | {FFN: weight}
    )
    (unit,) = found.by_tensor()[FFN]
    assert unit.kl[0] == pytest.approx(max(added, 0), rel=2e-2, abs=1e-5)


def test_the_file_round_trips(table: Sensitivities, tmp_path: Path) -> None:
    path = tmp_path / "sensitivities.json"
    table.write(path)
    assert Sensitivities.read(path) == table
    text = path.read_text()
    assert text.count("\n    {") == len(table.units)
    assert encode_sensitivities(decode_sensitivities(text.encode())).decode() == text


def test_processes_give_the_same(
    tiny_model: Path, samples: Samples, counts: np.ndarray, table: Sensitivities
) -> None:
    done: list[tuple[int, int]] = []
    again = measure_sensitivities(
        tiny_model,
        samples,
        widths=(3, 1),
        frequencies=counts,
        jobs=2,
        progress=lambda phase, now, total: done.append((now, total)),
    )
    assert again == table
    assert done == [(i, len(table.units)) for i in range(len(table.units) + 1)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"schema": 1', '"schema": 7', "schema 7, expected 1"),
        ('"bits":[1,3]', '"bits":[3,1]', "ascending"),
        ('"bits":[1,3]', '"bits":[1]', "as many values"),
        ('"first":0', '"first":-1', "expected at least 1"),
        ('"tokens"', '"tokenz"', "not a table of sensitivities"),
        ("{", "[", "not a table of sensitivities"),
    ],
)
def test_damaged_files(table: Sensitivities, tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(encode_sensitivities(table).decode().replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        Sensitivities.read(path)
    assert str(path) in str(caught.value)


def test_bound_to_the_model(tiny_model: Path, table: Sensitivities) -> None:
    checkpoint = Checkpoint.open(tiny_model)
    family = get_family(checkpoint.config)
    tensors = family.tensors(family.read_config(checkpoint.config))
    table.check(tensors, checkpoint.sha256)
    with pytest.raises(InputError, match="another model"):
        table.check(tensors, "0" * 64)
    cut = replace(table, units=tuple(unit for unit in table.units if unit.tensor != FFN))
    with pytest.raises(InputError, match=f"cover 0 of 128 rows of {FFN}"):
        cut.check(tensors, checkpoint.sha256)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"widths": (0, 2)}, UsageError, "cannot be measured"),
        ({"coding": Coding(quantizer="nearest")}, UsageError, "unknown quantizer"),
        ({"coding": Coding(quantizer="hessian")}, UsageError, "needs a calibration"),
        ({"coding": Coding(group_size=7)}, InputError, "does not divide"),
    ],
)
def test_bad_settings(
    tiny_model: Path, samples: Samples, options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        measure_sensitivities(tiny_model, samples, **options)


def test_targets_are_needed(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="no target tokens"):
        measure_sensitivities(tiny_model, Samples([Sample(source=(4, 0))]))
