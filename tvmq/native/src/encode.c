/* SPDX-License-Identifier: Apache-2.0
 * An encoder over a batch of texts, without padding (../../encoding.py). */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "session.h"

enum { MAX_INPUTS = 4 };

static int check_texts(tvmq_session *session, const int32_t *ids, const int32_t *types, const size_t *lengths,
                       size_t count, uint64_t kinds, size_t *total) {
    Error *error = &session->error;
    uint64_t longest, words;
    if (model_count(session->model, "architecture", "max_tokens", INT32_MAX, &longest, error) ||
        model_count(session->model, "architecture", "vocab", INT32_MAX, &words, error))
        return error->code;
    *total = 0;
    for (size_t t = 0; t < count; t++) {
        if (!lengths[t] || lengths[t] > longest)
            return fail(error, TVMQ_INPUT, "text %zu has %zu tokens, the model takes 1 to %llu", t + 1, lengths[t],
                        (unsigned long long)longest);
        for (size_t i = *total; i < *total + lengths[t]; i++) {
            if (ids[i] < 0 || (uint64_t)ids[i] >= words)
                return fail(error, TVMQ_INPUT, "text %zu holds a token id outside 0..%llu", t + 1,
                            (unsigned long long)words - 1);
            if (types && kinds > 1 && (types[i] < 0 || (uint64_t)types[i] >= kinds))
                return fail(error, TVMQ_INPUT, "text %zu holds a token type outside 0..%llu", t + 1,
                            (unsigned long long)kinds - 1);
        }
        *total += lengths[t];
    }
    return 0;
}

/* ids, positions, types and offsets, each on its own boundary of session->inputs. */
static int fill_inputs(tvmq_session *session, const int32_t *ids, const int32_t *types, const size_t *lengths,
                       size_t count, size_t total, uint64_t first, Value *inputs) {
    const size_t line = align_up(total * 4);
    if (block_reserve(&session->inputs, 3 * line + align_up((count + 1) * 4), &session->error))
        return session->error.code;
    uint8_t *data = session->inputs.data;
    int32_t *tokens = (int32_t *)data, *places = (int32_t *)(data + line), *kinds = (int32_t *)(data + 2 * line);
    int32_t *offsets = (int32_t *)(data + 3 * line);
    memcpy(tokens, ids, total * 4);
    memset(kinds, 0, total * 4);
    if (types) memcpy(kinds, types, total * 4);
    offsets[0] = 0;
    for (size_t t = 0, at = 0; t < count; t++) {
        for (size_t i = 0; i < lengths[t]; i++) places[at++] = (int32_t)(i + first);
        offsets[t + 1] = (int32_t)at;
    }
    const Shape shape = {1, {(Size)total}};
    inputs[0] = (Value){tokens, total * 4, shape};
    inputs[1] = (Value){places, total * 4, shape};
    inputs[2] = (Value){offsets, (count + 1) * 4, {1, {(Size)count + 1}}};
    inputs[3] = (Value){kinds, total * 4, shape};
    return 0;
}

int encode(tvmq_session *session, const char *function, const int32_t *ids, const int32_t *types,
           const size_t *lengths, size_t count) {
    Error *error = &session->error;
    Frame *frame = session_frame(session, function);
    Value inputs[MAX_INPUTS], output;
    uint64_t first, kinds;
    size_t total = 0;
    if (!frame) return fail(error, TVMQ_USAGE, "this model has no function '%.40s'", function);
    if (model_count(session->model, "architecture", "first_position", INT32_MAX, &first, error) ||
        model_count(session->model, "architecture", "types", INT32_MAX, &kinds, error) ||
        check_texts(session, ids, types, lengths, count, kinds, &total) ||
        fill_inputs(session, ids, kinds > 1 ? types : NULL, lengths, count, total, first, inputs))
        return error->code;
    const Function *f = frame->function;
    if (f->input_count != (kinds ? 4 : 3) || f->output_count != 1 || f->outputs[0].shape.count != 2 ||
        f->outputs[0].dtype.bits != 32)
        return fail(error, TVMQ_VERIFICATION, "%s: the program is none of this model (compile the model again)",
                    session->model->folder);
    if (frame_measure(frame, inputs, error) || frame_output(frame, 0, &output, error) ||
        block_reserve(&session->result, output.bytes, error))
        return error->code;
    output.data = session->result.data;
    if (frame_bind(frame, session->model, inputs, &output, &session->arena, error) ||
        frame_run(frame, session->model, error))
        return error->code;
    session->rows = (size_t)output.shape.sizes[0];
    session->columns = (size_t)output.shape.sizes[1];
    return 0;
}
