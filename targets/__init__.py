# SPDX-License-Identifier: Apache-2.0
"""ISA levels that tvmq compiles for. One level a file; importing this package imports no TVM."""

from __future__ import annotations

from .detect import host_cpu, host_flags, runnable
from .spec import TargetSpec

_NAMES = ("x86_64_v2", "x86_64_v3", "x86_64_v4_vnni", "x86_64_v4_amx")


def target_names() -> tuple[str, ...]:
    """Names of all levels, lowest first."""
    return _NAMES


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
        case _:
            raise ValueError(f"unknown target {name!r}; known: host, x86-64, {', '.join(_NAMES)}")


def resolve_targets(name: str) -> tuple[TargetSpec, ...]:
    """Levels that ``--target name`` compiles for, lowest first.

    ``host`` is the best level of this machine plus the portable fallback; ``x86-64`` is all levels.
    """
    match name:
        case "host":
            best = detect_host()
            if not best:
                raise ValueError("this CPU runs no known ISA level; name a --target to compile for another")
            return tuple(get_target(n) for n in _NAMES if n in (_NAMES[0], best[0]))
        case "x86-64":
            return tuple(get_target(n) for n in _NAMES)
        case _:
            return (get_target(name),)


def detect_host() -> list[str]:
    """Names of the levels that this CPU runs, best first."""
    return [spec.name for spec in runnable(tuple(get_target(n) for n in _NAMES), host_flags())]


def refused_host() -> list[str]:
    """Names of the levels that this CPU has and the operating system refuses to this process."""
    fit = [get_target(n) for n in _NAMES if get_target(n).cpu_flags <= host_flags()]
    return [spec.name for spec in fit if not spec.permission()]


def permitted(name: str) -> bool:
    """Whether this process may use the registers of level ``name``; asks for them if it has not yet.

    To be called before the level's code runs. True for unknown names.
    """
    return name not in _NAMES or get_target(name).permission()


__all__ = [
    "TargetSpec",
    "detect_host",
    "get_target",
    "host_cpu",
    "host_flags",
    "permitted",
    "refused_host",
    "resolve_targets",
    "target_names",
]
