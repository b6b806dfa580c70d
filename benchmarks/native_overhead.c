/* SPDX-License-Identifier: Apache-2.0
 * What the native runtime adds to a kernel call: a program of calls of a kernel that does nothing, in ns each.
 * Built with the runtime's own sources by benchmarks.native_runtime. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "frame.h"

enum { CALLS = 1000, ROUNDS = 2000, REPEATS = 7 };

static int nothing(void *self, const Argument *arguments, int32_t count, Argument *result) {
    (void)self, (void)arguments, (void)count, (void)result;
    return 0;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

int main(void) {
    static char text[CALLS * 32 + 512];
    char *end = text + sprintf(text, "tvmq-program 1\nkernel nothing\nfunction f\nextent dim 0 0\n"
                                     "input int32 e0 ids\npool 64 e0\ntensor input 0 0 int32 e0\n"
                                     "tensor pool 0 0 float32 e0x16\n");
    for (int i = 0; i < CALLS; i++) end += sprintf(end, "call 0 0 1 0 1 0 1 0\n");
    end += sprintf(end, "end\n");
    Error error = {0};
    Kernel kernels[] = {nothing};
    tvmq_model model = {.kernels = kernels};
    Frame frame;
    Block arena = {0};
    int32_t ids[4] = {0};
    const Value input = {ids, sizeof ids, {1, {4}}};
    if (program_parse(&model.program, (const uint8_t *)text, (size_t)(end - text), "program", &error) ||
        frame_open(&frame, &model, &model.program.functions[0], &error))
        return fprintf(stderr, "%s\n", error.text), 1;
    double best = 1e30;
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        const double start = now();
        for (int round = 0; round < ROUNDS; round++)
            if (frame_bind(&frame, &model, &input, &input, &arena, &error) || frame_run(&frame, &model, &error))
                return fprintf(stderr, "%s\n", error.text), 1;
        const double each = (now() - start) / ROUNDS / CALLS;
        best = each < best ? each : best;
    }
    printf("%.2f\n", best);
    return 0;
}
