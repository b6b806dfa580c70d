# SPDX-License-Identifier: Apache-2.0
"""The native runtime: a C library that runs an artifact without Python and without TVM.

``flatten`` turns Relax functions into a ``program`` of kernel calls, ``library`` compiles ``src`` into an
artifact, ``binding`` and ``models`` let the Python runtime use it.
"""
