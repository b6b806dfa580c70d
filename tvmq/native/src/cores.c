/* SPDX-License-Identifier: Apache-2.0 */
#include "cores.h"

#include <stdio.h>
#include <string.h>

/* What Linux tells of a core: its capacity (of 1024) where it knows it, else its highest clock rate in kHz. Cores of
 * one kind differ little in them; a slow kind has at most these tenths of the fastest. */
static const struct {
    const char *file;
    int tenths;
} MEASURES[] = {{"cpu_capacity", 6}, {"cpufreq/cpuinfo_max_freq", 8}};

static long read_number(const char *sysfs, int core, const char *file) {
    char path[512];
    long value = 0;
    snprintf(path, sizeof path, "%s/devices/system/cpu/cpu%d/%s", sysfs, core, file);
    FILE *stream = fopen(path, "re");
    if (!stream) return 0;
    if (fscanf(stream, "%ld", &value) != 1 || value < 0) value = 0;
    fclose(stream);
    return value;
}

bool cores_big(const char *sysfs, const cpu_set_t *allowed, cpu_set_t *big) {
    for (size_t m = 0; m < sizeof MEASURES / sizeof *MEASURES; m++) {
        long values[CPU_SETSIZE] = {0}, largest = 0;
        bool known = true;
        for (int core = 0; core < CPU_SETSIZE && known; core++) {
            if (!CPU_ISSET(core, allowed)) continue;
            values[core] = read_number(sysfs, core, MEASURES[m].file);
            known = values[core] > 0;
            if (values[core] > largest) largest = values[core];
        }
        if (!known) continue;
        CPU_ZERO(big);
        for (int core = 0; core < CPU_SETSIZE; core++)
            if (values[core] && (double)values[core] * 10 > (double)largest * MEASURES[m].tenths) CPU_SET(core, big);
        return !CPU_EQUAL(big, allowed);
    }
    return false;
}

bool cores_for(Pin pin, bool fast, const cpu_set_t *cores, int number, int count, cpu_set_t *chosen) {
    *chosen = *cores;
    if (count > CPU_COUNT(cores)) return false; /* two threads on a fast core are slower than one on a slow core */
    if (pin != PIN_EACH) return pin == PIN_BIG && fast;
    for (int core = 0, left = number; core < CPU_SETSIZE; core++) {
        if (!CPU_ISSET(core, cores) || left--) continue;
        CPU_ZERO(chosen);
        CPU_SET(core, chosen);
        break;
    }
    return true;
}
