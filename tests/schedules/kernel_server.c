// SPDX-License-Identifier: Apache-2.0
// Runs compiled kernels on behalf of another process: for machines of another architecture, under an emulator.
//
// Requests come on standard input, answers go to standard output; all numbers are little-endian.
//   'L' u32 n, path[n]                      -> status; opens a library with one kernel named "kernel"
//   'C' u32 library, u32 count, tensors     -> status, then the bytes of every tensor
// A tensor is u8 code, u8 bits, u16 dimensions, i64 shape[], u64 bytes, data. A status is i32 0, or -1 and
// u32 n, text[n]. Tensors lie on 64-byte boundaries between guard bytes that a kernel must leave alone.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD = 64, MAX_LIBRARIES = 1024, MAX_TENSORS = 64, MAX_DIMENSIONS = 8, TASKS = 2 };

typedef struct {
  int32_t type, id;
} Device;

typedef struct {
  uint8_t code, bits;
  uint16_t lanes;
} DataType;

typedef struct {
  void *data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} Tensor;

typedef struct {
  int32_t type_index, padding;
  union {
    int64_t integer;
    void *pointer;
  } value;
} Any;

typedef struct {
  void *sync_handle;
  int32_t num_task;
} ParallelGroupEnv;

typedef int (*Kernel)(void *, const Any *, int32_t, Any *);
typedef int (*Task)(int, ParallelGroupEnv *, void *);

static char message[4096];

// The one function that libraries of kernels leave undefined.
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  size_t used = (size_t)snprintf(message, sizeof message, "%s: ", kind);
  for (int32_t i = 0; i < count && used < sizeof message; ++i)
    used += (size_t)snprintf(message + used, sizeof message - used, "%s", parts[i]);
}

static void *allocate(int type, int id, uint64_t bytes, int code, int bits) {
  (void)type, (void)id, (void)code, (void)bits;
  void *found = aligned_alloc(GUARD, (bytes + GUARD - 1) / GUARD * GUARD);
  if (found != NULL) memset(found, 0xFF, bytes);
  return found;
}

static int release(int type, int id, void *pointer) {
  (void)type, (void)id;
  free(pointer);
  return 0;
}

static int launch(Task task, void *data, int wanted) {
  ParallelGroupEnv env = {NULL, wanted > 0 ? wanted : TASKS};
  for (int i = 0; i < env.num_task; ++i)
    if (task(i, &env, data) != 0) return -1;
  return 0;
}

static void take(void *into, size_t bytes) {
  if (bytes != 0 && fread(into, bytes, 1, stdin) != 1) exit(0);
}

static uint32_t take_u32(void) {
  uint32_t value;
  take(&value, sizeof value);
  return value;
}

static void give(const void *data, size_t bytes) {
  if (bytes != 0 && fwrite(data, bytes, 1, stdout) != 1) exit(1);
}

static void give_status(const char *text) {
  int32_t status = text == NULL ? 0 : -1;
  give(&status, sizeof status);
  if (text != NULL) {
    uint32_t size = (uint32_t)strlen(text);
    give(&size, sizeof size);
    give(text, size);
  }
}

static void fill_slot(void *library, const char *name, void *function) {
  void **slot = dlsym(library, name);
  if (slot != NULL) *slot = function;
}

static const char *open_library(Kernel *kernel) {
  char path[4096];
  uint32_t size = take_u32();
  if (size >= sizeof path) exit(2);
  take(path, size);
  path[size] = 0;
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) return dlerror();
  fill_slot(library, "__TVMBackendAllocWorkspace", (void *)allocate);
  fill_slot(library, "__TVMBackendFreeWorkspace", (void *)release);
  fill_slot(library, "__TVMBackendParallelLaunch", (void *)launch);
  *kernel = (Kernel)dlsym(library, "__tvm_ffi_kernel");
  return *kernel == NULL ? "no function __tvm_ffi_kernel" : NULL;
}

static uint8_t *take_tensor(Tensor *tensor, int64_t *shape, uint64_t *bytes) {
  memset(tensor, 0, sizeof *tensor);
  take(&tensor->dtype.code, 1);
  take(&tensor->dtype.bits, 1);
  uint16_t dimensions;
  take(&dimensions, sizeof dimensions);
  if (dimensions > MAX_DIMENSIONS) exit(2);
  take(shape, dimensions * sizeof *shape);
  take(bytes, sizeof *bytes);
  size_t whole = (*bytes + GUARD - 1) / GUARD * GUARD + 2 * GUARD;
  uint8_t *raw = aligned_alloc(GUARD, whole);
  if (raw == NULL) exit(2);
  memset(raw, 0xFF, whole);
  take(raw + GUARD, *bytes);
  tensor->data = raw + GUARD;
  tensor->device.type = 1;
  tensor->ndim = dimensions;
  tensor->dtype.lanes = 1;
  tensor->shape = shape;
  return raw;
}

static int intact(const uint8_t *raw, uint64_t bytes) {
  for (uint64_t i = 0; i < GUARD; ++i)
    if (raw[i] != 0xFF || raw[GUARD + bytes + i] != 0xFF) return 0;
  return 1;
}

static void call(Kernel kernel) {
  static Tensor tensors[MAX_TENSORS];
  static int64_t shapes[MAX_TENSORS][MAX_DIMENSIONS];
  static uint64_t sizes[MAX_TENSORS];
  static uint8_t *raws[MAX_TENSORS];
  static Any arguments[MAX_TENSORS];
  uint32_t count = take_u32();
  if (count > MAX_TENSORS) exit(2);
  for (uint32_t i = 0; i < count; ++i) {
    raws[i] = take_tensor(&tensors[i], shapes[i], &sizes[i]);
    arguments[i] = (Any){.type_index = 7, .value.pointer = &tensors[i]};
  }
  Any result = {0};
  message[0] = 0;
  const char *failure = kernel(NULL, arguments, (int32_t)count, &result) == 0 ? NULL : message;
  for (uint32_t i = 0; i < count && failure == NULL; ++i)
    if (!intact(raws[i], sizes[i])) failure = "wrote outside a buffer";
  give_status(failure);
  for (uint32_t i = 0; i < count; ++i) {
    if (failure == NULL) give(raws[i] + GUARD, sizes[i]);
    free(raws[i]);
  }
}

int main(void) {
  static Kernel kernels[MAX_LIBRARIES];
  uint32_t opened = 0;
  for (int request; (request = getchar()) != EOF; fflush(stdout)) {
    if (request == 'L' && opened < MAX_LIBRARIES) {
      give_status(open_library(&kernels[opened]));
      ++opened;
    } else if (request == 'C') {
      uint32_t library = take_u32();
      if (library >= opened || kernels[library] == NULL) return 2;
      call(kernels[library]);
    } else {
      return 2;
    }
  }
  return 0;
}
