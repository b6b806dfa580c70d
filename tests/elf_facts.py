# SPDX-License-Identifier: Apache-2.0
"""What libraries that ship must be: facts of ELF files, read by pyelftools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

NEEDED = {
    "linux": {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"},
    # parts of libc.so.6 since glibc 2.34; linked for older ones, libraries of their own
    "linux-2.17": {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2"},
    "android": {"libc.so", "libm.so", "libdl.so"},
}
PAGE = {"linux": 4096, "android": 16384}
MACHINE = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """Facts of a shared library.

    Attributes:
        needed, soname: of its dynamic section.
        exported: names that other objects see.
        imported: names that it takes from others.
        versions: of symbols that it takes.
        tags: names of all entries of its dynamic section.
        alignments: of its segments.
        writable_code: a segment may be written and run.
        stack: flags of the stack that it asks for.
        read_only_end: address behind what becomes read-only; 0 for none.
        sections: their names.
    """

    machine: str
    needed: tuple[str, ...]
    soname: str
    exported: frozenset[str]
    imported: frozenset[str]
    versions: frozenset[str]
    tags: frozenset[str]
    alignments: frozenset[int]
    writable_code: bool
    stack: int
    read_only_end: int
    sections: frozenset[str]


def read_library(path: Path) -> Library:
    """The facts of the file at ``path``; skips the test where pyelftools is not installed."""
    pytest.importorskip("elftools", reason="needs pyelftools")
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        elf = ELFFile(file)
        segments = list(elf.iter_segments())
        loads = [s for s in segments if s["p_type"] == "PT_LOAD"]
        (dynamic,) = (s for s in segments if s["p_type"] == "PT_DYNAMIC")
        tags = list(dynamic.iter_tags())
        symbols = [s for s in elf.get_section_by_name(".dynsym").iter_symbols() if s.name]
        versions = elf.get_section_by_name(".gnu.version_r")
        read_only = [s["p_vaddr"] + s["p_memsz"] for s in segments if s["p_type"] == "PT_GNU_RELRO"]
        return Library(
            machine=elf["e_machine"],
            needed=tuple(tag.needed for tag in tags if tag["d_tag"] == "DT_NEEDED"),
            soname=next((tag.soname for tag in tags if tag["d_tag"] == "DT_SONAME"), ""),
            exported=frozenset(s.name for s in symbols if s["st_shndx"] != "SHN_UNDEF"),
            imported=frozenset(s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF"),
            versions=frozenset(
                aux.name for _, names in (versions.iter_versions() if versions else ()) for aux in names
            ),
            tags=frozenset(str(tag["d_tag"]) for tag in tags),
            alignments=frozenset(s["p_align"] for s in loads),
            writable_code=any(s["p_flags"] & 3 == 3 for s in loads),
            stack=next(s["p_flags"] for s in segments if s["p_type"] == "PT_GNU_STACK"),
            read_only_end=max(read_only, default=0),
            sections=frozenset(s.name for s in elf.iter_sections()),
        )


def check_library(path: Path, architecture: str, system: str, *beside: str) -> Library:
    """Asserts what holds for every library of a system, and gives its facts.

    ``beside`` names libraries of ours that it may need too.
    """
    found = read_library(path)
    base = system.partition("-")[0]
    assert found.machine == MACHINE[architecture]
    assert set(found.needed) <= {*NEEDED[system], *beside}
    assert "DT_TEXTREL" not in found.tags
    assert not {"DT_RPATH", "DT_RUNPATH"} & found.tags
    assert not found.writable_code
    assert found.stack & 1 == 0, "the stack is not executable"
    assert not {".symtab", ".debug_info"} & found.sections, "stripped"
    assert {alignment % PAGE[base] for alignment in found.alignments} == {0}
    if base == "android":
        assert found.alignments == {16384}
        assert found.read_only_end % 16384 == 0, "else memory beside it becomes read-only too"
        assert not found.versions, "bionic's symbols have none of glibc's versions"
        assert not {".tdata", ".tbss"} & found.sections, "thread-local variables need API level 29"
        assert "DT_GNU_HASH" in found.tags
    return found
