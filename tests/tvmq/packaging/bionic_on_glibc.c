/* SPDX-License-Identifier: Apache-2.0
 *
 * Android's libc.so for a program on glibc, as far as the runtime goes: what differs between the two is translated, and
 * everything else is found in glibc behind it. Mutexes and conditions have bionic's sizes, all of whose bytes are
 * written, as bionic may.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef union {
    int32_t bytes[10];
    pthread_mutex_t *real;
} Mutex;

typedef union {
    int32_t bytes[12];
    pthread_cond_t *real;
} Condition;

_Static_assert(sizeof(Mutex) == 40 && sizeof(Condition) == 48, "the sizes that bionic has");

static int call(const char *name, void *first, void *second) {
    void *library = dlopen("libc.so.6", RTLD_NOW);
    int (*function)(void *, void *) = (int (*)(void *, void *))(uintptr_t)dlsym(library, name);
    return function(first, second);
}

int *__errno(void) { return __errno_location(); }

int tvmq_mutex_init(Mutex *mutex, const void *attributes) __asm__("pthread_mutex_init");
int tvmq_mutex_lock(Mutex *mutex) __asm__("pthread_mutex_lock");
int tvmq_mutex_unlock(Mutex *mutex) __asm__("pthread_mutex_unlock");
int tvmq_mutex_destroy(Mutex *mutex) __asm__("pthread_mutex_destroy");
int tvmq_cond_init(Condition *condition, const void *attributes) __asm__("pthread_cond_init");
int tvmq_cond_wait(Condition *condition, Mutex *mutex) __asm__("pthread_cond_wait");
int tvmq_cond_broadcast(Condition *condition) __asm__("pthread_cond_broadcast");
int tvmq_cond_destroy(Condition *condition) __asm__("pthread_cond_destroy");

int tvmq_mutex_init(Mutex *mutex, const void *attributes) {
    (void)attributes;
    memset(mutex, 0x5a, sizeof *mutex);
    mutex->real = malloc(sizeof *mutex->real);
    return call("pthread_mutex_init", mutex->real, NULL);
}

int tvmq_mutex_lock(Mutex *mutex) { return call("pthread_mutex_lock", mutex->real, NULL); }

int tvmq_mutex_unlock(Mutex *mutex) { return call("pthread_mutex_unlock", mutex->real, NULL); }

int tvmq_mutex_destroy(Mutex *mutex) {
    for (int i = 2; i < 10; i++)
        if (mutex->bytes[i] != 0x5a5a5a5a) abort(); /* something else lies in its memory */
    free(mutex->real);
    return 0;
}

int tvmq_cond_init(Condition *condition, const void *attributes) {
    (void)attributes;
    memset(condition, 0x5a, sizeof *condition);
    condition->real = malloc(sizeof *condition->real);
    return call("pthread_cond_init", condition->real, NULL);
}

int tvmq_cond_wait(Condition *condition, Mutex *mutex) {
    return call("pthread_cond_wait", condition->real, mutex->real);
}

int tvmq_cond_broadcast(Condition *condition) { return call("pthread_cond_broadcast", condition->real, NULL); }

int tvmq_cond_destroy(Condition *condition) {
    for (int i = 2; i < 12; i++)
        if (condition->bytes[i] != 0x5a5a5a5a) abort();
    free(condition->real);
    return 0;
}
