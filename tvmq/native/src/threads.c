/* SPDX-License-Identifier: Apache-2.0 */
#include "threads.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { SPINS = 4000, SPINS_BEFORE_YIELD = 1000 };

struct Threads {
    int count, started;
    /* the running loop; written before generation, read after it */
    ParallelTask task;
    void *closure;
    ParallelGroup group;
    atomic_uint generation;
    atomic_int left, failed, sleeping, stop;
    /* where threads run: changed by the caller between loops, followed by each thread when the next one starts */
    Pin pin;
    cpu_set_t allowed, cores; /* those that the caller may use, and the fast ones of them or all */
    bool fast, moved;
    int placement;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t workers[MAX_THREADS];
};

typedef struct {
    Threads *threads;
    int number;
} Worker;

/* The threads that parallel loops of the calling thread use: the kernels' calling convention has no place for it. */
#if defined(__ANDROID__) /* whose loader knows thread-local variables from API level 29 on */
static pthread_once_t key_made = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static bool has_key; /* without one every loop runs on its caller alone */

static void make_key(void) { has_key = !pthread_key_create(&key, NULL); }

static Threads *current_threads(void) {
    pthread_once(&key_made, make_key);
    return has_key ? pthread_getspecific(key) : NULL;
}

static void set_current(Threads *threads) {
    pthread_once(&key_made, make_key);
    if (has_key) pthread_setspecific(key, threads);
}
#else
static _Thread_local Threads *current;

static Threads *current_threads(void) { return current; }

static void set_current(Threads *threads) { current = threads; }
#endif

static void relax(void) {
#if defined(__x86_64__)
    __asm__ volatile("pause");
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Waits for a loop after the seen one: awake for as long as the next kernel usually takes to come. */
static unsigned next_generation(Threads *t, unsigned seen) {
    for (int i = 0; i < SPINS; i++) {
        unsigned now = atomic_load(&t->generation);
        if (now != seen) return now;
        relax();
    }
    pthread_mutex_lock(&t->lock);
    atomic_fetch_add(&t->sleeping, 1);
    unsigned now;
    while ((now = atomic_load(&t->generation)) == seen) pthread_cond_wait(&t->wake, &t->lock);
    atomic_fetch_sub(&t->sleeping, 1);
    pthread_mutex_unlock(&t->lock);
    return now;
}

static void start_generation(Threads *t) {
    atomic_fetch_add(&t->generation, 1);
    if (atomic_load(&t->sleeping)) {
        pthread_mutex_lock(&t->lock);
        pthread_cond_broadcast(&t->wake);
        pthread_mutex_unlock(&t->lock);
    }
}

/* Moves the calling thread to its place; whether it has one. */
static bool move(const Threads *t, int number) {
    cpu_set_t chosen;
    return cores_for(t->pin, t->fast, &t->cores, number, t->count, &chosen) &&
           !sched_setaffinity(0, sizeof chosen, &chosen);
}

static void *work(void *argument) {
    Worker worker = *(Worker *)argument;
    Threads *t = worker.threads;
    int placement = 0;
    free(argument);
    for (unsigned seen = 0;;) {
        seen = next_generation(t, seen);
        if (atomic_load(&t->stop)) return NULL;
        if (placement != t->placement) {
            placement = t->placement;
            if (!move(t, worker.number)) sched_setaffinity(0, sizeof t->allowed, &t->allowed);
        }
        if (t->task(worker.number, &t->group, t->closure)) atomic_store(&t->failed, 1);
        atomic_fetch_sub(&t->left, 1);
    }
}

Threads *threads_new(int count) {
    Threads *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    t->count = count;
    t->group.count = count;
    t->pin = PIN_BIG;
    if (pthread_mutex_init(&t->lock, NULL)) return free(t), NULL;
    if (pthread_cond_init(&t->wake, NULL)) return pthread_mutex_destroy(&t->lock), free(t), NULL;
    for (int i = 1; i < count; i++) {
        Worker *worker = malloc(sizeof *worker);
        if (worker) *worker = (Worker){t, i};
        if (!worker || pthread_create(&t->workers[i], NULL, work, worker)) {
            free(worker);
            threads_free(t);
            return NULL;
        }
        t->started = i;
    }
    return t;
}

void threads_free(Threads *t) {
    if (!t) return;
    atomic_store(&t->stop, 1);
    start_generation(t);
    for (int i = 1; i <= t->started; i++) pthread_join(t->workers[i], NULL);
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

void threads_pin(Threads *t, Pin pin) {
    t->pin = pin;
    CPU_ZERO(&t->allowed); /* so that the threads are placed anew */
}

/* Cores do not change, but those that the caller may use do. */
static void place(Threads *t) {
    cpu_set_t allowed;
    t->moved = false;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
    if (!CPU_EQUAL(&allowed, &t->allowed)) {
        t->allowed = allowed;
        t->fast = cores_big("/sys", &allowed, &t->cores);
        if (!t->fast) t->cores = allowed;
        t->placement++;
    }
    t->moved = move(t, 0);
}

void threads_use(Threads *threads) {
    const Threads *before = current_threads();
    if (threads)
        place(threads);
    else if (before && before->moved)
        sched_setaffinity(0, sizeof before->allowed, &before->allowed);
    set_current(threads);
}

int threads_launch(ParallelTask task, void *closure, int wanted) {
    Threads *t = current_threads();
    (void)wanted; /* a hint: the loop is cut into as many parts as the group has */
    if (!t || t->count == 1) {
        ParallelGroup alone = {NULL, 1};
        return task(0, &alone, closure);
    }
    t->task = task;
    t->closure = closure;
    atomic_store(&t->failed, 0);
    atomic_store(&t->left, t->count - 1);
    start_generation(t);
    int code = task(0, &t->group, closure);
    for (int i = 0; atomic_load(&t->left); i++) {
        if (i < SPINS_BEFORE_YIELD)
            relax();
        else
            sched_yield();
    }
    return code || atomic_load(&t->failed) ? -1 : 0;
}
