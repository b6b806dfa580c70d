/* SPDX-License-Identifier: Apache-2.0
 * x86-64: features by cpuid and xgetbv, AMX's registers from the system, SHA-256 by its instructions.
 * The only file with intrinsics of this architecture. */
#if defined(__x86_64__)
#define _GNU_SOURCE
#include <cpuid.h>
#include <immintrin.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common.h"

enum { STATE_AVX = 1, STATE_AVX512 = 2, STATE_TILES = 4 };

static const struct {
    const char *name;
    uint32_t leaf;
    uint8_t place, bit; /* place: 0 to 3 are eax, ebx, ecx, edx */
    uint8_t state;
} FEATURES[] = {
    {"cx16", 1, 2, 13, 0}, {"popcnt", 1, 2, 23, 0}, {"sse3", 1, 2, 0, 0}, {"ssse3", 1, 2, 9, 0},
    {"sse4_1", 1, 2, 19, 0}, {"sse4_2", 1, 2, 20, 0}, {"movbe", 1, 2, 22, 0}, {"xsave", 1, 2, 27, 0},
    {"lahf_lm", 0x80000001, 2, 0, 0}, {"abm", 0x80000001, 2, 5, 0}, {"bmi1", 7, 1, 3, 0}, {"bmi2", 7, 1, 8, 0},
    {"sha_ni", 7, 1, 29, 0}, {"avx", 1, 2, 28, STATE_AVX}, {"f16c", 1, 2, 29, STATE_AVX},
    {"fma", 1, 2, 12, STATE_AVX}, {"avx2", 7, 1, 5, STATE_AVX}, {"avx512f", 7, 1, 16, STATE_AVX512},
    {"avx512dq", 7, 1, 17, STATE_AVX512}, {"avx512cd", 7, 1, 28, STATE_AVX512},
    {"avx512bw", 7, 1, 30, STATE_AVX512}, {"avx512vl", 7, 1, 31, STATE_AVX512},
    {"avx512vbmi", 7, 2, 1, STATE_AVX512}, {"avx512_vbmi2", 7, 2, 6, STATE_AVX512},
    {"avx512_vnni", 7, 2, 11, STATE_AVX512}, {"amx_tile", 7, 3, 24, STATE_TILES},
    {"amx_int8", 7, 3, 25, STATE_TILES}, {"amx_bf16", 7, 3, 22, STATE_TILES},
};

/* Which registers the operating system saves, and so allows. */
static unsigned states(void) {
    uint32_t a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    unsigned found = (low & 6) == 6 ? STATE_AVX : 0;
    if ((low & 0xe6) == 0xe6) found |= STATE_AVX512;
    if ((low & 0x60000) == 0x60000) found |= STATE_TILES;
    return found;
}

/* Linux keeps AMX's tiles from a process until it asks; the permission is for the whole process. */
static bool tiles_granted(void) {
#ifdef SYS_arch_prctl
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0;
#else
    return false;
#endif
}

bool cpu_has(const char *feature) {
    for (size_t i = 0; i < sizeof FEATURES / sizeof *FEATURES; i++) {
        if (strcmp(FEATURES[i].name, feature)) continue;
        uint32_t r[4];
        if (!__get_cpuid_count(FEATURES[i].leaf, 0, &r[0], &r[1], &r[2], &r[3])) return false;
        if (!(r[FEATURES[i].place] >> FEATURES[i].bit & 1)) return false;
        unsigned needed = FEATURES[i].state;
        return (states() & needed) == needed && (needed != STATE_TILES || tiles_granted());
    }
    return false;
}

__attribute__((target("sha,sse4.1"))) static void sha_blocks(uint32_t state[8], const uint8_t *data,
                                                             size_t blocks) {
    const __m128i order = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    /* the instructions want (a b e f) and (c d g h), highest first */
    __m128i dcba = _mm_loadu_si128((const __m128i *)state), hgfe = _mm_loadu_si128((const __m128i *)(state + 4));
    __m128i cdab = _mm_shuffle_epi32(dcba, 0xb1), efgh = _mm_shuffle_epi32(hgfe, 0x1b);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
    for (; blocks; blocks--, data += 64) {
        __m128i first = abef, second = cdgh, w[4];
        for (int i = 0; i < 4; i++)
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(data + 16 * i)), order);
#pragma GCC unroll 16 /* the four w then live in registers */
        for (int i = 0; i < 16; i++) {
            __m128i k = _mm_add_epi32(w[i & 3], _mm_loadu_si128((const __m128i *)(SHA256_K + 4 * i)));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, k);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(k, 0x0e));
            __m128i seventh = _mm_alignr_epi8(w[(i + 3) & 3], w[(i + 2) & 3], 4);
            __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(w[i & 3], w[(i + 1) & 3]), seventh);
            w[i & 3] = _mm_sha256msg2_epu32(sum, w[(i + 3) & 3]);
        }
        abef = _mm_add_epi32(abef, first);
        cdgh = _mm_add_epi32(cdgh, second);
    }
    __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128((__m128i *)state, _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128((__m128i *)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

bool cpu_sha256_blocks(uint32_t state[8], const uint8_t *data, size_t blocks) {
    if (!cpu_has("sha_ni") || !cpu_has("sse4_1")) return false;
    sha_blocks(state, data, blocks);
    return true;
}
#endif
