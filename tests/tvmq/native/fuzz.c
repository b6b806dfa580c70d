/* SPDX-License-Identifier: Apache-2.0
 * libFuzzer: an artifact whose files hold anything, with right hashes. The first byte of an input picks the file, the
 * rest is its contents (of the weights: what stands before the tensors' data). Kernels are stand-ins that do nothing:
 * code and the program that calls it are believed when their hashes are right, so real ones could not be fuzzed.
 *
 * TVMQ_FUZZ_ARTIFACT names the artifact to start from, TVMQ_FUZZ_FOLDER an empty folder, best in memory. Linked with
 * all of the runtime but kernels.c. With `corpus FOLDER` as its arguments it writes the files to start from instead. */
#include "seal.h"

#include "model.h"

static const char *const FILES[] = {"manifest.json", NULL /* the program */, "selftest.json", "weights.safetensors"};
enum { KINDS = 4, PROGRAM = 1, WEIGHTS = 3 };

static char program[300];
static const char *folder;
static Bytes whole[KINDS];
static size_t head; /* bytes of the weights before their data */

static const char *file_name(int kind) { return kind == PROGRAM ? program : FILES[kind]; }

static int idle(void *self, const Argument *arguments, int32_t count, Argument *result) {
    (void)self, (void)arguments, (void)count, (void)result;
    return 0;
}

int kernels_load(tvmq_model *model, const char *name, const File *library, Error *error) {
    (void)name, (void)library, (void)error;
    model->kernels = calloc(model->program.kernel_count + 1, sizeof *model->kernels);
    for (size_t i = 0; model->kernels && i < model->program.kernel_count; i++) model->kernels[i] = idle;
    return 0;
}

void kernels_free(tvmq_model *model) {
    free(model->kernels);
    if (model->library_file >= 0) close(model->library_file);
}

/* Copies the artifact: all that the runtime looks at, and empty self-test input, which passes without kernels. */
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    const char *source = getenv("TVMQ_FUZZ_ARTIFACT");
    char command[9000];
    Error error = {0};
    Json json;
    folder = getenv("TVMQ_FUZZ_FOLDER");
    if (!source || !folder) fprintf(stderr, "set TVMQ_FUZZ_ARTIFACT and TVMQ_FUZZ_FOLDER\n"), exit(2);
    snprintf(command, sizeof command, "cp -r '%s/.' '%s'", source, folder);
    if (system(command)) exit(2);
    whole[0] = bytes_read(folder, FILES[0]);
    if (json_parse(&json, whole[0].data, whole[0].size, FILES[0], &error)) exit(2);
    const JsonNode *level = json_first(&json, json_get(&json, json.nodes, "isa_levels"));
    snprintf(program, sizeof program, "%s", json_text(json_get(&json, level, "program")));
    json_free(&json);
    for (int kind = 1; kind < KINDS; kind++) whole[kind] = bytes_read(folder, file_name(kind));
    for (int i = 7; i >= 0; i--) head = head << 8 | whole[WEIGHTS].data[i];
    head += 8;
    const char *empty = "{\"source\": [], \"ids\": [], \"logp\": []}\n";
    const Bytes answer = bytes_copy((const uint8_t *)empty, strlen(empty)), listed = seal_entry(whole[0], FILES[2], answer);
    bytes_write(folder, FILES[2], answer);
    free(whole[0].data), free(whole[2].data);
    whole[0] = seal_digest(listed), whole[2] = answer;
    free(listed.data);
    if (*argc == 3 && !strcmp((*argv)[1], "corpus")) {
        for (int kind = 0; kind < KINDS; kind++) {
            char name[16];
            const size_t size = kind == WEIGHTS ? head : whole[kind].size;
            Bytes input = {malloc(size + 1), size + 1};
            input.data[0] = (uint8_t)kind;
            memcpy(input.data + 1, whole[kind].data, size);
            snprintf(name, sizeof name, "%d", kind);
            bytes_write((*argv)[2], name, input);
        }
        _exit(0); /* what it holds is no leak */
    }
    return 0;
}

static void use(tvmq_model *model) {
    static const int32_t ids[] = {5, 0};
    static const size_t length = 2;
    tvmq_session *session;
    if (!tvmq_open(model, 1, &session)) {
        tvmq_set(session, "beams", 2);
        tvmq_set(session, "max_new_tokens", 3);
        if (strcmp(tvmq_info(model, "task"), "translate"))
            tvmq_classify(session, ids, NULL, &length, 1);
        else
            tvmq_translate(session, ids, &length, 1);
        tvmq_result(session, 0, 0, NULL, NULL);
    }
    tvmq_close(session);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tvmq_model *model;
    char message[512];
    static int last = -1;
    if (!size) return 0;
    const int kind = data[0] % KINDS;
    const bool weights = kind == WEIGHTS;
    const size_t rest = weights ? whole[kind].size - head : 0;
    Bytes contents = {malloc(size + rest), size - 1 + rest};
    memcpy(contents.data, data + 1, size - 1);
    if (weights) memcpy(contents.data + size - 1, whole[kind].data + head, rest);
    if (last > 0 && last != kind) bytes_write(folder, file_name(last), whole[last]);
    seal(folder, whole[0], file_name(kind), contents);
    last = kind;
    const int code = tvmq_load(folder, NULL, &model, message, sizeof message);
    if (code && !message[0]) abort(); /* refused without a sentence */
    if (!code) use(model);
    tvmq_unload(model);
    free(contents.data);
    return 0;
}
