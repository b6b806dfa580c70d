# SPDX-License-Identifier: Apache-2.0
"""Weights of the integer body: folded scales, biases, zeros, names and shapes; on a real graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from relay_passes.bit_plan import BitPlan, BlockBits
from relay_passes.lower_block_int import BIAS_SHIFT
from schedules.block_norm import NormConstants
from schedules.pow2 import POW2
from targets import get_target
from tvmq import build, pipeline
from tvmq.calibration import Calibration
from tvmq.checkpoint import Checkpoint
from tvmq.encoder_graphs import encoder_module
from tvmq.errors import InputError, UsageError
from tvmq.families import get_family
from tvmq.integer_levels import LOWEST, quantize_levels
from tvmq.integer_packing import Folded, least_exponents, own_exponents
from tvmq.integer_weights import IntegerBody, body_tensors, ranges_of
from tvmq.model_plan import plan_tensors
from tvmq.options import PlanOptions
from tvmq.pooling import Pooling
from tvmq.quantization import quantize_matrix
from tvmq.triangles import pack_triangle

SIZES = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
LAYER = "bert.encoder.layer.0."
QUERY, UP, DOWN = (LAYER + name for name in ("attention.self.query", "intermediate.dense", "output.dense"))
FIRST = "bert.embeddings.LayerNorm"
WORDS = "bert.embeddings.word_embeddings.weight"
Arrays = dict[str, NDArray[Any]]


class Model:
    """A classifier's graphs before the exponents, its tensors (to be changed), and its plans."""

    def __init__(self, folder: Path) -> None:
        checkpoint = Checkpoint.open(folder)
        family = get_family(checkpoint.config)
        self.config = family.read_config(checkpoint.config)
        self.infos = family.tensors(self.config)
        self.shapes = {info.name: info.shape for info in self.infos}
        loaded = family.load(checkpoint)
        self.graphs = encoder_module(family.export(loaded), Pooling())
        self.state = {name: tensor.numpy() for name, tensor in loaded.state_dict().items()}

    def plan(self, bits: int, **options: Any) -> BitPlan:
        if bits > 4:
            options["overrides"] = (("Attn", bits), ("FFN", bits))
        given = PlanOptions(mode="block-int", preset=f"{min(bits, 4) if bits < 8 else 8}-bit", **options)
        return plan_tensors(self.infos, given, None)

    def body(self, plan: BitPlan, calibration: Calibration | None = None, **changed: Any) -> IntegerBody:
        """The body with ``changed`` tensors, by name with __ for dots."""
        state = self.state | {name.replace("__", "."): value for name, value in changed.items()}
        target = get_target("x86_64_v3").to_tvm()
        common = pipeline.run(self.graphs, pipeline.common_phases(plan), target)
        return IntegerBody.of(common, plan, self.config.max_tokens, calibration, lambda name: state[name])

    def arrays(self, plan: BitPlan, calibration: Calibration | None = None, **changed: Any) -> Arrays:
        return self.body(plan, calibration, **changed).arrays(None)


@pytest.fixture(scope="module")
def model(encoder_model: Callable[..., Path]) -> Model:
    return Model(encoder_model("BertForSequenceClassification", **SIZES))


@pytest.fixture
def weight(stored_levels: Any, model: Model) -> Callable[..., NDArray[np.float64]]:
    """``weight(arrays, QUERY)``: float64[n, k] that the stored arrays of a matrix stand for."""

    def read(arrays: Arrays, layer: str) -> NDArray[np.float64]:
        tensor = f"{layer}.weight"
        n, k = model.shapes[tensor]
        exponents = np.repeat(row_exponents(arrays, layer)[:n, None], k, axis=1)
        shifts = arrays.get(f"{tensor}:group_shifts")
        if shifts is not None:
            rows = shifts.transpose(0, 2, 1).reshape(-1, shifts.shape[1])[:n].astype(int)
            exponents = exponents - np.repeat(rows, k // shifts.shape[1], axis=1)
        return np.ldexp(stored_levels(arrays, tensor, (n, k)).astype(np.float64), exponents)

    return read


def row_exponents(arrays: Arrays, layer: str) -> NDArray[np.int64]:
    shifts = arrays[f"{layer}.weight:row_shifts"].reshape(-1).astype(np.int64)
    return arrays[f"{layer}.weight:top"][0] - shifts


def bias(arrays: Arrays, layer: str) -> NDArray[np.float64]:
    """The values that a stored bias stands for, padding included."""
    whole = arrays[f"{layer}.bias:integer"].reshape(-1).astype(np.float64)
    return np.ldexp(whole, row_exponents(arrays, layer) + BIAS_SHIFT)


def calibration(inputs: dict[str, NDArray[np.floating]]) -> Calibration:
    """Second moments by matrix."""
    return Calibration(
        model_sha256="",
        sentences=1,
        tokens=1,
        frequencies=np.zeros(1, np.int64),
        _inputs={name: i for i, name in enumerate(inputs)},
        _tables=(),
        _packed=[pack_triangle(np.asarray(m, np.float32)) for m in inputs.values()],
        _outputs={},
        _lookups={},
        _rows={},
    )


def measured(model: Model, channels: NDArray[np.int64]) -> Calibration:
    """Moments of independent inputs whose ranges have these exponents at strength 1/2; 1 elsewhere."""
    inputs = {}
    for info in model.infos:
        if info.block in ("Attn", "FFN"):
            reads = channels if info.name.startswith(LAYER + "attention.self") else np.zeros(info.shape[1])
            inputs[info.name] = np.diag(np.ldexp(1.0, (4 * reads).astype(int)))
    return calibration(inputs)


CHANNELS = np.array([0, 0, 0, 1, -1, 2, 0, -2] * 8)


def test_folding_changes_no_product() -> None:
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((5, 8)).astype(np.float32), rng.standard_normal((20, 8))
    fold = Folded(tensor="w", columns=np.arange(-4, 4), scale=0.3, bias="")
    read = np.ldexp(x, -np.arange(-4, 4))
    np.testing.assert_allclose(fold.weight(w) @ read.T, 0.3 * w @ x.T, rtol=1e-6)
    moments = (x.T @ x / 20).astype(np.float32)
    np.testing.assert_allclose(fold.moments(moments), read.T @ read / 20, rtol=1e-5)


@pytest.mark.parametrize("bits", [8, 3])
def test_arrays_are_those_that_the_kernels_ask_for(model: Model, bits: int) -> None:
    """Names, shapes and dtypes, for both functions at once."""
    plan = model.plan(bits, group_size=64) if bits < 8 else model.plan(bits)
    body = model.body(plan)
    arrays = body.arrays(None)
    lowered = build.lower(body.graphs, plan, get_target("x86_64_v3"), "int8", None)
    asked = {
        str(p.name): (tuple(int(e) for e in p.ty.shape), str(p.ty.dtype))
        for name in ("embed", "classify")
        for p in list(lowered[name].params)[int(lowered[name].attrs["num_input"]) :]
    }
    head = {name for name in asked if "pooler" in name or "classifier" in name}
    found = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
    assert found == {name: asked[name] for name in asked.keys() - head}


def test_what_is_inside(model: Model) -> None:
    plan = model.plan(4)
    body = model.body(plan)
    inside = body_tensors(body.graphs, plan)
    types = "bert.embeddings.token_type_embeddings.weight"
    assert inside == {info.name for info in model.infos if info.block != "Head"} | {types}
    assert {e.tensor for e in body.outside.entries()} == {e.tensor for e in plan.blocks if e.block == "Head"}


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_take_over_what_the_graph_says(model: Model, weight: Any, bits: int) -> None:
    """Columns those of the norm that they read, query rows log2(e) / sqrt(head width); others nothing."""
    plain = model.arrays(model.plan(bits))
    folded = model.arrays(model.plan(bits), measured(model, CHANNELS))
    factors = {QUERY: math.log2(math.e) / math.sqrt(32), LAYER + "attention.self.key": 1.0, UP: 1.0}
    close = 0.02 if bits == 8 else 0.2
    for layer, factor in factors.items():
        for arrays, columns in ((plain, 0 * CHANNELS), (folded, CHANNELS if layer != UP else 0 * CHANNELS)):
            wanted = np.ldexp(model.state[f"{layer}.weight"].astype(np.float64) * factor, columns)
            error = np.linalg.norm(weight(arrays, layer) - wanted) / np.linalg.norm(wanted)
            assert error < close, layer
    assert folded[f"{FIRST}:channels"].tolist() == CHANNELS.tolist()
    assert not plain[f"{FIRST}:channels"].any()


@pytest.mark.parametrize(
    ("bits", "group", "quantizer"),
    [
        *((8, 0, "alternating"), (4, 0, "alternating"), (3, 64, "alternating"), (1, 0, "greedy")),
        *((2, 64, "hessian"), (7, 0, "greedy")),
    ],
)
def test_what_is_stored_is_what_the_quantizer_said(
    model: Model, weight: Any, bits: int, group: int, quantizer: str
) -> None:
    """Bit for bit, of the folded matrix with the folded moments; with the channel exponents undone
    a product is that of the quantizer's matrix with what the layer before gives."""
    calibrated = measured(model, CHANNELS)
    plan = model.plan(bits, group_size=group, quantizer=quantizer)
    arrays = model.arrays(plan, calibrated)
    entries = {entry.tensor: entry for entry in plan.blocks}
    for layer, columns, scale in (
        (QUERY, CHANNELS, math.log2(math.e) / math.sqrt(32)),
        (LAYER + "attention.self.value", CHANNELS, 1.0),
        (DOWN, np.zeros(128, int), 1.0),
    ):
        tensor = f"{layer}.weight"
        fold = Folded(tensor=tensor, columns=columns, scale=scale, bias="")
        folded, moments = fold.weight(model.state[tensor]), fold.moments(calibrated.moments(tensor))
        said = (
            quantize_levels(folded, moments).dequantize()
            if bits == 8
            else quantize_matrix(folded, entries[tensor], moments).dequantize()
        )
        assert np.array_equal(weight(arrays, layer), said), layer
        x = np.random.default_rng(0).standard_normal((7, len(columns)))
        product = np.ldexp(x, -columns) @ weight(arrays, layer).T
        np.testing.assert_allclose(product, x @ np.ldexp(said, -columns).T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 4, 7])
def test_alphas_are_bytes_over_powers_of_two(model: Model, bits: int) -> None:
    """Their magnitudes add up to 127 at most: no level leaves a byte."""
    arrays = model.arrays(model.plan(bits, group_size=64, quantizer="greedy"))
    alphas = arrays[f"{DOWN}.weight:alphas"]
    assert alphas.dtype == np.int8
    sums = np.abs(alphas.astype(int)).sum(axis=1)
    assert 64 <= sums.max() <= 127
    keys = arrays[f"{DOWN}.weight:keys"]
    assert keys.dtype == np.uint8
    assert keys.shape[1] == bits


def test_norms_are_rounded_with_their_channels(model: Model) -> None:
    arrays = model.arrays(model.plan(8), measured(model, CHANNELS))
    first, second = FIRST, LAYER + "attention.output.LayerNorm"
    for path, own, residual in ((first, CHANNELS, 0 * CHANNELS), (second, 0 * CHANNELS, CHANNELS)):
        gamma, beta = (model.state[f"{path}.{part}"] for part in ("weight", "bias"))
        channels = {"channels": own.astype(np.int8), "residual_channels": residual.astype(np.int8)}
        wanted = NormConstants.of(gamma, beta, 1e-12, **channels)
        for part in ("gamma", "beta", "constants"):
            assert np.array_equal(arrays[f"{path}:{part}"], getattr(wanted, part)), part
    assert arrays[f"{second}:constants"][4] == CHANNELS.max()


@pytest.mark.parametrize("bits", [8, 3])
def test_biases(model: Model, bits: int) -> None:
    """Within half a unit, which is 2**-16 of the row's step; the queries' with the factor of the scores."""
    arrays = model.arrays(model.plan(bits))
    for layer, factor in ((UP, 1.0), (QUERY, math.log2(math.e) / math.sqrt(32))):
        wanted = model.state[f"{layer}.bias"].astype(np.float64) * factor
        unit = np.ldexp(1.0, row_exponents(arrays, layer) + BIAS_SHIFT)
        found = bias(arrays, layer)
        assert (np.abs(found[: len(wanted)] - wanted) <= 0.501 * unit[: len(wanted)]).all()
        assert not found[len(wanted) :].any()


@pytest.mark.parametrize(("bits", "group"), [(8, 0), (3, 0), (3, 64)])
def test_zeros_move_nothing_else_down(model: Model, weight: Any, bits: int, group: int) -> None:
    """Rows of zeros, and groups of zeros in a row, must not cost the others their precision."""
    plan = model.plan(bits, group_size=group)
    w, b = (1e-3 * model.state[f"{DOWN}.{part}"] for part in ("weight", "bias"))
    w[:5] = 0
    w[10, :64] = 0
    w[11, 64:] = 0
    changed = {f"{DOWN}.weight".replace(".", "__"): w, f"{DOWN}.bias".replace(".", "__"): b}
    arrays = model.arrays(plan, **changed)
    top, exponents = arrays[f"{DOWN}.weight:top"][0], row_exponents(arrays, DOWN)[:64]
    assert np.ldexp(1.0, top) <= np.abs(w).max() / 16
    assert (top - exponents[5:]).max() < 8
    found = weight(arrays, DOWN)
    assert not found[:5].any()
    error = np.linalg.norm(found - w) / np.linalg.norm(w)
    assert error < (0.02 if bits == 8 else 0.3)
    shifts = arrays.get(f"{DOWN}.weight:group_shifts")
    if shifts is not None:
        assert (shifts[0, :, 10].tolist(), shifts[0, :, 11].tolist()) == ([31, 0], [0, 31])


@pytest.mark.parametrize(("bits", "group"), [(8, 0), (3, 0), (3, 64)])
def test_large_biases_of_small_rows(model: Model, weight: Any, bits: int, group: int) -> None:
    """Rows that are almost or wholly zero keep their bias; the weights give way."""
    w, b = model.state[f"{DOWN}.weight"].copy(), model.state[f"{DOWN}.bias"].copy()
    w[:4], w[4:6] = 1e-7 * w[:4], 0
    b[:6] = (1.5, -0.25, 1e4, 1e-5, -3.0, 0.0)
    changed = {f"{DOWN}.weight".replace(".", "__"): w, f"{DOWN}.bias".replace(".", "__"): b}
    arrays = model.arrays(model.plan(bits, group_size=group), **changed)
    np.testing.assert_allclose(bias(arrays, DOWN)[:64], b, rtol=2**-20, atol=2e-6)
    found, step = weight(arrays, DOWN), np.ldexp(1.0, row_exponents(arrays, DOWN)[:64, None])
    own = 0 if bits == 8 else 0.6 * np.abs(w[:6]).max(axis=1, keepdims=True)  # what 3 bits do to a weight
    assert (np.abs(found[:6] - w[:6]) <= own + (1 if bits == 8 else 3) * step[:6]).all()
    rest = np.linalg.norm(found[6:] - w[6:]) / np.linalg.norm(w[6:])
    assert rest < (0.02 if bits == 8 else 0.3)


def test_least_exponents() -> None:
    """The bias over the row's exponent and BIAS_SHIFT stays below 2**30, and above 2**28."""
    values = np.array([1.0, -1.0, 0.75, 3e38, 1e-30, 2.0**14])
    over = np.abs(values) / np.ldexp(1.0, least_exponents(values) + BIAS_SHIFT)
    assert (over <= 2.0**30).all()
    assert (over > 2.0**28).all()
    assert least_exponents(np.zeros(2)).tolist() == [LOWEST, LOWEST]


def test_own_exponents() -> None:
    entry = BlockBits(tensor="w", block="B", bits=2, group_size=8, scale_dtype=POW2)
    w = np.ones((3, 16), np.float32)
    w[0], w[1, :8] = 0, 0
    planes = quantize_matrix(w, entry)
    assert planes.exponents is not None
    found = own_exponents(planes)
    assert found[0].tolist() == [LOWEST, LOWEST]
    assert found[1].tolist() == [LOWEST, planes.exponents[1, 1]]
    assert found[2].tolist() == planes.exponents[2].tolist()


@pytest.mark.parametrize("bits", [8, 3])
def test_rows_of_zeros_in_a_table(model: Model, bits: int) -> None:
    """A padding word takes the lowest exponent: the sum keeps its other rows' precision."""
    w = model.state[WORDS].copy()
    w[0] = 0
    arrays = model.arrays(model.plan(bits), **{WORDS.replace(".", "__"): w})
    exponents = arrays[f"{WORDS}:row_exponents"]
    assert exponents[0] == LOWEST
    assert exponents[1:].min() > -20


def test_moments_guide_the_levels(model: Model, weight: Any) -> None:
    """Of matrices in the body, also where the queries' factor and channel exponents are folded in."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 8)) @ rng.standard_normal((8, 64)) * 2.0 ** (CHANNELS[None] * 2.0)
    x += 0.05 * rng.standard_normal(x.shape)
    moments = x.T @ x / len(x)
    known = {info.name: np.eye(info.shape[1]) for info in model.infos if info.block in ("Attn", "FFN")}
    known |= {name: moments for name in known if name.startswith(LAYER + "attention.self")}
    factor = math.log2(math.e) / math.sqrt(32)
    wanted = x @ model.state[f"{QUERY}.weight"].T.astype(np.float64) * factor
    errors = []
    for given in (known, {name: np.diag(np.diag(m)) for name, m in known.items()}):
        arrays = model.arrays(model.plan(8), calibration(given))
        columns = arrays[f"{FIRST}:channels"].astype(int)
        errors.append(np.linalg.norm(np.ldexp(x, -columns) @ weight(arrays, QUERY).T - wanted))
    assert errors[0] < 0.6 * errors[1]


def test_ranges() -> None:
    known = calibration({"a": np.diag([4.0, 9.0, 0.0]), "b": np.eye(2)})
    found = ranges_of(known, ["b", "a", "other"])
    assert list(found) == ["a", "b"]
    assert found["a"].tolist() == [2, 3, 0]
    assert ranges_of(None, ["a"]) == {}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("bits", [8, 3])
def test_weights_that_are_not_finite(model: Model, bits: int, bad: float) -> None:
    w = model.state[f"{UP}.weight"].copy()
    w[3, 4] = bad
    with pytest.raises(InputError, match=rf"^{UP}\.weight: .*finite"):
        model.arrays(model.plan(bits), **{f"{UP}.weight".replace(".", "__"): w})


def test_weights_too_large_for_planes(model: Model) -> None:
    w = np.full(model.shapes[f"{UP}.weight"], 2.0**120, np.float32)
    with pytest.raises(InputError, match=rf"^{UP}\.weight: a scale exceeds pow2"):
        model.arrays(model.plan(3), **{f"{UP}.weight".replace(".", "__"): w})


def test_words_without_frequencies(model: Model) -> None:
    plan = model.plan(3)
    (table,) = [entry for entry in plan.blocks if entry.tensor == WORDS]
    rest = tuple(entry for entry in plan.blocks if entry != table)
    by_word = replace(plan, words=(table.by_word(((28, 4), (100, 2))),), blocks=rest)
    with pytest.raises(InputError, match="no token frequencies: put token_freq"):
        model.arrays(by_word)


def test_words_lie_by_frequency(model: Model) -> None:
    plan = model.plan(8)
    (table,) = [entry for entry in plan.blocks if entry.tensor == WORDS]
    rest = tuple(entry for entry in plan.blocks if entry != table)
    by_word = replace(plan, words=(table.by_word(((28, 8), (100, 8))),), blocks=rest)
    arrays = model.body(by_word).arrays(np.arange(128))
    assert arrays[f"{WORDS}:rank"].tolist() == list(range(127, -1, -1))
    levels = np.concatenate([arrays[f"{WORDS}:{i}:row_levels"] for i in (0, 1)])
    exponents = np.concatenate([arrays[f"{WORDS}:{i}:row_exponents"] for i in (0, 1)])
    rows = np.ldexp(levels.astype(np.float64), exponents.astype(int)[:, None])[::-1]
    np.testing.assert_allclose(rows, model.state[WORDS], atol=0.005)


def test_codes_that_need_a_calibration(model: Model) -> None:
    """Also of 8 bits, whose levels would only be rounded; tables never need one."""
    for bits in (3, 8):
        plan = model.plan(bits, quantizer="hessian")
        with pytest.raises(UsageError, match="hessian codes need calibration data: give --calibration FILE"):
            model.arrays(plan)
        model.arrays(plan, measured(model, CHANNELS))


def test_a_calibration_that_lacks_a_matrix(model: Model) -> None:
    known = measured(model, CHANNELS)
    inputs = {name: i for name, i in known._inputs.items() if name != f"{UP}.weight"}
    with pytest.raises(InputError, match=rf"the calibration does not hold '{UP}\.weight'"):
        model.arrays(model.plan(8), replace(known, _inputs=inputs))


def test_plans_that_do_not_fit_together(model: Model) -> None:
    plan = model.plan(3)
    blocks = [replace(e, activation_block=None) if e.tensor == f"{QUERY}.weight" else e for e in plan.blocks]
    with pytest.raises(ValueError, match="read the same activations; give them one activation_block"):
        model.body(replace(plan, blocks=tuple(blocks)))
    blocks = [replace(e, offset=True) if e.tensor == f"{UP}.weight" else e for e in plan.blocks]
    with pytest.raises(ValueError, match="has an offset, mode block-int stores none"):
        model.body(replace(plan, blocks=tuple(blocks)))


def test_the_ir_with_exponents_can_be_written(model: Model, tmp_path: Path) -> None:
    plan = model.plan(8)
    target = get_target("x86_64_v3").to_tvm()
    common = pipeline.run(model.graphs, pipeline.common_phases(plan), target)
    IntegerBody.of(common, plan, 24, None, model.state.__getitem__, tmp_path)
    text = (tmp_path / "1-exponents.py").read_text()
    assert "tvmq.channels" in text
