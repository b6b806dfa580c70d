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
#if !defined(__ANDROID__)
#include <sys/syscall.h>
#endif
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

/* Opens the step that name begins with, in folder; *name then is what is left. -1, with errno, if that fails. */
static int open_step(int folder, const char **name) {
    char step[NAME_MAX + 1];
    const size_t length = strcspn(*name, "/");
    const bool last = !(*name)[length];
    if (length > NAME_MAX) return errno = ENAMETOOLONG, -1;
    memcpy(step, *name, length);
    step[length] = 0;
    *name += length + !last;
    return openat(folder, step, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | (last ? O_NONBLOCK : O_DIRECTORY));
}

/* Opens folder/name without waiting for pipes; a link below the folder is refused. */
static int open_regular(const char *folder, const char *name, struct stat *info, Error *error) {
    const char *left = name;
    int handle = open(folder, O_RDONLY | O_CLOEXEC | O_DIRECTORY);
    while (handle >= 0 && *left) {
        const int step = open_step(handle, &left), why = errno;
        close(handle);
        errno = why;
        handle = step;
    }
    if (handle < 0)
        return fail(error, TVMQ_VERIFICATION, "%s/%s: cannot be read (%s)", folder, name,
                    errno == ELOOP || errno == ENOTDIR ? "a link; an artifact holds none" : strerror(errno)), -1;
    if (fstat(handle, info) || !S_ISREG(info->st_mode)) {
        close(handle);
        return fail(error, TVMQ_VERIFICATION, "%s/%s: not a regular file", folder, name), -1;
    }
    return handle;
}

/* The same for a file that is mapped whole; its size is in *size. */
static int open_bounded(const char *folder, const char *name, size_t limit, size_t *size, Error *error) {
    struct stat info;
    int handle = open_regular(folder, name, &info, error);
    if (handle < 0) return -1;
    *size = (size_t)info.st_size;
    if (info.st_size > 0 && (uint64_t)info.st_size <= limit) return handle;
    close(handle);
    return fail(error, TVMQ_VERIFICATION, "%s/%s: %llu bytes, expected 1 to %zu", folder, name,
                (unsigned long long)info.st_size, limit), -1;
}

static int map(File *file, int handle, size_t size, const char *folder, const char *name, Error *error) {
    void *data = mmap(NULL, size, PROT_READ, MAP_PRIVATE, handle, 0);
    if (data == MAP_FAILED)
        return fail(error, TVMQ_RESOURCE, "%s/%s: cannot be mapped (%s)", folder, name, strerror(errno));
    *file = (File){data, size};
    return 0;
}

int file_open(File *file, const char *folder, const char *name, size_t limit, Error *error) {
    size_t size;
    *file = (File){0};
    int handle = open_bounded(folder, name, limit, &size, error);
    if (handle < 0) return error->code;
    map(file, handle, size, folder, name, error);
    close(handle);
    return error->code;
}

/* Copies size bytes of a file into memory that then never changes; -1 where there is no such memory. */
static int sealed_copy(int source, size_t size) {
#if defined(__ANDROID__)
    (void)source, (void)size; /* memfd_create is there from API level 30 on, and earlier systems may kill who calls it */
    return -1;
#else
    char part[1 << 14];
    /* glibc has a function for it from 2.27 on */
    int handle = (int)syscall(SYS_memfd_create, "tvmq-kernels", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    size_t done = 0;
    while (handle >= 0 && done < size) {
        ssize_t got = pread(source, part, size - done < sizeof part ? size - done : sizeof part, (off_t)done);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return close(handle), -1;
        for (ssize_t put = 0, written; put < got; put += written > 0 ? written : 0) {
            written = write(handle, part + put, (size_t)(got - put));
            if (written < 0 && errno != EINTR) return close(handle), -1;
        }
        done += (size_t)got;
    }
    if (handle >= 0 && fcntl(handle, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        return close(handle), -1;
    return handle;
#endif
}

int file_copy(File *file, const char *folder, const char *name, size_t limit, int *handle, Error *error) {
    size_t size;
    *file = (File){0};
    *handle = -1;
    int source = open_bounded(folder, name, limit, &size, error);
    if (source < 0) return error->code;
    *handle = sealed_copy(source, size);
    map(file, *handle < 0 ? source : *handle, size, folder, name, error);
    close(source);
    return error->code;
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
