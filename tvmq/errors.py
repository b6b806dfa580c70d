# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can cause, each with the exit code the command line returns for it.

Text form: what was wrong, what was expected, what to do. The command line prints ``error: <text>``
on one line and never a traceback. Lower packages raise plain ``ValueError``; ``USER_ERRORS`` lists
every type that the command line turns into a sentence.
"""

from __future__ import annotations


class TvmqError(Exception):
    """A problem the user can fix; ``exit_code`` is what the command line returns."""

    exit_code = 3


class UsageError(TvmqError):
    """Flags or options that contradict each other or name something unknown."""

    exit_code = 2


class InputError(TvmqError):
    """A file, model, plan or text that cannot be used."""

    exit_code = 3


class MissingToolError(TvmqError):
    """A compiler, library or extra that is not installed."""

    exit_code = 4


class VerificationError(TvmqError):
    """An artifact whose bytes, version or self-test do not match its manifest."""

    exit_code = 5
