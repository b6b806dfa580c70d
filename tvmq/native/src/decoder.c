/* SPDX-License-Identifier: Apache-2.0
 * Encoder and decoder of a translation model. The order of a function's inputs is ../../translation.py's. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "session.h"

enum { FIXED_INPUTS = 5 };

static Value vector_of(int32_t *data, size_t count) {
    return (Value){.data = data, .bytes = count * sizeof *data, .shape = {1, {(Size)count}}};
}

int decoder_open(tvmq_session *session) {
    Decoder *d = &session->decoder;
    Error *error = &session->error;
    uint64_t layers, width;
    if (model_count(session->model, "architecture", "decoder_layers", MAX_LAYERS, &layers, error) ||
        model_count(session->model, "architecture", "d_model", 1 << 20, &width, error))
        return error->code;
    d->layers = (size_t)layers, d->width = (size_t)width;
    d->memory_count = 2 * d->layers;
    const Function *encode = session_frame(session, "encode")->function;
    bool good = encode->input_count == 3 && encode->output_count == d->memory_count;
    for (size_t i = 0; i < session->model->program.function_count; i++) { /* with the forms for a number of rows */
        const Function *f = &session->model->program.functions[i];
        const bool beam = !strncmp(f->name, "beam", 4), greedy = !strncmp(f->name, "greedy", 6);
        if (beam || greedy)
            good = good && f->input_count == FIXED_INPUTS + 4 * d->layers + beam && f->output_count == 1u + beam;
    }
    if (good) return 0;
    return fail(error, TVMQ_VERIFICATION, "%s: the program is none of this model (compile the model again)",
                session->model->folder);
}

void decoder_close(Decoder *d) {
    block_free(&d->ids), block_free(&d->lines), block_free(&d->caches), block_free(&d->memory);
    block_free(&d->scores);
}

/* Keys and values of the sources for every decoder layer, into d->memory. */
static int encode_sources(tvmq_session *session, const int32_t *ids, const size_t *lengths, size_t count) {
    Decoder *d = &session->decoder;
    Frame *frame = session_frame(session, "encode");
    Error *error = &session->error;
    size_t total = 0, stride = 0;
    for (size_t s = 0; s < count; s++) total += lengths[s];
    const size_t line = align_up(total * 4);
    if (block_reserve(&d->ids, 2 * line + align_up((count + 1) * 4), error)) return error->code;
    int32_t *tokens = (int32_t *)d->ids.data, *places = (int32_t *)(d->ids.data + line);
    d->offsets = (int32_t *)(d->ids.data + 2 * line);
    memcpy(tokens, ids, total * 4);
    d->offsets[0] = 0;
    for (size_t s = 0, at = 0; s < count; s++) {
        for (size_t i = 0; i < lengths[s]; i++) places[at++] = (int32_t)i;
        d->offsets[s + 1] = (int32_t)at;
        model_fill_positions(session->model, lengths[s]);
    }
    const Value inputs[] = {vector_of(tokens, total), vector_of(places, total), vector_of(d->offsets, count + 1)};
    if (frame_measure(frame, inputs, error)) return error->code;
    for (size_t i = 0; i < d->memory_count; i++) {
        if (frame_output(frame, i, &d->memory_values[i], error)) return error->code;
        if (align_up(d->memory_values[i].bytes) > stride) stride = align_up(d->memory_values[i].bytes);
    }
    if (block_reserve(&d->memory, d->memory_count * stride, error)) return error->code;
    for (size_t i = 0; i < d->memory_count; i++) d->memory_values[i].data = d->memory.data + i * stride;
    d->sentence_count = count;
    if (frame_bind(frame, session->model, inputs, d->memory_values, &session->arena, error)) return error->code;
    return frame_run(frame, session->model, error);
}

/* Caches [rows, steps, width] for keys and values of every layer; kept for the next batch if they fit. */
static int reserve_caches(tvmq_session *session, size_t rows, size_t steps) {
    Decoder *d = &session->decoder;
    uint64_t bytes;
    if (d->cache_rows >= rows && d->cache_steps == steps) return 0;
    if (!multiply(rows * steps, d->width * 4, &bytes) || bytes > (uint64_t)1 << 40)
        return fail(&session->error, TVMQ_RESOURCE, "no memory for %zu rows of %zu tokens", rows, steps);
    d->cache_rows = 0;
    block_free(&d->caches); /* fresh pages are only taken when written */
    if (block_reserve(&d->caches, align_up((size_t)bytes) * d->memory_count, &session->error))
        return session->error.code;
    d->cache_rows = rows, d->cache_steps = steps;
    return 0;
}

int decoder_begin(tvmq_session *session, const int32_t *ids, const size_t *lengths, size_t count, size_t rows,
                  size_t steps) {
    Decoder *d = &session->decoder;
    const size_t line = align_up(rows * 4);
    if (encode_sources(session, ids, lengths, count) || reserve_caches(session, rows, steps) ||
        block_reserve(&d->lines, 3 * line + 2 * align_up(rows * steps * 4), &session->error))
        return session->error.code;
    d->tokens = (int32_t *)d->lines.data;
    d->places = (int32_t *)(d->lines.data + line);
    d->sentences = (int32_t *)(d->lines.data + 2 * line);
    d->ancestry = (int32_t *)(d->lines.data + 3 * line);
    memset(d->ancestry, 0, rows * steps * 4);
    d->rows = rows, d->steps = steps, d->position = 0;
    return 0;
}

/* Each row's past becomes its parent's, and the parent's row holds the step before this one. */
static void follow(Decoder *d, size_t m, const int32_t *parents) {
    const size_t past = d->position;
    if (!past) return;
    bool same = true;
    for (size_t i = 0; i < m; i++) same = same && parents[i] == (int32_t)i;
    if (!same) {
        int32_t *copy = d->ancestry + align_up(d->rows * d->steps * 4) / 4;
        for (size_t i = 0; i < m; i++)
            memcpy(copy + i * past, d->ancestry + (size_t)parents[i] * d->steps, past * 4);
        for (size_t i = 0; i < m; i++) memcpy(d->ancestry + i * d->steps, copy + i * past, past * 4);
    }
    for (size_t i = 0; i < m; i++) d->ancestry[i * d->steps + past - 1] = parents[i];
}

/* The form for exactly m rows if there is one. */
static Frame *frame_for(tvmq_session *session, const char *function, size_t m) {
    char name[40];
    snprintf(name, sizeof name, "%s_%zu", function, m);
    Frame *fixed = session_frame(session, name);
    return fixed ? fixed : session_frame(session, function);
}

static void inputs_of(const Decoder *d, size_t m, size_t k, Value *inputs) {
    const Shape cache = {3, {(Size)d->cache_rows, (Size)d->steps, (Size)d->width}};
    const size_t bytes = d->cache_rows * d->steps * d->width * 4;
    *inputs++ = vector_of(d->tokens, m);
    *inputs++ = vector_of(d->places, m);
    *inputs++ = vector_of(d->sentences, m);
    *inputs++ = (Value){d->ancestry, m * d->steps * 4, {2, {(Size)m, (Size)d->steps}}};
    *inputs++ = vector_of(d->offsets, d->sentence_count + 1);
    for (size_t i = 0; i < d->memory_count; i++)
        *inputs++ = (Value){d->caches.data + i * align_up(bytes), bytes, cache};
    memcpy(inputs, d->memory_values, d->memory_count * sizeof *inputs);
    inputs[d->memory_count] = (Value){NULL, 0, {1, {(Size)k}}};
}

int decoder_step(tvmq_session *session, size_t m, const int32_t *tokens, const int32_t *parents,
                 const int32_t *sentences, size_t k, const float **logp, const int32_t **ids) {
    Decoder *d = &session->decoder;
    Error *error = &session->error;
    Value inputs[FIXED_INPUTS + 4 * MAX_LAYERS + 1], outputs[2];
    follow(d, m, parents);
    memcpy(d->tokens, tokens, m * 4);
    memcpy(d->sentences, sentences, m * 4);
    for (size_t i = 0; i < m; i++) d->places[i] = (int32_t)d->position;
    model_fill_positions(session->model, ++d->position);
    const size_t half = align_up(m * k * 4);
    if (block_reserve(&d->scores, 2 * half, error)) return error->code;
    inputs_of(d, m, k, inputs);
    const Value best = {d->scores.data + half, m * k * 4, {2, {(Size)m, (Size)k}}};
    outputs[0] = logp ? (Value){d->scores.data, m * k * 4, best.shape} : best;
    outputs[1] = best;
    Frame *frame = frame_for(session, logp ? "beam" : "greedy", m);
    if (frame_bind(frame, session->model, inputs, outputs, &session->arena, error)) return error->code;
    if (frame_run(frame, session->model, error)) return error->code;
    if (logp) *logp = (const float *)d->scores.data;
    *ids = (const int32_t *)(d->scores.data + half);
    return 0;
}
