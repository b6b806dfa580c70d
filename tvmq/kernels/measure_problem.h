// SPDX-License-Identifier: Apache-2.0
// A problem file (see problem_file.py) and its arrays in memory, as the packed arguments of kernels.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIMENSIONS = 8, TENSORS = 32, STAGES = 4, NAME = 32, TENSOR = 7 };
enum Role { PLAIN, WEIGHT, OUTPUT };

typedef struct {
  void *data;
  int32_t device, device_id, ndim;
  uint8_t code, bits;
  uint16_t lanes;
  const int64_t *shape, *strides;
  uint64_t offset;
} Tensor;

typedef struct {
  uint8_t code, bits, role, ndim;
  int64_t shape[DIMENSIONS];
  uint64_t bytes;
  const uint8_t *given; // initial contents; of an output what must come out
  uint8_t *place;       // of a weight: its first copy
} Array;

typedef struct {
  char name[NAME];
  uint32_t count, arguments[TENSORS];
} Stage;

typedef struct {
  uint32_t arrays, stages, copies, warm;
  uint64_t stride;
  Array array[TENSORS];
  Stage stage[STAGES];
  Tensor *tensors; // [copies][arrays]
  Any *calls;      // [copies][stages][TENSORS]
} Problem;

static void *aligned(size_t bytes) {
  void *memory = NULL;
  if (posix_memalign(&memory, 64, bytes ? bytes : 64)) return NULL;
  return memory;
}

// What fills the slots through which kernels take memory of their host.
static void *allocate_workspace(int type, int id, uint64_t bytes, int code, int bits) {
  (void)type, (void)id, (void)code, (void)bits;
  return aligned((size_t)bytes);
}

static int free_workspace(int type, int id, void *memory) {
  (void)type, (void)id;
  free(memory);
  return 0;
}

typedef struct {
  const uint8_t *at, *end;
} Cursor;

static const void *take(Cursor *cursor, uint64_t bytes) {
  uint64_t whole = (bytes + 7) / 8 * 8;
  if (whole < bytes || (uint64_t)(cursor->end - cursor->at) < whole) return NULL;
  const void *found = cursor->at;
  cursor->at += whole;
  return found;
}

static uint8_t *whole_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file) return NULL;
  uint8_t *data = NULL;
  long bytes = fseek(file, 0, SEEK_END) ? -1 : ftell(file);
  if (bytes > 0 && !fseek(file, 0, SEEK_SET)) data = malloc((size_t)bytes);
  if (data && fread(data, 1, (size_t)bytes, file) != (size_t)bytes) free(data), data = NULL;
  fclose(file);
  *size = data ? (size_t)bytes : 0;
  return data;
}

static const char *parse_array(Cursor *cursor, Array *array) {
  const uint8_t *head = take(cursor, 8);
  if (!head || head[3] > DIMENSIONS || head[2] > OUTPUT) return "damaged";
  array->code = head[0], array->bits = head[1], array->role = head[2], array->ndim = head[3];
  const void *shape = take(cursor, 8u * head[3]), *bytes = take(cursor, 8);
  if (!shape || !bytes) return "damaged";
  memcpy(array->shape, shape, 8u * head[3]);
  memcpy(&array->bytes, bytes, 8);
  array->given = take(cursor, array->bytes);
  return array->given ? NULL : "damaged";
}

static const char *parse(Problem *problem, const uint8_t *data, size_t size) {
  Cursor cursor = {data, data + size};
  const char *magic = take(&cursor, 8);
  const uint32_t *counts = take(&cursor, 16);
  const uint64_t *stride = take(&cursor, 8);
  if (!magic || memcmp(magic, "tvmqprb1", 8) || !stride) return "no problem file";
  problem->arrays = counts[0], problem->stages = counts[1], problem->copies = counts[2], problem->warm = counts[3];
  problem->stride = *stride;
  if (counts[0] > TENSORS || !counts[1] || counts[1] > STAGES || !counts[2] || counts[2] > 65536) return "damaged";
  for (uint32_t i = 0; i < problem->arrays; ++i)
    if (parse_array(&cursor, &problem->array[i])) return "damaged";
  for (uint32_t s = 0; s < problem->stages; ++s) {
    const char *name = take(&cursor, NAME);
    const uint32_t *count = take(&cursor, 8);
    if (!count || *count > TENSORS) return "damaged";
    const uint32_t *arguments = take(&cursor, 4u * *count);
    if (!arguments) return "damaged";
    Stage *stage = &problem->stage[s];
    memcpy(stage->name, name, NAME);
    stage->name[NAME - 1] = 0;
    stage->count = *count;
    for (uint32_t i = 0; i < *count; ++i)
      if ((stage->arguments[i] = arguments[i]) >= problem->arrays) return "damaged";
  }
  return NULL;
}

// ---- memory of the arguments: weights in copies one stride apart, all else once

static const char *place_arrays(Problem *problem) {
  uint64_t weights = 0;
  for (uint32_t i = 0; i < problem->arrays; ++i)
    if (problem->array[i].role == WEIGHT) weights += (problem->array[i].bytes + 63) / 64 * 64;
  if (problem->stride < weights) problem->stride = weights;
  if (problem->stride > (UINT64_C(1) << 34) / problem->copies) return "too large";
  uint8_t *pool = aligned((size_t)(problem->stride * problem->copies)), *next = pool;
  if (!pool) return "no memory";
  for (uint32_t i = 0; i < problem->arrays; ++i) {
    Array *array = &problem->array[i];
    if (array->role == WEIGHT) {
      array->place = next;
      next += (array->bytes + 63) / 64 * 64;
      for (uint32_t c = 0; c < problem->copies; ++c)
        memcpy(array->place + c * problem->stride, array->given, (size_t)array->bytes);
    } else if ((array->place = aligned((size_t)array->bytes))) {
      memcpy(array->place, array->given, (size_t)array->bytes);
    } else {
      return "no memory";
    }
  }
  return NULL;
}

static const char *bind(Problem *problem) {
  const char *why = place_arrays(problem);
  if (why) return why;
  problem->tensors = calloc((size_t)problem->copies * problem->arrays, sizeof *problem->tensors);
  problem->calls = calloc((size_t)problem->copies * problem->stages * TENSORS, sizeof *problem->calls);
  if (!problem->tensors || !problem->calls) return "no memory";
  for (uint32_t c = 0; c < problem->copies; ++c) {
    Tensor *tensors = problem->tensors + (size_t)c * problem->arrays;
    for (uint32_t i = 0; i < problem->arrays; ++i) {
      Array *array = &problem->array[i];
      uint8_t *data = array->place + (array->role == WEIGHT ? c * problem->stride : 0);
      tensors[i] = (Tensor){data, 1, 0, array->ndim, array->code, array->bits, 1, array->shape, NULL, 0};
    }
    for (uint32_t s = 0; s < problem->stages; ++s) {
      Any *call = problem->calls + ((size_t)c * problem->stages + s) * TENSORS;
      for (uint32_t i = 0; i < problem->stage[s].count; ++i)
        call[i] = (Any){TENSOR, 0, &tensors[problem->stage[s].arguments[i]]};
    }
  }
  return NULL;
}

static void clear_outputs(const Problem *problem) {
  for (uint32_t i = 0; i < problem->arrays; ++i)
    if (problem->array[i].role == OUTPUT) memset(problem->array[i].place, 0, (size_t)problem->array[i].bytes);
}

// Whether the outputs hold the expected bytes.
static int outputs_right(const Problem *problem) {
  for (uint32_t i = 0; i < problem->arrays; ++i) {
    const Array *array = &problem->array[i];
    if (array->role == OUTPUT && memcmp(array->place, array->given, (size_t)array->bytes)) return 0;
  }
  return 1;
}
