# SPDX-License-Identifier: Apache-2.0
# TVM's own annotations leave out most of its attributes: for the type checker TVM is untyped.
from typing import Any

def __getattr__(name: str) -> Any: ...
