/* SPDX-License-Identifier: Apache-2.0
 *
 * tvmq.h: run an artifact of `tvmq compile` without Python and without TVM.
 *
 *     tvmq_model *model;
 *     tvmq_session *session;
 *     char message[256];
 *     if (tvmq_load("en-de.tvmq", NULL, &model, message, sizeof message)) { puts(message); return 1; }
 *     if (tvmq_open(model, 1, &session)) { ... }
 *     if (tvmq_translate(session, ids, &length, 1)) { puts(tvmq_message(session)); ... }
 *     count = tvmq_result(session, 0, 0, &tokens, &score);
 *     tvmq_close(session);
 *     tvmq_unload(model);
 *
 * Token ids go in and come out; the tokenizer is the application's (the artifact's tokenizer/ folder holds
 * its files). A model may be used by many threads at once, a session by one. Sessions share the model's
 * mapped weights. There is no global state. Every function that can fail returns 0 or one of the codes below
 * and leaves a sentence that says why.
 *
 * Link with -ltvmq from the artifact's lib folder; at run time only libc and libm are needed.
 */
#ifndef TVMQ_H
#define TVMQ_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TVMQ_ABI_VERSION 1

enum {
    TVMQ_OK = 0,
    TVMQ_USAGE = 2,        /* an option or argument that makes no sense */
    TVMQ_INPUT = 3,        /* no artifact, or an input that the model cannot take */
    TVMQ_RESOURCE = 4,     /* no memory, no threads, a file that cannot be mapped */
    TVMQ_VERIFICATION = 5, /* a file is damaged, was changed, or is of another version */
    TVMQ_CANCELLED = 6     /* tvmq_cancel was called, or the callback asked to stop */
};

typedef struct tvmq_model tvmq_model;     /* a verified artifact: weights, kernels, self-test passed */
typedef struct tvmq_session tvmq_session; /* buffers, threads and results of one caller */

/* The version of this interface that the library implements; compare it with TVMQ_ABI_VERSION. */
uint32_t tvmq_abi_version(void);

/* Opens an artifact folder: checks the manifest, sizes and hashes, picks the best ISA level that this CPU
 * runs, maps the weights and runs the self-test.
 *
 * isa: name of an ISA level to use instead, or NULL. The environment variable TVMQ_ISA is used when isa is
 *      NULL.
 * message: receives the sentence of an error, or "" (at most size bytes with the ending zero); may be NULL.
 */
int tvmq_load(const char *path, const char *isa, tvmq_model **model, char *message, size_t size);

/* As tvmq_load, for an artifact without its libraries: those that the manifest does not list are loaded by name
 * from where the system installs libraries of the application (Android: the APK). Their bytes are not hashed,
 * since nothing but the system reads them; the self-test is run as ever. */
int tvmq_load_installed(const char *path, const char *isa, tvmq_model **model, char *message, size_t size);

/* Gives the model back. Its memory lives until the last of its sessions is closed. NULL is allowed. */
void tvmq_unload(tvmq_model *model);

/* A fact of the manifest as text, or NULL where there is none. Keys: "isa" (the level that runs), "levels"
 * (all in the artifact, separated by spaces), "task" ("translate" or "encode"), "family", "mode", "name",
 * and "labels.N" for the classes of a classifier. Lives as long as the model. */
const char *tvmq_info(const tvmq_model *model, const char *key);

/* A number of the manifest, or otherwise where there is none. Keys: the manifest's own under "architecture"
 * and "generation", as "architecture.vocab" or "generation.eos_token_id". */
double tvmq_number(const tvmq_model *model, const char *key, double otherwise);

/* A session whose kernels run on the given number of threads (1 to 256). After an error the session, NULL where
 * there is no memory for one, is only good for tvmq_message and tvmq_close. */
int tvmq_open(tvmq_model *model, int threads, tvmq_session **session);

/* Frees a session and its results. NULL is allowed. */
void tvmq_close(tvmq_session *session);

/* The sentence of the session's last error, "" after a success. Lives until the next call. */
const char *tvmq_message(const tvmq_session *session);

/* How the session searches. Options, with the model's own defaults: "beams" (1: greedy), "length_penalty",
 * "max_new_tokens", "n_best" (1), "early_stopping" (0 or 1), "forced_length" (0: none). The options are checked
 * together by tvmq_translate.
 * And where it runs: "pin" 1 (the default): where a machine has fast and slow cores, the session's threads, and the
 * caller's while it is in here, keep to the fast ones of those that the caller may use, if they are enough; 2: each
 * thread also keeps to one core of its own, on any machine; 0: they run anywhere. */
int tvmq_set(tvmq_session *session, const char *option, double value);

/* Calls token(user, sentence, id) for every output token: while greedy search runs, or when a sentence's beam
 * search has ended. A nonzero result stops the translation. NULL: no callback. The callback may call nothing with
 * this session but tvmq_cancel. */
void tvmq_stream(tvmq_session *session, int (*token)(void *user, size_t sentence, int32_t id), void *user);

/* Translates count sentences together. ids: all their token ids, one sentence after the other, each with its
 * end token; lengths: how many of them each has (at least 1). Results do not depend on the batch. */
int tvmq_translate(tvmq_session *session, const int32_t *ids, const size_t *lengths, size_t count);

/* Translation number rank (0 is the best, n_best - 1 the last) of a sentence: the number of its tokens, which
 * tokens then points to (until the next call), and its score (length-normalised log-probability, NaN after
 * greedy search). 0 where there is none. tokens and score may be NULL. */
size_t tvmq_result(const tvmq_session *session, size_t sentence, size_t rank, const int32_t **tokens,
                   float *score);

/* Computes "embed", "classify" or "tag" of count texts together: one row for each text, or for every token
 * ("tag"). types: token types as the tokenizer gives them, or NULL for zeros. "classify" and "tag" give logits.
 */
int tvmq_encode(tvmq_session *session, const char *function, const int32_t *ids, const int32_t *types,
                const size_t *lengths, size_t count);

/* As tvmq_encode with "classify", then the scores of the labels (softmax or sigmoid, as the model has it). */
int tvmq_classify(tvmq_session *session, const int32_t *ids, const int32_t *types, const size_t *lengths,
                  size_t count);

/* The rows of the last tvmq_encode or tvmq_classify, row by row; they live until the next call. */
const float *tvmq_rows(const tvmq_session *session, size_t *rows, size_t *columns);

/* Stops the session's running call, from any thread, at its next step. */
void tvmq_cancel(tvmq_session *session);

#ifdef __cplusplus
}
#endif
#endif
