# SPDX-License-Identifier: Apache-2.0
"""The runner that options name; each kind in a file of its own."""

from __future__ import annotations

from targets import detect_host, get_target, target_names
from targets.spec import TargetSpec
from tvmq.errors import UsageError
from tvmq.options import TuneOptions

from .bench import runnable_target
from .runner import LocalRunner, Runner

COMMAND = "command:"
MODEL = "model"


def target_of(options: TuneOptions) -> TargetSpec:
    """The level to tune for: one that runs here, unless the runner goes elsewhere.

    Raises:
        UsageError: an unknown level, or one that does not run here.
    """
    if options.runner == "local":
        return runnable_target(options.target)
    here = detect_host()
    name = here[0] if options.target == "host" and here else options.target
    if name not in target_names():
        raise UsageError(f"unknown target {name!r}; known: host, {', '.join(target_names())}")
    return get_target(name)


def make_runner(options: TuneOptions, target: TargetSpec) -> Runner:
    """Starts the runner of some options.

    Raises:
        UsageError: an unknown runner, or one without the options that it needs.
        MissingToolError: a tool that it needs is not installed.
        InputError: what it should reach does not answer.
    """
    name, threads, timeout = options.runner, options.threads, options.timeout
    if name != "rpc" and (options.tracker is not None or options.key is not None):
        raise UsageError("--tracker and --key belong to --runner rpc")
    if name == "local":
        from tvmq.build import require_linker

        require_linker(target)
        return LocalRunner(target.name, threads, timeout)
    if name == "rpc":
        from .rpc_runner import RpcRunner

        if options.tracker is None or options.key is None:
            raise UsageError("--runner rpc needs --tracker HOST:PORT and --key KEY")
        return RpcRunner(target, threads, timeout, options.tracker, options.key)
    if name.startswith(COMMAND):
        from .command_runner import CommandRunner

        return CommandRunner(target, threads, timeout, name.removeprefix(COMMAND))
    if name.partition(":")[0] == MODEL:
        from .model_runner import ModelRunner

        return ModelRunner(target, threads, timeout, name.partition(":")[2])
    raise UsageError(f"unknown runner {name!r}; known: local, rpc, command:TEMPLATE, model, model:CPU")
