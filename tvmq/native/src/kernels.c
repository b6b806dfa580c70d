/* SPDX-License-Identifier: Apache-2.0
 * The library of an ISA level: its kernels, and what it needs of its host. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model.h"
#include "threads.h"

enum { CLASS = sizeof(void *) == 8 ? ELFCLASS64 : ELFCLASS32 };
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
enum { ORDER = ELFDATA2LSB };
#else
enum { ORDER = ELFDATA2MSB };
#endif
#if defined(__x86_64__)
enum { MACHINE = EM_X86_64 };
#elif defined(__aarch64__)
enum { MACHINE = EM_AARCH64 };
#else
enum { MACHINE = EM_NONE }; /* no level is for it */
#endif

static void *allocate_workspace(int device, int id, uint64_t bytes, int code, int bits) {
    (void)device, (void)id, (void)code, (void)bits;
    return aligned_new((size_t)bytes);
}

static int free_workspace(int device, int id, void *memory) {
    (void)device, (void)id;
    free(memory);
    return 0;
}

static void fill_slot(void *library, const char *name, void *function) {
    void **slot = dlsym(library, name);
    if (slot) *slot = function;
}

/* A function as the data pointer that dlsym and the slots deal in. */
#define ADDRESS(function) ((void *)(uintptr_t)(function))

/* Why these bytes are no library that the system's loader maps as it is, or NULL. */
static const char *unfit(const File *library) {
    const ElfW(Ehdr) *head = (const void *)library->data;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (library->size < sizeof *head || memcmp(head->e_ident, ELFMAG, SELFMAG) || head->e_type != ET_DYN)
        return "no shared library";
    if (head->e_ident[EI_CLASS] != CLASS || head->e_ident[EI_DATA] != ORDER || head->e_machine != MACHINE)
        return "a library for another kind of CPU";
    if (head->e_phentsize != sizeof(ElfW(Phdr)) || head->e_phoff % _Alignof(ElfW(Phdr)) ||
        head->e_phoff > library->size || (library->size - head->e_phoff) / sizeof(ElfW(Phdr)) < head->e_phnum)
        return "damaged: its segments are not in it";
    const ElfW(Phdr) *segments = (const void *)(library->data + head->e_phoff);
    for (size_t i = 0; i < head->e_phnum; i++) {
        const ElfW(Phdr) *s = &segments[i];
        if (s->p_offset > library->size || s->p_filesz > library->size - s->p_offset)
            return "damaged: its segments are not in it";
        if (s->p_type == PT_LOAD && s->p_align % page) return "made for smaller pages of memory than this system's";
    }
    return NULL;
}

/* The verified bytes from memory. Where a system runs no code from there, or has no /proc, the file, whose bytes are
 * then verified again. NULL if that fails. */
static void *load(const tvmq_model *model, const char *name, Error *error) {
    char path[PATH_MAX];
    File again;
    void *library = NULL;
    if (model->library_file >= 0) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", model->library_file);
        library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    }
    if (library || snprintf(path, sizeof path, "%s/%s", model->folder, name) >= (int)sizeof path) return library;
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library && manifest_file(model, name, MAX_LIBRARY, &again, error)) return dlclose(library), NULL;
    if (library) file_close(&again);
    return library;
}

int kernels_load(tvmq_model *model, const char *name, const File *library, Error *error) {
    const char *problem = library ? unfit(library) : NULL;
    if (problem)
        return fail(error, TVMQ_VERIFICATION, "%s/%s: %s (compile the model again)", model->folder, name, problem);
    /* by its name alone, the loader looks where the system installs libraries of the application */
    model->library = library ? load(model, name, error) : dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!model->library) {
        const char *why = dlerror();
        return error->code ? error->code : fail(error, TVMQ_VERIFICATION, "%s/%s: cannot be loaded (%s)",
                                                model->folder, name, why ? why : "");
    }
    fill_slot(model->library, "__TVMBackendAllocWorkspace", ADDRESS(allocate_workspace));
    fill_slot(model->library, "__TVMBackendFreeWorkspace", ADDRESS(free_workspace));
    fill_slot(model->library, "__TVMBackendParallelLaunch", ADDRESS(threads_launch));
    const Program *program = &model->program;
    model->kernels = calloc(program->kernel_count + 1, sizeof *model->kernels);
    if (!model->kernels) return fail(error, TVMQ_RESOURCE, "no memory for %zu kernels", program->kernel_count);
    for (size_t i = 0; i < program->kernel_count; i++) {
        char symbol[160];
        snprintf(symbol, sizeof symbol, "__tvm_ffi_%s", program->kernels[i]);
        model->kernels[i] = (Kernel)(uintptr_t)dlsym(model->library, symbol);
        if (!model->kernels[i])
            return fail(error, TVMQ_VERIFICATION, "%s/%s: has no kernel %s (compile the model again)",
                        model->folder, name, program->kernels[i]);
    }
    return 0;
}

void kernels_free(tvmq_model *model) {
    free(model->kernels);
    if (model->library) dlclose(model->library);
    if (model->library_file >= 0) close(model->library_file);
}
