# SPDX-License-Identifier: Apache-2.0
"""ISA levels that tvmq compiles for. One level a file; importing this package imports no TVM."""

from __future__ import annotations

from collections.abc import Sequence

from .detect import cpu_name, host_architecture, host_cpu, host_flags, runnable
from .spec import System, TargetSpec

_NAMES = (
    "x86_64_v2",
    "x86_64_v3",
    "x86_64_v4_vnni",
    "x86_64_v4_amx",
    "arm64_v8",
    "arm64_dotprod",
    "arm64_i8mm",
)
_SETS: dict[str, tuple[str, System]] = {
    "linux-x86-64": ("x86_64", "linux"),
    "linux-arm64": ("aarch64", "linux"),
    "android-arm64": ("aarch64", "android"),
}
"""Names of ``--target`` for all levels of an architecture on an operating system."""


def target_names() -> tuple[str, ...]:
    """Names of all levels: those of an architecture together, lowest first."""
    return _NAMES


def set_names() -> tuple[str, ...]:
    """Names of ``--target`` that mean several levels."""
    return ("host", *_SETS)


def get_target(name: str) -> TargetSpec:
    """The level called ``name``; ValueError with the known names otherwise."""
    match name:
        case "x86_64_v2":
            from .x86_64_v2 import TARGET as v2

            return v2
        case "x86_64_v3":
            from .x86_64_v3 import TARGET as v3

            return v3
        case "x86_64_v4_vnni":
            from .x86_64_v4_vnni import TARGET as v4

            return v4
        case "x86_64_v4_amx":
            from .x86_64_v4_amx import TARGET as amx

            return amx
        case "arm64_v8":
            from .arm64_v8 import TARGET as v8

            return v8
        case "arm64_dotprod":
            from .arm64_dotprod import TARGET as dotprod

            return dotprod
        case "arm64_i8mm":
            from .arm64_i8mm import TARGET as i8mm

            return i8mm
        case _:
            raise ValueError(f"unknown target {name!r}; known: {', '.join((*set_names(), *_NAMES))}")


def resolve_targets(name: str) -> tuple[TargetSpec, ...]:
    """Levels that ``--target name`` compiles for, lowest first.

    ``host`` is the best level of this machine plus its architecture's fallback; ``linux-x86-64``,
    ``linux-arm64`` and ``android-arm64`` are all levels of an architecture; a level's name is that level
    on Linux.
    """
    if name == "host":
        best = detect_host()
        if not best:
            raise ValueError("this CPU runs no known ISA level; name a --target to compile for another")
        own = levels_of(get_target(best[0]).architecture)
        return tuple(spec for spec in own if spec.name in (own[0].name, best[0]))
    return levels_of(*_SETS[name]) if name in _SETS else (get_target(name),)


def pick_targets(name: str, levels: Sequence[str] | None) -> tuple[TargetSpec, ...]:
    """The levels of ``--target name``, or exactly those of its operating system that are named.

    Raises:
        ValueError: an unknown name, or a level that is none of the target's.
    """
    if not levels:
        return resolve_targets(name)
    architecture, system = _SETS.get(name, ("", "linux"))
    specs = tuple(get_target(level).on(system) for level in levels)
    for spec in specs:
        if architecture not in ("", spec.architecture):
            raise ValueError(f"{spec.name} is no ISA level of {name}")
    return specs


def system_of(name: str) -> System:
    """The operating system of a ``--target``."""
    return _SETS[name][1] if name in _SETS else "linux"


def set_of(architecture: str, system: System = "linux") -> str:
    """The ``--target`` with all levels of an architecture on an operating system."""
    return next(name for name, facts in _SETS.items() if facts == (architecture, system))


def levels_of(architecture: str, system: System = "linux") -> tuple[TargetSpec, ...]:
    """All levels of an architecture, lowest first; none for an unknown one."""
    own = (spec for spec in map(get_target, _NAMES) if spec.architecture == architecture)
    return tuple(spec.on(system) for spec in own)


def detect_host() -> list[str]:
    """Names of the levels that this CPU runs, best first."""
    levels = tuple(get_target(name) for name in _NAMES)
    return [spec.name for spec in runnable(levels, host_flags(), host_architecture())]


def refused_host() -> list[str]:
    """Names of the levels that this CPU has and the operating system refuses to this process."""
    fit = [spec for spec in levels_of(host_architecture()) if spec.cpu_flags <= host_flags()]
    return [spec.name for spec in fit if not spec.permission()]


def permitted(name: str) -> bool:
    """Whether this process may use the registers of level ``name``; asks for them if it has not yet.

    To be called before the level's code runs. True for unknown names.
    """
    return name not in _NAMES or get_target(name).permission()


__all__ = [
    "System",
    "TargetSpec",
    "cpu_name",
    "detect_host",
    "get_target",
    "host_architecture",
    "host_cpu",
    "host_flags",
    "levels_of",
    "permitted",
    "pick_targets",
    "refused_host",
    "resolve_targets",
    "set_names",
    "set_of",
    "system_of",
    "target_names",
]
