/* SPDX-License-Identifier: Apache-2.0
 * selftest.json: what the compiled model answered when it was made (../../selftest.py, encoder_selftest.py).
 * A library that runs but computes something else is refused instead of giving nonsense. */
#define _GNU_SOURCE
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "session.h"

enum { WATCHED = 8, PLACES = 16, MAX_BYTES = 1 << 16, MAX_TOKENS = 64 };
static const float TOLERANCE = 0.05f, ENCODER_TOLERANCE = 0.02f;

static int failed(tvmq_session *session) {
    const tvmq_model *model = session->model;
    if (session->error.code) return session->error.code;
    return fail(&session->error, TVMQ_VERIFICATION,
                "%s: the self-test failed at ISA level %s: the library computes other values than when it was "
                "compiled (compile the model again on this machine, or try another level)",
                model->folder, model->isa);
}

static int foreign(tvmq_session *session) {
    return fail(&session->error, TVMQ_VERIFICATION, "%s: selftest.json is none of this model (compile the model again)",
                session->model->folder);
}

/* Whole numbers of a list below limit into out; their count, or -1. */
static int numbers(const Json *json, const JsonNode *list, uint64_t limit, int32_t *out, int room) {
    int count = 0;
    if (!list || list->kind != JSON_LIST) return -1;
    for (const JsonNode *n = json_first(json, list); n; n = json_next(json, n), count++) {
        uint64_t value;
        if (count == room || !json_count(n, limit, &value)) return -1;
        out[count] = (int32_t)value;
    }
    return count;
}

static int translation(tvmq_session *session, const Json *json) {
    const JsonNode *logp = json_first(json, json_get(json, json->nodes, "logp"));
    int32_t source[MAX_TOKENS], ids[WATCHED];
    const int32_t zero = 0, *found;
    const float *scores;
    uint64_t words;
    if (model_count(session->model, "architecture", "source_vocab", INT32_MAX, &words, &session->error))
        return session->error.code;
    const int length = numbers(json, json_get(json, json->nodes, "source"), words - 1, source, MAX_TOKENS);
    const int known = numbers(json, json_get(json, json->nodes, "ids"), INT32_MAX, ids, WATCHED);
    if (length == 0) return 0; /* made on a machine that could not run it */
    if (length < 0 || known <= 0) return foreign(session);
    const size_t size = (size_t)length;
    const int32_t start = session->options.start;
    if (decoder_begin(session, source, &size, 1, 1, 2) ||
        decoder_step(session, 1, &start, &zero, &zero, (size_t)known, &scores, &found))
        return session->error.code;
    int same = 0;
    for (int i = 0; i < known && logp; i++, logp = json_next(json, logp))
        for (int j = 0; j < known; j++)
            if (found[j] == ids[i]) {
                if (!(fabs((double)scores[j] - logp->number) <= TOLERANCE)) return failed(session);
                same++;
            }
    return same * 2 >= known ? 0 : failed(session);
}

/* Compares up to PLACES values, spread over the result, with the recorded ones. */
static int compare_rows(tvmq_session *session, const Json *json, const JsonNode *wanted) {
    const size_t items = session->rows * session->columns, places = items < PLACES ? items : PLACES;
    const float *found = (const float *)session->result.data;
    double largest = 1e-6;
    size_t i = 0;
    if (wanted->count != places) return failed(session);
    for (const JsonNode *n = json_first(json, wanted); n; n = json_next(json, n))
        if (fabs(n->number) > largest) largest = fabs(n->number);
    for (const JsonNode *n = json_first(json, wanted); n; n = json_next(json, n), i++) {
        const size_t at = /* as np.linspace has it: the last place exactly, others rounded down */
            i + 1 == places ? items - 1 : (size_t)((double)i * ((double)(items - 1) / (double)(places - 1)));
        if (!(fabs((double)found[at] - n->number) <= ENCODER_TOLERANCE * largest)) return failed(session);
    }
    return 0;
}

static int encoder(tvmq_session *session, const Json *json) {
    const JsonNode *texts = json_get(json, json->nodes, "texts"), *answers = json_get(json, json->nodes, "answers");
    int32_t ids[MAX_TOKENS];
    size_t lengths[MAX_TOKENS], count = 0;
    int used = 0;
    if (!texts || texts->kind != JSON_LIST || !answers || answers->kind != JSON_OBJECT) return foreign(session);
    for (const JsonNode *n = json_first(json, texts); n; n = json_next(json, n), count++) {
        const int length = numbers(json, n, INT32_MAX, ids + used, MAX_TOKENS - used);
        if (length <= 0) return foreign(session);
        lengths[count] = (size_t)length;
        used += length;
    }
    if (count && !answers->count) return foreign(session);
    for (const JsonNode *n = json_first(json, answers); count && n; n = json_next(json, n)) {
        const int code = encode(session, n->key, ids, NULL, lengths, count);
        if (code == TVMQ_INPUT || code == TVMQ_USAGE) return foreign(session);
        if (code || compare_rows(session, json, n)) return session->error.code;
    }
    return 0;
}

int selftest(tvmq_session *session) {
    static const char NAME[] = "selftest.json";
    File file;
    Json json;
    Error *error = &session->error;
    if (manifest_file(session->model, NAME, MAX_BYTES, &file, error)) return error->code;
    int code = json_parse(&json, file.data, file.size, NAME, error);
    file_close(&file);
    if (code) return code;
    threads_use(session->threads);
    code = strcmp(session->model->task, "encode") ? translation(session, &json) : encoder(session, &json);
    threads_use(NULL);
    json_free(&json);
    return code;
}
