/* SPDX-License-Identifier: Apache-2.0
 * arm64: features from the kernel's hardware capabilities, by their /proc/cpuinfo names; SHA-256 by its
 * instructions. The only file with intrinsics of this architecture. */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <string.h>
#include <sys/auxv.h>

#include "common.h"

static const struct {
    const char *name;
    int word, bit;
} FEATURES[] = {
    {"fp", 0, 0}, {"asimd", 0, 1}, {"aes", 0, 3}, {"pmull", 0, 4}, {"sha1", 0, 5}, {"sha2", 0, 6},
    {"crc32", 0, 7}, {"atomics", 0, 8}, {"fphp", 0, 9}, {"asimdhp", 0, 10}, {"cpuid", 0, 11},
    {"asimdrdm", 0, 12}, {"jscvt", 0, 13}, {"fcma", 0, 14}, {"lrcpc", 0, 15}, {"dcpop", 0, 16},
    {"sha3", 0, 17}, {"sm3", 0, 18}, {"sm4", 0, 19}, {"asimddp", 0, 20}, {"sha512", 0, 21}, {"sve", 0, 22},
    {"asimdfhm", 0, 23}, {"sve2", 1, 1}, {"svei8mm", 1, 9}, {"i8mm", 1, 13}, {"bf16", 1, 14},
};

bool cpu_has(const char *feature) {
    for (size_t i = 0; i < sizeof FEATURES / sizeof *FEATURES; i++)
        if (!strcmp(FEATURES[i].name, feature))
            return getauxval(FEATURES[i].word ? AT_HWCAP2 : AT_HWCAP) >> FEATURES[i].bit & 1;
    return false;
}

__attribute__((target("+crypto"))) static void sha_blocks(uint32_t state[8], const uint8_t *data, size_t blocks) {
    uint32x4_t abcd = vld1q_u32(state), efgh = vld1q_u32(state + 4);
    for (; blocks; blocks--, data += 64) {
        const uint32x4_t first = abcd, second = efgh;
        uint32x4_t w[4];
        for (int i = 0; i < 4; i++) w[i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(data + 16 * i)));
#pragma GCC unroll 16 /* the four w then live in registers */
        for (int i = 0; i < 16; i++) {
            const uint32x4_t k = vaddq_u32(w[i & 3], vld1q_u32(SHA256_K + 4 * i)), before = abcd;
            const uint32x4_t sum = vsha256su0q_u32(w[i & 3], w[(i + 1) & 3]);
            abcd = vsha256hq_u32(abcd, efgh, k);
            efgh = vsha256h2q_u32(efgh, before, k);
            w[i & 3] = vsha256su1q_u32(sum, w[(i + 2) & 3], w[(i + 3) & 3]);
        }
        abcd = vaddq_u32(abcd, first);
        efgh = vaddq_u32(efgh, second);
    }
    vst1q_u32(state, abcd);
    vst1q_u32(state + 4, efgh);
}

bool cpu_sha256_blocks(uint32_t state[8], const uint8_t *data, size_t blocks) {
    if (!cpu_has("sha2")) return false;
    sha_blocks(state, data, blocks);
    return true;
}
#endif
