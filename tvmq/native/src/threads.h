/* SPDX-License-Identifier: Apache-2.0
 * The threads of one session, behind the kernels' parallel loops. */
#ifndef TVMQ_THREADS_H
#define TVMQ_THREADS_H

#include "cores.h"

#include "common.h"

enum { MAX_THREADS = 256 };

typedef struct Threads Threads;

typedef struct {
    void *sync_handle;
    int32_t count;
} ParallelGroup;

typedef int (*ParallelTask)(int task, ParallelGroup *group, void *closure);

/* count - 1 (up to MAX_THREADS - 1) threads beside the caller's; NULL for lack of resources. */
Threads *threads_new(int count);
void threads_free(Threads *threads);
/* Where the threads run from the next threads_use on; PIN_BIG at first. */
void threads_pin(Threads *threads, Pin pin);
/* The threads that parallel loops of the calling thread use from now on; NULL: none but itself. The caller too runs
 * where the threads do, and after NULL where it did before. */
void threads_use(Threads *threads);
/* What kernels call: runs the task once for each thread. */
int threads_launch(ParallelTask task, void *closure, int wanted);

#endif
