/* SPDX-License-Identifier: Apache-2.0
 * usage: damaged ARTIFACTS ROUNDS WHOLE COPY
 * Damages one file of COPY at a time, an artifact as WHOLE is, and loads it: as it then is, or with all hashes made
 * right again. Prints the file, whether its hash was made right, the code and the message. Then gives mutated bytes
 * of the program to its parser alone, and binds what it made of them; to be built with sanitizers. */
#include "seal.h"

#include "frame.h"

static uint64_t state = 88172645463325252u;

static size_t below(size_t limit) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return limit ? (size_t)(state % limit) : 0;
}

static size_t mutate(uint8_t *data, size_t size) {
    static const uint8_t LIKELY[] = "\0\xff" "0123456789 \"\\{}[],:e-x\n";
    if (!below(8)) return below(size); /* cut off */
    if (!below(8) && size > 128) { /* a part moves over another */
        const size_t length = below(64);
        memmove(data + below(size - 64), data + below(size - 64), length);
    }
    for (size_t i = below(6) + 1; i && size; i--) data[below(size)] = LIKELY[below(sizeof LIKELY - 1)];
    return size;
}

/* Digits become other digits, letters other letters: what is left can be read, and lies. */
static void lie(uint8_t *data, size_t size) {
    for (size_t i = below(3) + 1, tries = 1000; i && tries; tries--) {
        uint8_t *c = &data[below(size)];
        const bool digit = *c >= '0' && *c <= '9';
        if (!digit && (below(8) || !((*c | 32) >= 'a' && (*c | 32) <= 'z'))) continue;
        *c = (uint8_t)(digit ? '0' + below(10) : 'a' + below(26));
        i--;
    }
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

static void parse(Bytes whole, const char *name, int rounds) {
    Error error = {0};
    for (int i = 0; i < rounds; i++) {
        Bytes bytes = bytes_copy(whole.data, whole.size); /* anew each time, so that a byte beyond is seen */
        const size_t left = mutate(bytes.data, bytes.size);
        Program program;
        bytes.data = realloc(bytes.data, left ? left : 1);
        if (!program_parse(&program, bytes.data, left, name, &error)) bind(&program);
        program_free(&program);
        free(bytes.data);
    }
}

enum { MANIFEST, SELFTEST, WEIGHTS, PROGRAM, LIBRARY, KINDS };

/* Files with a right hash that hold anything: code and the program that calls it are believed then, and so are the
 * weights' values; what is mutated of the weights is what stands before those. */
static size_t mutable_part(int kind, Bytes whole) {
    size_t head = 0;
    if (kind != WEIGHTS) return whole.size;
    for (int i = 7; i >= 0; i--) head = head << 8 | whole.data[i];
    return head + 8;
}

static void load_damaged(const char *folder, const char *const *names, const Bytes *whole) {
    char message[512];
    tvmq_model *model;
    const bool sealed = below(2);
    const int kind = (int)below(sealed ? PROGRAM : KINDS);
    const size_t part = sealed ? mutable_part(kind, whole[kind]) : whole[kind].size;
    Bytes bytes = bytes_copy(whole[kind].data, whole[kind].size);
    const bool lies = sealed && below(4);
    if (lies) lie(bytes.data, part);
    const size_t left = lies ? part : mutate(bytes.data, part);
    memmove(bytes.data + left, bytes.data + part, bytes.size - part);
    bytes.size -= part - left;
    const bool same = bytes.size == whole[kind].size && !memcmp(bytes.data, whole[kind].data, bytes.size);
    if (sealed)
        seal(folder, whole[MANIFEST], names[kind], bytes);
    else
        bytes_write(folder, names[kind], bytes);
    const int code = tvmq_load(folder, NULL, &model, message, sizeof message);
    printf("%s %s %d %s\n", names[kind], same ? "whole" : sealed ? "sealed" : "damaged", code, message);
    tvmq_unload(model);
    bytes_write(folder, names[kind], whole[kind]);
    bytes_write(folder, names[MANIFEST], whole[MANIFEST]);
    free(bytes.data);
}

int main(int argc, char **argv) {
    char message[512], program[300], library[300];
    const char *names[KINDS] = {"manifest.json", "selftest.json", "weights.safetensors", program, library};
    Bytes whole[KINDS];
    tvmq_model *model;
    if (argc != 5) return 2;
    if (tvmq_load(argv[3], NULL, &model, message, sizeof message)) return fprintf(stderr, "%s\n", message), 3;
    const Json *json = &model->manifest;
    const JsonNode *level = json_first(json, json_get(json, json->nodes, "isa_levels"));
    snprintf(program, sizeof program, "%s", json_text(json_get(json, level, "program")));
    snprintf(library, sizeof library, "%s", json_text(json_get(json, level, "library")));
    tvmq_unload(model);
    for (int kind = 0; kind < KINDS; kind++) whole[kind] = bytes_read(argv[3], names[kind]);
    for (int i = atoi(argv[1]); i > 0; i--) load_damaged(argv[4], names, whole);
    parse(whole[PROGRAM], program, atoi(argv[2]));
    for (int kind = 0; kind < KINDS; kind++) free(whole[kind].data);
    return 0;
}
