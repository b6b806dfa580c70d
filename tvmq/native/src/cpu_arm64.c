/* SPDX-License-Identifier: Apache-2.0
 * arm64: features from the kernel's hardware capabilities, by their /proc/cpuinfo names. */
#if defined(__aarch64__)
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

bool cpu_sha256_blocks(uint32_t state[8], const uint8_t *data, size_t blocks) {
    (void)state, (void)data, (void)blocks;
    return false;
}
#endif
