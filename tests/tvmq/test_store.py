# SPDX-License-Identifier: Apache-2.0
"""Outputs are whole or absent, and JSON is read strictly."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tvmq.errors import InputError, UsageError, VerificationError
from tvmq.store import atomic_dir, atomic_write, parse_json, read_json, read_json_object, sha256_file, show


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def make_artifact(path: Path, text: str = "old") -> Path:
    path.mkdir()
    (path / "manifest.json").write_text(text)
    return path


def test_directory_appears_whole(tmp_path: Path) -> None:
    with atomic_dir(tmp_path / "out", False) as staging:
        (staging / "lib").mkdir()
        (staging / "lib" / "a").write_text("x")
        assert staging.parent == tmp_path
        assert names(tmp_path) == [staging.name]
        assert staging.name.startswith("out.tmp-")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "lib" / "a").read_text() == "x"


def test_directory_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_dir(tmp_path / "out", False):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


def test_files_are_forced_to_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_dir(tmp_path / "out", False) as staging:
        (staging / "lib").mkdir()
        (staging / "lib" / "a").write_text("x")
    assert {"a", "lib", staging.name} <= set(synced[:-1])
    assert synced[-1] == tmp_path.name


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, RuntimeError, MemoryError])
@pytest.mark.parametrize("force", [False, True])
def test_nothing_stays_after_an_exception(
    tmp_path: Path, exception: type[BaseException], force: bool
) -> None:
    if force:
        make_artifact(tmp_path / "out")

    def interrupted() -> None:
        with atomic_dir(tmp_path / "out", force) as staging:
            (staging / "half").write_text("x")
            raise exception

    with pytest.raises(exception):
        interrupted()
    assert names(tmp_path) == (["out"] if force else [])
    assert not force or (tmp_path / "out" / "manifest.json").read_text() == "old"


def test_existing_output_needs_force(tmp_path: Path) -> None:
    make_artifact(tmp_path / "out")
    with (
        pytest.raises(UsageError, match=r"out exists already \(use --force"),
        atomic_dir(tmp_path / "out", False),
    ):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["out"]


def test_force_replaces_and_leaves_no_old_folder(tmp_path: Path) -> None:
    make_artifact(tmp_path / "out")
    with atomic_dir(tmp_path / "out", True) as staging:
        (staging / "manifest.json").write_text("new")
        assert (tmp_path / "out" / "manifest.json").read_text() == "old"
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "manifest.json").read_text() == "new"


def test_failed_swap_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_artifact(tmp_path / "out")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if ".tmp-" in self.name:
            raise OSError(errno.ENOSPC, "full")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(InputError, match="disk is full"), atomic_dir(tmp_path / "out", True):
        pass
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "manifest.json").read_text() == "old"


@pytest.mark.parametrize("kind", ["folder", "file", "link", "dangling link", "empty folder"])
def test_force_never_deletes_what_is_no_artifact(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    match kind:
        case "folder":
            out.mkdir()
            (out / "thesis.txt").write_text("dear")
        case "file":
            out.write_text("dear")
        case "link":
            out.symlink_to(make_artifact(tmp_path / "real"))
        case "dangling link":
            out.symlink_to(tmp_path / "nowhere")
        case "empty folder":
            out.mkdir()
    before = names(tmp_path)
    with pytest.raises(UsageError, match="not an artifact"), atomic_dir(out, True):
        pytest.fail("the block must not run")
    assert names(tmp_path) == before


def test_output_made_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"), atomic_dir(tmp_path / "out", False):
        make_artifact(tmp_path / "out", "another's")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "manifest.json").read_text() == "another's"


def test_output_may_not_overlap_the_model(tmp_path: Path) -> None:
    model = tmp_path / "models" / "m"
    model.mkdir(parents=True)
    make_artifact(tmp_path / "out")
    link = tmp_path / "link"
    link.symlink_to(model)
    cases = {
        model: "is the input itself",
        model / "out": "lies inside the input",
        link / "out": "lies inside the input",
        tmp_path / "models": "would replace the input",
        model / ".." / "m" / "x": "lies inside the input",
    }
    for output, message in cases.items():
        with pytest.raises(UsageError, match=message), atomic_dir(output, True, inputs=[model]):
            pytest.fail("the block must not run")
    with atomic_dir(tmp_path / "models-out", False, inputs=[model]):
        pass


def test_missing_parent(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"the folder .*no does not exist"),
        atomic_dir(tmp_path / "no" / "out", False),
    ):
        pytest.fail("the block must not run")
    with pytest.raises(InputError, match="does not exist"):
        atomic_write(tmp_path / "no" / "file", "x")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
    ],
)
def test_unwritable_place_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    with pytest.raises(InputError, match=message), atomic_dir(tmp_path / "out", False):
        raise OSError(code, "x")
    (tmp_path / "file").write_text("old")

    def fsync(_: int) -> None:
        raise OSError(code, "x")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match=message), atomic_dir(tmp_path / "out", False) as staging:
        (staging / "a").write_text("x")
    with pytest.raises(InputError, match=message):
        atomic_write(tmp_path / "file", "new")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_real_write_error(tmp_path: Path) -> None:
    code = (
        "import resource; from pathlib import Path; from tvmq.store import atomic_dir\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"with atomic_dir(Path({str(tmp_path / 'out')!r}), False) as staging:\n"
        "    (staging / 'a').write_bytes(bytes(100_000))\n"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert "InputError: cannot write" in run.stderr
    assert "the file grew beyond" in run.stderr
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_parent(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(InputError, match="no permission"), atomic_dir(tmp_path / "out", False):
            pytest.fail("the block must not run")
    finally:
        tmp_path.chmod(0o755)


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_dir(tmp_path / "out", False):
        (tmp_path / "absent").read_bytes()
    assert names(tmp_path) == []


def test_atomic_write_replaces(tmp_path: Path) -> None:
    atomic_write(tmp_path / "f", "ä")
    atomic_write(tmp_path / "f", b"\x00\x01")
    assert (tmp_path / "f").read_bytes() == b"\x00\x01"
    assert names(tmp_path) == ["f"]
    (tmp_path / "d").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        atomic_write(tmp_path / "d", "x")
    assert names(tmp_path) == ["d", "f"]


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON .*line 1, column 2"),
        (b'{"a": 1, "a": 2}', "key 'a' occurs twice"),
        (b'[{"b": {}, "c": 0, "b": 1}]', "key 'b' occurs twice"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "Infinity"),
        (b"[1e999]", "1e999"),
        (b'["\xff"]', "UTF-8"),
        (b'["\\ud800"]', "UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
    ],
)
def test_strict_json(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "f.json").write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_json(tmp_path / "f.json", 1 << 20)
    assert "f.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_limits(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_bytes(b'{"a": "\\ud83d\\ude00"}')
    assert read_json_object(tmp_path / "f.json", 100) == {"a": "😀"}
    with pytest.raises(InputError, match="expected at most 10"):
        read_json(tmp_path / "f.json", 10)
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path / "absent.json", 10)
    with pytest.raises(InputError, match="not a regular file"):
        read_json(tmp_path, 10)
    (tmp_path / "f.json").write_bytes(b"[]")
    with pytest.raises(VerificationError, match="holds a list, expected a JSON object"):
        read_json_object(tmp_path / "f.json", 100, error=VerificationError)
    assert parse_json(b"[1, 2.5, null]", "x") == [1, 2.5, None]


def test_untrusted_names_stay_on_one_line() -> None:
    assert show("a\nb\ud800\x1b[31m") == r"'a\nb\ud800\x1b[31m'"
    assert len(show("x" * 1000)) < 100
