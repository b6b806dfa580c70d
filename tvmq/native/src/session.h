/* SPDX-License-Identifier: Apache-2.0
 * One caller of a model: its buffers, its threads, its results. */
#ifndef TVMQ_SESSION_H
#define TVMQ_SESSION_H

#include "frame.h"
#include "threads.h"

enum { MAX_LAYERS = 64 }; /* of a decoder */

/* How to search, as ../../search.py has it. */
typedef struct {
    int beams, n_best, max_new_tokens, forced_length, eos, start, forced_eos; /* forced_eos: -1 for none */
    double length_penalty;
    bool early_stopping;
} SearchOptions;

typedef struct {
    size_t first, count; /* tokens of Session.tokens */
    float score;
} Hypothesis;

/* The decoder's state for one batch: caches are written in place, an ancestry table says which row of the
 * caches holds which step of a hypothesis (../../translation.py). */
typedef struct {
    size_t layers, width, rows, steps, position, memory_count;
    int32_t *tokens, *places, *sentences, *ancestry, *offsets;
    Block ids, lines, caches, memory, scores;
    size_t cache_rows, cache_steps;
    size_t sentence_count, source_tokens;
    Value memory_values[2 * MAX_LAYERS];
} Decoder;

struct tvmq_session {
    tvmq_model *model;
    Threads *threads;
    Error error;
    Frame *frames; /* one for each function of the program */
    Block arena; /* scratch memory; never shrinks, since frames stay bound to its address */
    SearchOptions options;
    Decoder decoder;
    Block inputs, result;
    size_t rows, columns;
    Hypothesis *hypotheses;
    int32_t *output;
    size_t sentence_count, per_sentence, output_count, output_room;
    atomic_int cancelled;
    int (*on_token)(void *user, size_t sentence, int32_t id);
    void *user;
};

/* The frame of a function, or NULL. */
Frame *session_frame(tvmq_session *session, const char *name);

/* decoder.c: encodes a batch, and runs one step for the rows whose tokens are given. */
int decoder_open(tvmq_session *session);
void decoder_close(Decoder *decoder);
int decoder_begin(tvmq_session *session, const int32_t *ids, const size_t *lengths, size_t count, size_t rows,
                  size_t steps);
/* The k best next tokens of each of m rows, best first. logp is NULL for the best token alone (k is 1).
 * parents: the row of the step before that each row goes on from; sentences: ascending. */
int decoder_step(tvmq_session *session, size_t m, const int32_t *tokens, const int32_t *parents,
                 const int32_t *sentences, size_t k, const float **logp, const int32_t **ids);

/* search.c: fills the session's hypotheses, n_best for each of count sentences. */
int search(tvmq_session *session, size_t count);

/* encode.c: a function over a batch of texts; its rows are in session->result. */
int encode(tvmq_session *session, const char *function, const int32_t *ids, const int32_t *types,
           const size_t *lengths, size_t count);

/* selftest.c: compares the model with the answer recorded at compile time. */
int selftest(tvmq_session *session);

#endif
