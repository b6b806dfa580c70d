# SPDX-License-Identifier: Apache-2.0
"""What models are for: one file and one case each. A family names its task; the compiler follows it."""

from __future__ import annotations

from .task import Job, TaskEntry

__all__ = ["TASKS", "Job", "TaskEntry", "get_task"]

TASKS = ("encode", "translate")
"""Names of the tasks, which are also the names of their files."""


def get_task(name: str) -> TaskEntry:
    """The task called ``name``; ValueError with the known names otherwise."""
    match name:
        case "encode":
            from .encode import task

            return task()
        case "translate":
            from .translate import task

            return task()
        case _:
            raise ValueError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
