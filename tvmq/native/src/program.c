/* SPDX-License-Identifier: Apache-2.0 */
#include "program.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_SIZE_BITS = 31, MAX_FUNCTIONS = 256 };
enum { EXTENTS, INPUTS, OUTPUTS, POOLS, TENSORS, CALLS, TAKEN };

/* The lines that are left. Words are cut out of the text by zeros. */
typedef struct {
    char *at, *end;
    const char *what; /* the first thing that is wrong */
    size_t line, extents;
} Reader;

static bool wrong(Reader *r, const char *what) {
    if (!r->what) r->what = what;
    return false;
}

/* Whether the line begins with this word; then the reader stands behind it and its space. */
static bool line_of(Reader *r, const char *kind) {
    size_t length = strlen(kind);
    if ((size_t)(r->end - r->at) <= length || memcmp(r->at, kind, length) || r->at[length] != ' ') return false;
    r->at += length + 1;
    return true;
}

/* Cuts off everything up to the given end (a space, or the line's end); NULL if that does not come first. */
static char *cut(Reader *r, char end) {
    char *word = r->at;
    while (r->at < r->end && *r->at != '\n' && *r->at != end) r->at++;
    if (r->at >= r->end || *r->at != end || r->at == word) return NULL;
    *r->at++ = 0;
    if (end == '\n') r->line++;
    return word;
}

static bool parse_number(const char *word, uint64_t *value) {
    if (!word || !*word || strlen(word) > 10 || (word[0] == '0' && word[1])) return false;
    for (*value = 0; *word; word++) {
        if (*word < '0' || *word > '9') return false;
        *value = *value * 10 + (uint64_t)(*word - '0');
    }
    return *value <= (uint64_t)1 << MAX_SIZE_BITS;
}

static bool number(Reader *r, char end, uint64_t *value) {
    return parse_number(cut(r, end), value) || wrong(r, "no number up to 2^31");
}

static bool parse_size(Reader *r, const char *word, Size *size) {
    uint64_t value;
    bool extent = word && *word == 'e';
    if (!parse_number(extent ? word + 1 : word, &value)) return wrong(r, "no number up to 2^31");
    if (extent && value >= r->extents) return wrong(r, "an extent that is not known yet");
    *size = extent ? -1 - (Size)value : (Size)value;
    return true;
}

static bool shape(Reader *r, char end, Shape *shape) {
    char *word = cut(r, end);
    *shape = (Shape){0};
    if (!word) return wrong(r, "no shape");
    if (!strcmp(word, "-")) return true;
    while (word) {
        char *next = strchr(word, 'x');
        if (next) *next++ = 0;
        if (shape->count == MAX_DIMENSIONS) return wrong(r, "too many dimensions");
        if (!parse_size(r, word, &shape->sizes[shape->count++])) return false;
        word = next;
    }
    return true;
}

static bool dtype(Reader *r, bool numbers, DataType *dtype) {
    static const struct {
        const char *name;
        DataType dtype;
    } KNOWN[] = {{"shape", {NUMBERS, 0}}, {"int8", {0, 8}}, {"uint8", {1, 8}}, {"int16", {0, 16}},
                 {"uint16", {1, 16}}, {"float16", {2, 16}}, {"int32", {0, 32}}, {"float32", {2, 32}},
                 {"int64", {0, 64}}};
    const char *word = cut(r, ' ');
    for (size_t i = numbers ? 0 : 1; word && i < sizeof KNOWN / sizeof *KNOWN; i++)
        if (!strcmp(word, KNOWN[i].name)) return *dtype = KNOWN[i].dtype, true;
    return wrong(r, "an unknown dtype");
}

/* A name of letters, digits and _ at the end of a line. */
static bool word(Reader *r, const char **name) {
    *name = cut(r, '\n');
    if (!*name || strlen(*name) > 128) return wrong(r, "no plain name");
    for (const char *c = *name; *c; c++)
        if (!(*c == '_' || (*c >= '0' && *c <= '9') || ((*c | 32) >= 'a' && (*c | 32) <= 'z')))
            return wrong(r, "no plain name");
    return true;
}

static bool named(Reader *r, bool numbers, Named *named) {
    if (!dtype(r, numbers, &named->dtype) || !shape(r, ' ', &named->shape)) return false;
    named->name = cut(r, '\n');
    return named->name || wrong(r, "an empty name");
}

#define ADD(owner, items, count, space) \
    (grow((void **)&(owner)->items, &(owner)->room[space], (owner)->count, sizeof *(owner)->items) \
         ? &(owner)->items[(owner)->count++] : NULL)

static bool extent(Reader *r, Function *f) {
    static const char *const NAMES[] = {"dim", "add", "sub", "mul", "div", "mod", "min", "max"};
    Extent *extent = ADD(f, extents, extent_count, EXTENTS);
    const char *name = cut(r, ' ');
    if (!extent || !name) return wrong(r, "an unknown operation");
    for (int i = 0; i < 8; i++) {
        if (strcmp(name, NAMES[i])) continue;
        extent->operation = (Operation)i;
        if (i == OP_DIM) {
            uint64_t input, axis;
            if (!number(r, ' ', &input) || !number(r, '\n', &axis)) return false;
            extent->left = (Size)input, extent->right = (Size)axis;
        } else if (!parse_size(r, cut(r, ' '), &extent->left) || !parse_size(r, cut(r, '\n'), &extent->right)) {
            return false;
        }
        r->extents++;
        return true;
    }
    return wrong(r, "an unknown operation");
}

static bool tensor(Reader *r, Function *f, size_t weights) {
    static const char *const NAMES[] = {"input", "weight", "output", "pool"};
    const size_t counts[] = {f->input_count, weights, f->output_count, f->pool_count};
    Tensor *tensor = ADD(f, tensors, tensor_count, TENSORS);
    const char *name = cut(r, ' ');
    uint64_t which;
    if (!tensor || !name || !number(r, ' ', &which) || !number(r, ' ', &tensor->offset))
        return wrong(r, "no such place");
    for (tensor->place = 0; tensor->place < 4 && strcmp(name, NAMES[tensor->place]);) tensor->place++;
    if (tensor->place == 4 || which >= counts[tensor->place] || (tensor->offset && tensor->place != PLACE_POOL))
        return wrong(r, "no such place");
    if (tensor->offset % ALIGNMENT) return wrong(r, "an offset that is no multiple of 64");
    tensor->number = (uint32_t)which;
    return dtype(r, false, &tensor->dtype) && shape(r, '\n', &tensor->shape);
}

static bool call(Reader *r, Function *f, size_t kernels) {
    Call *call = ADD(f, calls, call_count, CALLS);
    char *line = cut(r, '\n');
    uint64_t value;
    if (!call || !line) return wrong(r, "no call");
    call->first = (uint32_t)f->taken_count;
    for (bool first = true; line; first = false) {
        char *next = strchr(line, ' ');
        if (next) *next++ = 0;
        if (!parse_number(line, &value) || value >= (first ? kernels : f->tensor_count))
            return wrong(r, "a number beyond the kernels or tensors");
        line = next;
        if (first) {
            call->kernel = (uint32_t)value;
            continue;
        }
        uint32_t *taken = ADD(f, taken, taken_count, TAKEN);
        if (!taken) return wrong(r, "no memory");
        *taken = (uint32_t)value;
        call->count++;
    }
    return true;
}

static bool function(Reader *r, Program *p) {
    Function *f = p->function_count < MAX_FUNCTIONS ? ADD(p, functions, function_count, 2) : NULL;
    if (!f || !word(r, &f->name)) return wrong(r, "no memory");
    r->extents = 0;
    while (line_of(r, "extent"))
        if (!extent(r, f)) return false;
    while (line_of(r, "input")) {
        Named *input = ADD(f, inputs, input_count, INPUTS);
        if (!input || !named(r, true, input)) return wrong(r, "no memory");
    }
    for (size_t i = 0; i < f->extent_count; i++) {
        const Extent *e = &f->extents[i];
        if (e->operation == OP_DIM && ((uint64_t)e->left >= f->input_count ||
                                       e->right >= f->inputs[e->left].shape.count))
            return wrong(r, "an extent of no input");
    }
    while (line_of(r, "output")) {
        Named *output = ADD(f, outputs, output_count, OUTPUTS);
        if (!output || !dtype(r, false, &output->dtype) || !shape(r, '\n', &output->shape))
            return wrong(r, "no memory");
    }
    while (line_of(r, "pool")) {
        Pool *pool = ADD(f, pools, pool_count, POOLS);
        if (!pool || !number(r, ' ', &pool->units) || !shape(r, '\n', &pool->factors))
            return wrong(r, "no memory");
    }
    while (line_of(r, "tensor"))
        if (!tensor(r, f, p->weight_count)) return false;
    while (line_of(r, "call"))
        if (!call(r, f, p->kernel_count)) return false;
    return true;
}

static bool parse(Reader *r, Program *p) {
    const char *version = line_of(r, "tvmq-program") ? cut(r, '\n') : NULL;
    if (!version || strcmp(version, "1")) return r->line = 1, wrong(r, "its first line is not tvmq-program 1");
    while (line_of(r, "kernel")) {
        const char **kernel = ADD(p, kernels, kernel_count, 0);
        if (!kernel || !word(r, kernel)) return wrong(r, "no memory");
    }
    while (line_of(r, "weight")) {
        Named *weight = ADD(p, weights, weight_count, 1);
        if (!weight || !named(r, false, weight)) return wrong(r, "no memory");
    }
    while (line_of(r, "function"))
        if (!function(r, p)) return false;
    return (r->end - r->at == 4 && !memcmp(r->at, "end\n", 4)) || wrong(r, "an unexpected line");
}

int program_parse(Program *program, const uint8_t *data, size_t size, const char *where, Error *error) {
    *program = (Program){0};
    program->text = malloc(size + 1);
    if (!program->text) return fail(error, TVMQ_RESOURCE, "%s: no memory", where);
    memcpy(program->text, data, size);
    program->text[size] = 0;
    Reader r = {program->text, program->text + size, NULL, 1, 0};
    if (!memchr(data, 0, size) && parse(&r, program)) return 0;
    program_free(program);
    return fail(error, TVMQ_VERIFICATION, "%s: line %zu: %s (compile the model again)", where, r.line,
                r.what ? r.what : "a zero byte");
}

void program_free(Program *program) {
    for (size_t i = 0; i < program->function_count; i++) {
        Function *f = &program->functions[i];
        free(f->extents), free(f->inputs), free(f->outputs), free(f->pools), free(f->tensors), free(f->calls);
        free(f->taken);
    }
    free(program->kernels), free(program->weights), free(program->functions), free(program->text);
    *program = (Program){0};
}

const Function *program_function(const Program *program, const char *name) {
    for (size_t i = 0; i < program->function_count; i++)
        if (!strcmp(program->functions[i].name, name)) return &program->functions[i];
    return NULL;
}
