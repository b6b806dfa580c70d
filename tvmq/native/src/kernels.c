/* SPDX-License-Identifier: Apache-2.0
 * The library of an ISA level: its kernels, and what it needs of its host. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if !defined(__ANDROID__)
#include <sys/syscall.h>
#endif
#include <unistd.h>

#include "model.h"
#include "threads.h"

static void *allocate_workspace(int device, int id, uint64_t bytes, int code, int bits) {
    (void)device, (void)id, (void)code, (void)bits;
    return aligned_new((size_t)bytes);
}

static int free_workspace(int device, int id, void *memory) {
    (void)device, (void)id;
    free(memory);
    return 0;
}

/* A descriptor of memory that holds the verified bytes: what runs is what was hashed, whatever happens to the
 * file, and the library's slots for its host are this model's own. */
static int memory_copy(const File *library) {
#if defined(__ANDROID__)
    (void)library; /* memfd_create is there from API level 30 on, and earlier systems may kill who calls it */
    return -1;
#else
    int handle = (int)syscall(SYS_memfd_create, "tvmq-kernels", 1U /* MFD_CLOEXEC */); /* glibc has it from 2.27 on */
    for (size_t done = 0; handle >= 0 && done < library->size;) {
        ssize_t written = write(handle, library->data + done, library->size - done);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return close(handle), -1;
        done += (size_t)written;
    }
    return handle;
#endif
}

static void fill_slot(void *library, const char *name, void *function) {
    void **slot = dlsym(library, name);
    if (slot) *slot = function;
}

/* A function as the data pointer that dlsym and the slots deal in. */
#define ADDRESS(function) ((void *)(uintptr_t)(function))

int kernels_load(tvmq_model *model, const char *name, const File *library, Error *error) {
    char path[4096];
    model->library_file = library ? memory_copy(library) : -1;
    if (!library) /* by its name alone, the loader looks where the system installs libraries of the application */
        snprintf(path, sizeof path, "%s", name);
    else if (model->library_file >= 0)
        snprintf(path, sizeof path, "/proc/self/fd/%d", model->library_file);
    else /* a system that runs no code from memory */
        snprintf(path, sizeof path, "%s/%s", model->folder, name);
    model->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!model->library) {
        const char *why = dlerror();
        return fail(error, TVMQ_VERIFICATION, "%s/%s: cannot be loaded (%s)", model->folder, name, why ? why : "");
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
