# SPDX-License-Identifier: Apache-2.0
"""Users' own modules: compiled, loaded without torch, held against PyTorch; refusals in one sentence."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

import tvmq
from relay_passes.bit_plan import decode_plan
from targets import detect_host
from tvmq.errors import InputError, TvmqError, UsageError, VerificationError
from tvmq.module_runtime import CompiledModule
from tvmq.options import CompileOptions, PlanOptions
from tvmq.quantization import quantize_model

WIDTH, HEADS, WORDS, LONGEST = 64, 4, 301, 24
LEVEL = detect_host()[:1]
FREE = {0: Dim("batch", min=1), 1: Dim("length", min=1, max=LONGEST)}
SHAPES = ((2, 5), (1, 1), (1, LONGEST), (7, 3))


class Block(nn.Module):
    """Written as users write them: bare matrices and an attention of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = (_matrix(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.shift = _matrix(WIDTH, 2 * WIDTH), nn.Parameter(torch.randn(2 * WIDTH) / 10)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        y = self.before(x)
        q, k, v = ((y @ w).view(b, t, HEADS, d // HEADS).transpose(1, 2) for w in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.between(x) @ self.up + self.shift))


class LanguageModel(nn.Module):
    """The block between a table and a tied head, with learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.positions = nn.Parameter(torch.randn(LONGEST + 1, WIDTH) / 10)
        self.block, self.norm = Block(), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.positions[: ids.shape[1]]
        return self.head(self.norm(self.block(x)))


class Function(nn.Module):
    """A linear and whatever a test does with it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.register_buffer("calls", torch.zeros(1))
        self.function = function
        self.eval()

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(self, *inputs)


def _matrix(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns) / math.sqrt(rows))


def encoder(*, norm_first: bool, activation: str, layers: int = 1) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 96, batch_first=True, norm_first=norm_first, activation=activation
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()


def options(preset: str | None = None, tables: Any = "int8", **plan: Any) -> CompileOptions:
    return CompileOptions(plan=PlanOptions(preset=preset, **plan), tables=tables, isa_levels=LEVEL)


def some_input(module: nn.Module, batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch * 100 + length)
    if isinstance(module, LanguageModel):
        return torch.randint(0, WORDS, (batch, length), generator=generator)
    return torch.randn(batch, length, WIDTH, generator=generator)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(3)


@pytest.fixture(scope="module")
def modules() -> dict[str, nn.Module]:
    torch.manual_seed(3)
    return {
        "post": encoder(norm_first=False, activation="relu", layers=2),
        "pre": encoder(norm_first=True, activation="gelu"),
        "own": LanguageModel().eval(),
    }


@pytest.fixture(scope="module")
def compiled(
    modules: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str, str], Path]:
    """Artifacts by module, preset and tables, each compiled once."""
    made: dict[tuple[str, str, str], Path] = {}

    def make(name: str, preset: str, tables: str) -> Path:
        key = (name, preset, tables)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("modules") / "-".join([*key, "made.tvmq"])
            module = modules[name]
            example = some_input(module, 2, 5)
            tvmq.compile(module, (example,), made[key], options(preset, tables), dynamic_shapes=(FREE,))
        return made[key]

    return make


def dequantized(module: nn.Module, artifact: Path) -> dict[str, torch.Tensor]:
    """The weights that the artifact holds, as the module's."""
    plan = decode_plan((artifact / "plan.json").read_bytes())
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    bare = {name for name in state if name.rpartition(".")[2] in ("q", "k", "v", "up")}
    turned = {name: value.T if name in bare else value for name, value in state.items()}

    class Source:
        config: dict[str, Any] = {}  # noqa: RUF012

        def names(self) -> list[str]:
            return list(turned)

        def shape(self, name: str) -> tuple[int, ...]:
            return turned[name].shape

        def tensor(self, name: str) -> np.ndarray:
            return turned[name]

    planes = quantize_model(Source(), plan)
    values = {name: p.dequantize() for name, p in planes.items()}
    return {n: torch.from_numpy(np.ascontiguousarray(v.T if n in bare else v)) for n, v in values.items()}


def reference(module: nn.Module, weights: dict[str, torch.Tensor], x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return torch.func.functional_call(module, weights, (x,)).numpy()


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def cosine(found: np.ndarray, wanted: np.ndarray) -> float:
    a, b = found.ravel(), wanted.ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("name", ["post", "pre", "own"])
def test_fp32_equals_torch_at_any_batch_and_length(
    name: str, modules: dict[str, nn.Module], compiled: Callable[..., Path]
) -> None:
    module = modules[name]
    with tvmq.load(compiled(name, "fp32", "int8")) as run:
        for batch, length in SHAPES:
            x = some_input(module, batch, length)
            assert relative_error(run(x.numpy()), reference(module, {}, x)) < 1e-5


@pytest.mark.parametrize("name", ["post", "own"])
def test_three_bits_equal_torch_on_the_dequantized_weights(
    name: str, modules: dict[str, nn.Module], compiled: Callable[..., Path]
) -> None:
    module = modules[name]
    artifact = compiled(name, "3-bit", "int8")
    weights = dequantized(module, artifact)
    with tvmq.load(artifact) as run:
        for batch, length in SHAPES:
            x = some_input(module, batch, length)
            assert cosine(run(x.numpy()), reference(module, weights, x)) > 0.9995


def test_exact_tables_equal_torch_on_the_dequantized_weights(
    modules: dict[str, nn.Module], compiled: Callable[..., Path]
) -> None:
    artifact = compiled("own", "3-bit", "exact")
    weights = dequantized(modules["own"], artifact)
    with tvmq.load(artifact) as run:
        for batch, length in SHAPES:
            x = some_input(modules["own"], batch, length)
            assert relative_error(run(x.numpy()), reference(modules["own"], weights, x)) < 1e-5


def test_blocks_and_names(compiled: Callable[..., Path]) -> None:
    def blocks(name: str) -> dict[str, str]:
        plan = json.loads((compiled(name, "fp32", "int8") / "plan.json").read_text())
        return {entry["tensor"]: entry["block"] for entry in plan["blocks"]}

    assert blocks("own") == {
        "words.weight": "Emb",
        "block.q": "Attn",
        "block.k": "Attn",
        "block.v": "Attn",
        "block.out.weight": "Attn",
        "block.up": "FFN",
        "block.down.weight": "FFN",
    }
    assert blocks("pre") == {
        "layers.0.self_attn.in_proj_weight": "Attn",
        "layers.0.self_attn.out_proj.weight": "Attn",
        "layers.0.linear1.weight": "FFN",
        "layers.0.linear2.weight": "FFN",
    }


def test_the_artifact_says_what_it_takes(compiled: Callable[..., Path]) -> None:
    artifact = compiled("own", "3-bit", "int8")
    facts = tvmq.inspect(artifact)
    assert facts["family"] == "module"
    assert facts["architecture"]["input.0"] == f"ids int64[batch, length] < {WORDS}"
    assert facts["architecture"]["output.0"] == f"output float32[batch, length, {WORDS}]"
    assert facts["architecture"]["extent.length"] == f"1..{LONGEST}"
    assert facts["architecture"]["extent.batch"] == "1.."
    assert 3 < facts["bits_per_weight"] < 4.5
    assert tvmq.verify(artifact).ok


def test_runs_without_torch_and_tvm(modules: dict[str, nn.Module], compiled: Callable[..., Path]) -> None:
    artifact = compiled("own", "3-bit", "int8")
    ids = some_input(modules["own"], 2, 4).numpy()
    code = f"""
        import sys
        sys.modules["torch"] = None
        import numpy as np, tvmq
        with tvmq.load({str(artifact)!r}) as run:
            y = run(ids=np.array({ids.tolist()}))
        assert sys.modules["torch"] is None and "tvm" not in sys.modules
        print(repr(y.astype(np.float64).sum()))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    with tvmq.load(artifact) as run:
        assert repr(run(ids).astype(np.float64).sum()) == done.stdout.strip()


def test_the_same_numbers_for_any_number_of_threads(
    modules: dict[str, nn.Module], compiled: Callable[..., Path]
) -> None:
    ids = some_input(modules["own"], 3, LONGEST).numpy()
    results = []
    for threads in (1, 2):
        with tvmq.load(compiled("own", "3-bit", "int8"), threads=threads) as run:
            results.append(run(ids))
    np.testing.assert_array_equal(*results)


def test_any_memory_will_do(modules: dict[str, nn.Module], compiled: Callable[..., Path]) -> None:
    x = some_input(modules["post"], 4, 6).numpy()
    with tvmq.load(compiled("post", "fp32", "int8")) as run:
        expected = run(x)
        shifted = np.frombuffer(b"\0" * 4 + x.tobytes(), np.uint8)[4:].view(np.float32).reshape(x.shape)
        for other in (np.asfortranarray(x), shifted, np.concatenate([x, x])[::1][:4]):
            np.testing.assert_array_equal(run(other), expected)
        first = run(x[:1])
        run(x[1:2])
        np.testing.assert_allclose(first, expected[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ((), r"0 inputs given, the module takes 1: ids"),
        ((np.zeros((1, 2), np.int64),) * 2, r"2 inputs given"),
        ((np.zeros((1, 2), np.int32),), r"ids is int32\[1, 2\], expected ids int64\[batch, length\]"),
        ((np.zeros(3, np.int64),), r"ids is int64\[3\], expected"),
        ((np.zeros((1, LONGEST + 1), np.int64),), rf"length \(axis 1\) must be 1 to {LONGEST}"),
        ((np.zeros((1, 0), np.int64),), r"length \(axis 1\) must be 1 to"),
        ((np.full((1, 2), WORDS),), rf"ids outside 0..{WORDS - 1}"),
        ((np.full((1, 2), -1),), r"ids outside 0"),
    ],
)
def test_inputs_that_do_not_fit(
    inputs: tuple[np.ndarray, ...], sentence: str, compiled: Callable[..., Path]
) -> None:
    with tvmq.load(compiled("own", "fp32", "int8")) as run, pytest.raises(InputError, match=sentence):
        run(*inputs)


def test_closed_and_misnamed(compiled: Callable[..., Path]) -> None:
    run = tvmq.load(compiled("own", "fp32", "int8"))
    assert isinstance(run, CompiledModule)
    with pytest.raises(InputError, match="no further input is called 'tokens'"):
        run(tokens=np.zeros((1, 2), np.int64))
    run.close()
    with pytest.raises(UsageError, match="closed"):
        run(np.zeros((1, 2), np.int64))


def test_a_module_does_not_translate(compiled: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="holds a module, not a translation model"):
        tvmq.bench(compiled("own", "fp32", "int8"))


def test_a_failed_self_test_is_refused(compiled: Callable[..., Path], tmp_path: Path) -> None:
    from tvmq import module_selftest

    class Wrong:
        isa, signature = "x", tvmq.load(compiled("post", "fp32", "int8")).signature

        def __call__(self, x: np.ndarray) -> np.ndarray:
            return np.full_like(x, 3)

    from tvmq.artifact import open_artifact

    with pytest.raises(VerificationError, match="self-test failed"):
        module_selftest.check(open_artifact(compiled("post", "fp32", "int8")), Wrong())  # type: ignore[arg-type]


def test_planning_options(tmp_path: Path) -> None:
    module = LanguageModel().eval()
    frequencies = tmp_path / "token_freq.tsv"
    rows = [f"{i}\tw{i}\t{WORDS - i}\t0" for i in range(WORDS)]
    frequencies.write_text("\n".join(["id\tpiece\tcount_src\tcount_tgt", *rows]) + "\n")
    example = some_input(module, 2, 5)
    chosen = options(
        bits=9, frequencies=frequencies, overrides=(("Attn", 4), ("*.down.*", 32)), quantizer="greedy"
    )
    report = tvmq.compile(module, example, output=tmp_path / "a.tvmq", options=chosen)
    plan = decode_plan((tmp_path / "a.tvmq" / "plan.json").read_bytes())
    bits = {entry.tensor: entry.bits for entry in plan.blocks}
    assert bits["block.q"] == 4
    assert bits["block.down.weight"] == 32
    assert report.manifest.bits.word_bits
    weights_written = (tmp_path / "a.tvmq" / "weights.safetensors").stat().st_size
    assert weights_written < 0.6 * sum(p.numel() for p in module.parameters()) * 4
    with tvmq.load(tmp_path / "a.tvmq") as run:
        assert run(example.numpy()).shape == (2, 5, WORDS)
        with pytest.raises(InputError, match="axis 1 must be 5"):
            run(some_input(module, 2, 6).numpy())
    with pytest.raises(UsageError, match="exists already"):
        tvmq.compile(module, example, tmp_path / "a.tvmq", chosen)


def test_a_replaced_artifact_runs_its_own_code(tmp_path: Path) -> None:
    first, second = Function(lambda m, x: F.relu(m.linear(x))), Function(lambda m, x, y: m.linear(x) + y)
    x = torch.randn(3, 32)
    path = tmp_path / "m.tvmq"
    tvmq.compile(first, x, path, options("fp32"))
    old = tvmq.load(path)
    tvmq.compile(
        second, (x, x), path, CompileOptions(plan=PlanOptions(preset="fp32"), isa_levels=LEVEL, force=True)
    )
    new = tvmq.load(path)
    np.testing.assert_allclose(new(x.numpy(), x.numpy()), second(x, x).detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(old(x.numpy()), first(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_masks_scales_grouped_heads_and_dicts(tmp_path: Path) -> None:
    """Everything that scaled_dot_product_attention takes, with a row that may look at nothing."""

    def forward(
        module: Function, x: torch.Tensor, allowed: torch.Tensor, bias: torch.Tensor
    ) -> dict[str, Any]:
        b, t, _ = x.shape
        q = module.linear(x).view(b, t, 4, 8).transpose(1, 2)
        k = x[..., :16].reshape(b, t, 2, 8).transpose(1, 2)
        grouped = F.scaled_dot_product_attention(q, k, k, allowed[:, None], scale=0.3, enable_gqa=True)
        added = F.scaled_dot_product_attention(q, q, q, attn_mask=bias)
        return {"grouped": grouped, "added": added, "best": added.argmax(-1)}

    module = Function(forward)
    axes = ({0: FREE[0], 1: FREE[1]}, {0: FREE[0], 1: FREE[1], 2: FREE[1]}, {0: FREE[1], 1: FREE[1]})

    def inputs(b: int, t: int) -> tuple[torch.Tensor, ...]:
        allowed = torch.rand(b, t, t) > 0.4
        allowed[:, 0] = False
        bias = torch.zeros(t, t).masked_fill(torch.ones(t, t).triu(1).bool(), -math.inf)
        return torch.randn(b, t, 32), allowed, bias

    tvmq.compile(module, inputs(2, 4), tmp_path / "m.tvmq", options("fp32"), dynamic_shapes=(axes,))
    with tvmq.load(tmp_path / "m.tvmq") as run:
        for shape in ((2, 4), (1, 7), (3, 1)):
            given = inputs(*shape)
            found, wanted = run(*(x.numpy() for x in given)), module(*given)
            assert list(found) == ["grouped", "added", "best"]
            for name, value in wanted.items():
                np.testing.assert_allclose(found[name], value.detach().numpy(), rtol=1e-4, atol=1e-5)
        with pytest.raises(InputError, match=r"length .* is 4 in an earlier input"):
            run(*(x.numpy() for x in (*inputs(2, 4)[:1], *inputs(2, 5)[1:])))


def test_padding_masks_and_a_tuple(tmp_path: Path) -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder(norm_first=False, activation="relu")
            self.classes = nn.Linear(WIDTH, 3)
            mask = nn.Transformer.generate_square_subsequent_mask(LONGEST + 1)
            self.register_buffer("mask", mask, persistent=False)

        def forward(self, x: torch.Tensor, padding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            t = x.shape[1]
            y = self.encoder(x, mask=self.mask[:t, :t], src_key_padding_mask=padding)
            return self.classes(y[:, -1]).softmax(-1), y

    def inputs(b: int, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(b, t, WIDTH), torch.zeros(b, t).masked_fill(torch.arange(t) > 3, -math.inf)

    module = Classifier().eval()
    path = tmp_path / "m.tvmq"
    tvmq.compile(module, inputs(2, 5), path, options("fp32"), dynamic_shapes=(FREE, FREE))
    assert {block["name"] for block in tvmq.inspect(path)["blocks"]} == {"Attn", "FFN", "Head"}
    with tvmq.load(path) as run, torch.no_grad():
        for shape in ((2, 5), (1, 9), (3, 1)):
            x, padding = inputs(*shape)
            found = run(x.numpy(), padding=padding.numpy())
            assert isinstance(found, tuple)
            for a, b in zip(found, module(x, padding), strict=True):
                np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-5)


def test_the_fast_path_of_torch_is_left_as_it_was(modules: dict[str, nn.Module], tmp_path: Path) -> None:
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(InputError):
        tvmq.compile(modules["post"], (torch.randn(2, 3, WIDTH + 1),), tmp_path / "m.tvmq")
    assert torch.backends.mha.get_fastpath_enabled()


def _counting(module: Function, x: torch.Tensor) -> torch.Tensor:
    module.get_buffer("calls").add_(1)
    return module.linear(x)


X = torch.randn(4, 32)


@pytest.mark.parametrize(
    ("module", "inputs", "sentence"),
    [
        (
            Function(lambda m, x: torch.fft.fft(m.linear(x)).real),
            (X,),
            r"unsupported operators: aten\._fft.*supported",
        ),
        (Function(lambda m, x: F.dropout(m.linear(x))), (X,), r"aten\.native_dropout"),
        (nn.Linear(4, 4), (torch.randn(2, 4),), r"training mode; call module\.eval\(\)"),
        (
            Function(lambda m, x: m.linear(x)),
            (3,),
            r"example input 0 is of type int, expected a torch\.Tensor",
        ),
        (Function(lambda m, x: m.linear(x)), None, r"example_inputs must be a tuple"),
        (Function(lambda m, x: m.linear(x)), (X, X), r"torch\.export cannot trace"),
        (
            Function(lambda m, x: m.linear(x) if x.sum() > 0 else x),
            (X,),
            r"decisions on the values of tensors",
        ),
        (Function(lambda m, x: m.linear(x)[torch.nonzero(x[:, 0])[:, 0]]), (X,), r"aten\.nonzero"),
        (
            Function(lambda m, x: m.linear(x)).half(),
            (X.half(),),
            r"linear\.weight is float16.*module\.float\(\)",
        ),
        (Function(lambda m, x: {"a": [m.linear(x)]}), (X,), r"nested containers"),
        (Function(_counting), (X,), r"forward changes calls"),
        (Function(lambda m, x: x * 2), (X,), r"no quantizable matrices"),
        (Function(lambda m, x: m.linear(x).cumsum(0)), (X,), r"TVM cannot compile an operator.*cumsum"),
        (object(), (X,), r"object cannot be compiled, expected a model folder or a torch\.nn\.Module"),
    ],
)
def test_refusals_are_one_sentence(module: Any, inputs: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(TvmqError, match=sentence) as caught:
        tvmq.compile(module, inputs, tmp_path / "m.tvmq", options("fp32"))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    module = Function(lambda m, x: m.linear(x))
    with torch.no_grad():
        module.linear.weight[0, 0] = math.nan
    with pytest.raises(InputError, match=r"linear\.weight holds values that are not finite"):
        tvmq.compile(module, (X,), tmp_path / "m.tvmq")
