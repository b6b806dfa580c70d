/* SPDX-License-Identifier: Apache-2.0
 * Other architectures: only levels without requirements run. */
#if !defined(__x86_64__) && !defined(__aarch64__)
#include "common.h"

bool cpu_has(const char *feature) {
    (void)feature;
    return false;
}

bool cpu_sha256_blocks(uint32_t state[8], const uint8_t *data, size_t blocks) {
    (void)state, (void)data, (void)blocks;
    return false;
}
#endif
