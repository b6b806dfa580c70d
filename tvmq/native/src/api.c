/* SPDX-License-Identifier: Apache-2.0
 * The functions of tvmq.h. */
#define _GNU_SOURCE
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "session.h"

#define API __attribute__((visibility("default")))

enum { MAX_BEAMS = 1024, MAX_SENTENCES = 1 << 16, MAX_KEY = 128 };

API uint32_t tvmq_abi_version(void) { return TVMQ_ABI_VERSION; }

Frame *session_frame(tvmq_session *session, const char *name) {
    const Function *function = program_function(&session->model->program, name);
    return function ? &session->frames[function - session->model->program.functions] : NULL;
}

static bool translates(const tvmq_model *model) { return !strcmp(model->task, "translate"); }

/* Frees a model that nobody uses any more. */
static void release(tvmq_model *model) {
    if (model && atomic_fetch_sub(&model->users, 1) == 1) model_free(model);
}

static int load(const char *path, const char *isa, bool installed, tvmq_model **model, char *message, size_t size) {
    Error error = {0};
    tvmq_session *session = NULL;
    const char *asked = isa ? isa : getenv("TVMQ_ISA");
    *model = NULL;
    tvmq_model *loaded = calloc(1, sizeof *loaded);
    if (!loaded)
        fail(&error, TVMQ_RESOURCE, "no memory");
    else if (!model_load(loaded, path, asked && *asked ? asked : NULL, installed, &error)) {
        if (tvmq_open(loaded, 1, &session) || selftest(session))
            error = session ? session->error : (Error){TVMQ_RESOURCE, "no memory"};
        tvmq_close(session);
    }
    if (message && size) snprintf(message, size, "%s", error.text);
    if (error.code)
        release(loaded);
    else
        *model = loaded;
    return error.code;
}

API int tvmq_load(const char *path, const char *isa, tvmq_model **model, char *message, size_t size) {
    return load(path, isa, false, model, message, size);
}

API int tvmq_load_installed(const char *path, const char *isa, tvmq_model **model, char *message, size_t size) {
    return load(path, isa, true, model, message, size);
}

API void tvmq_unload(tvmq_model *model) { release(model); }

API const char *tvmq_info(const tvmq_model *model, const char *key) {
    const Json *json = &model->manifest;
    if (!strcmp(key, "isa")) return model->isa;
    if (!strcmp(key, "levels")) return model->levels;
    if (!strcmp(key, "task")) return model->task;
    if (!strcmp(key, "family")) return json_text(json_get(json, json->nodes, "family"));
    if (!strcmp(key, "name")) return json_text(model_fact(model, "model", "name"));
    if (!strcmp(key, "mode")) {
        const char *mode = json_text(json_get(json, json->nodes, "mode"));
        return mode ? mode : "float";
    }
    if (strncmp(key, "labels.", 7) || !key[7] || strlen(key) > 16 || key[7 + strspn(key + 7, "0123456789")])
        return NULL;
    const JsonNode *label = json_first(json, json_get(json, json->nodes, "labels"));
    for (long i = atol(key + 7); i > 0 && label; i--) label = json_next(json, label);
    return json_text(label);
}

API double tvmq_number(const tvmq_model *model, const char *key, double otherwise) {
    char group[MAX_KEY];
    const char *dot = strchr(key, '.');
    if (!dot || (size_t)(dot - key) >= sizeof group) return otherwise;
    snprintf(group, sizeof group, "%.*s", (int)(dot - key), key);
    const JsonNode *node = model_fact(model, group, dot + 1);
    return node && (node->kind == JSON_NUMBER || node->kind == JSON_BOOL) ? node->number : otherwise;
}

/* The search that the manifest asks for. */
static int read_options(tvmq_session *session) {
    const tvmq_model *model = session->model;
    SearchOptions *o = &session->options;
    Error *error = &session->error;
    uint64_t beams, longest, eos, start, forced;
    if (model_count(model, "generation", "num_beams", MAX_BEAMS, &beams, error) ||
        model_count(model, "generation", "max_new_tokens", INT_MAX, &longest, error) ||
        model_count(model, "generation", "eos_token_id", INT_MAX, &eos, error) ||
        model_count(model, "generation", "decoder_start_token_id", INT_MAX, &start, error))
        return error->code;
    const bool forces = json_count(model_fact(model, "generation", "forced_eos_token_id"), INT_MAX, &forced);
    *o = (SearchOptions){.beams = (int)beams, .n_best = 1, .max_new_tokens = (int)longest, .eos = (int)eos,
                         .start = (int)start, .forced_eos = forces ? (int)forced : -1,
                         .length_penalty = tvmq_number(model, "generation.length_penalty", 1)};
    return decoder_open(session);
}

API int tvmq_open(tvmq_model *model, int threads, tvmq_session **out) {
    tvmq_session *session = calloc(1, sizeof *session);
    const Program *program = &model->program;
    *out = session;
    if (!session) return TVMQ_RESOURCE;
    session->model = model;
    atomic_fetch_add(&model->users, 1);
    if (threads < 1 || threads > MAX_THREADS)
        return fail(&session->error, TVMQ_USAGE, "threads is %d, expected 1 to %d", threads, MAX_THREADS);
    session->frames = calloc(program->function_count + 1, sizeof *session->frames);
    session->threads = threads_new(threads);
    if (!session->frames || !session->threads)
        return fail(&session->error, TVMQ_RESOURCE, "no memory for %d threads", threads);
    for (size_t i = 0; i < program->function_count; i++)
        if (frame_open(&session->frames[i], model, &program->functions[i], &session->error))
            return session->error.code;
    return translates(model) ? read_options(session) : 0;
}

API void tvmq_close(tvmq_session *session) {
    if (!session) return;
    for (size_t i = 0; session->frames && i < session->model->program.function_count; i++)
        frame_close(&session->frames[i]);
    threads_free(session->threads);
    decoder_close(&session->decoder);
    block_free(&session->inputs), block_free(&session->result);
    block_free(&session->arena);
    free(session->frames), free(session->hypotheses), free(session->output);
    release(session->model);
    free(session);
}

API const char *tvmq_message(const tvmq_session *session) {
    return session ? session->error.text : "no memory for a session";
}

API int tvmq_set(tvmq_session *session, const char *option, double value) {
    SearchOptions *o = &session->options;
    struct {
        const char *name;
        int *place, least;
    } counts[] = {{"beams", &o->beams, 1}, {"n_best", &o->n_best, 1}, {"max_new_tokens", &o->max_new_tokens, 1},
                  {"forced_length", &o->forced_length, 0}};
    session->error = (Error){0};
    if (!strcmp(option, "length_penalty") && isfinite(value)) return o->length_penalty = value, 0;
    if (!strcmp(option, "early_stopping") && (value == 0 || value == 1)) return o->early_stopping = value != 0, 0;
    if (!strcmp(option, "pin") && (value == PIN_NEVER || value == PIN_BIG || value == PIN_EACH))
        return threads_pin(session->threads, (Pin)value), 0;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if (!strcmp(option, counts[i].name) && value >= counts[i].least && value <= 1 << 20 && value == floor(value))
            return *counts[i].place = (int)value, 0;
    return fail(&session->error, TVMQ_USAGE, "there is no option '%.40s' or it cannot be %g", option, value);
}

API void tvmq_stream(tvmq_session *session, int (*token)(void *user, size_t sentence, int32_t id), void *user) {
    session->on_token = token;
    session->user = user;
}

static int check_options(tvmq_session *session) {
    const SearchOptions *o = &session->options;
    Error *error = &session->error;
    uint64_t limit, words;
    if (model_count(session->model, "architecture", "max_target", INT_MAX, &limit, error) ||
        model_count(session->model, "architecture", "vocab", INT_MAX, &words, error))
        return error->code;
    if (o->max_new_tokens < 1 || o->max_new_tokens >= (int64_t)limit)
        return fail(error, TVMQ_USAGE, "max_new_tokens is %d, the model has positions for %d", o->max_new_tokens,
                    (int)limit - 1);
    if (o->beams > MAX_BEAMS || 2 * (int64_t)o->beams > (int64_t)words - 1)
        return fail(error, TVMQ_USAGE, "%d beams need %d words, more than the vocabulary has", o->beams,
                    2 * o->beams);
    if (o->n_best > o->beams)
        return fail(error, TVMQ_USAGE, "n_best is %d, expected 1 to %d (the number of beams)", o->n_best, o->beams);
    if (o->forced_length > o->max_new_tokens)
        return fail(error, TVMQ_USAGE, "forced_length is %d, expected 1 to %d (max_new_tokens)", o->forced_length,
                    o->max_new_tokens);
    return 0;
}

static int check_sources(tvmq_session *session, const int32_t *ids, const size_t *lengths, size_t count) {
    Error *error = &session->error;
    uint64_t limit, words;
    if (model_count(session->model, "architecture", "max_source", INT_MAX, &limit, error) ||
        model_count(session->model, "architecture", "source_vocab", INT_MAX, &words, error))
        return error->code;
    for (size_t s = 0; s < count; s++) {
        if (!lengths[s] || lengths[s] > limit)
            return fail(error, TVMQ_INPUT, "sentence %zu has %zu tokens, the model takes 1 to %d", s + 1, lengths[s],
                        (int)limit);
        for (size_t i = 0; i < lengths[s]; i++, ids++)
            if (*ids < 0 || (uint64_t)*ids >= words)
                return fail(error, TVMQ_INPUT, "sentence %zu holds a token id outside 0..%d", s + 1, (int)words - 1);
    }
    return 0;
}

/* Forgets the results before and checks how many sentences or texts there are. */
static int begin(tvmq_session *session, bool translation, size_t count) {
    session->error = (Error){0};
    session->sentence_count = session->rows = 0;
    atomic_store(&session->cancelled, 0);
    if (translates(session->model) != translation)
        return fail(&session->error, TVMQ_USAGE, "this model is made to %s", session->model->task);
    if (!count || count > MAX_SENTENCES)
        return fail(&session->error, TVMQ_USAGE, "%zu sentences, expected 1 to %d", count, MAX_SENTENCES);
    return 0;
}

API int tvmq_translate(tvmq_session *session, const int32_t *ids, const size_t *lengths, size_t count) {
    const SearchOptions *o = &session->options;
    if (begin(session, true, count) || check_options(session) || check_sources(session, ids, lengths, count))
        return session->error.code;
    const int steps = o->forced_length ? o->forced_length : o->max_new_tokens;
    threads_use(session->threads);
    int code = decoder_begin(session, ids, lengths, count, count * (size_t)o->beams, (size_t)steps);
    if (!code) code = search(session, count);
    threads_use(NULL);
    return code;
}

API size_t tvmq_result(const tvmq_session *session, size_t sentence, size_t rank, const int32_t **tokens,
                       float *score) {
    if (sentence >= session->sentence_count || rank >= session->per_sentence) return 0;
    const Hypothesis *found = &session->hypotheses[sentence * session->per_sentence + rank];
    if (tokens) *tokens = session->output + found->first;
    if (score) *score = found->score;
    return found->count;
}

API int tvmq_encode(tvmq_session *session, const char *function, const int32_t *ids, const int32_t *types,
                    const size_t *lengths, size_t count) {
    if (begin(session, false, count)) return session->error.code;
    threads_use(session->threads);
    encode(session, function, ids, types, lengths, count);
    threads_use(NULL);
    return session->error.code;
}

/* Scores of one row of logits, in place. */
static void score_row(float *row, size_t columns, const char *kind) {
    double largest = -INFINITY, sum = 0;
    const bool softmax = !strcmp(kind, "softmax");
    for (size_t i = 0; i < columns; i++) largest = row[i] > largest ? row[i] : largest;
    for (size_t i = 0; i < columns; i++) sum += exp(row[i] - largest);
    for (size_t i = 0; i < columns; i++)
        row[i] = (float)(softmax ? exp(row[i] - largest) / sum : 0.5 + 0.5 * tanh(0.5 * (double)row[i]));
}

API int tvmq_classify(tvmq_session *session, const int32_t *ids, const int32_t *types, const size_t *lengths,
                      size_t count) {
    const char *kind = json_text(model_fact(session->model, "architecture", "scores"));
    if (tvmq_encode(session, "classify", ids, types, lengths, count)) return session->error.code;
    if (kind && (!strcmp(kind, "softmax") || !strcmp(kind, "sigmoid")))
        for (size_t i = 0; i < session->rows; i++)
            score_row((float *)session->result.data + i * session->columns, session->columns, kind);
    return 0;
}

API const float *tvmq_rows(const tvmq_session *session, size_t *rows, size_t *columns) {
    if (rows) *rows = session->rows;
    if (columns) *columns = session->columns;
    return session->rows ? (const float *)session->result.data : NULL;
}

API void tvmq_cancel(tvmq_session *session) { atomic_store(&session->cancelled, 1); }
