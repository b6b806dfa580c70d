# SPDX-License-Identifier: Apache-2.0
"""Whole runs on a tiny model: the loss falls, a killed run goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvmq
from schedules.packing import BitPlanes
from tvmq import api
from tvmq.calibration import calibrate
from tvmq.checkpoint import Checkpoint
from tvmq.errors import InputError, UsageError
from tvmq.options import CompileOptions, PlanOptions, QuantizeOptions
from tvmq.retraining.loop import Evaluation
from tvmq.retraining.options import Method, RetrainOptions
from tvmq.retraining.session import RetrainReport
from tvmq.samples import read_samples

OPTIONS = RetrainOptions(
    steps=12,
    batch_tokens=64,
    lr=2e-3,
    scale_lr=2e-4,
    eval_every=0.5,
    device="cpu",
    dtype="float32",
    threads=1,
)
MIX = "chung2020-2.5-1.8-3.7"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["the file", "is open", "a page", "of the print", "no", "document", "user", "save as"]
    lines = [f"{words[i % 8]} {words[i % 5]}\t{words[i % 3]} {words[i % 7]}" for i in range(120)]
    path = tmp_path_factory.mktemp("text") / "train.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(
    model: Path,
    output: Path,
    text: Path,
    options: RetrainOptions,
    preset: str = MIX,
    outliers: float | None = None,
    **more: object,
) -> RetrainReport:
    start = PlanOptions(preset=preset, outliers=outliers)
    return tvmq.retrain(model, output, data=text, dev=text, dev_limit=3, start=start, options=options, **more)  # type: ignore[arg-type]


def arrays(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = Checkpoint.open(folder)
    return {name: checkpoint.tensor(name) for name in checkpoint.names()}


@pytest.mark.parametrize("method", ["scales", "ste", "pnr"])
def test_the_loss_falls(tiny_model: Path, tmp_path: Path, text: Path, method: Method) -> None:
    report = run(tiny_model, tmp_path / "out", text, replace(OPTIONS, method=method, period=4))
    assert report.best.objective(0.1) < report.evaluations[0].objective(0.1)
    assert Checkpoint.open(tmp_path / "out").plan == tvmq.plan(tiny_model, PlanOptions(preset=MIX))


@pytest.mark.parametrize("method", ["scales", "ste", "pnr"])
def test_outliers_are_trained_and_kept(tiny_model: Path, tmp_path: Path, text: Path, method: Method) -> None:
    options = replace(OPTIONS, method=method, period=4)
    report = run(tiny_model, tmp_path / "out", text, options, outliers=2.0)
    plan = PlanOptions(preset=MIX, outliers=2.0)
    api.quantize(tiny_model, tmp_path / "start", QuantizeOptions(plan=plan))
    before, after = (Checkpoint.open(tmp_path / name) for name in ("start", "out"))
    assert report.best.objective(0.1) < report.evaluations[0].objective(0.1)
    was, now = (c.planes("model.encoder.layers.0.fc1.weight") for c in (before, after))
    assert isinstance(was, BitPlanes)
    assert isinstance(now, BitPlanes)
    assert was.outliers is not None
    assert now.outliers is not None
    assert np.array_equal(was.outliers.places, now.outliers.places)
    assert not np.array_equal(was.outliers.values, now.outliers.values)
    again = tvmq.retrain(
        tiny_model, tmp_path / "again", data=text, dev=text, dev_limit=3, start=tmp_path / "out",
        options=replace(options, steps=1),
    )  # fmt: skip
    assert again.evaluations[0].divergence == pytest.approx(report.best.divergence, rel=0.02)


def test_the_result_compiles(tiny_model: Path, tmp_path: Path, text: Path) -> None:
    run(tiny_model, tmp_path / "out", text, replace(OPTIONS, steps=2))
    tvmq.compile(tmp_path / "out", tmp_path / "out.tvmq", CompileOptions(isa_levels=("x86_64_v2",)))
    assert tvmq.verify(tmp_path / "out.tvmq").ok


def test_scales_alone_keep_every_code(tiny_model: Path, tmp_path: Path, text: Path) -> None:
    run(tiny_model, tmp_path / "out", text, replace(OPTIONS, method="scales"), preset="3-bit")
    api.quantize(tiny_model, tmp_path / "start", QuantizeOptions(plan=PlanOptions(preset="3-bit")))
    before, after = (Checkpoint.open(tmp_path / name) for name in ("start", "out"))
    name = "model.encoder.layers.0.fc1.weight"
    was, now = before.planes(name), after.planes(name)
    assert was is not None
    assert now is not None
    # planes are stored by falling scale: an order that training changed changes their order, not the codes
    same = [np.array_equal(a, b) for a, b in zip(was.planes[0], now.planes[0], strict=True)]  # type: ignore[union-attr]
    assert np.mean(same) > 0.9
    assert not np.array_equal(was.scales, now.scales)  # type: ignore[union-attr]


def test_a_killed_run_goes_on_as_if_it_had_not_been(tiny_model: Path, tmp_path: Path, text: Path) -> None:
    whole = run(tiny_model, tmp_path / "whole", text, OPTIONS)
    stopped = replace(OPTIONS, state=tmp_path / "state", save_seconds=0)

    def kill(evaluation: Evaluation) -> None:
        if evaluation.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tmp_path / "parts", text, stopped, on_evaluation=kill)
    assert not (tmp_path / "parts").exists()
    continued = run(tiny_model, tmp_path / "parts", text, stopped)
    assert [e.step for e in continued.evaluations] == [e.step for e in whole.evaluations]
    one, other = arrays(tmp_path / "whole"), arrays(tmp_path / "parts")
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_state_of_another_run_is_refused(tiny_model: Path, tmp_path: Path, text: Path) -> None:
    options = replace(OPTIONS, steps=2, state=tmp_path / "state", save_seconds=0)
    run(tiny_model, tmp_path / "one", text, options)
    with pytest.raises(InputError, match="another run"):
        run(tiny_model, tmp_path / "two", text, replace(options, lr=1e-3))
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:1000])
    with pytest.raises(InputError, match="state"):
        run(tiny_model, tmp_path / "two", text, options)


def test_phases_quantize_one_part_after_the_other(tiny_model: Path, tmp_path: Path, text: Path) -> None:
    options = replace(OPTIONS, phases=("Emb", "Dec", "Enc"), steps=9, eval_every=1 / 9)
    report = run(tiny_model, tmp_path / "out", text, options, preset="1-bit")
    losses = [evaluation.divergence for evaluation in report.evaluations]
    plain = run(tiny_model, tmp_path / "all", text, replace(options, phases=()), preset="1-bit")
    assert losses[0] < plain.evaluations[0].divergence  # only the words are quantized yet
    with pytest.raises(UsageError, match="no block is called Head"):
        run(tiny_model, tmp_path / "no", text, replace(options, phases=("Head",)))


def test_training_goes_on_from_a_coded_checkpoint(tiny_model: Path, tmp_path: Path, text: Path) -> None:
    first = run(tiny_model, tmp_path / "one", text, OPTIONS)
    second = tvmq.retrain(
        tiny_model,
        tmp_path / "two",
        data=text,
        dev=text,
        dev_limit=3,
        start=tmp_path / "one",
        options=OPTIONS,
    )
    # scales in float16 and vectors too: the same up to their rounding
    assert second.evaluations[0].divergence == pytest.approx(first.best.divergence, rel=0.02)
    with pytest.raises(InputError, match="not a coded checkpoint"):
        tvmq.retrain(tiny_model, tmp_path / "x", data=text, dev=text, start=tiny_model, options=OPTIONS)


def test_hessian_codes_need_the_calibration_and_coded_ones_none(
    tiny_model: Path, tmp_path: Path, text: Path
) -> None:
    preset, file = PlanOptions(preset="2-bit", quantizer="hessian"), tmp_path / "c.safetensors"
    given = {"data": text, "dev": text, "dev_limit": 3, "options": replace(OPTIONS, steps=1)}
    with pytest.raises(UsageError, match="give --calibration FILE"):
        tvmq.retrain(tiny_model, tmp_path / "x", start=preset, **given)  # type: ignore[arg-type]
    calibrate(tiny_model, read_samples(tiny_model, text)).write(file)
    tvmq.retrain(tiny_model, tmp_path / "out", start=preset, calibration=file, **given)  # type: ignore[arg-type]
    plan = Checkpoint.open(tmp_path / "out").plan
    assert plan is not None
    assert {entry.quantizer for entry in plan.entries()} == {"hessian"}
    with pytest.raises(UsageError, match="leave out --calibration"):
        tvmq.retrain(tiny_model, tmp_path / "y", start=tmp_path / "out", calibration=file, **given)  # type: ignore[arg-type]


def test_a_projection_needs_its_period(tiny_model: Path, tmp_path: Path, text: Path) -> None:
    with pytest.raises(UsageError, match="--period"):
        run(tiny_model, tmp_path / "out", text, replace(OPTIONS, method="pnr"))
    assert not (tmp_path / "out").exists()


def test_slow_evaluations_leave_time_to_train(
    tiny_model: Path, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that moves 6 s an evaluation and 1 s a step."""
    from tvmq.retraining import loop

    now = [0.0]
    evaluate, step = loop._Trainer.evaluate, loop._Trainer.step

    def slow(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            now[0] += seconds
            return function(*given)

        return run

    monkeypatch.setattr(loop._Trainer, "evaluate", slow(evaluate, 6))
    monkeypatch.setattr(loop._Trainer, "step", slow(step, 1))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    options = replace(OPTIONS, steps=1000, seconds=20, eval_every=0.1)
    report = run(tiny_model, tmp_path / "out", text, options)
    assert [evaluation.step for evaluation in report.evaluations] == [0, 2, 4]


def test_greedy_search_is_that_of_the_executor(tiny_model: Path) -> None:
    import torch

    from tvmq.families import translation_family
    from tvmq.families.executor import TorchExecutor, greedy_translations
    from tvmq.retraining.development import _greedy
    from tvmq.samples import Sample, Samples

    checkpoint = Checkpoint.open(tiny_model)
    family = translation_family(checkpoint.config, "test")
    model = family.load(checkpoint)
    sources, eos = [(5, 9, 3, 0), (17, 0), (40, 41, 42, 43, 44, 0)], model.config.eos_id
    samples = Samples([Sample(source=source, target=source) for source in sources])
    batch = samples.batch([0, 1, 2], model.config.pad_id)
    student = family.whole(model)
    with torch.no_grad():  # one of three ends at once
        start = torch.full((3, 1), model.config.start_id)
        said = student.encode(torch.from_numpy(batch.source), torch.from_numpy(batch.source_lengths))
        first = student.decode(start, *said)[:, -1]
        near, far, _ = (first.amax(-1) - first[:, eos]).sort().values.tolist()
        model.final_logits_bias.view(-1)[eos] += (near + far) / 2
    found = _greedy(student, batch, torch.device("cpu"))
    wanted = greedy_translations(TorchExecutor(model), sources, lambda _: 20)
    assert [line[:19] for line in found] == [[id for id in line[:19] if id != eos] for line in wanted]
    assert [] in found
    assert any(found)
