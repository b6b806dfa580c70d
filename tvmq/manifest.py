# SPDX-License-Identifier: Apache-2.0
"""manifest.json of an artifact: what it holds, made by what, and the hash of every file.

The file is canonical (one byte sequence per content) and carries the sha256 of itself, so that any
changed byte is noticed. Versions fail closed: a schema that this version does not know is refused.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from .errors import VerificationError
from .parameter_names import decode_names, encode_names
from .store import parse_json, read_bytes, show

SCHEMA = 1
"""The layout of artifacts that this version writes and the only one it reads."""
FILE_NAME = "manifest.json"
MAX_MANIFEST = 16 << 20

Text = Annotated[str, Meta(max_length=4096)]
Name = Annotated[str, Meta(min_length=1, max_length=512)]
Label = Annotated[str, Meta(min_length=1, max_length=200)]
LevelName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}\Z")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
Amount = Annotated[float, Meta(ge=0)]
Scalar = int | float | str | bool


class Part(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every object in the manifest."""


class Versions(Part, frozen=True, kw_only=True):
    """What made the artifact."""

    tool: Text
    tvm: Text
    llvm: Text


class Model(Part, frozen=True, kw_only=True):
    """The model that was compiled; ``sha256`` is ``Checkpoint.sha256``."""

    name: Text
    sha256: Sha256
    licence: Text
    revision: Text


class IsaLevel(Part, frozen=True, kw_only=True):
    """One library: the CPU features it needs and the kernels inside.

    ``program`` is the file that the native runtime walks (``native.program``); "" where there is none.
    """

    name: LevelName
    library: Name
    program: Annotated[str, Meta(max_length=512)] = ""
    features: tuple[Text, ...]
    kernels: tuple[Text, ...]


class Sinusoidal(Part, frozen=True, kw_only=True, tag_field="kind", tag="sinusoidal"):
    """A table of positions, computed from its extents."""

    rows: Annotated[int, Meta(ge=1, le=1 << 20)]
    columns: Annotated[int, Meta(ge=2, le=1 << 16)]


class Inverse(Part, frozen=True, kw_only=True, tag_field="kind", tag="inverse"):
    """The inverse of the stored permutation ``source``."""

    source: Name


Generated = Sinusoidal | Inverse
"""A tensor that is computed at load instead of being stored; the rules are in ``generated``."""


class Workspace(Part, frozen=True, kw_only=True):
    """A scratch buffer that the caller of a function provides."""

    dtype: Literal["float32", "int8", "int32", "uint8"]
    shape: Annotated[tuple[Annotated[int, Meta(ge=1, le=1 << 31)], ...], Meta(min_length=1, max_length=8)]


class Weights(Part, frozen=True, kw_only=True):
    """The weights file, and for each function the tensors it takes, in order; some are computed.

    ``workspaces`` are buffers that a function takes after its tensors.
    """

    file: Name
    parameters: dict[Name, tuple[Name, ...]]
    workspaces: Annotated[dict[Name, tuple[Workspace, ...]], Meta(max_length=64)] = msgspec.field(
        default_factory=dict
    )
    generated: Annotated[dict[Name, Generated], Meta(max_length=64)] = msgspec.field(default_factory=dict)


class BlockSize(Part, frozen=True, kw_only=True):
    """A block of the model: its average bits per weight and its number of weights."""

    name: Text
    bits: Amount
    params: Count


class RowBits(Part, frozen=True, kw_only=True):
    """A run of embedding rows (most frequent words first) with one bit width."""

    rows: Count
    bits: Annotated[int, Meta(ge=1, le=32)]


class Bits(Part, frozen=True, kw_only=True):
    """Sizes: bytes of all weights, scales, offsets and tables, against the same weights in FP32."""

    bits_per_weight: Amount
    size_bytes: Count
    fp32_bytes: Count
    ratio: Amount
    blocks: tuple[BlockSize, ...]
    word_bits: tuple[RowBits, ...] = ()


class KernelSchedule(Part, frozen=True, kw_only=True):
    """How one kind of product is cut on one ISA level, and where that was measured (``tuning_log``)."""

    kernel: Text
    n: Count
    k: Count
    bits: Count
    target: LevelName
    source: Text
    schedule: Text


class FileInfo(Part, frozen=True, kw_only=True):
    """Length in bytes and hash of one file."""

    size: Count
    sha256: Sha256


class Manifest(Part, frozen=True, kw_only=True):
    """An artifact's description.

    ``architecture`` holds the plain figures of the model (max_source, max_target, vocab, d_model,
    layers, heads, ...); ``mode`` is the plan's: what is between the matrices; ``labels`` are the names of a
    classifier's classes, by their numbers; ``schedules`` says how products are cut; ``files`` maps every
    other file of the folder, by its path with ``/``, to its size and hash. ``schema``, ``files`` and
    ``digest`` are filled in when the manifest is
    written.
    """

    schema: int = SCHEMA
    versions: Versions
    family: Name
    model: Model
    plan_sha256: Sha256
    mode: Literal["float", "block-int"] = "float"
    tables: Literal["int8", "exact"]
    target: Text
    isa_levels: Annotated[tuple[IsaLevel, ...], Meta(min_length=1, max_length=64)]
    weights: Weights
    architecture: Annotated[dict[Name, Scalar], Meta(max_length=256)]
    generation: Annotated[dict[Name, Scalar | list[int | list[int]] | None], Meta(max_length=256)]
    labels: Annotated[tuple[Label, ...], Meta(max_length=4096)] = ()
    schedules: Annotated[tuple[KernelSchedule, ...], Meta(max_length=4096)] = ()
    bits: Bits
    files: Annotated[dict[Name, FileInfo], Meta(max_length=10_000)] = msgspec.field(default_factory=dict)
    digest: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Writes manifest.json with its own digest; returns what a reader will see.

    Raises:
        ValueError: a field that the schema does not allow.
    """
    bare = _check(msgspec.to_builtins(msgspec.structs.replace(manifest, schema=SCHEMA, digest="")))
    digest = hashlib.sha256(_encode(bare)).hexdigest()
    whole = msgspec.structs.replace(bare, digest=digest)
    (folder / FILE_NAME).write_bytes(_encode(whole))
    return whole


def read_manifest(path: Path) -> Manifest:
    """Reads and checks a manifest.json: limits, schema number, every field, canonical form, digest.

    Raises:
        VerificationError: one sentence that says which of these failed.
    """
    data = read_bytes(path, MAX_MANIFEST, error=VerificationError)
    document = parse_json(data, str(path), error=VerificationError)
    if not isinstance(document, dict):
        raise VerificationError(f"{path}: holds a {type(document).__name__}, expected a JSON object")
    _check_schema(path, document.get("schema"))
    try:
        manifest = _check(_with_names(document))
    except (ValueError, RecursionError) as exc:
        raise VerificationError(f"{path}: {exc} (compile the model again)") from exc
    bare = msgspec.structs.replace(manifest, digest="")
    if _encode(manifest) != data or hashlib.sha256(_encode(bare)).hexdigest() != manifest.digest:
        raise VerificationError(f"{path}: changed since it was written (compile or copy the artifact again)")
    return manifest


def _check(document: dict[str, Any]) -> Manifest:
    return msgspec.convert(document, Manifest)


def _encode(manifest: Manifest) -> bytes:
    document = msgspec.to_builtins(manifest)
    document["weights"]["parameters"] = encode_names(manifest.weights.parameters)
    for level in document["isa_levels"]:
        if not level["program"]:
            del level["program"]  # only the VM runs it
    if manifest.mode == "float":
        del document["mode"]  # written as before there were modes
    if not manifest.labels:
        del document["labels"]  # models without classes are written as they were before there were any
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8")


def _with_names(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the names that functions take instead of their numbers."""
    weights = document.get("weights")
    if not isinstance(weights, dict) or "parameters" not in weights:
        return document  # for the check of fields to refuse
    try:
        names = decode_names(weights["parameters"])
    except ValueError as exc:
        raise ValueError(f"{exc} - at `$.weights.parameters`") from exc
    return {**document, "weights": {**weights, "parameters": names}}


def _check_schema(path: Path, schema: object) -> None:
    if type(schema) is not int:
        raise VerificationError(f"{path}: schema is {show(str(schema))}, expected the number {SCHEMA}")
    if schema > SCHEMA:
        raise VerificationError(
            f"{path}: artifact schema {show(str(schema))} is newer than {SCHEMA}, the newest this tvmq reads "
            "(upgrade tvmq, or compile the model again)"
        )
    if schema < SCHEMA:
        raise VerificationError(
            f"{path}: artifact schema {show(str(schema))} is older than {SCHEMA}, the oldest this tvmq reads "
            "(compile the model again)"
        )
