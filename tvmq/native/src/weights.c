/* SPDX-License-Identifier: Apache-2.0
 * The weights file (safetensors, ../../tensor_file.py) and what is computed from it (../../generated.py). */
#define _GNU_SOURCE
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

enum { MAX_TABLE_ITEMS = 1 << 26, MAX_HEADER = 1 << 25 };

typedef struct {
    DataType dtype;
    Shape shape;
    const uint8_t *data;
    size_t bytes;
} Stored;

static const struct {
    const char *name;
    DataType dtype;
} DTYPES[] = {{"U8", {1, 8}}, {"I8", {0, 8}}, {"U16", {1, 16}}, {"I16", {0, 16}},
              {"I32", {0, 32}}, {"F16", {2, 16}}, {"F32", {2, 32}}};

static int damaged(const tvmq_model *model, const char *name, const char *what, Error *error) {
    return fail(error, TVMQ_VERIFICATION, "%s: tensor '%.120s' %s (compile the model again)", model->folder, name,
                what);
}

/* One entry of the header; data begins behind the header. */
static bool read_entry(const Json *json, const JsonNode *node, const File *file, size_t start, Stored *stored) {
    const char *dtype = json_text(json_get(json, node, "dtype"));
    const JsonNode *shape = json_get(json, node, "shape"), *span = json_get(json, node, "data_offsets");
    const JsonNode *first = json_first(json, span), *last = first ? json_next(json, first) : NULL;
    uint64_t begin, end, bytes, size;
    *stored = (Stored){0};
    for (size_t i = 0; dtype && i < sizeof DTYPES / sizeof *DTYPES; i++)
        if (!strcmp(dtype, DTYPES[i].name)) stored->dtype = DTYPES[i].dtype;
    if (!stored->dtype.bits || !shape || shape->kind != JSON_LIST || shape->count > MAX_DIMENSIONS) return false;
    if (!last || !json_count(first, file->size, &begin) || !json_count(last, file->size, &end)) return false;
    bytes = item_bytes(stored->dtype);
    for (const JsonNode *n = json_first(json, shape); n; n = json_next(json, n)) {
        if (!json_count(n, file->size, &size) || !multiply(bytes, size, &bytes)) return false;
        stored->shape.sizes[stored->shape.count++] = (Size)size;
    }
    if (begin > end || end > file->size - start || end - begin != bytes || (start + begin) % ALIGNMENT) return false;
    stored->data = file->data + start + begin;
    stored->bytes = (size_t)bytes;
    return true;
}

static float widened(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 1023, bits;
    float value;
    if (!exponent) { /* zero and what is smaller than the normal numbers */
        value = (float)mantissa * 0x1p-24f;
        memcpy(&bits, &value, 4);
        bits |= sign;
    } else {
        bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13;
    }
    memcpy(&value, &bits, 4);
    return value;
}

/* Biases and norms may be stored in half precision; kernels take them in single. */
static int widen(Weight *weight, const Stored *stored, Error *error) {
    size_t count = stored->bytes / 2;
    float *wide = aligned_new(count * sizeof *wide);
    if (!wide) return fail(error, TVMQ_RESOURCE, "no memory for %zu weights", count);
    for (size_t i = 0; i < count; i++) wide[i] = widened((uint16_t)(stored->data[2 * i] | stored->data[2 * i + 1] << 8));
    weight->data = weight->owned = wide;
    return 0;
}

static uint64_t item(const uint8_t *data, size_t bytes, size_t index) {
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; i++) value |= (uint64_t)data[index * bytes + i] << (8 * i);
    return value;
}

/* The permutation that undoes the stored one. */
static int invert(const tvmq_model *model, const Named *wanted, Weight *weight, const Stored *stored, Error *error) {
    size_t bytes = item_bytes(stored->dtype), count = stored->bytes / bytes;
    uint8_t *inverse = aligned_new(stored->bytes), *seen = calloc(count + 1, 1);
    weight->data = weight->owned = inverse;
    bool good = inverse && seen && stored->shape.count == 1 && stored->dtype.code < 2;
    for (size_t i = 0; good && i < count; i++) {
        uint64_t place = item(stored->data, bytes, i);
        good = place < count && !seen[place];
        if (!good) break;
        seen[place] = 1;
        for (size_t b = 0; b < bytes; b++) inverse[place * bytes + b] = (uint8_t)((uint64_t)i >> (8 * b));
    }
    free(seen);
    return good ? 0 : damaged(model, wanted->name, "cannot be computed: its source is no permutation", error);
}

static int position_table(tvmq_model *model, const Named *wanted, const JsonNode *rule, Weight *weight,
                          Error *error) {
    const Json *json = &model->manifest;
    PositionTable *table = &model->positions;
    uint64_t rows, columns, items;
    if (!json_count(json_get(json, rule, "rows"), 1 << 20, &rows) ||
        !json_count(json_get(json, rule, "columns"), 1 << 16, &columns) || !multiply(rows, columns, &items) ||
        items > MAX_TABLE_ITEMS || model->has_positions || wanted->shape.count != 2 ||
        wanted->dtype.code != 2 || wanted->dtype.bits != 32 || wanted->shape.sizes[0] != (Size)rows ||
        wanted->shape.sizes[1] != (Size)columns)
        return damaged(model, wanted->name, "is no table of positions", error);
    table->rows = pages_new(items * sizeof *table->rows);
    if (!table->rows || pthread_mutex_init(&table->lock, NULL))
        return fail(error, TVMQ_RESOURCE, "no memory for %llu positions", (unsigned long long)rows);
    table->count = (size_t)rows, table->columns = (size_t)columns;
    model->has_positions = true;
    weight->data = table->rows;
    return 0;
}

void model_fill_positions(tvmq_model *model, size_t count) {
    PositionTable *table = &model->positions;
    if (!model->has_positions) return;
    if (count > table->count) count = table->count;
    if (atomic_load_explicit(&table->filled, memory_order_acquire) >= count) return;
    pthread_mutex_lock(&table->lock);
    size_t filled = atomic_load_explicit(&table->filled, memory_order_relaxed);
    size_t half = (table->columns + 1) / 2;
    for (size_t pair = 0; pair < half && filled < count; pair++) {
        double divisor = pow(10000.0, (double)(2 * pair) / (double)table->columns);
        for (size_t row = filled; row < count; row++) {
            float *out = table->rows + row * table->columns;
            double angle = (double)row / divisor;
            out[pair] = (float)sin(angle);
            if (half + pair < table->columns) out[half + pair] = (float)cos(angle);
        }
    }
    if (count > filled) atomic_store_explicit(&table->filled, count, memory_order_release);
    pthread_mutex_unlock(&table->lock);
}

static bool same_shape(const Shape *a, const Shape *b) {
    return a->count == b->count && !memcmp(a->sizes, b->sizes, (size_t)a->count * sizeof *a->sizes);
}

/* Finds, widens or computes what the program calls wanted. */
static int resolve(tvmq_model *model, const Json *header, size_t start, const Named *wanted, Weight *weight,
                   Error *error) {
    const Json *json = &model->manifest;
    const JsonNode *weights = json_get(json, json->nodes, "weights");
    const JsonNode *rule = json_get(json, json_get(json, weights, "generated"), wanted->name);
    const char *kind = json_text(json_get(json, rule, "kind"));
    if (kind && !strcmp(kind, "sinusoidal")) return position_table(model, wanted, rule, weight, error);
    const char *source = kind ? json_text(json_get(json, rule, "source")) : wanted->name;
    const JsonNode *entry = source ? json_get(header, header->nodes, source) : NULL;
    Stored stored;
    if (!entry || !read_entry(header, entry, &model->weights_file, start, &stored))
        return damaged(model, wanted->name, "is missing or damaged", error);
    if (!same_shape(&stored.shape, &wanted->shape)) return damaged(model, wanted->name, "has another shape", error);
    bool half = stored.dtype.code == 2 && stored.dtype.bits == 16 && wanted->dtype.bits == 32;
    if (half && !kind && wanted->dtype.code == 2 && stored.shape.count == 1 && !strchr(wanted->name, ':'))
        return widen(weight, &stored, error);
    if (stored.dtype.code != wanted->dtype.code || stored.dtype.bits != wanted->dtype.bits)
        return damaged(model, wanted->name, "has another dtype", error);
    if (kind) return invert(model, wanted, weight, &stored, error);
    weight->data = stored.data;
    return 0;
}

int weights_load(tvmq_model *model, Error *error) {
    const Json *json = &model->manifest;
    const Program *program = &model->program;
    const char *name = json_text(json_get(json, json_get(json, json->nodes, "weights"), "file"));
    File *file = &model->weights_file;
    Json header;
    if (manifest_file(model, name, (size_t)1 << 40, file, error)) return error->code;
    uint64_t length = file->size < 8 ? UINT64_MAX : item(file->data, 8, 0);
    if (length > file->size - 8 || length > MAX_HEADER)
        return fail(error, TVMQ_VERIFICATION, "%s/%s: its header is cut off", model->folder, name);
    model->weights = calloc(program->weight_count + 1, sizeof *model->weights);
    if (!model->weights) return fail(error, TVMQ_RESOURCE, "no memory for %zu weights", program->weight_count);
    if (json_parse(&header, file->data + 8, (size_t)length, name, error)) return error->code;
    for (size_t i = 0; i < program->weight_count && !error->code; i++)
        resolve(model, &header, 8 + (size_t)length, &program->weights[i], &model->weights[i], error);
    json_free(&header);
    return error->code;
}

void weights_free(tvmq_model *model) {
    for (size_t i = 0; model->weights && i < model->program.weight_count; i++) free(model->weights[i].owned);
    free(model->weights);
    if (model->has_positions) {
        pthread_mutex_destroy(&model->positions.lock);
        pages_free(model->positions.rows, model->positions.count * model->positions.columns * sizeof(float));
    }
    file_close(&model->weights_file);
}
