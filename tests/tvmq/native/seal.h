/* SPDX-License-Identifier: Apache-2.0
 * Artifacts with any contents and right hashes: what a loader meets that has to trust nothing but sizes. */
#ifndef TVMQ_SEAL_H
#define TVMQ_SEAL_H

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common.h"

typedef struct {
    uint8_t *data;
    size_t size;
} Bytes;

static inline Bytes bytes_copy(const uint8_t *data, size_t size) {
    Bytes copy = {malloc(size + 1), size};
    if (!copy.data) abort();
    if (size) memcpy(copy.data, data, size);
    copy.data[size] = 0;
    return copy;
}

static inline Bytes bytes_read(const char *folder, const char *name) {
    Error error = {0};
    File file;
    if (file_open(&file, folder, name, 1 << 30, &error)) fprintf(stderr, "%s\n", error.text), exit(9);
    const Bytes copy = bytes_copy(file.data, file.size);
    file_close(&file);
    return copy;
}

/* Another file of that name: one that is mapped must not change. */
static inline void bytes_write(const char *folder, const char *name, Bytes bytes) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    unlink(path);
    const int handle = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (handle < 0 || write(handle, bytes.data, bytes.size) != (ssize_t)bytes.size || close(handle)) perror(path), exit(9);
}

/* The manifest with another size and hash for the file name, which it lists. */
static inline Bytes seal_entry(Bytes manifest, const char *name, Bytes contents) {
    char key[300], entry[400], hex[65];
    snprintf(key, sizeof key, "\"%s\": {\n", name);
    const char *begin = strstr((char *)manifest.data, key), *end = begin ? strchr(begin, '}') : NULL;
    if (!end) fprintf(stderr, "%s is not listed\n", name), exit(9);
    sha256_hex(contents.data, contents.size, NULL, 0, hex);
    const size_t length = (size_t)snprintf(entry, sizeof entry, "%s\"size\": %zu, \"sha256\": \"%s\"", key, contents.size, hex);
    const size_t before = (size_t)(begin - (char *)manifest.data), after = manifest.size - (size_t)(end - (char *)manifest.data);
    Bytes sealed = {malloc(before + length + after + 1), before + length + after};
    if (!sealed.data) abort();
    memcpy(sealed.data, manifest.data, before);
    memcpy(sealed.data + before, entry, length);
    memcpy(sealed.data + before + length, end, after + 1);
    return sealed;
}

/* Whatever follows the last "digest" becomes a right one. */
static inline Bytes seal_digest(Bytes manifest) {
    static const char KEY[] = "  \"digest\": \"", AFTER[] = "\"\n}\n";
    const size_t key = sizeof KEY - 1, after = sizeof AFTER - 1;
    size_t bare = manifest.size;
    for (size_t i = manifest.size < key ? 0 : manifest.size - key + 1; i-- > 0;)
        if (!memcmp(manifest.data + i, KEY, key)) {
            bare = i + key;
            break;
        }
    Bytes sealed = {malloc(bare + 64 + after + 1), bare + 64 + after};
    if (!sealed.data) abort();
    memcpy(sealed.data, manifest.data, bare);
    sha256_hex(manifest.data, bare, (const uint8_t *)AFTER, after, (char *)sealed.data + bare);
    memcpy(sealed.data + bare + 64, AFTER, after + 1);
    return sealed;
}

/* Writes the file name of an artifact, and the manifest so that every hash is right. */
static inline void seal(const char *folder, Bytes manifest, const char *name, Bytes contents) {
    Bytes listed = bytes_copy(contents.data, contents.size);
    if (strcmp(name, "manifest.json")) {
        bytes_write(folder, name, contents);
        free(listed.data);
        listed = seal_entry(manifest, name, contents);
    }
    const Bytes sealed = seal_digest(listed);
    bytes_write(folder, "manifest.json", sealed);
    free(listed.data), free(sealed.data);
}

#endif
