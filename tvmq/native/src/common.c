/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int fail(Error *error, int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    error->code = code;
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    /* names come from files: nothing that a terminal would obey */
    for (char *c = error->text; *c; c++)
        if ((unsigned char)*c < 32 || *c == 127) *c = '?';
    return code;
}

/* Opens folder/name without waiting for pipes or following a link at its end. */
static int open_regular(const char *folder, const char *name, struct stat *info, Error *error) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        return fail(error, TVMQ_INPUT, "%.80s...: the path is too long", folder), -1;
    int handle = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    if (handle < 0) return fail(error, TVMQ_VERIFICATION, "%s: cannot be read (%s)", path, strerror(errno)), -1;
    if (fstat(handle, info) || !S_ISREG(info->st_mode)) {
        close(handle);
        return fail(error, TVMQ_VERIFICATION, "%s: not a regular file", path), -1;
    }
    return handle;
}

int file_open(File *file, const char *folder, const char *name, size_t limit, Error *error) {
    struct stat info;
    *file = (File){0};
    int handle = open_regular(folder, name, &info, error);
    if (handle < 0) return error->code;
    uint64_t size = (uint64_t)info.st_size;
    if (size == 0 || size > limit) {
        close(handle);
        return fail(error, TVMQ_VERIFICATION, "%s/%s: %llu bytes, expected 1 to %zu", folder, name,
                    (unsigned long long)size, limit);
    }
    void *data = mmap(NULL, (size_t)size, PROT_READ, MAP_PRIVATE, handle, 0);
    close(handle);
    if (data == MAP_FAILED)
        return fail(error, TVMQ_RESOURCE, "%s/%s: cannot be mapped (%s)", folder, name, strerror(errno));
    *file = (File){data, (size_t)size};
    return 0;
}

void file_close(File *file) {
    if (file->data) munmap((void *)(uintptr_t)file->data, file->size);
    *file = (File){0};
}

int file_size(const char *folder, const char *name, uint64_t *size, Error *error) {
    struct stat info;
    int handle = open_regular(folder, name, &info, error);
    if (handle < 0) return error->code;
    close(handle);
    *size = (uint64_t)info.st_size;
    return 0;
}

void *pages_new(size_t bytes) {
    void *pages = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

void pages_free(void *pages, size_t bytes) {
    if (pages) munmap(pages, bytes ? bytes : 1);
}

int block_reserve(Block *block, uint64_t bytes, Error *error) {
    if (block->data && bytes <= block->bytes) return 0;
    uint8_t *larger = bytes > SIZE_MAX / 2 ? NULL : pages_new((size_t)bytes);
    if (!larger) return fail(error, TVMQ_RESOURCE, "no memory for %llu bytes", (unsigned long long)bytes);
    block_free(block);
    *block = (Block){larger, (size_t)bytes};
    return 0;
}

void block_free(Block *block) {
    pages_free(block->data, block->bytes);
    *block = (Block){0};
}

void *aligned_new(size_t bytes) {
    void *memory = NULL;
    return posix_memalign(&memory, ALIGNMENT, bytes ? bytes : 1) ? NULL : memory;
}

bool grow(void **items, size_t *room, size_t count, size_t item_bytes) {
    if (count < *room) return true;
    size_t wanted = *room ? *room * 2 : 16;
    void *larger = realloc(*items, wanted * item_bytes);
    if (!larger) return false;
    memset((char *)larger + *room * item_bytes, 0, (wanted - *room) * item_bytes);
    *items = larger;
    *room = wanted;
    return true;
}

bool multiply(uint64_t a, uint64_t b, uint64_t *product) {
    return !__builtin_mul_overflow(a, b, product) && *product <= (uint64_t)1 << 62;
}
