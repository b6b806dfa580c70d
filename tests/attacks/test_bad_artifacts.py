# SPDX-License-Identifier: Apache-2.0
"""One crafted bad artifact per defect; even one sealed with a right digest is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvmq.artifact import inspect, open_artifact, verify, write_weights
from tvmq.errors import InputError, TvmqError, VerificationError

Forge = Callable[[Callable[[Any], object]], Path]


def refused(folder: Path, message: str, error: type[TvmqError] = VerificationError) -> None:
    for check in (open_artifact, verify, inspect):
        with pytest.raises(error, match=message) as caught:
            check(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


def file_of(folder: Path, name: str) -> dict[str, object]:
    data = (folder / name).read_bytes()
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_the_undamaged_one_verifies(artifact: Path, forge: Forge) -> None:
    assert verify(artifact).ok
    assert verify(forge(lambda m: m.update(target="other"))).ok


def test_there_is_no_artifact(artifact: Path) -> None:
    refused(artifact / "nowhere", "not an artifact", InputError)
    refused(artifact / "manifest.json", "not an artifact", InputError)
    (artifact / "manifest.json").unlink()
    refused(artifact, r"not an artifact \(no manifest.json\); make one with `tvmq compile`", InputError)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"[]", "holds a list"),
        (b"{}", "schema is 'None', expected the number 1"),
        (b'{"schema": 1}', "missing required field"),
        (b'{"schema": 1, "schema": 1}', "occurs twice"),
        (b"\xff\xfe{}", "not valid UTF-8"),
        (b" " * (17 << 20), "expected at most"),
    ],
)
def test_bad_manifest(artifact: Path, data: bytes, message: str) -> None:
    (artifact / "manifest.json").write_bytes(data)
    refused(artifact, message)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(schema=2), r"schema '2' is newer than 1, the newest this tvmq reads \(upgrade"),
        (lambda m: m.update(schema=10**40), "is newer than 1"),
        (lambda m: m.update(schema=0), r"schema '0' is older than 1, .*\(compile the model again\)"),
        (lambda m: m.update(schema=True), "schema is 'True', expected the number 1"),
        (lambda m: m.update(schema="1"), "schema is '1', expected the number 1"),
        (lambda m: m.update(extra=1), "unknown field `extra`"),
        (lambda m: m["bits"].update(extra=1), "unknown field `extra`"),
        (lambda m: m.pop("family"), "missing required field `family`"),
        (lambda m: m.update(tables="int4"), "Invalid enum value 'int4'"),
        (lambda m: m["model"].update(sha256="x" * 64), r"\$.model.sha256"),
        (lambda m: m["model"].update(sha256="a" * 64 + "\n"), r"\$.model.sha256"),
        (lambda m: m["bits"].update(size_bytes=-1), r"\$.bits.size_bytes"),
        (lambda m: m["bits"].update(size_bytes="3"), r"\$.bits.size_bytes"),
        (lambda m: m["bits"]["word_bits"][0].update(bits=33), r"\$.bits.word_bits"),
        (lambda m: m.update(isa_levels=[]), r"\$.isa_levels"),
        (lambda m: m["isa_levels"][0].update(name="../v3"), r"\$.isa_levels"),
        (lambda m: m["isa_levels"].append(m["isa_levels"][0]), "lists one ISA level twice"),
        (lambda m: m["isa_levels"][0].update(library="lib/v4.so"), "'lib/v4.so' is not listed"),
        (lambda m: m["isa_levels"][0].update(library="/lib/libc.so.6"), "'/lib/libc.so.6' is not listed"),
        (lambda m: m["weights"].update(file="w"), "'w' is not listed"),
        (lambda m: m.update(architecture={"x": [1]}), r"\$.architecture"),
        (lambda m: m.update(architecture={str(i): i for i in range(257)}), r"\$.architecture"),
        (lambda m: m.update(target="x" * 5000), r"\$.target"),
        (lambda m: m.update(files=[]), r"\$.files"),
    ],
)
def test_forged_fields(forge: Forge, edit: Callable[[Any], object], message: str) -> None:
    refused(forge(edit), message)


@pytest.mark.parametrize(
    "name",
    ["../out", "lib/../../out", "/etc/passwd", "lib\\..\\out", "./lib/v3.so", "lib//v3.so", "lib/", "a\0b",
     ".", "C:out", "manifest.json"],
)  # fmt: skip
def test_forged_paths(forge: Forge, name: str) -> None:
    (forge(lambda m: None).parent / "out").write_bytes(b"code")
    edit = lambda m: m["files"].update({name: m["files"]["lib/v3.so"]})  # noqa: E731
    refused(forge(edit), "is not a plain path inside the artifact")


def test_digest(artifact: Path) -> None:
    path = artifact / "manifest.json"
    path.write_text(path.read_text().replace('"licence": "l"', '"licence": "free"'))
    refused(artifact, "manifest.json: changed since it was written")


def test_manifest_in_another_form(artifact: Path) -> None:
    path = artifact / "manifest.json"
    path.write_text(path.read_text() + " ")
    refused(artifact, "changed since it was written")


def test_a_link_to_a_file_of_the_artifact(artifact: Path) -> None:
    library = artifact / "lib" / "v3.so"
    library.rename(artifact / "code")
    library.symlink_to("../code")
    with pytest.raises(VerificationError, match=r"v3.so: a link; an artifact holds none"):
        open_artifact(artifact)
    assert not verify(artifact).ok


def test_links_that_lead_out(artifact: Path) -> None:
    library = artifact / "lib" / "v3.so"
    (artifact.parent / "out.so").write_bytes(library.read_bytes())
    library.unlink()
    library.symlink_to(artifact.parent / "out.so")
    with pytest.raises(VerificationError, match=r"v3.so: a link; an artifact holds none"):
        open_artifact(artifact)
    (problem,) = [c.problem for c in verify(artifact).files if not c.ok]
    assert problem.startswith("a link")


def test_a_folder_that_leads_out(artifact: Path) -> None:
    (artifact / "lib").rename(artifact.parent / "lib")
    (artifact / "lib").symlink_to(artifact.parent / "lib")
    with pytest.raises(VerificationError, match=r"v3.so: a link; an artifact holds none"):
        open_artifact(artifact)
    assert not verify(artifact).ok


def test_a_manifest_that_leads_out(artifact: Path) -> None:
    (artifact / "manifest.json").rename(artifact.parent / "m.json")
    (artifact / "manifest.json").symlink_to(artifact.parent / "m.json")
    refused(artifact, r"manifest.json: a link; an artifact holds none")


def test_a_loop_of_links(artifact: Path) -> None:
    library = artifact / "lib" / "v3.so"
    library.unlink()
    library.symlink_to("v3.so")
    with pytest.raises(VerificationError, match=r"v3.so: a link"):
        open_artifact(artifact)
    assert not verify(artifact).ok


@pytest.mark.parametrize("name", ["lib/x.so", "x.SO", "lib/x.so.1", "deep/er/x.dylib", "x.dll"])
def test_a_library_that_is_not_listed(artifact: Path, name: str) -> None:
    (artifact / name).parent.mkdir(parents=True, exist_ok=True)
    (artifact / name).write_bytes(b"evil")
    refused(artifact, f"the library '{name}' is not listed in manifest.json")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "missing"),
        (lambda p: p.write_bytes(b"cod"), "3 bytes, expected 4"),
        (lambda p: p.write_bytes(b"code more"), "9 bytes, expected 4"),
        (lambda p: (p.unlink(), p.mkdir()), "not a regular file"),
    ],
)
def test_missing_or_cut_files(artifact: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(artifact / "lib" / "v3.so")
    with pytest.raises(VerificationError, match=message):
        open_artifact(artifact)
    assert [(c.path, c.problem) for c in verify(artifact).files if not c.ok] == [("lib/v3.so", message)]


def test_weights_whose_header_lies(artifact: Path, forge: Forge) -> None:
    path = artifact / "weights.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"shape":[3]', b'"shape":[4]'))
    forge(lambda m: m["files"].update({path.name: file_of(artifact, path.name)}))
    problems = [c.problem for c in verify(artifact).files if not c.ok]
    assert len(problems) == 1
    assert "data_offsets hold '3' bytes, but U8 of shape [4] needs 4" in problems[0]
    with pytest.raises(VerificationError, match="tensor 'a'"):
        open_artifact(artifact).weights()


def test_weights_without_a_parameter(artifact: Path, forge: Forge) -> None:
    write_weights(artifact / "weights.safetensors", {"b": np.arange(3, dtype=np.uint8)})
    entry = file_of(artifact, "weights.safetensors")
    forge(lambda m: m["files"].update({"weights.safetensors": entry}))
    problems = [c.problem for c in verify(artifact).files if not c.ok]
    assert len(problems) == 1
    assert "'f' takes tensor 'a', which weights.safetensors does not hold" in problems[0]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"kind": "inverse", "source": "a"}, None),
        (
            {"kind": "inverse", "source": "twice"},
            "'o' cannot be computed: its source 'twice' is no permutation",
        ),
        ({"kind": "inverse", "source": "x"}, "its source 'x' is not stored"),
        ({"kind": "sinusoidal", "rows": 1 << 20, "columns": 1 << 16}, "expected at most"),
    ],
)
def test_computed_weights(artifact: Path, forge: Forge, rule: dict[str, object], message: str | None) -> None:
    tensors = {"a": np.array([1, 2, 0], np.uint8), "twice": np.array([1, 1, 0], np.uint8)}
    write_weights(artifact / "weights.safetensors", tensors)
    entry = file_of(artifact, "weights.safetensors")
    forge(
        lambda m: (
            m["files"].update({"weights.safetensors": entry}),
            m["weights"]["generated"].update(o=rule),
        )
    )
    if message is None:
        assert open_artifact(artifact).weights()["o"].tolist() == [2, 0, 1]
        return
    problems = [c.problem for c in verify(artifact).files if not c.ok]
    assert len(problems) == 1
    assert message in problems[0]
    with pytest.raises(VerificationError, match=r"cannot be computed.*\(compile the model again\)"):
        open_artifact(artifact).weights()


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "inverse"},
        {"kind": "inverse", "source": "a", "rows": 3},
        {"kind": "random", "source": "a"},
        {"kind": "sinusoidal", "rows": 0, "columns": 2},
        {"source": "a"},
    ],
)
def test_forged_rules(forge: Forge, rule: dict[str, object]) -> None:
    refused(forge(lambda m: m["weights"]["generated"].update(o=rule)), r"\$.weights.generated")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p.update(extra={}), r"unknown field `extra`.*\$.weights.parameters"),
        (lambda p: p["functions"].update(f="1"), r"number 1 of function 'f'.*\$.weights.parameters"),
        (lambda p: p["functions"].update(f=[0]), r"\$.weights.parameters"),
        (lambda p: p["functions"].update(f="0-0"), "changed since it was written"),
        (lambda p: p["functions"].update(f="00"), "changed since it was written"),
        (lambda p: p["tensors"].update({"b.": "x"}), "changed since it was written"),
        (lambda p: p["tensors"].update({"": "a  "}), "changed since it was written"),
        (lambda p: p["tensors"].update({"": "x" * 600}), r"length <= 512.*\$.weights.parameters"),
        (lambda p: p["tensors"].update({"": 5}), r"\$.weights.parameters"),
    ],
)
def test_forged_names(forge: Forge, edit: Callable[[Any], object], message: str) -> None:
    refused(forge(lambda m: edit(m["weights"]["parameters"])), message)


def test_names_in_another_form(forge: Forge) -> None:
    refused(
        forge(lambda m: m["weights"].update(parameters={"f": ["a"]})), r"unknown field.*weights.parameters"
    )
    refused(forge(lambda m: m["weights"].pop("parameters")), "missing required field `parameters`")
    refused(forge(lambda m: m.update(weights=[])), r"\$.weights")
