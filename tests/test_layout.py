# SPDX-License-Identifier: Apache-2.0
"""The rules of the repository: four packages, one-way imports, registries equal to folders, cheap import."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tvmq

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tvmq", "relay_passes", "schedules", "targets")
HEAVY = {
    "tvm",
    "tvm_ffi",
    "torch",
    "transformers",
    "sentencepiece",
    "tokenizers",
    "numpy",
    "rich",
    "sacrebleu",
}
MAX_LINES = 400
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def modules(package: str, without: set[str]) -> set[str]:
    names = {path.stem for path in (ROOT / package.replace(".", "/")).glob("*.py")}
    return names - without - {"__init__"}


def imported_after(code: str) -> set[str]:
    """Top-level modules in sys.modules of a fresh interpreter after ``code``."""
    show = "; import sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    command = [sys.executable, "-c", code + show]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT / "tests")
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_wheel_holds_the_four_packages() -> None:
    from hatchling.builders.wheel import WheelBuilder

    files = [file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()]
    assert {name.partition("/")[0] for name in files} == set(PACKAGES)
    assert "tvmq/cli/__init__.py" in files


def test_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert tvmq.__version__ == version("tvmq")


def test_quantizers_match_their_folder() -> None:
    from tvmq.quantizers import get_quantizer, quantizer_names

    assert set(quantizer_names()) == modules("tvmq.quantizers", {"quantizer"})
    for name in quantizer_names():
        assert type(get_quantizer(name)).__module__ == f"tvmq.quantizers.{name}"


def test_targets_match_their_folder() -> None:
    from targets import get_target, target_names

    assert set(target_names()) == modules("targets", {"detect", "permission", "spec", "toolchain"})
    assert [get_target(name).name for name in target_names()] == list(target_names())


def test_families_match_their_folder() -> None:
    from tvmq.families import FAMILIES, get_family

    configured = [name for name in modules("tvmq.families", set()) if name.endswith("_config")]
    assert {f"{name}_config" for name in FAMILIES} == set(configured)
    assert [get_family({"model_type": name}).name for name in FAMILIES] == list(FAMILIES)


def test_tasks_match_their_folder() -> None:
    from tvmq.families import FAMILIES, get_family
    from tvmq.tasks import TASKS, get_task

    assert set(TASKS) == modules("tvmq.tasks", {"task"})
    assert [get_task(name).name for name in TASKS] == list(TASKS)
    assert {get_family({"model_type": name}).task for name in FAMILIES} == set(TASKS)
    with pytest.raises(ValueError, match="unknown task 'sing'; known: encode, translate"):
        get_task("sing")


def test_imports_go_one_way() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_file_is_small_and_licensed(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")


def test_no_module_has_the_name_of_a_public_function() -> None:
    """A submodule would replace the function ``tvmq.<name>`` as soon as anything imports it."""
    functions = set(tvmq.__all__) - {"__version__"}
    assert not functions & (modules("tvmq", set()) | {"cli", "families", "quantizers"})


def test_public_names_exist() -> None:
    api = importlib.import_module("tvmq.api")
    for name in set(tvmq.__all__) - {"__version__"}:
        assert getattr(tvmq, name) is getattr(api, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tvmq.nonsense  # noqa: B018


def test_help_imports_nothing_heavy() -> None:
    code = "from tvmq.cli import main; main(['--help'])"
    assert not imported_after(code) & HEAVY


def test_import_is_cheap() -> None:
    assert imported_after("import tvmq") & (HEAVY | {"typer", "msgspec"}) == set()


def test_targets_import_no_compiler() -> None:
    assert not imported_after("import targets; targets.detect_host()") & {"tvm", "torch", "numpy"}


def test_lock_holds_the_pins() -> None:
    from tvmq.installation import PINS

    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, version in PINS.items():
        assert f"{name}=={version}" in lock
        assert f"{name}=={version}" in project["dependencies"]
    assert "torch==2.13.0" in lock


def test_nothing_names_a_private_path() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    private = re.compile(rb"(?<![\w.-])/(work|root|home|farm|tmp)/\w|(?<![\w/])\.\./shared\b")
    found = []
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        binary = path.suffix in {".safetensors", ".spm"}
        if path.is_file() and not binary and private.search(path.read_bytes()):
            found.append(name)
    assert found == []
