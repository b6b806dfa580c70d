/* SPDX-License-Identifier: Apache-2.0
 *
 * Translates token ids: one sentence a line on standard input, its ids separated by spaces, the end token
 * included. Writes the ids of each translation, as soon as they are known.
 *
 *     cc example.c -I en-de.tvmq/include -L en-de.tvmq/lib -ltvmq -Wl,-rpath,$PWD/en-de.tvmq/lib -o example
 *     ./example en-de.tvmq [threads [beams [longest output]]] < ids.txt
 */
#include <stdio.h>
#include <stdlib.h>

#include "tvmq.h"

enum { LONGEST = 4096 };

static int print_token(void *user, size_t sentence, int32_t id) {
    (void)user, (void)sentence;
    printf("%d ", id);
    return fflush(stdout); /* nonzero, when nobody reads any more, stops the translation */
}

/* The ids of one line, or -1 at the end of the input. */
static int read_ids(int32_t *ids) {
    int count = 0, c;
    long id;
    while ((c = getchar()) == ' ') continue;
    for (; c != '\n' && c != EOF; c = getchar()) {
        ungetc(c, stdin);
        if (count == LONGEST || scanf("%ld", &id) != 1) {
            fprintf(stderr, "error: expected at most %d numbers a line\n", LONGEST);
            exit(3);
        }
        ids[count++] = (int32_t)id;
        while ((c = getchar()) == ' ') continue;
        ungetc(c, stdin);
    }
    return c == EOF && !count ? -1 : count;
}

int main(int argc, char **argv) {
    char message[512];
    int32_t ids[LONGEST];
    tvmq_model *model;
    tvmq_session *session;
    if (argc < 2) {
        fprintf(stderr, "usage: %s ARTIFACT [THREADS [BEAMS [LONGEST]]] < ids\n", argv[0]);
        return 2;
    }
    int code = tvmq_load(argv[1], NULL, &model, message, sizeof message);
    if (code) {
        fprintf(stderr, "error: %s\n", message);
        return code;
    }
    code = tvmq_open(model, argc > 2 ? atoi(argv[2]) : 1, &session);
    if (!code && argc > 3) code = tvmq_set(session, "beams", atof(argv[3]));
    if (!code && argc > 4) code = tvmq_set(session, "max_new_tokens", atof(argv[4]));
    if (!code) tvmq_stream(session, print_token, NULL);
    for (int count; !code && (count = read_ids(ids)) >= 0;) {
        size_t length = (size_t)count;
        if (length) code = tvmq_translate(session, ids, &length, 1);
        puts("");
        fflush(stdout);
    }
    if (code) fprintf(stderr, "error: %s\n", tvmq_message(session));
    tvmq_close(session);
    tvmq_unload(model);
    return code;
}
