# SPDX-License-Identifier: Apache-2.0
"""Files written whole or not at all, and JSON read with limits.

Every output of tvmq goes through ``atomic_dir`` or ``atomic_write``: it is built beside its final
place, forced to disk and renamed, so that an interrupt or a full disk leaves nothing half-written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from .errors import InputError, TvmqError, UsageError

_UNWRITABLE = {
    errno.ENOSPC: "the disk is full (free some space or choose another output)",
    errno.EDQUOT: "the disk quota is used up (free some space or choose another output)",
    errno.EROFS: "the file system is read-only (choose another output)",
    errno.EACCES: "no permission to write there (choose another output)",
    errno.EPERM: "no permission to write there (choose another output)",
    errno.EFBIG: "the file grew beyond what the file system or a limit allows (choose another output)",
    errno.ENAMETOOLONG: "the name is too long (choose a shorter one)",
}


def show(text: str, limit: int = 80) -> str:
    """An untrusted name for a one-line message: quoted, control characters escaped, shortened."""
    return repr(text if len(text) <= limit else text[:limit] + "...")


def sha256_file(path: Path) -> str:
    """The sha256 of a file as 64 lower-case hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bytes(path: Path, max_bytes: int, *, error: type[TvmqError] = InputError) -> bytes:
    """The bytes of a regular file of at most ``max_bytes``; anything else raises ``error``."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise error(f"{path}: not a regular file")
        if info.st_size > max_bytes:
            raise error(f"{path}: {info.st_size} bytes, expected at most {max_bytes}")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as exc:
        raise error(f"{path}: cannot be read ({exc.strerror})") from exc
    if len(data) > max_bytes:
        raise error(f"{path}: more than {max_bytes} bytes")
    return data


def parse_json(data: bytes, where: str, *, error: type[TvmqError] = InputError) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, no NaN or infinity, no lone surrogates.

    Args:
        data: the bytes of the document.
        where: what to call the document in a message, usually its path.
        error: the type to raise.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise error(f"{where}: the key {show(twice)} occurs twice")
        return result

    def refuse(constant: str) -> NoReturn:
        raise error(f"{where}: {show(constant)} is not a number that JSON allows here")

    def finite(digits: str) -> float:
        number = float(digits)
        return number if math.isfinite(number) else refuse(digits)

    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError as exc:
        raise error(f"{where}: not valid UTF-8 text") from exc
    except RecursionError as exc:
        raise error(f"{where}: nested too deeply") from exc
    except json.JSONDecodeError as exc:
        raise error(f"{where}: not valid JSON ({exc.msg}, line {exc.lineno}, column {exc.colno})") from exc
    except ValueError as exc:  # a number with too many digits
        raise error(f"{where}: not valid JSON ({exc})") from exc
    return value


def read_json(path: Path, max_bytes: int, *, error: type[TvmqError] = InputError) -> Any:
    """Reads one strict JSON document of at most ``max_bytes`` (see ``parse_json``)."""
    return parse_json(read_bytes(path, max_bytes, error=error), str(path), error=error)


def read_json_object(path: Path, max_bytes: int, *, error: type[TvmqError] = InputError) -> dict[str, Any]:
    """As ``read_json``, for a document that must be an object."""
    value = read_json(path, max_bytes, error=error)
    if not isinstance(value, dict):
        raise error(f"{path}: holds a {type(value).__name__}, expected a JSON object")
    return value


def atomic_write(path: Path, data: bytes | str) -> None:
    """Writes a file beside its place, forces it to disk and renames it over ``path``.

    Raises:
        InputError: the folder is missing, read-only or full; the old file is then untouched.
    """
    with atomic_file(path) as place:
        place.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """As ``atomic_write``, for a file that the block writes at the yielded place."""
    path = Path(path)
    _require_parent(path)
    beside = _beside(path, "tmp")
    try:
        with _clean_up(path, beside):
            beside.touch(exist_ok=False)
            yield beside
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            beside.replace(path)
            _fsync_folder(path.parent)
    except IsADirectoryError as exc:
        raise UsageError(f"{path} is a folder, expected a file name") from exc


@contextmanager
def atomic_dir(
    path: Path,
    force: bool,
    *,
    inputs: Sequence[Path] = (),
    kind: str = "an artifact",
    markers: Sequence[str] = ("manifest.json",),
) -> Iterator[Path]:
    """Yields an empty staging folder beside ``path`` that becomes ``path`` when the block ends well.

    Args:
        path: the folder to make.
        force: replace an existing one of the same kind; it stays in place until the new one is complete.
        inputs: folders that are being read; the output may not be, hold or lie inside one of them.
        kind: what the folder will be, for messages.
        markers: files that every folder of this kind has; no other folder is replaced.

    Raises:
        UsageError: the output exists (without ``force``), is of another kind, or overlaps an input.
        InputError: the place is missing, read-only or full. Nothing is left behind, as on any
            exception or interrupt inside the block.
    """
    path = _absolute(Path(path))
    for source in inputs:
        _refuse_overlap(path, Path(source))
    _require_parent(path)
    _require_free(path, force, kind, markers)
    staging = _beside(path, "tmp")
    with _clean_up(path, staging):
        staging.mkdir()
        yield staging
        _fsync_tree(staging)
        _require_free(path, force, kind, markers)
        _swap(staging, path)


def _absolute(path: Path) -> Path:
    """Without ``..`` and with a real parent, but a link at the end stays a link, to be refused."""
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def _swap(staging: Path, path: Path) -> None:
    old = _beside(path, "old")
    replaces = path.exists()
    try:
        if replaces:
            path.rename(old)
        staging.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    _fsync_folder(path.parent)
    if replaces:
        shutil.rmtree(old)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.{kind}-{secrets.token_hex(6)}")


@contextmanager
def _clean_up(path: Path, temporary: Path) -> Iterator[None]:
    """Removes ``temporary`` on any exception and says why ``path`` could not be written."""
    try:
        yield
    except BaseException as exc:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):  # the reason for being here counts, not that nothing could be made
                temporary.unlink(missing_ok=True)
        if isinstance(exc, OSError) and exc.errno in _UNWRITABLE:
            raise InputError(f"cannot write {path}: {_UNWRITABLE[exc.errno]}") from exc
        raise


def _refuse_overlap(path: Path, source: Path) -> None:
    output, model = path.resolve(), source.resolve()
    if output == model:
        raise UsageError(f"the output {path} is the input itself (choose another output)")
    if output.is_relative_to(model):
        raise UsageError(f"the output {path} lies inside the input {source} (choose another output)")
    if model.is_relative_to(output):
        raise UsageError(f"the output {path} would replace the input {source} (choose another output)")


def _require_parent(path: Path) -> None:
    try:
        found = path.parent.is_dir()
    except OSError as exc:
        raise InputError(f"cannot write {path}: {exc.strerror}") from exc
    if not found:
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist (create it first)")


def refuse_existing(path: Path, force: bool) -> None:
    """UsageError for an output that is there already and is not to be replaced."""
    if os.path.lexists(path) and not force:
        raise UsageError(f"{path} exists already (use --force to replace it, or choose another output)")


def _require_free(path: Path, force: bool, kind: str, markers: Sequence[str]) -> None:
    try:
        exists, link = os.path.lexists(path), path.is_symlink()
        lacking = [name for name in markers if not (path.is_dir() and (path / name).is_file())]
    except OSError as exc:
        raise InputError(f"cannot write {path}: {exc.strerror}") from exc
    refuse_existing(path, force)
    if exists and (link or lacking):
        why = f"no {lacking[0]}" if lacking else "a link"
        raise UsageError(
            f"{path} exists and is not {kind} ({why}), so it is not replaced "
            "even with --force (choose another output)"
        )


def _fsync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            with (Path(root) / name).open("rb") as file:
                os.fsync(file.fileno())
        _fsync_folder(Path(root))


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
