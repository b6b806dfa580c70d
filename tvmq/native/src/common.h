/* SPDX-License-Identifier: Apache-2.0
 * What every file uses: errors as a code and a sentence, bounded files, aligned memory, SHA-256. */
#ifndef TVMQ_COMMON_H
#define TVMQ_COMMON_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tvmq.h"

#define ALIGNMENT 64

typedef struct {
    int code;
    char text[480];
} Error;

/* Sets the error and returns its code, so that a function can end with `return fail(...)`. */
int fail(Error *error, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Bytes of a file: mapped read-only, and unmapped by file_close. */
typedef struct {
    const uint8_t *data;
    size_t size;
} File;

/* Maps the regular file folder/name. Fails for more than limit bytes, for anything but a regular file, for links
 * below the folder. */
int file_open(File *file, const char *folder, const char *name, size_t limit, Error *error);
/* As file_open, but maps a copy in memory that nobody can change, of which *handle is a descriptor to be closed;
 * -1 where the system has no such memory: then the file itself is mapped. */
int file_copy(File *file, const char *folder, const char *name, size_t limit, int *handle, Error *error);
void file_close(File *file);
/* Size of a regular file; fails for anything else. */
int file_size(const char *folder, const char *name, uint64_t *size, Error *error);

/* Zeroed pages on a 64-byte boundary that are only taken when written; NULL when there are none left. */
void *pages_new(size_t bytes);
void pages_free(void *pages, size_t bytes);

/* Memory that grows and keeps its place until it does. */
typedef struct {
    uint8_t *data;
    size_t bytes;
} Block;

/* At least bytes of memory; old contents are lost when it grows, and stay when it cannot: something may still
 * point into them. */
int block_reserve(Block *block, uint64_t bytes, Error *error);
void block_free(Block *block);

/* Memory on a 64-byte boundary, for free(); NULL when there is none left. */
void *aligned_new(size_t bytes);

/* A growing array of zeroed items: room for one more, or false. */
bool grow(void **items, size_t *room, size_t count, size_t item_bytes);

/* a * b into *product; false if that is more than 2^62. */
bool multiply(uint64_t a, uint64_t b, uint64_t *product);

static inline size_t align_up(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

/* SHA-256 of data, followed by more (may be empty), as 64 lower-case hex digits and a zero. */
void sha256_hex(const uint8_t *data, size_t size, const uint8_t *more, size_t more_size, char hex[65]);
/* The constants of its rounds. */
extern const uint32_t SHA256_K[64];
/* Adds whole 64-byte blocks to a state. */
void sha256_blocks_portable(uint32_t state[8], const uint8_t *data, size_t blocks);

/* cpu_*.c: whether this CPU has a feature, by its /proc/cpuinfo name (asks the system for AMX's registers). */
bool cpu_has(const char *feature);
/* Instructions for SHA-256, if this CPU has them; false if it did nothing. */
bool cpu_sha256_blocks(uint32_t state[8], const uint8_t *data, size_t blocks);

#endif
