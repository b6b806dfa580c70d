# SPDX-License-Identifier: Apache-2.0
"""Compressed files come back whole, within limits, and damage is a sentence."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from tvmq.compressed import MAX_BYTES, compress, decompress, read_compressed
from tvmq.errors import InputError, VerificationError

TEXT = b"".join(b"%d piece\n" % i for i in range(5000))


@pytest.mark.parametrize("data", [b"", b"x", TEXT])
def test_round_trip(data: bytes, tmp_path: Path) -> None:
    packed = compress(data)
    assert packed == compress(data)
    assert lzma.decompress(packed) == data  # any xz tool reads it
    (tmp_path / "f").write_bytes(packed)
    assert read_compressed(tmp_path / "f") == data


def test_every_cut_and_every_changed_byte_is_noticed() -> None:
    packed = compress(TEXT[:500])
    for end in range(len(packed)):
        with pytest.raises(VerificationError, match=r"ends too early|damaged"):
            decompress(packed[:end], "f")
    for at in range(len(packed)):
        changed = packed[:at] + bytes([packed[at] ^ 0x10]) + packed[at + 1 :]
        with pytest.raises(VerificationError, match=r"^f: [^\n]*$"):
            decompress(changed, "f")


def test_what_follows_the_stream_is_refused() -> None:
    for more in (b"x", compress(b"y")):
        with pytest.raises(VerificationError, match="goes on after its end"):
            decompress(compress(TEXT) + more, "f")


def test_limits() -> None:
    packed = compress(TEXT)
    assert decompress(packed, "f", len(TEXT)) == TEXT
    with pytest.raises(InputError, match=r"f: more than .* bytes when decompressed"):
        decompress(packed, "f", len(TEXT) - 1, error=InputError)
    with pytest.raises(ValueError, match="expected at most"):
        compress(bytes(MAX_BYTES + 1))
    bomb = lzma.compress(bytes(MAX_BYTES + 1), preset=0)
    with pytest.raises(VerificationError, match="more than"):
        decompress(bomb, "f")
    greedy = lzma.compress(b"x", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}])
    with pytest.raises(VerificationError, match="damaged compressed data"):
        decompress(greedy, "f")


def test_missing_and_long_files(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="cannot be read"):
        read_compressed(tmp_path / "f")
    with (tmp_path / "f").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(VerificationError, match="expected at most"):
        read_compressed(tmp_path / "f")
