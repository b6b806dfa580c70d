/* SPDX-License-Identifier: Apache-2.0
 * The manifest's figures beside the shapes of the program and its tables: what callers are told, and what bounds
 * their inputs, is what the kernels were made for. */
#include <stdlib.h>
#include <string.h>

#include "model.h"

static int differs(const tvmq_model *model, const char *what, Error *error) {
    return fail(error, TVMQ_VERIFICATION, "%s: the manifest's %s differs from the program (compile the model again)",
                model->folder, what);
}

/* Whether the last call of a function takes a scratch matrix [rows, columns]. */
static bool ends_with(const Function *function, uint64_t columns) {
    if (!function->call_count) return false;
    const Call *last = &function->calls[function->call_count - 1];
    for (uint32_t i = 0; i < last->count; i++) {
        const Tensor *tensor = &function->tensors[function->taken[last->first + i]];
        if (tensor->place == PLACE_POOL && tensor->shape.count == 2 && tensor->shape.sizes[1] == (Size)columns)
            return true;
    }
    return false;
}

static int check_translation(const tvmq_model *model, Error *error) {
    static const char *const LIMITS[] = {"max_source", "max_target"};
    static const char *const WORDS[] = {"eos_token_id", "decoder_start_token_id"};
    const Function *encode = program_function(&model->program, "encode");
    uint64_t words, width, value;
    if (model_count(model, "architecture", "vocab", INT32_MAX, &words, error) ||
        model_count(model, "architecture", "d_model", INT32_MAX, &width, error))
        return error->code;
    if (!ends_with(program_function(&model->program, "beam"), words)) return differs(model, "vocab", error);
    for (size_t i = 0; i < encode->output_count; i++)
        if (encode->outputs[i].shape.count != 2 || encode->outputs[i].shape.sizes[1] != (Size)width)
            return differs(model, "d_model", error);
    for (int i = 0; i < 2; i++) {
        if (model_count(model, "architecture", LIMITS[i], INT32_MAX, &value, error)) return error->code;
        if (!value || (model->has_positions && value > model->positions.count)) return differs(model, LIMITS[i], error);
        if (model_count(model, "generation", WORDS[i], INT32_MAX, &value, error)) return error->code;
        if (value >= words) return differs(model, WORDS[i], error);
    }
    const JsonNode *forced = model_fact(model, "generation", "forced_eos_token_id");
    if (forced && forced->kind != JSON_NULL && (!json_count(forced, INT32_MAX, &value) || value >= words))
        return differs(model, "forced_eos_token_id", error);
    return 0;
}

static int check_encoder(const tvmq_model *model, Error *error) {
    const Json *json = &model->manifest;
    const JsonNode *labels = json_get(json, json->nodes, "labels");
    uint64_t width, columns;
    if (model_count(model, "architecture", "width", INT32_MAX, &width, error)) return error->code;
    for (size_t i = 0; i < model->program.function_count; i++) {
        const Function *f = &model->program.functions[i];
        const bool embeds = !strcmp(f->name, "embed");
        columns = embeds ? width : labels ? labels->count : 0;
        if (f->output_count != 1 || f->outputs[0].shape.count != 2 || f->outputs[0].shape.sizes[1] != (Size)columns)
            return differs(model, embeds ? "width" : "labels", error);
    }
    return 0;
}

int figures_check(const tvmq_model *model, Error *error) {
    return strcmp(model->task, "encode") ? check_translation(model, error) : check_encoder(model, error);
}
