// SPDX-License-Identifier: Apache-2.0
// Times kernels with nothing but a loop around them. A kernel has the packed calling convention of TVM's FFI;
// a product is `stages` kernels in a row; `copies` products with arrays of their own are called in turn, so
// that the weights of a call have left the caches before they come up again.
#include <stdint.h>
#include <time.h>

typedef struct {
  int32_t type;
  uint32_t zero;
  void *value;
} Any;
typedef int (*Kernel)(void *self, const Any *arguments, int32_t count, Any *result);

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Calls product `first`, `first + 1` and so on, `number` of them.
static int run(const Kernel *kernels, Any *const *arguments, const int32_t *counts, int stages, int copies,
               int first, int number) {
  int copy = first % copies;
  for (int i = 0; i < number; ++i) {
    for (int s = 0; s < stages; ++s) {
      Any result = {0, 0, 0};
      int code = kernels[s](0, arguments[copy * stages + s], counts[s], &result);
      if (code != 0) return code;
    }
    if (++copy == copies) copy = 0;
  }
  return 0;
}

// Seconds of `number` products after `warm` untimed ones; negative if a kernel refused its arguments.
double tvmq_time(const Kernel *kernels, Any *const *arguments, const int32_t *counts, int stages, int copies,
                 int first, int warm, int number) {
  if (run(kernels, arguments, counts, stages, copies, first, warm) != 0) return -1.0;
  double start = now();
  if (run(kernels, arguments, counts, stages, copies, first + warm, number) != 0) return -1.0;
  return now() - start;
}
