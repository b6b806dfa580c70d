/* SPDX-License-Identifier: Apache-2.0
 *
 * An application that loads the runtime as Android's do, by its name, and an artifact whose kernels are installed. Prints the score and
 * the tokens of each translation:
 *
 *     LD_LIBRARY_PATH=LIBRARIES application ASSETS THREADS BEAMS < ids
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tvmq.h"

static void *runtime;

static void *found(const char *name) {
    void *function = dlsym(runtime, name);
    if (!function) puts(dlerror()), exit(1);
    return function;
}

#define FUNCTION(name) ((__typeof__(&name))(uintptr_t)found(#name))

int main(int argc, char **argv) {
    char message[512], line[4096];
    tvmq_model *model;
    tvmq_session *session;
    runtime = dlopen("libtvmq.so", RTLD_NOW | RTLD_DEEPBIND);
    if (!runtime || argc < 4) return puts(runtime ? "usage" : dlerror()), 1;
    int code = FUNCTION(tvmq_load_installed)(argv[1], NULL, &model, message, sizeof message);
    if (code) return puts(message), code;
    code = FUNCTION(tvmq_open)(model, atoi(argv[2]), &session);
    if (!code) code = FUNCTION(tvmq_set)(session, "beams", atof(argv[3]));
    while (!code && fgets(line, sizeof line, stdin)) {
        int32_t ids[256];
        const int32_t *tokens;
        size_t count = 0;
        float score;
        for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) ids[count++] = atoi(word);
        code = FUNCTION(tvmq_translate)(session, ids, &count, 1);
        if (code) break;
        count = FUNCTION(tvmq_result)(session, 0, 0, &tokens, &score);
        printf("%a", (double)score);
        for (size_t i = 0; i < count; i++) printf(" %d", tokens[i]);
        puts("");
    }
    if (code) puts(FUNCTION(tvmq_message)(session));
    FUNCTION(tvmq_close)(session);
    FUNCTION(tvmq_unload)(model);
    return code;
}
