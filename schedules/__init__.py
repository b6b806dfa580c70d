# SPDX-License-Identifier: Apache-2.0
"""Kernels: their meaning in NumPy, their layout in memory, their TensorIR for each ISA level."""
