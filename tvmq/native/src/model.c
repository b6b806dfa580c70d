/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "model.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_PROGRAM = 4 << 20 };

/* "translate" or "encode", by the functions that the program has. */
static const char *task_of(const Program *program) {
    if (program_function(program, "embed")) return "encode";
    bool decodes = program_function(program, "encode") && program_function(program, "beam");
    return decodes && program_function(program, "greedy_1") ? "translate" : NULL;
}

/* The library of the level that runs. */
static int load_library(tvmq_model *model, const char *name, bool installed, Error *error) {
    File file;
    if (installed && name && !strchr(name, '/') && !manifest_lists(model, name))
        return kernels_load(model, name, NULL, error);
    if (manifest_copy(model, name, MAX_LIBRARY, &file, error)) return error->code;
    kernels_load(model, name, &file, error);
    file_close(&file);
    return error->code;
}

int model_load(tvmq_model *model, const char *path, const char *isa, bool installed, Error *error) {
    const Json *json = &model->manifest;
    const JsonNode *level;
    File file;
    model->library_file = -1;
    atomic_init(&model->users, 1);
    model->folder = strdup(path);
    if (!model->folder) return fail(error, TVMQ_RESOURCE, "no memory");
    if (manifest_load(model, isa, &level, error)) return error->code;
    const char *program = json_text(json_get(json, level, "program"));
    const char *library = json_text(json_get(json, level, "library"));
    if (!program) return fail(error, TVMQ_INPUT, "%s: was compiled without a program for this library", path);
    if (manifest_file(model, program, MAX_PROGRAM, &file, error)) return error->code;
    program_parse(&model->program, file.data, file.size, program, error);
    file_close(&file);
    if (error->code) return error->code;
    model->task = task_of(&model->program);
    if (!model->task) return fail(error, TVMQ_INPUT, "%s: neither translates nor encodes", path);
    if (weights_load(model, error) || figures_check(model, error)) return error->code;
    return load_library(model, library, installed, error);
}

void model_free(tvmq_model *model) {
    kernels_free(model);
    weights_free(model);
    program_free(&model->program);
    json_free(&model->manifest);
    free(model->levels);
    free(model->folder);
    free(model);
}

const JsonNode *model_fact(const tvmq_model *model, const char *group, const char *key) {
    const Json *json = &model->manifest;
    return json_get(json, json_get(json, json->nodes, group), key);
}

int model_count(const tvmq_model *model, const char *group, const char *key, uint64_t limit, uint64_t *value,
                Error *error) {
    if (json_count(model_fact(model, group, key), limit, value)) return 0;
    return fail(error, TVMQ_VERIFICATION, "%s: the manifest's %s is no number up to %llu (compile the model again)",
                model->folder, key, (unsigned long long)limit);
}
