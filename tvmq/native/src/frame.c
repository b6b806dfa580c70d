/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "frame.h"

#include <stdlib.h>
#include <string.h>

enum { CPU = 1, KIND_TENSOR = 7 };
#define MAX_ARENA ((uint64_t)1 << 50)

int frame_open(Frame *frame, const tvmq_model *model, const Function *function, Error *error) {
    const size_t tensors = function->tensor_count, calls = function->call_count;
    *frame = (Frame){.function = function};
    frame->extents = calloc(function->extent_count + 1, sizeof *frame->extents);
    frame->tensors = calloc(tensors + 1, sizeof *frame->tensors);
    frame->shapes = calloc(tensors + 1, MAX_DIMENSIONS * sizeof *frame->shapes);
    frame->arguments = calloc(function->taken_count + 1, sizeof *frame->arguments);
    frame->kernels = calloc(calls + 1, sizeof *frame->kernels);
    frame->bound = calloc(function->input_count + function->output_count + 1, sizeof *frame->bound);
    if (!frame->extents || !frame->tensors || !frame->shapes || !frame->arguments || !frame->kernels ||
        !frame->bound)
        return fail(error, TVMQ_RESOURCE, "no memory for function %s", function->name);
    for (size_t i = 0; i < tensors; i++)
        frame->tensors[i] = (DLTensor){.device_type = CPU,
                                       .ndim = (int32_t)function->tensors[i].shape.count,
                                       .dtype = function->tensors[i].dtype,
                                       .lanes = 1,
                                       .shape = frame->shapes + i * MAX_DIMENSIONS};
    for (size_t i = 0; i < function->taken_count; i++)
        frame->arguments[i] = (Argument){KIND_TENSOR, 0, {&frame->tensors[function->taken[i]]}};
    for (size_t i = 0; i < calls; i++) frame->kernels[i] = model->kernels[function->calls[i].kernel];
    return 0;
}

void frame_close(Frame *frame) {
    free(frame->extents), free(frame->tensors), free(frame->shapes), free(frame->arguments);
    free(frame->kernels), free(frame->bound);
    *frame = (Frame){0};
}

static int64_t size_of(const Frame *frame, Size size) { return size < 0 ? frame->extents[-1 - size] : size; }

/* The product of sizes times bytes, or false beyond 2^62. */
static bool bytes_of(const Frame *frame, const Shape *shape, uint64_t bytes, uint64_t *product) {
    *product = bytes;
    for (int i = 0; i < shape->count; i++)
        if (!multiply(*product, (uint64_t)size_of(frame, shape->sizes[i]), product)) return false;
    return true;
}

static bool compute(Operation operation, int64_t a, int64_t b, int64_t *result) {
    switch (operation) {
    case OP_ADD: return !__builtin_add_overflow(a, b, result);
    case OP_SUB: return !__builtin_sub_overflow(a, b, result);
    case OP_MUL: return !__builtin_mul_overflow(a, b, result);
    case OP_DIV: return b > 0 && (*result = a / b, true); /* sizes are never negative: rounds down */
    case OP_MOD: return b > 0 && (*result = a % b, true);
    case OP_MIN: return *result = a < b ? a : b, true;
    case OP_MAX: return *result = a > b ? a : b, true;
    default: return false;
    }
}

int frame_measure(Frame *frame, const Value *inputs, Error *error) {
    const Function *f = frame->function;
    for (size_t i = 0; i < f->extent_count; i++) {
        const Extent *e = &f->extents[i];
        int64_t *result = &frame->extents[i];
        bool good;
        if (e->operation == OP_DIM)
            good = e->right < inputs[e->left].shape.count &&
                   (*result = inputs[e->left].shape.sizes[e->right], true);
        else
            good = compute(e->operation, size_of(frame, e->left), size_of(frame, e->right), result);
        if (!good || *result < 0 || *result > (int64_t)1 << 40)
            return fail(error, TVMQ_INPUT, "%s: an input of an impossible size", f->name);
    }
    for (size_t i = 0; i < f->input_count; i++) {
        const Named *input = &f->inputs[i];
        bool good = inputs[i].shape.count == input->shape.count;
        uint64_t bytes = 0;
        for (int axis = 0; good && axis < input->shape.count; axis++)
            good = inputs[i].shape.sizes[axis] == size_of(frame, input->shape.sizes[axis]);
        if (good && input->dtype.code != NUMBERS)
            good = bytes_of(frame, &input->shape, item_bytes(input->dtype), &bytes) && bytes <= inputs[i].bytes;
        if (!good)
            return fail(error, TVMQ_VERIFICATION, "%s: input %.60s does not fit the program", f->name, input->name);
    }
    return 0;
}

int frame_output(const Frame *frame, size_t output, Value *value, Error *error) {
    const Named *named = &frame->function->outputs[output];
    uint64_t bytes;
    if (!bytes_of(frame, &named->shape, item_bytes(named->dtype), &bytes))
        return fail(error, TVMQ_INPUT, "%s: a result of an impossible size", frame->function->name);
    *value = (Value){.bytes = (size_t)bytes, .shape.count = named->shape.count};
    for (int i = 0; i < named->shape.count; i++) value->shape.sizes[i] = size_of(frame, named->shape.sizes[i]);
    return 0;
}

/* Begin of a pool behind the pools before it, and the product of its factors. */
typedef struct {
    uint64_t begin, bytes, factor;
} PoolPlace;

static int place_pools(const Frame *frame, PoolPlace *places, Block *arena, Error *error) {
    const Function *f = frame->function;
    uint64_t total = 0;
    for (size_t i = 0; i < f->pool_count; i++) {
        PoolPlace *place = &places[i];
        place->begin = total;
        if (!bytes_of(frame, &f->pools[i].factors, 1, &place->factor) ||
            !multiply(f->pools[i].units, place->factor, &place->bytes) || place->bytes >= MAX_ARENA ||
            (total += align_up((size_t)place->bytes)) > MAX_ARENA)
            return fail(error, TVMQ_INPUT, "%s: an input of an impossible size", f->name);
    }
    return block_reserve(arena, total, error);
}

/* Where a tensor lies, and how many bytes there are for it. */
static bool locate(const Frame *frame, const tvmq_model *model, const Tensor *t, const Value *inputs,
                   const Value *outputs, const PoolPlace *pools, uint8_t *arena, void **data, uint64_t *room) {
    uint64_t offset;
    switch (t->place) {
    case PLACE_INPUT:
        *data = inputs[t->number].data, *room = inputs[t->number].bytes;
        return true;
    case PLACE_OUTPUT:
        *data = outputs[t->number].data, *room = outputs[t->number].bytes;
        return true;
    case PLACE_WEIGHT: {
        const Named *weight = &model->program.weights[t->number];
        *data = (void *)(uintptr_t)model->weights[t->number].data;
        return bytes_of(frame, &weight->shape, item_bytes(weight->dtype), room);
    }
    default:
        if (!multiply(t->offset, pools[t->number].factor, &offset) || offset > pools[t->number].bytes) return false;
        *data = arena + pools[t->number].begin + offset;
        *room = pools[t->number].bytes - offset;
        return true;
    }
}

static int bind_tensors(Frame *frame, const tvmq_model *model, const Value *inputs, const Value *outputs,
                        const PoolPlace *pools, uint8_t *arena, Error *error) {
    const Function *f = frame->function;
    for (size_t i = 0; i < f->tensor_count; i++) {
        const Tensor *t = &f->tensors[i];
        uint64_t bytes, room;
        if (!locate(frame, model, t, inputs, outputs, pools, arena, &frame->tensors[i].data, &room) ||
            !bytes_of(frame, &t->shape, item_bytes(t->dtype), &bytes) || bytes > room)
            return fail(error, TVMQ_VERIFICATION, "%s: tensor %zu does not fit its place", f->name, i);
        for (int axis = 0; axis < t->shape.count; axis++)
            frame->shapes[i * MAX_DIMENSIONS + (size_t)axis] = size_of(frame, t->shape.sizes[axis]);
    }
    return 0;
}

int frame_bind(Frame *frame, const tvmq_model *model, const Value *inputs, const Value *outputs, Block *arena,
               Error *error) {
    const Function *f = frame->function;
    Value *bound = frame->bound;
    const size_t in = f->input_count * sizeof *inputs, out = f->output_count * sizeof *outputs;
    if (frame->ready && frame->arena == arena->data && !memcmp(bound, inputs, in) &&
        !memcmp(bound + f->input_count, outputs, out))
        return 0;
    frame->ready = false;
    if (frame_measure(frame, inputs, error)) return error->code;
    PoolPlace *pools = calloc(f->pool_count + 1, sizeof *pools);
    if (!pools) return fail(error, TVMQ_RESOURCE, "no memory for function %s", f->name);
    int code = place_pools(frame, pools, arena, error);
    if (!code) code = bind_tensors(frame, model, inputs, outputs, pools, arena->data, error);
    free(pools);
    if (code) return code;
    memcpy(bound, inputs, in);
    memcpy(bound + f->input_count, outputs, out);
    frame->arena = arena->data;
    frame->ready = true;
    return 0;
}

int frame_run(const Frame *frame, const tvmq_model *model, Error *error) {
    const Function *f = frame->function;
    for (size_t i = 0; i < f->call_count; i++) {
        const Call *call = &f->calls[i];
        Argument result = {0};
        if (frame->kernels[i](NULL, frame->arguments + call->first, (int32_t)call->count, &result))
            return fail(error, TVMQ_RESOURCE, "%s: kernel %s failed (no memory?)", f->name,
                        model->program.kernels[call->kernel]);
    }
    return 0;
}
