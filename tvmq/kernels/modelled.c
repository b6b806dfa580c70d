// SPDX-License-Identifier: Apache-2.0
// Runs one kernel once, linked in under the name KERNEL, on a problem file: an emulator notes which of its code
// runs how often. Ends with 0 if the expected bytes come out, with 3 if others do.
#include "timer.c"

#include "measure_problem.h"

typedef struct {
  void *sync;
  int32_t count;
} Group;

int KERNEL(void *self, const Any *arguments, int32_t count, Any *result);

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  (void)kind, (void)parts, (void)count;
}

static int launch(int (*task)(int, Group *, void *), void *closure, int wanted) {
  Group alone = {0, 1};
  (void)wanted;
  return task(0, &alone, closure);
}

// Slots that kernels have if they use them.
extern void *__TVMBackendAllocWorkspace __attribute__((weak));
extern void *__TVMBackendFreeWorkspace __attribute__((weak));
extern void *__TVMBackendParallelLaunch __attribute__((weak));

int main(int count, char **words) {
  static Problem problem;
  size_t size = 0;
  uint8_t *data = count == 2 ? whole_file(words[1], &size) : NULL;
  if (!data || parse(&problem, data, size) || bind(&problem)) return 2;
  if (&__TVMBackendAllocWorkspace) __TVMBackendAllocWorkspace = (void *)allocate_workspace;
  if (&__TVMBackendFreeWorkspace) __TVMBackendFreeWorkspace = (void *)free_workspace;
  if (&__TVMBackendParallelLaunch) __TVMBackendParallelLaunch = (void *)launch;
  Any result = {0, 0, 0};
  clear_outputs(&problem);
  if (KERNEL(NULL, problem.calls, (int32_t)problem.stage[0].count, &result)) return 2;
  return outputs_right(&problem) ? 0 : 3;
}
