/* SPDX-License-Identifier: Apache-2.0
 * The flat list of kernel calls; its format is described in ../program.py. */
#ifndef TVMQ_PROGRAM_H
#define TVMQ_PROGRAM_H

#include "common.h"

enum { MAX_DIMENSIONS = 8 };
enum { PLACE_INPUT, PLACE_WEIGHT, PLACE_OUTPUT, PLACE_POOL };

/* A number, or extent -1 - size of the function where it is negative. */
typedef int64_t Size;

/* code and bits as DLPack has them; NUMBERS marks an input that is a list of numbers. */
typedef struct {
    uint8_t code, bits;
} DataType;
#define NUMBERS 255

/* Without padding, so that equal shapes are equal bytes. */
typedef struct {
    int64_t count;
    Size sizes[MAX_DIMENSIONS];
} Shape;

typedef struct {
    DataType dtype;
    Shape shape;
    const char *name; /* "" for outputs */
} Named;

typedef enum { OP_DIM, OP_ADD, OP_SUB, OP_MUL, OP_DIV, OP_MOD, OP_MIN, OP_MAX } Operation;

/* OP_DIM: input number left, axis right. */
typedef struct {
    Operation operation;
    Size left, right;
} Extent;

typedef struct {
    uint64_t units;
    Shape factors;
} Pool;

typedef struct {
    int place;
    uint32_t number;
    uint64_t offset;
    DataType dtype;
    Shape shape;
} Tensor;

typedef struct {
    uint32_t kernel, first, count; /* count tensors from first of Function.taken on */
} Call;

typedef struct {
    const char *name;
    Extent *extents;
    Named *inputs, *outputs;
    Pool *pools;
    Tensor *tensors;
    Call *calls;
    uint32_t *taken;
    size_t extent_count, input_count, output_count, pool_count, tensor_count, call_count, taken_count;
    size_t room[7];
} Function;

typedef struct {
    char *text; /* the file; names point into it */
    const char **kernels;
    Named *weights;
    Function *functions;
    size_t kernel_count, weight_count, function_count;
    size_t room[3];
} Program;

int program_parse(Program *program, const uint8_t *data, size_t size, const char *where, Error *error);
void program_free(Program *program);
/* NULL where there is none of that name. */
const Function *program_function(const Program *program, const char *name);

static inline size_t item_bytes(DataType dtype) { return dtype.bits / 8; }

#endif
