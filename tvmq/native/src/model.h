/* SPDX-License-Identifier: Apache-2.0
 * A verified artifact: manifest, program, kernels and weights; read-only once it is loaded. */
#ifndef TVMQ_MODEL_H
#define TVMQ_MODEL_H

#include <pthread.h>
#include <stdatomic.h>

#include "json.h"
#include "program.h"

/* A tensor argument as DLPack lays it out, and an argument as TVM's calling convention does. */
typedef struct {
    void *data;
    int32_t device_type, device_id, ndim;
    DataType dtype;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} DLTensor;

typedef struct {
    int32_t kind, zero;
    union {
        const void *pointer;
        int64_t integer;
    };
} Argument;

typedef int (*Kernel)(void *self, const Argument *arguments, int32_t count, Argument *result);

typedef struct {
    const void *data;
    void *owned; /* what was computed at load, to be freed */
} Weight;

/* Marian's positions, of which only the rows are computed that were asked for. */
typedef struct {
    float *rows;
    size_t count, columns;
    _Atomic size_t filled;
    pthread_mutex_t lock;
} PositionTable;

struct tvmq_model {
    char *folder, *levels;
    Json manifest;
    const char *isa, *task;
    Program program;
    Kernel *kernels;
    void *library;
    int library_file;
    File weights_file;
    Weight *weights;
    PositionTable positions;
    bool has_positions;
    atomic_int users;
};

/* Opens and checks an artifact but for its self-test. installed: its libraries may be the system's. */
int model_load(tvmq_model *model, const char *path, const char *isa, bool installed, Error *error);
void model_free(tvmq_model *model);

/* A whole number under architecture or generation; fails if it is missing or beyond limit. */
int model_count(const tvmq_model *model, const char *group, const char *key, uint64_t limit, uint64_t *value,
                Error *error);
const JsonNode *model_fact(const tvmq_model *model, const char *group, const char *key);
/* Makes the first count rows of the position table right. */
void model_fill_positions(tvmq_model *model, size_t count);

/* manifest.c: reads manifest.json, checks schema, digest, names and sizes, picks the ISA level. */
int manifest_load(tvmq_model *model, const char *isa, const JsonNode **level, Error *error);
bool manifest_lists(const tvmq_model *model, const char *name);
/* Maps a listed file and checks its hash. */
int manifest_file(const tvmq_model *model, const char *name, size_t limit, File *file, Error *error);
/* The same of a copy that nobody can change, whose descriptor, if it has one, becomes model->library_file. */
int manifest_copy(tvmq_model *model, const char *name, size_t limit, File *file, Error *error);

enum { MAX_LIBRARY = 1 << 26 };
/* kernels.c: loads the library with the given verified bytes, or of model->library_file, or the installed one of that
 * name where there are no bytes, and finds the program's kernels in it. */
int kernels_load(tvmq_model *model, const char *name, const File *library, Error *error);
void kernels_free(tvmq_model *model);

/* figures.c: whether the manifest's figures are those of the program and its tables. */
int figures_check(const tvmq_model *model, Error *error);

/* weights.c: what the program takes from the mapped weights file, widened or computed where it is not stored. */
int weights_load(tvmq_model *model, Error *error);
void weights_free(tvmq_model *model);

#endif
