/* SPDX-License-Identifier: Apache-2.0
 * One model, a session in each of several threads at once, all translating the same: the outputs must be equal.
 * usage: sessions ARTIFACT THREADS BEAMS ROUNDS < ids; prints tokens and seconds. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tvmq.h"

enum { LONGEST = 65536, MAX_THREADS = 64 };

static tvmq_model *model;
static int32_t ids[LONGEST];
static size_t lengths[LONGEST], sentences;
static int beams, rounds;

typedef struct {
    int code;
    size_t tokens;
    uint64_t hash;
} Outcome;

static void *translate(void *argument) {
    Outcome *outcome = argument;
    tvmq_session *session;
    outcome->code = tvmq_open(model, 1, &session);
    if (!outcome->code) outcome->code = tvmq_set(session, "beams", beams);
    outcome->hash = 1469598103934665603u;
    for (int round = 0; round < rounds && !outcome->code; round++) {
        const int32_t *at = ids;
        for (size_t s = 0; s < sentences && !outcome->code; at += lengths[s++]) {
            const int32_t *tokens;
            outcome->code = tvmq_translate(session, at, &lengths[s], 1);
            const size_t count = tvmq_result(session, 0, 0, &tokens, NULL);
            for (size_t i = 0; i < count; i++) outcome->hash = (outcome->hash ^ (uint64_t)tokens[i]) * 1099511628211u;
            outcome->tokens += count;
        }
    }
    if (outcome->code) fprintf(stderr, "%s\n", tvmq_message(session));
    tvmq_close(session);
    return NULL;
}

static void read_ids(void) {
    char line[LONGEST];
    size_t used = 0;
    while (fgets(line, sizeof line, stdin)) {
        const size_t first = used;
        for (char *word = strtok(line, " \n"); word && used < LONGEST; word = strtok(NULL, " \n"))
            ids[used++] = (int32_t)atoi(word);
        lengths[sentences++] = used - first;
    }
}

int main(int argc, char **argv) {
    char message[512];
    pthread_t threads[MAX_THREADS];
    Outcome outcomes[MAX_THREADS] = {0};
    struct timespec start, end;
    if (argc != 5) return 2;
    const int count = atoi(argv[2]);
    beams = atoi(argv[3]), rounds = atoi(argv[4]);
    if (tvmq_load(argv[1], NULL, &model, message, sizeof message)) return fprintf(stderr, "%s\n", message), 3;
    read_ids();
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, translate, &outcomes[i])) return 4;
    size_t tokens = 0;
    int code = 0;
    for (int i = 0; i < count; i++) {
        pthread_join(threads[i], NULL);
        tokens += outcomes[i].tokens;
        if (outcomes[i].code || outcomes[i].hash != outcomes[0].hash) code = 5;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    tvmq_unload(model);
    printf("%zu %.6f\n", tokens, (double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec));
    return code;
}
