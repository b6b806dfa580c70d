/* SPDX-License-Identifier: Apache-2.0
 * usage: damaged ROUNDS WHOLE DAMAGED...
 * Loads each damaged artifact and prints the code and the message. Then gives mutated bytes of the whole
 * artifact's files to the parsers themselves, as if their hashes were right; to be built with sanitizers. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "frame.h"

static uint64_t state = 88172645463325252u;

static size_t below(size_t limit) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return limit ? (size_t)(state % limit) : 0;
}

static size_t mutate(uint8_t *data, size_t size) {
    static const uint8_t LIKELY[] = "\0\xff" "0123456789 \"\\{}[],:e-x\n";
    if (!below(8)) return below(size);
    if (!below(8) && size > 128) { /* a part moves over another */
        const size_t length = below(64);
        memmove(data + below(size - 64), data + below(size - 64), length);
    }
    for (size_t i = below(6) + 1; i && size; i--) data[below(size)] = LIKELY[below(sizeof LIKELY - 1)];
    return size;
}

static int never(void *self, const Argument *arguments, int32_t count, Argument *result) {
    (void)self, (void)arguments, (void)count, (void)result;
    return 0;
}

/* Binds every function of a program with inputs of the shapes that it asks for. */
static void bind(const Program *program) {
    Kernel *kernels = calloc(program->kernel_count + 1, sizeof *kernels);
    Weight *weights = calloc(program->weight_count + 1, sizeof *weights);
    for (size_t i = 0; i < program->kernel_count; i++) kernels[i] = never;
    tvmq_model model = {.program = *program, .kernels = kernels, .weights = weights};
    for (size_t f = 0; f < program->function_count; f++) {
        const Function *function = &program->functions[f];
        Error error = {0};
        Frame frame;
        Block arena = {0};
        Value *values = calloc(function->input_count + function->output_count + 1, sizeof *values);
        for (size_t i = 0; i < function->input_count; i++) {
            const Shape *shape = &function->inputs[i].shape;
            values[i].bytes = 1 << 30;
            values[i].shape.count = shape->count;
            for (int axis = 0; axis < shape->count; axis++)
                values[i].shape.sizes[axis] = shape->sizes[axis] < 0 ? (Size)below(9) : shape->sizes[axis];
        }
        Value *outputs = values + function->input_count;
        bool good = !frame_open(&frame, &model, function, &error) && !frame_measure(&frame, values, &error);
        for (size_t i = 0; good && i < function->output_count; i++)
            good = !frame_output(&frame, i, &outputs[i], &error);
        if (good && !frame_bind(&frame, &model, values, outputs, &arena, &error)) frame_run(&frame, &model, &error);
        frame_close(&frame);
        block_free(&arena);
        free(values);
    }
    free(kernels), free(weights);
}

static void parse(const char *folder, const char *name, size_t skip, int rounds) {
    Error error = {0};
    File file;
    if (file_open(&file, folder, name, 1 << 28, &error)) exit(9);
    const size_t size = file.size - skip < 200000 ? file.size - skip : 200000;
    for (int i = 0; i < rounds; i++) {
        uint8_t *data = malloc(size + 1); /* anew each time, so that a byte beyond is seen */
        memcpy(data, file.data + skip, size);
        const size_t left = mutate(data, size);
        data = realloc(data, left ? left : 1);
        if (strstr(name, ".program")) {
            Program program;
            if (!program_parse(&program, data, left, name, &error)) bind(&program);
            program_free(&program);
        } else {
            Json json;
            if (!json_parse(&json, data, left, name, &error)) json_free(&json);
        }
        free(data);
    }
    file_close(&file);
}

int main(int argc, char **argv) {
    char message[512];
    tvmq_model *model;
    if (argc < 3) return 2;
    const int rounds = atoi(argv[1]);
    for (int i = 3; i < argc; i++) {
        const int code = tvmq_load(argv[i], NULL, &model, message, sizeof message);
        printf("%d %s\n", code, message);
        tvmq_unload(model);
    }
    if (tvmq_load(argv[2], NULL, &model, message, sizeof message)) return fprintf(stderr, "%s\n", message), 3;
    parse(argv[2], "manifest.json", 0, rounds);
    parse(argv[2], "selftest.json", 0, rounds);
    const char *program = json_text(json_get(&model->manifest, json_first(&model->manifest, json_get(&model->manifest,
        model->manifest.nodes, "isa_levels")), "program"));
    parse(argv[2], program, 0, rounds);
    tvmq_unload(model);
    return 0;
}
