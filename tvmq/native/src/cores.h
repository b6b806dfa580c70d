/* SPDX-License-Identifier: Apache-2.0
 * Which cores threads are worth running on, where a machine has fast and slow ones. Include it first. */
#ifndef TVMQ_CORES_H
#define TVMQ_CORES_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sched.h>
#include <stdbool.h>

/* PIN_BIG: where some cores are slower, only on the fast ones. PIN_EACH: each thread on a core of its own too. */
typedef enum { PIN_NEVER, PIN_BIG, PIN_EACH } Pin;

/* The fast ones of the allowed cores; false where all are alike or the system does not tell. sysfs: "/sys". */
bool cores_big(const char *sysfs, const cpu_set_t *allowed, cpu_set_t *big);
/* Where thread number of count may run: one of the fast cores, or of all where none is fast; false: leave it alone.
 * fast: whether cores are fast ones of several kinds. */
bool cores_for(Pin pin, bool fast, const cpu_set_t *cores, int number, int count, cpu_set_t *chosen);

#endif
