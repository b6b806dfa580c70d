# SPDX-License-Identifier: Apache-2.0
"""Single kernels outside any model: compiled, checked, timed, tuned."""
