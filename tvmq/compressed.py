# SPDX-License-Identifier: Apache-2.0
"""Files that an artifact stores compressed: one xz stream, read back within limits.

Used for the tokenizer's files, which are read once and not mapped; ``xz -d`` gives the plain file.
"""

from __future__ import annotations

import lzma
from pathlib import Path

from .errors import TvmqError, VerificationError
from .store import read_bytes

SUFFIX = ".xz"
MAX_BYTES = 64 << 20
"""Bytes of a plain file; neither written nor believed beyond."""
_DICTIONARY = 8 << 20
_MEMORY = 16 << 20
"""Bytes that a decoder may take for its dictionary, whatever a file asks for."""
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": _DICTIONARY}]


def compress(data: bytes) -> bytes:
    """``data`` as one xz stream; the same bytes give the same stream.

    Raises:
        ValueError: more than ``MAX_BYTES``.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"{len(data)} bytes, expected at most {MAX_BYTES}")
    return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=_FILTERS)


def decompress(
    data: bytes, where: str, max_bytes: int = MAX_BYTES, *, error: type[TvmqError] = VerificationError
) -> bytes:
    """The bytes behind one xz stream; never holds more than ``max_bytes`` of them.

    Args:
        data: what ``compress`` gave.
        where: what to call it in a message, usually its path.
        max_bytes: most bytes to accept.
        error: the type to raise for a damaged, cut, continued or too long stream.
    """
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_MEMORY)
    try:
        plain = decoder.decompress(data, max_length=max_bytes + 1)
    except lzma.LZMAError as exc:
        raise error(f"{where}: damaged compressed data ({exc}; compile or copy the artifact again)") from exc
    if len(plain) > max_bytes:
        raise error(f"{where}: more than {max_bytes} bytes when decompressed")
    if not decoder.eof or decoder.unused_data:
        defect = "ends too early" if not decoder.eof else "goes on after its end"
        raise error(f"{where}: compressed data {defect} (compile or copy the artifact again)")
    return plain


def read_compressed(path: Path, *, error: type[TvmqError] = VerificationError) -> bytes:
    """The plain bytes of a file that holds one xz stream."""
    return decompress(read_bytes(path, MAX_BYTES, error=error), str(path), error=error)
