# SPDX-License-Identifier: Apache-2.0
"""What a task gives to the compiler: graphs with their ends, tokenizer files, figures for the manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from tvmq.checkpoint import Checkpoint
from tvmq.manifest import Generated, Manifest
from tvmq.options import PoolingOptions
from tvmq.samples import Samples
from tvmq.word_bits import TextEncoder

if TYPE_CHECKING:
    import tvm


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the manifest says about a model; see ``manifest.Manifest``."""

    architecture: Mapping[str, Any]
    generation: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()


class Job(Protocol):
    """One model on its way to an artifact. Everything that can be refused was checked when it was made."""

    @property
    def planned(self) -> tuple[str, ...]:
        """Functions whose intermediate buffers become workspaces."""
        ...

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text of an encoder; None where there is no integer mode."""
        ...

    @property
    def extra(self) -> Mapping[str, NDArray[Any]]:
        """Vectors that functions take and that are not part of the checkpoint."""
        ...

    def graphs(self, programs: Mapping[str, Any]) -> tvm.IRModule:
        """The functions of the library, of the programs that the family exported."""
        ...

    def generated(self, model: Any) -> Mapping[str, Generated]:
        """Weights that are computed at load."""
        ...

    def facts(self) -> Facts:
        """Figures for the manifest."""
        ...

    def tokenizer_files(self) -> Mapping[str, bytes]:
        """Name -> bytes of the artifact's tokenizer folder."""
        ...

    def record(self, staging: Path, manifest: Manifest, level: str | None) -> None:
        """Run the new library of ``level`` and write selftest.json; an empty one for None."""
        ...


class SampleReader(Protocol):
    """Reads the text that a task's models are measured on."""

    def __call__(self, model: Path, data: Path, *, limit: int | None = None) -> Samples: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEntry:
    """A registry entry.

    Attributes:
        name: of the task.
        open_tokenizer: folder -> tokenizer; raises InputError.
        read_samples: model folder, text file, ``limit`` of lines -> token ids; raises InputError.
        measure: checked config -> what sensitivities of such a model are measured in, for people.
        prepare: checkpoint, its checked config, pooling options -> job; raises InputError or UsageError.
    """

    name: str
    open_tokenizer: Callable[[Path], TextEncoder]
    read_samples: SampleReader
    measure: Callable[[Any], str]
    prepare: Callable[[Checkpoint, Any, PoolingOptions], Job]
