# SPDX-License-Identifier: Apache-2.0
"""Side-by-side measurements against other engines; not part of the installed packages."""
