/* SPDX-License-Identifier: Apache-2.0
 * link.h and elf.h, as far as reading the head of a library goes: names and values of the ELF specification. */
#ifndef TVMQ_ELF_TYPES_H
#define TVMQ_ELF_TYPES_H

#define ElfW(type) Elf64_##type
#define ELFMAG "\177ELF"
#define SELFMAG 4
#define EI_CLASS 4
#define EI_DATA 5
#define EI_NIDENT 16
#define ELFCLASS32 1
#define ELFCLASS64 2
#define ELFDATA2LSB 1
#define ELFDATA2MSB 2
#define ET_DYN 3
#define EM_NONE 0
#define EM_X86_64 62
#define EM_AARCH64 183
#define PT_LOAD 1

typedef struct {
    unsigned char e_ident[EI_NIDENT];
    uint16_t e_type, e_machine;
    uint32_t e_version;
    uint64_t e_entry, e_phoff, e_shoff;
    uint32_t e_flags;
    uint16_t e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx;
} Elf64_Ehdr;

typedef struct {
    uint32_t p_type, p_flags;
    uint64_t p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align;
} Elf64_Phdr;

#endif
