// SPDX-License-Identifier: Apache-2.0
// Times libraries of kernels on a machine that has libc and nothing else.
//
//     tvmq-measure PROBLEM ROUNDS THREADS SECONDS RULE CANDIDATE...
//
// PROBLEM is a file of tvmq/kernels/problem_file.py: the arguments of the kernels and what must come out. Every
// candidate is loaded in a process of its own, must give the expected bytes, as the rule's library must, and is
// timed in turn with it. A line of JSON tells what became of it; a crash, or more than SECONDS, loses only it.
// As a library (for TVM's RPC servers) it reads its words from the file "request" beside itself, one a line,
// and writes its lines to the file "answer".
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "threads.h"
#include "timer.c"

#include "measure_problem.h"

enum { WORDS = 4096, CPUINFO = 16384 };
static const double SLICE = 1e-3;

typedef struct {
  Kernel kernels[STAGES];
} Library;

static char message[200];

// The one function that libraries of kernels leave undefined.
__attribute__((visibility("default"))) void TVMFFIErrorSetRaisedFromCStrParts(const char *kind,
                                                                              const char **parts,
                                                                              int32_t count) {
  size_t used = (size_t)snprintf(message, sizeof message, "%s: ", kind);
  for (int32_t i = 0; i < count && used < sizeof message; ++i)
    used += (size_t)snprintf(message + used, sizeof message - used, "%s", parts[i]);
}

// ---- one candidate, in a process of its own

static void fill_slot(void *library, const char *name, void *function) {
  void **slot = dlsym(library, name);
  if (slot) *slot = function;
}

static const char *load(const Problem *problem, const char *path, Library *library) {
  void *handle = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
  if (!handle) return dlerror();
  fill_slot(handle, "__TVMBackendAllocWorkspace", (void *)allocate_workspace);
  fill_slot(handle, "__TVMBackendFreeWorkspace", (void *)free_workspace);
  fill_slot(handle, "__TVMBackendParallelLaunch", (void *)threads_launch);
  for (uint32_t s = 0; s < problem->stages; ++s) {
    char symbol[NAME + 16];
    snprintf(symbol, sizeof symbol, "__tvm_ffi_%s", problem->stage[s].name);
    if (!(library->kernels[s] = (Kernel)dlsym(handle, symbol))) return "lacks a kernel";
  }
  return NULL;
}

// Runs all stages on cleared outputs; NULL if the expected bytes came out.
static const char *check(const Problem *problem, const Library *library) {
  clear_outputs(problem);
  for (uint32_t s = 0; s < problem->stages; ++s) {
    Any result = {0, 0, 0};
    message[0] = 0;
    if (library->kernels[s](NULL, problem->calls + s * TENSORS, (int32_t)problem->stage[s].count, &result))
      return message[0] ? message : "a kernel refused its arguments";
  }
  return outputs_right(problem) ? NULL : "other bits than the reference";
}

typedef struct {
  const Problem *problem;
  Any **calls; // of the last stage, one a copy
  int32_t count;
  int next;
} Loop;

// Seconds of one product by the last stage, going on where the one before it ended in the copies.
static double seconds(Loop *loop, const Library *library, int number, int warm) {
  const Problem *problem = loop->problem;
  const Kernel *kernel = &library->kernels[problem->stages - 1];
  int first = loop->next % (int)problem->copies;
  loop->next = (first + warm + number) % (int)problem->copies;
  return tvmq_time(kernel, loop->calls, &loop->count, 1, (int)problem->copies, first, warm, number) / number;
}

static int compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

// Microseconds of rule and candidate in turn: lower quartiles, which other work moves least.
static const char *measure(const Problem *problem, const Library libraries[2], int rounds, double us[2]) {
  uint32_t last = problem->stages - 1;
  Loop loop = {problem, calloc(problem->copies, sizeof(Any *)), (int32_t)problem->stage[last].count, 0};
  double *found = calloc(2 * (size_t)rounds, sizeof *found);
  if (!loop.calls || !found) return "no memory";
  for (uint32_t c = 0; c < problem->copies; ++c)
    loop.calls[c] = problem->calls + ((size_t)c * problem->stages + last) * TENSORS;
  double once = seconds(&loop, &libraries[0], 2, 0);
  int number = once > 0 && once < SLICE ? (int)(SLICE / (once > 1e-8 ? once : 1e-8)) : 1;
  for (int round = 0; round < rounds; ++round)
    for (int i = 0; i < 2; ++i)
      found[i * rounds + round] = seconds(&loop, &libraries[i], number, problem->warm ? number / 4 + 1 : 0);
  for (int i = 0; i < 2; ++i) {
    qsort(found + i * rounds, (size_t)rounds, sizeof *found, compare);
    us[i] = 1e6 * found[i * rounds + rounds / 4];
  }
  return NULL;
}

static void try_candidate(const Problem *problem, const char *paths[2], int rounds, int threads, FILE *out) {
  Library libraries[2];
  double us[2];
  threads_use(threads_new(threads));
  for (int i = 0; i < 2; ++i) {
    const char *why = load(problem, paths[i], &libraries[i]), *status = "error";
    if (!why && (why = check(problem, &libraries[i]))) status = i ? "wrong" : "error";
    if (why) {
      fprintf(out, "\"status\": \"%s\", \"why\": \"%s", status, i ? "" : "the rule's library: ");
      for (int c = 0; why[c] && c < 160; ++c) fputc(why[c] < ' ' || strchr("\"\\", why[c]) ? '.' : why[c], out);
      fputs("\"", out);
      return;
    }
  }
  const char *why = measure(problem, libraries, rounds, us);
  if (why)
    fprintf(out, "\"status\": \"error\", \"why\": \"%s\"", why);
  else
    fprintf(out, "\"status\": \"ok\", \"us\": %.4f, \"rule_us\": %.4f", us[1], us[0]);
}

// What the candidate's process wrote, or what became of it.
static void await(pid_t child, int from, double limit, FILE *out) {
  char text[1024];
  size_t used = 0;
  double end = now() + limit;
  int late = 0, status = 0;
  while (used < sizeof text - 1) {
    struct pollfd ready = {from, POLLIN, 0};
    double left = end - now();
    int code = poll(&ready, 1, left > 0 ? (int)(1e3 * left) + 1 : 0);
    if (code < 0 && errno == EINTR) continue;
    if (code <= 0) {
      late = 1;
      break;
    }
    ssize_t got = read(from, text + used, sizeof text - 1 - used);
    if (got <= 0) break;
    used += (size_t)got;
  }
  text[used] = 0;
  kill(child, SIGKILL);
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
  if (late)
    fprintf(out, "\"status\": \"timeout\", \"why\": \"no answer within %.0f s\"", limit);
  else if (used && text[used - 1] == '\n')
    fwrite(text, 1, used - 1, out);
  else if (WIFSIGNALED(status))
    fprintf(out, "\"status\": \"crash\", \"why\": \"signal %d\"", WTERMSIG(status));
  else
    fprintf(out, "\"status\": \"crash\", \"why\": \"ended with status %d\"", WEXITSTATUS(status));
}

static void candidate(const Problem *problem, const char *paths[2], int rounds, int threads, double limit,
                      FILE *out) {
  int ends[2];
  fflush(NULL);
  pid_t child = pipe(ends) ? -1 : fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(ends[0]);
    FILE *answer = fdopen(ends[1], "w");
    if (!answer) _exit(3);
    try_candidate(problem, paths, rounds, threads, answer);
    fputs("\n", answer);
    fflush(answer);
    _exit(0);
  }
  if (child < 0) {
    fputs("\"status\": \"error\", \"why\": \"no process\"", out);
    return;
  }
  close(ends[1]);
  await(child, ends[0], limit, out);
  close(ends[0]);
}

// ---- the whole run

static void tell_machine(FILE *out) {
  struct utsname names;
  FILE *file = fopen("/proc/cpuinfo", "rb");
  fprintf(out, "{\"machine\": \"%s\", \"cpuinfo\": \"", uname(&names) ? "" : names.machine);
  for (int i = 0, c; file && i < CPUINFO && (c = fgetc(file)) != EOF; ++i) {
    if (c == '\n')
      fputs("\\n", out);
    else if (c == '\t')
      fputs(" ", out);
    else if (c >= ' ' && c < 127 && c != '"' && c != '\\')
      fputc(c, out);
  }
  if (file) fclose(file);
  fputs("\"}\n", out);
}

static int refuse(FILE *out, const char *what, const char *why) {
  fprintf(out, "{\"failure\": \"%s: %s\"}\n", what, why);
  fflush(out);
  return 1;
}

static int run_all(const char *folder, int count, char **words, FILE *out) {
  static Problem problem;
  char paths[2][4096];
  const char *both[2] = {paths[0], paths[1]};
  if (count < 6) return refuse(out, "usage", "PROBLEM ROUNDS THREADS SECONDS RULE CANDIDATE...");
  int rounds = atoi(words[1]), threads = atoi(words[2]);
  double limit = atof(words[3]);
  if (rounds < 1 || rounds > 65536 || threads < 1 || threads > MAX_THREADS || !(limit > 0) || limit > 1e6)
    return refuse(out, "usage", "rounds, threads and seconds must be at least 1");
  size_t size = 0;
  snprintf(paths[0], sizeof paths[0], "%s/%s", folder, words[0]);
  uint8_t *data = whole_file(paths[0], &size);
  const char *why = data ? parse(&problem, data, size) : "cannot be read";
  if (!why) why = bind(&problem);
  if (why) return refuse(out, "the problem file", why);
#if defined(__x86_64__)
  syscall(158, 0x1023, 18); // arch_prctl: AMX's registers, where there are any
#endif
  tell_machine(out);
  snprintf(paths[0], sizeof paths[0], "%s/%s", folder, words[4]);
  for (int i = 5; i < count; ++i) {
    snprintf(paths[1], sizeof paths[1], "%s/%s", folder, words[i]);
    fprintf(out, "{\"library\": \"%s\", ", words[i]);
    candidate(&problem, both, rounds, threads, limit, out);
    fputs("}\n", out);
    fflush(out);
  }
  return 0;
}

int main(int count, char **words) { return run_all(".", count - 1, words + 1, stdout); }

// What an RPC server calls, in the packed convention: no arguments, no result.
__attribute__((visibility("default"))) int __tvm_ffi_tvmq_measure(void *self, const Any *arguments,
                                                                  int32_t arity, Any *result) {
  (void)self, (void)arguments, (void)arity, (void)result;
  Dl_info own;
  char folder[4000], path[4096], *words[WORDS];
  int count = 0;
  size_t size = 0;
  if (!dladdr((void *)__tvm_ffi_tvmq_measure, &own) || !own.dli_fname) return 0;
  snprintf(folder, sizeof folder, "%s", own.dli_fname);
  char *slash = strrchr(folder, '/');
  if (!slash) return 0;
  *slash = 0;
  snprintf(path, sizeof path, "%s/request", folder);
  char *request = (char *)whole_file(path, &size);
  snprintf(path, sizeof path, "%s/answer", folder);
  FILE *out = fopen(path, "w");
  if (!request || !out) return 0;
  request[size - 1] = 0; // its last newline
  for (char *word = strtok(request, "\n"); word && count < WORDS; word = strtok(NULL, "\n")) words[count++] = word;
  run_all(folder, count, words, out);
  fclose(out);
  free(request);
  return 0;
}
