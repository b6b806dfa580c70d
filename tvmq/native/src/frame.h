/* SPDX-License-Identifier: Apache-2.0
 * A function of the program with its arguments bound: nothing is left but to call the kernels. */
#ifndef TVMQ_FRAME_H
#define TVMQ_FRAME_H

#include "model.h"

/* An input or output that the caller provides: memory of bytes, seen with this shape. An input that is a list of
 * numbers has them in sizes, and no data. */
typedef struct {
    void *data;
    size_t bytes;
    Shape shape;
} Value;

typedef struct {
    const Function *function;
    int64_t *extents;
    DLTensor *tensors;
    int64_t *shapes;
    Argument *arguments;
    Kernel *kernels;
    Value *bound; /* inputs, then outputs, as they were bound last */
    const uint8_t *arena;
    bool ready;
} Frame;

int frame_open(Frame *frame, const tvmq_model *model, const Function *function, Error *error);
void frame_close(Frame *frame);

/* Evaluates the free sizes of the function from its inputs; fails where inputs do not fit it. */
int frame_measure(Frame *frame, const Value *inputs, Error *error);
/* Shape and bytes of an output, after frame_measure. */
int frame_output(const Frame *frame, size_t output, Value *value, Error *error);
/* Binds everything; costs nothing when all is as it was bound last. */
int frame_bind(Frame *frame, const tvmq_model *model, const Value *inputs, const Value *outputs, Block *arena,
               Error *error);
/* Calls the kernels in order. */
int frame_run(const Frame *frame, const tvmq_model *model, Error *error);

#endif
