/* SPDX-License-Identifier: Apache-2.0
 * usage: probe ARTIFACT [ISA]
 * Loads an artifact and prints the largest resident memory in kB, the code, and the message.
 *
 * Compiled, as the runtime with it, with -Ddlopen=probe_dlopen (and -Dmemfd_create=probe_memory), it is a system
 * whose loader opens nothing under /proc (and that has no memory without a name). There, PROBE_SWAP names a file that
 * takes the library's place at the last moment. */
#ifdef dlopen
#undef dlopen
#undef memfd_create
#define WRAPPED
#endif
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tvmq.h"

#ifdef WRAPPED
void *probe_dlopen(const char *path, int flags);
int probe_memory(const char *name, unsigned flags);

void *probe_dlopen(const char *path, int flags) {
    const char *swap = getenv("PROBE_SWAP");
    if (!strncmp(path, "/proc/", 6)) return NULL;
    if (swap && rename(swap, path)) return NULL;
    return dlopen(path, flags);
}

int probe_memory(const char *name, unsigned flags) {
    (void)name, (void)flags;
    return -1;
}
#endif

static long peak(void) {
    char line[256];
    long kilobytes = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status)) sscanf(line, "VmHWM: %ld", &kilobytes);
    if (status) fclose(status);
    return kilobytes;
}

int main(int argc, char **argv) {
    char message[512];
    tvmq_model *model;
    if (argc < 2) return 2;
    const int code = tvmq_load(argv[1], argc > 2 ? argv[2] : NULL, &model, message, sizeof message);
    printf("%ld %d %s\n", peak(), code, message);
    tvmq_unload(model);
    return 0;
}
