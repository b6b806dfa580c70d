/* SPDX-License-Identifier: Apache-2.0
 * manifest.json. It is canonical and ends with the sha256 of itself without that hash, so that the bytes
 * can be checked before anything in them is believed. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

enum { SCHEMA = 1, MAX_MANIFEST = 16 << 20, DIGEST = 64 };

static const char MANIFEST[] = "manifest.json", BEFORE[] = "  \"digest\": \"", AFTER[] = "\"\n}\n";

static int check_digest(const char *folder, const File *file, Error *error) {
    const size_t after = sizeof AFTER - 1, before = sizeof BEFORE - 1;
    char hex[65];
    if (file->size > before + DIGEST + after) {
        size_t bare = file->size - after - DIGEST;
        sha256_hex(file->data, bare, (const uint8_t *)AFTER, after, hex);
        if (!memcmp(file->data + bare - before, BEFORE, before) && !memcmp(file->data + bare, hex, DIGEST) &&
            !memcmp(file->data + bare + DIGEST, AFTER, after))
            return 0;
    }
    return fail(error, TVMQ_VERIFICATION,
                "%s/%s: changed since it was written (compile or copy the artifact again)", folder, MANIFEST);
}

static int check_schema(const tvmq_model *model, Error *error) {
    const JsonNode *schema = json_get(&model->manifest, model->manifest.nodes, "schema");
    uint64_t found = 0;
    if (json_count(schema, INT32_MAX, &found) && found == SCHEMA) return 0;
    return fail(error, TVMQ_VERIFICATION,
                "%s/%s: artifact schema %llu, this library reads %d (compile the model again with the tvmq that "
                "the library is of)",
                model->folder, MANIFEST, (unsigned long long)found, SCHEMA);
}

/* A relative path with / whose parts are neither empty, . nor .. */
static bool plain_path(const char *name) {
    if (strpbrk(name, "\\:")) return false;
    for (const char *part = name;; part++) {
        size_t length = strcspn(part, "/");
        if (!length || (length <= 2 && !strncmp(part, "..", length))) return false;
        part += length;
        if (!*part) return true;
    }
}

static int check_sizes(const tvmq_model *model, Error *error) {
    const Json *json = &model->manifest;
    const JsonNode *files = json_get(json, json->nodes, "files");
    if (!files || files->kind != JSON_OBJECT)
        return fail(error, TVMQ_VERIFICATION, "%s/%s: lists no files", model->folder, MANIFEST);
    for (const JsonNode *node = json_first(json, files); node; node = json_next(json, node)) {
        uint64_t listed, found;
        if (!plain_path(node->key) || !json_count(json_get(json, node, "size"), (uint64_t)1 << 50, &listed))
            return fail(error, TVMQ_VERIFICATION, "%s: '%.80s' is not a plain path inside the artifact",
                        model->folder, node->key);
        if (file_size(model->folder, node->key, &found, error)) return error->code;
        if (found != listed)
            return fail(error, TVMQ_VERIFICATION,
                        "%s/%s: %llu bytes, expected %llu (compile or copy the artifact again)", model->folder,
                        node->key, (unsigned long long)found, (unsigned long long)listed);
    }
    return 0;
}

bool manifest_lists(const tvmq_model *model, const char *name) {
    const Json *json = &model->manifest;
    return json_get(json, json_get(json, json->nodes, "files"), name) != NULL;
}

/* The listed hash of a file with a plain path, or NULL. */
static const char *listed_hash(const tvmq_model *model, const char *name, Error *error) {
    const Json *json = &model->manifest;
    const JsonNode *entry = name ? json_get(json, json_get(json, json->nodes, "files"), name) : NULL;
    const char *expected = json_text(json_get(json, entry, "sha256"));
    if (expected && plain_path(name)) return expected;
    fail(error, TVMQ_VERIFICATION, "%s: '%.80s' is not listed in %s (compile again)", model->folder, name ? name : "",
         MANIFEST);
    return NULL;
}

static int check_hash(const tvmq_model *model, const char *name, const char *expected, File *file, Error *error) {
    char hex[65];
    sha256_hex(file->data, file->size, NULL, 0, hex);
    if (!strcmp(hex, expected)) return 0;
    file_close(file);
    return fail(error, TVMQ_VERIFICATION, "%s/%s: contents differ (sha256) (compile or copy the artifact again)",
                model->folder, name);
}

int manifest_file(const tvmq_model *model, const char *name, size_t limit, File *file, Error *error) {
    const char *expected = listed_hash(model, name, error);
    *file = (File){0};
    if (!expected || file_open(file, model->folder, name, limit, error)) return error->code;
    return check_hash(model, name, expected, file, error);
}

int manifest_copy(tvmq_model *model, const char *name, size_t limit, File *file, Error *error) {
    const char *expected = listed_hash(model, name, error);
    *file = (File){0};
    if (!expected || file_copy(file, model->folder, name, limit, &model->library_file, error)) return error->code;
    return check_hash(model, name, expected, file, error);
}

/* Whether this CPU has every feature that a level lists. */
static bool runs(const Json *json, const JsonNode *level) {
    const JsonNode *features = json_get(json, level, "features");
    if (!features || features->kind != JSON_LIST) return false;
    for (const JsonNode *node = json_first(json, features); node; node = json_next(json, node))
        if (!json_text(node) || !cpu_has(node->text)) return false;
    return true;
}

/* Names of all levels, separated by spaces. */
static char *level_names(const Json *json, const JsonNode *levels) {
    char *names = NULL;
    for (const JsonNode *node = json_first(json, levels); node; node = json_next(json, node)) {
        const char *name = json_text(json_get(json, node, "name"));
        size_t length = names ? strlen(names) : 0;
        if (!name) continue;
        char *longer = realloc(names, length + strlen(name) + 2);
        if (!longer) break;
        names = longer;
        sprintf(names + length, "%s%s", length ? " " : "", name);
    }
    return names ? names : strdup("");
}

/* The best level that runs (the manifest lists the lowest first), or the wanted one. */
static int pick_level(tvmq_model *model, const char *wanted, const JsonNode **level, Error *error) {
    const Json *json = &model->manifest;
    const JsonNode *levels = json_get(json, json->nodes, "isa_levels");
    bool present = false;
    *level = NULL;
    model->levels = level_names(json, levels);
    for (const JsonNode *node = json_first(json, levels); node; node = json_next(json, node)) {
        const char *name = json_text(json_get(json, node, "name"));
        if (!name || (wanted && strcmp(name, wanted))) continue;
        present = true;
        if (runs(json, node)) *level = node, model->isa = name;
    }
    if (*level) return 0;
    if (wanted && present)
        return fail(error, TVMQ_USAGE, "this CPU cannot run ISA level %.40s", wanted);
    if (wanted)
        return fail(error, TVMQ_USAGE, "the artifact has no ISA level '%.40s'; it has %s", wanted, model->levels);
    return fail(error, TVMQ_INPUT, "%s: compiled for %s, none of which this CPU runs", model->folder,
                model->levels);
}

int manifest_load(tvmq_model *model, const char *isa, const JsonNode **level, Error *error) {
    File file;
    uint64_t size;
    char where[512];
    snprintf(where, sizeof where, "%s/%s", model->folder, MANIFEST);
    if (file_size(model->folder, MANIFEST, &size, error))
        return fail(error, TVMQ_INPUT, "%s: not an artifact (no %s); make one with `tvmq compile`", model->folder,
                    MANIFEST);
    if (file_open(&file, model->folder, MANIFEST, MAX_MANIFEST, error)) return error->code;
    int code = json_parse(&model->manifest, file.data, file.size, where, error);
    if (!code) code = check_schema(model, error);
    if (!code) code = check_digest(model->folder, &file, error);
    file_close(&file);
    if (!code) code = check_sizes(model, error);
    return code ? code : pick_level(model, isa, level, error);
}
