/* SPDX-License-Identifier: Apache-2.0
 * A plugin of qemu's user emulation: how often every translated block of instructions ran, one line a block, the
 * count and the block's bytes, into the file that its argument out=FILE names. Counts of one thread.
 *
 *     cc -shared -fPIC qemu_blocks.c -o qemu_blocks.so; qemu-aarch64 -plugin ./qemu_blocks.so,out=counts PROGRAM
 *
 * What it uses of qemu-plugin.h (version 1 of the interface) is declared here: distributions do not ship the file. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { ADD_U64 = 0 };
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, void (*made)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *block, int operation, void *count, uint64_t amount);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, void (*ended)(qemu_plugin_id_t, void *), void *user);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *instruction);

int qemu_plugin_version = 1;

enum { BYTES = 4 }; /* of an instruction of arm64 */

typedef struct Block {
    struct Block *next;
    uint64_t count;
    size_t size;
    uint8_t bytes[];
} Block;

static Block *blocks;
static char path[4096];

static void made(qemu_plugin_id_t id, struct qemu_plugin_tb *translated) {
    const size_t count = qemu_plugin_tb_n_insns(translated);
    Block *block = calloc(1, sizeof *block + count * BYTES);
    (void)id;
    if (!block) abort();
    for (size_t i = 0; i < count; i++)
        memcpy(block->bytes + i * BYTES, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(translated, i)), BYTES);
    block->size = count * BYTES;
    block->next = blocks;
    blocks = block;
    qemu_plugin_register_vcpu_tb_exec_inline(translated, ADD_U64, &block->count, 1);
}

static void ended(qemu_plugin_id_t id, void *user) {
    FILE *file = fopen(path, "w");
    (void)id, (void)user;
    for (const Block *block = blocks; file && block; block = block->next) {
        if (!block->count) continue;
        fprintf(file, "%llu ", (unsigned long long)block->count);
        for (size_t i = 0; i < block->size; i++) fprintf(file, "%02x", block->bytes[i]);
        fputc('\n', file);
    }
    if (!file || fclose(file)) abort();
}

int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv);

int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv) {
    (void)info;
    if (argc != 1 || strncmp(argv[0], "out=", 4)) return -1;
    snprintf(path, sizeof path, "%s", argv[0] + 4);
    qemu_plugin_register_vcpu_tb_trans_cb(id, made);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
